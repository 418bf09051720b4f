"""The long-range branch: Restormer's blocks, attention over channels and a gated feed-forward network.

Zamir et al., CVPR 2022 (arXiv 2111.09881). Attention needs the whole map once, for sums of products of
channels; they are taken strip by strip, so that its memory grows with the map and not with its square.
Shapes as in the package's docstring; the network has a single head.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import gelu

from restorekit.layers import ChannelNorm
from restorekit_ptgrm.guidance import pointwise
from restorekit_ptgrm.strips import Strip, Work, exact, row_bytes


class ChannelAttention(nn.Module):
    """Multi-Dconv head transposed attention, MDTA: every channel attends to every channel.

    Args:
        features: D, in and out.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(1))
        self.expand = nn.Conv2d(features, 3 * features, 1, bias=False)
        self.depthwise = nn.Conv2d(3 * features, 3 * features, 3, padding=1, groups=3 * features, bias=False)
        self.project = nn.Conv2d(features, features, 1, bias=False)

    def mixing(self, products: Tensor, squares: Tensor) -> Tensor:
        """Sums over pixels (B, D, D) of queries with keys, (B, 2 D) of both squared -> matrix (B, D, D).

        The matrix turns the values of a pixel into what attention adds to it.
        """
        # The root after the limit, not before: its slope at zero is infinite.
        queries, keys = squares.clamp_min(1e-24).rsqrt().chunk(2, 1)
        cosines = products * queries[:, :, None] * keys[:, None]
        attention = torch.softmax(cosines * self.temperature, -1)
        weight = self.project.weight[:, :, 0, 0]
        return weight @ attention.to(weight.dtype)


class FeedForward(nn.Module):
    """Gated-Dconv feed-forward network, GDFN.

    Args:
        features: D, in and out.
        expansion: hidden features as a multiple of D, rounded down.
    """

    def __init__(self, features: int, expansion: float) -> None:
        super().__init__()
        hidden = int(features * expansion)
        self.expand = nn.Conv2d(features, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project = nn.Conv2d(hidden, features, 1, bias=False)

    def forward(self, x: Tensor, strip: Strip) -> Tensor:
        """(B, D, rows + 2, w) -> (B, D, rows, w)."""
        hidden = strip.trim(self.depthwise(pointwise(x, self.expand.weight)), 1)
        opened, gate = hidden.chunk(2, 1)
        # Of a part of a tensor, the error function is taken value by value instead of eight at once.
        opened = gelu(opened.contiguous(memory_format=torch.channels_last))
        return pointwise(opened * gate, self.project.weight)


class TransformerBlock(nn.Module):
    """MDTA and GDFN, each after a normalisation and added to its input.

    Args:
        features: D, in and out.
        expansion: of the feed-forward network.
    """

    def __init__(self, features: int, expansion: float = 2.66) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(features, eps=1e-5)
        self.attention = ChannelAttention(features)
        self.norm2 = ChannelNorm(features, eps=1e-5)
        self.feed_forward = FeedForward(features, expansion)

    def forward(self, x: Tensor, work: Work) -> Tensor:
        """(B, D, h, w) -> (B, D, h, w)."""
        attention, weight = self.attention, self.attention.project.weight
        height, products, squares = x.shape[2], [], []

        def values(strip: Strip) -> Tensor:
            wide = attention.depthwise(
                pointwise(self.norm1(strip.read(x, 1, weight)), attention.expand.weight)
            )
            queries_keys, value = torch.split(strip.trim(wide, 1), [2 * x.shape[1], x.shape[1]], 1)
            rows = rearrange(queries_keys, "b d h w -> b (h w) d").to(exact(wide))
            with _no_autocast(wide.device):
                gram = rows.mT @ rows
            products.append(gram[:, : x.shape[1], x.shape[1] :])
            squares.append(gram.diagonal(dim1=1, dim2=2))
            return value

        value = work.map(values, height, row_bytes(x, 12 * x.shape[1]), x.device)
        mixing = attention.mixing(torch.stack(products).sum(0), torch.stack(squares).sum(0))

        def fed(strip: Strip) -> Tensor:
            added = rearrange(strip.read(value, 1, weight), "b d h w -> b h w d") @ mixing.mT[:, None]
            attended = strip.read(x, 1, weight) + rearrange(added, "b h w d -> b d h w")
            added = self.feed_forward(self.norm2(attended), strip)
            return torch.add(strip.trim(attended, 1), added)

        return work.map(fed, height, row_bytes(x, 16 * x.shape[1]), x.device)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from taking products back to half precision, in which sums over pixels overflow."""
    # Not every device has autocast, and asking for it there is an error.
    has_autocast = device.type in ("cpu", "cuda")
    return torch.autocast(device.type, enabled=False) if has_autocast else nullcontext()
