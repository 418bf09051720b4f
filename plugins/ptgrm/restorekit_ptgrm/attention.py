"""PTG-CSA: attention over channels and over pixels, the latter by kernels that every pixel gets for itself.

Section 3.3, eq. 4 to 7. Shapes as in the package's docstring; K is the side of a kernel.
"""

from __future__ import annotations

from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu, pad

from restorekit_ptgrm.guidance import (
    SLOPE,
    Guide,
    GuidedConvolution,
    PositionEmbedding,
    PriorEmbedding,
    activated,
    pointwise,
)
from restorekit_ptgrm.strips import Strip, Work, exact, row_bytes
from restorekit_ptgrm.winograd import WinogradConvolution, pays

Attention = Literal["prior", "features", "none"]


def dynamic_convolution(padded: Tensor, kernels: Tensor, side: int) -> Tensor:
    """Filter each pixel of each channel by a kernel of its own (eq. 6).

    The image is shifted and added up tap by tap; neighbourhoods are never written out.

    Args:
        padded: (B, D, H + K - 1, W + K - 1).
        kernels: (B, K * K * D, H, W), by taps first: see ``by_taps``.
        side: K.

    Returns:
        (B, D, H, W).
    """
    height, width = kernels.shape[2:]
    result: Tensor | None = None
    for tap, kernel in enumerate(kernels.chunk(side * side, 1)):
        top, left = divmod(tap, side)
        shifted = padded[:, :, top : top + height, left : left + width]
        if result is None:
            result = shifted * kernel
        elif torch.is_grad_enabled():
            result = torch.addcmul(result, shifted, kernel)
        else:
            result.addcmul_(shifted, kernel)
    assert result is not None
    return result


def by_taps(kernels: Tensor, channels: int) -> Tensor:
    """Reorder the first dimension from channel * K * K + tap to tap * channels + channel.

    The values of one tap then lie together, for all channels.
    """
    return rearrange(kernels, "(d t) ... -> (t d) ...", d=channels)


class ChannelScore(nn.Module):
    """R_c: how much each channel counts, M_c of eq. 4.

    Args:
        features: D.
        embedded: E; 0 without a prior.
    """

    def __init__(self, features: int, embedded: int) -> None:
        super().__init__()
        self.first = nn.Linear(features + embedded, features, bias=False)
        self.last = nn.Linear(features, features, bias=False)

    def forward(self, means: Tensor, prior: Tensor | None) -> Tensor:
        """(B, D), (B, E) -> (B, D) in (0, 1)."""
        given = means if prior is None else torch.cat([means, prior], 1)
        scored: Tensor = self.last(leaky_relu(self.first(given), SLOPE))
        return torch.sigmoid(scored)


