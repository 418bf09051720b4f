"""The transformer block: MDTA, attention over channels, then GDFN, a gated feed-forward network.

Both are written to be computed window by window. MDTA needs the whole map once, for its D x D attention
matrix; what follows from the matrix to the next block is local, so a block goes over its map twice.

Shapes: B batch, D features, H W pixels of the level, h w those of a window, N heads, E hidden features.
Features are innermost, (B, H, W, D). Parameter names are those of the published checkpoints.
"""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, NamedTuple, get_args

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, linear, pad

from restorekit.layers import ChannelNorm
from restorekit_restormer.windows import Window, in_windows, windows

Norm = Literal["with-bias", "bias-free"]

# Vector units and convolution kernels take features by the sixteen; an odd number costs up to half the speed.
_LANES = 16
# A longer sum of float32 products loses digits.
_SUMMED_PIXELS = 8192


class BiasFreeNorm(nn.Module):
    """Layer normalisation that scales each pixel by its standard deviation and does not centre it.

    Restormer's denoisers have it (section 4), after Mohan et al., ICLR 2020: networks without additive
    constants generalise better to noise levels that they have not seen.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        pixels = rearrange(x, "b d h w -> b h w d")
        exact = pixels.to(_exact(pixels))
        centred = exact - exact.mean(-1, keepdim=True)
        # torch.var takes ten times as long over a short dimension.
        variance = centred.square().mean(-1, keepdim=True)
        normed = exact * torch.rsqrt(variance + 1e-5) * self.weight
        return rearrange(normed.to(x.dtype), "b h w d -> b d h w")


def channel_norm(features: int, kind: Norm) -> nn.Module:
    """Return the normalisation of a block.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in get_args(Norm):
        raise ValueError(f"norm is {kind!r}, not one of: {', '.join(get_args(Norm))}")
    body = ChannelNorm(features, eps=1e-5) if kind == "with-bias" else BiasFreeNorm(features)
    # The published name has this extra level.
    return nn.Sequential(OrderedDict(body=body))


class MDTA(nn.Module):
    """Multi-Dconv head transposed attention (section 3.1, eq. 1): every channel attends to every channel.

    Queries and keys are normalised over the pixels. Here that is done to their products, and the output
    projection is applied to the attention matrix, both D x D instead of D x pixels.

    Args:
        features: D, in and out.
        heads: N groups of channels that attend within themselves.
        bias: whether the convolutions have one.
    """

    def __init__(self, features: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(features, features * 3, 1, bias=bias)
        self.qkv_dwconv = nn.Conv2d(features * 3, features * 3, 3, padding=1, groups=features * 3, bias=bias)
        self.project_out = nn.Conv2d(features, features, 1, bias=bias)

    def values_and_mixing(self, x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
        """(B, H, W, D) -> values (B, H, W, D), and the matrix (B, D, D) that turns them into the output."""
        products, squares = [], []

        def act(window: Window) -> Tensor:
            wide = linear(_normed(norm, x[window.outer]), self.qkv.weight[:, :, 0, 0], self.qkv.bias)
            wide = _depthwise(wide, self.qkv_dwconv.weight, self.qkv_dwconv.bias)[window.inner]
            for part in torch.split(wide, max(1, _SUMMED_PIXELS // wide.shape[2]), dim=1):
                product, square = self._sums(part)
                products.append(product)
                squares.append(square)
            return wide.chunk(3, dim=-1)[2]

        values = in_windows(act, windows(x, self.qkv.out_channels), *x.shape[1:3])
        attention = self._attention(torch.stack(products).sum(0), torch.stack(squares).sum(0))
        projection = rearrange(self.project_out.weight, "o (n d) 1 1 -> n o d", n=self.heads)
        mixing = rearrange(projection @ attention.to(values.dtype), "b n o d -> b o (n d)")
        return values, mixing

    def _sums(self, wide: Tensor) -> tuple[Tensor, Tensor]:
        """(B, h, w, 3 D) -> products of queries and keys (B, N, D / N, D / N), squared lengths (B, 2 D)."""
        queries_and_keys = wide[..., : wide.shape[-1] // 3 * 2].to(_exact(wide))
        queries, keys = queries_and_keys.chunk(2, dim=-1)
        queries = rearrange(queries, "b h w (n d) -> b n d (h w)", n=self.heads)
        keys = rearrange(keys, "b h w (n d) -> b n (h w) d", n=self.heads)
        with _no_autocast(wide.device):
            return queries @ keys, queries_and_keys.square().sum((1, 2))

    def _attention(self, products: Tensor, squares: Tensor) -> Tensor:
        """(B, N, D / N, D / N), (B, 2 D) -> (B, N, D / N, D / N)."""
        # The root after the limit, not before: its slope at zero is infinite.
        inverse = squares.clamp_min(1e-24).rsqrt()
        queries, keys = rearrange(inverse, "b (two n d) -> two b n d", two=2, n=self.heads)
        cosines = products * queries[..., :, None] * keys[..., None, :]
        return torch.softmax(cosines * self.temperature, -1)

    def project(self, x: Tensor, values: Tensor, mixing: Tensor) -> Tensor:
        """(B, h, w, D) twice, (B, D, D) -> (B, h, w, D): the input plus what attention adds."""
        height = x.shape[1]
        if self.project_out.bias is not None:
            x = x + self.project_out.bias
        x, values = rearrange([x, values], "two b h w d -> two b (h w) d")
        return rearrange(torch.baddbmm(x, values, mixing.mT), "b (h w) d -> b h w d", h=height)


class GDFN(nn.Module):
    """Gated-Dconv feed-forward network (section 3.2, eq. 2).

    Args:
        features: D, in and out.
        expansion: hidden features as a multiple of D, rounded down.
        bias: whether the convolutions have one.
    """

    def __init__(self, features: int, expansion: float, bias: bool) -> None:
        super().__init__()
        hidden = int(features * expansion)
        self.project_in = nn.Conv2d(features, hidden * 2, 1, bias=bias)
        self.dwconv = nn.Conv2d(hidden * 2, hidden * 2, 3, padding=1, groups=hidden * 2, bias=bias)
        self.project_out = nn.Conv2d(hidden, features, 1, bias=bias)

    def halves(self) -> tuple[_Half, _Half]:
        """Return the weights of the activated half and of the gate, each filled up with idle features."""
        weights = _filled_halves(self.project_in.weight[:, :, 0, 0])
        depthwise_weights = _filled_halves(self.dwconv.weight)
        if self.project_in.bias is None or self.dwconv.bias is None:
            return _Half(weights[0], depthwise_weights[0]), _Half(weights[1], depthwise_weights[1])
        biases, depthwise_biases = _filled_halves(self.project_in.bias), _filled_halves(self.dwconv.bias)
        return (
            _Half(weights[0], depthwise_weights[0], biases[0], depthwise_biases[0]),
            _Half(weights[1], depthwise_weights[1], biases[1], depthwise_biases[1]),
        )

    def output_weight(self) -> Tensor:
        """Return the weight (E, D) of the last layer, without effect on idle features."""
        return _filled_up(self.project_out.weight[:, :, 0, 0], 1).mT

    def output(self, x: Tensor, hidden: Tensor, weight: Tensor) -> Tensor:
        """(B, h, w, D), (B, h, w, E), (E, D) -> (B, h, w, D): the input plus what the network adds."""
        if self.project_out.bias is not None:
            x = x + self.project_out.bias
        return torch.addmm(x.flatten(0, 2), hidden.flatten(0, 2), weight).view(x.shape)


class Block(nn.Module):
    """MDTA and GDFN, each after a normalisation and added to its input (figure 2).

    Args:
        features: D, in and out.
        heads: of MDTA.
        expansion: of GDFN.
        bias: whether the convolutions have one.
        norm: which normalisation.
    """

    def __init__(self, features: int, heads: int, expansion: float, bias: bool, norm: Norm) -> None:
        super().__init__()
        self.norm1 = channel_norm(features, norm)
        self.attn = MDTA(features, heads, bias)
        self.norm2 = channel_norm(features, norm)
        self.ffn = GDFN(features, expansion, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        x = rearrange(x, "b d h w -> b h w d").contiguous()
        values, mixing = self.attn.values_and_mixing(x, self.norm1)
        activated, gate = self.ffn.halves()
        output_weight = self.ffn.output_weight()

        def act(window: Window) -> Tensor:
            attended = self.attn.project(x[window.outer], values[window.outer], mixing)
            normed = _normed(self.norm2, attended)
            hidden = gelu(activated(normed, window)) * gate(normed, window)
            return self.ffn.output(attended[window.inner], hidden, output_weight)

        places = windows(x, 2 * len(output_weight))
        return rearrange(in_windows(act, places, *x.shape[1:3]), "b h w d -> b d h w")


class _Half(NamedTuple):
    """The weights from the input of GDFN to one half of its hidden features."""

    weight: Tensor
    depthwise_weight: Tensor
    bias: Tensor | None = None
    depthwise_bias: Tensor | None = None

    def __call__(self, x: Tensor, window: Window) -> Tensor:
        """(B, h + 2, w + 2, D) -> (B, h, w, E)."""
        wide = linear(x, self.weight, self.bias)
        return _depthwise(wide, self.depthwise_weight, self.depthwise_bias)[window.inner]


def _filled_halves(whole: Tensor) -> tuple[Tensor, Tensor]:
    first, second = whole.chunk(2)
    return _filled_up(first, 0), _filled_up(second, 0)


def _filled_up(weight: Tensor, dim: int) -> Tensor:
    """Return the weight with zeros up to a multiple of the lanes."""
    missing = -weight.shape[dim] % _LANES
    return pad(weight, [0, 0] * (weight.ndim - 1 - dim) + [0, missing]) if missing else weight


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, H, W, D) -> (B, H, W, D): convolution 3 x 3 of each feature by itself, zeros beyond the border."""
    x = rearrange(x, "b h w d -> b d h w")
    return rearrange(conv2d(x, weight, bias, padding=1, groups=len(weight)), "b d h w -> b h w d")


def _normed(norm: nn.Module, x: Tensor) -> Tensor:
    """(B, H, W, D) -> (B, H, W, D)."""
    normed: Tensor = norm(rearrange(x, "b h w d -> b d h w"))
    return rearrange(normed, "b d h w -> b h w d")


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Keep autocast from taking products back to half precision, in which sums over pixels overflow."""
    # Not every device has autocast, and asking for it there is an error.
    has_autocast = device.type in ("cpu", "cuda")
    return torch.autocast(device.type, enabled=False) if has_autocast else nullcontext()


def _exact(x: Tensor) -> torch.dtype:
    """Return the precision that sums over features and pixels need: half precision overflows and drifts."""
    return torch.promote_types(x.dtype, torch.float32)