class PixelScore(nn.Module):
    """R_p and R_o: a kernel for every pixel and channel, and how much each pixel counts, M_s of eq. 5 and 6.

    Args:
        features: D.
        embedded: E; 0 without a prior.
        positions: whether it sees coordinates.
        side: K.
    """

    def __init__(self, features: int, embedded: int, positions: bool, side: int) -> None:
        super().__init__()
        self.features, self.side = features, side
        wide = features * side * side
        self.position = PositionEmbedding(features) if positions else None
        self.first = GuidedConvolution(features, embedded, features if positions else 0, wide)
        self.kernels = nn.Conv2d(wide, wide, 3, padding=1, bias=False)
        self.last = nn.Conv2d(features, 1, 3, padding=1, bias=False)

    def filtered(self, f: Tensor, prior: Tensor | None, places: Tensor | None, work: Work) -> Tensor:
        """(B, D, h, w), (B, E), places as in ``Guide`` -> (B, D, h, w): the features after their kernels."""
        height, width = f.shape[2:]
        first, radius = self.first.prepared(height, width, prior), self.side // 2
        weight = by_taps(self.kernels.weight, self.features).contiguous(memory_format=torch.channels_last)
        halo = max(2, radius)
        # Most of the network's multiplications are in this one layer.
        fast = WinogradConvolution.of(weight) if pays(weight, height * width) else None

        def act(strip: Strip) -> Tensor:
            outer = strip.read(f, halo, weight)
            position = self.position(strip, width, 2, places) if self.position else None
            hidden = activated(first(strip.trim(outer, halo, 2), position, strip.rows(2)))
            hidden = strip.trim(hidden, 2, 1)
            if fast is None:
                kernels = strip.trim(conv2d(hidden, weight, padding=1), 1)
            else:
                kernels = fast(hidden, *strip.beyond(1))
            padded = _replicated(strip.trim(outer, halo, radius), strip, radius)
            return dynamic_convolution(padded, kernels, self.side)

        return work.map(act, height, row_bytes(f, 2 * weight.shape[0]), f.device)

    def forward(self, f: Tensor, prior: Tensor | None, places: Tensor | None, work: Work) -> Tensor:
        """(B, D, h, w), (B, E), places as in ``Guide`` -> (B, 1, h, w) in (0, 1)."""
        filtered = self.filtered(f, prior, places, work)

        def act(strip: Strip) -> Tensor:
            scored = self.last(leaky_relu(strip.read(filtered, 1, self.last.weight), SLOPE))
            return torch.sigmoid(strip.trim(scored, 1))

        return work.map(act, f.shape[2], row_bytes(f, 2 * f.shape[1]), f.device)


class ChannelSpatialAttention(nn.Module):
    """Pre-train-guided channel-spatial attention, PTG-CSA.

    Args:
        features: D.
        side: K, odd.
        prior_features: F.
        hidden: of the embedded prior.
        embedded: E.
        channel: attention over channels from features and prior, from features alone, or none.
        spatial: attention over pixels, likewise.
        positions: whether kernels see coordinates; they do only together with the prior.
    """

    def __init__(
        self,
        features: int,
        side: int,
        prior_features: int,
        hidden: int,
        embedded: int,
        channel: Attention,
        spatial: Attention,
        positions: bool,
    ) -> None:
        super().__init__()
        self.channel_guided, self.spatial_guided = channel == "prior", spatial == "prior"
        guided = self.channel_guided or self.spatial_guided
        self.prior = PriorEmbedding(prior_features, hidden, embedded) if guided else None
        self.channel = ChannelScore(features, embedded * self.channel_guided) if channel != "none" else None
        self.spatial = (
            PixelScore(features, embedded * self.spatial_guided, positions and self.spatial_guided, side)
            if spatial != "none"
            else None
        )
        attends = self.channel is not None or self.spatial is not None
        self.fuse = nn.Conv2d(2 * features, features, 1, bias=False) if attends else None

    def forward(self, f: Tensor, guide: Guide, work: Work) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(B, D, h, w) -> features (B, D, h, w), M_c (B, D), M_s (B, 1, h, w)."""
        if self.fuse is None:
            return f, None, None
        embedded = self.prior(guide.prior) if self.prior else None
        channels = pixels = None
        if self.channel is not None:
            means = f.to(exact(f)).mean((2, 3)).to(guide.prior.device, guide.prior.dtype)
            channels = self.channel(means, embedded if self.channel_guided else None)
        if self.spatial is not None:
            pixels = self.spatial(f, embedded if self.spatial_guided else None, guide.places, work)
        weight = self.fuse.weight

        def act(strip: Strip) -> Tensor:
            x = strip.read(f, 0, weight)
            by_channel = x if channels is None else x * channels[:, :, None, None]
            by_pixel = x if pixels is None else x * strip.read(pixels, 0, weight)
            return pointwise(torch.cat([by_channel, by_pixel], 1), weight) + x

        return work.map(act, f.shape[2], row_bytes(f, 6 * f.shape[1]), f.device), channels, pixels


def _replicated(x: Tensor, strip: Strip, radius: int) -> Tensor:
    """(B, D, rows, w) -> (B, D, rows + K - 1, w + K - 1): the border of the map is repeated."""
    return pad(x, (radius, radius, *strip.beyond(radius)), mode="replicate")
