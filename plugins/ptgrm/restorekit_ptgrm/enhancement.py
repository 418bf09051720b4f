"""PTG-SVE: which pixels need what is near, and which what is far (section 3.2, eq. 2 and 3).

Shapes as in the package's docstring.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad, relu

from restorekit.layers import luma
from restorekit_ptgrm.guidance import Guide, GuidedConvolution, PositionEmbedding, PriorEmbedding, activated
from restorekit_ptgrm.strips import Strip, Work, row_bytes
from restorekit_ptgrm.transformer import TransformerBlock

Gate = Literal["paper", "release"]
RangeMap = Literal["prior", "snr", "sum"]


class ShortRange(nn.Module):
    """R_s: a residual block of two convolutions.

    Args:
        features: D, in and out.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.second = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor, strip: Strip) -> Tensor:
        """(B, D, rows + 4, w) -> (B, D, rows, w)."""
        inner = strip.trim(relu(self.first(x)), 2, 1)
        return strip.trim(x, 2) + strip.trim(self.second(inner), 1)


class RangeScore(nn.Module):
    """R_m with its guidance: how much each pixel takes from near, M of eq. 2.

    Args:
        features: D.
        prior_features: F.
        hidden: of the embedded prior.
        embedded: E.
        positions: whether it sees coordinates.
    """

    def __init__(
        self, features: int, prior_features: int, hidden: int, embedded: int, positions: bool
    ) -> None:
        super().__init__()
        self.prior = PriorEmbedding(prior_features, hidden, embedded)
        self.position = PositionEmbedding(features) if positions else None
        self.first = GuidedConvolution(features, embedded, features if positions else 0, features)
        self.last = nn.Conv2d(features, 1, 3, padding=1, bias=False)


class SpatialVaryingEnhancement(nn.Module):
    """Pre-train-guided spatial-varying enhancement, PTG-SVE.

    Args:
        features: D.
        blocks: of the long-range branch.
        prior_features: F.
        hidden: of the embedded prior.
        embedded: E.
        range_map: M from features, prior and position (``prior``); from how noisy the degraded image is
            (``snr``, Xu et al., CVPR 2022); or no map, both branches are added (``sum``).
        gate: what M multiplies: the short-range branch (``paper``, eq. 3), or the long-range one
            (``release``).
        positions: whether the map sees coordinates.
    """

    def __init__(
        self,
        features: int,
        blocks: int,
        prior_features: int,
        hidden: int,
        embedded: int,
        range_map: RangeMap,
        gate: Gate,
        positions: bool,
    ) -> None:
        super().__init__()
        self.range_map, self.gate = range_map, gate
        self.score = (
            RangeScore(features, prior_features, hidden, embedded, positions)
            if range_map == "prior"
            else None
        )
        self.short = ShortRange(features)
        self.long = nn.ModuleList(TransformerBlock(features) for _ in range(blocks))

    def forward(
        self, f: Tensor, guide: Guide, degraded: Tensor | None, work: Work
    ) -> tuple[Tensor, Tensor | None]:
        """(B, D, h, w) -> features (B, D, h, w), and M (B, 1, h, w) where there is a map.

        ``degraded`` (B, C, H, W) is what the signal-to-noise map is taken from.
        """
        far = f
        for block in self.long:
            far = block(far, work)
        score = self._score(f, guide, degraded, work)
        near_weight = self.short.first.weight

        def mixed(strip: Strip) -> Tensor:
            near: Tensor = self.short(strip.read(f, 2, near_weight), strip)
            rest = strip.read(far, 0, near_weight)
            if score is None:
                return near + rest
            weight = strip.read(score, 0, near_weight)
            return torch.lerp(rest, near, weight) if self.gate == "paper" else torch.lerp(near, rest, weight)

        return work.map(mixed, f.shape[2], row_bytes(f, 5 * f.shape[1]), f.device), score

    def _score(self, f: Tensor, guide: Guide, degraded: Tensor | None, work: Work) -> Tensor | None:
        if self.range_map == "snr":
            assert degraded is not None
            return signal_to_noise(degraded, f.shape[2], f.shape[3]).to(f.dtype)
        if self.score is None:
            return None
        net, (height, width) = self.score, f.shape[2:]
        first = net.first.prepared(height, width, net.prior(guide.prior))

        def act(strip: Strip) -> Tensor:
            position = net.position(strip, width, 2, guide.places) if net.position else None
            hidden = first(strip.read(f, 2, net.first.weight), position, strip.rows(2))
            return torch.sigmoid(strip.trim(net.last(activated(strip.trim(hidden, 2, 1))), 1))

        return work.map(act, height, row_bytes(f, 6 * f.shape[1]), f.device)


def signal_to_noise(degraded: Tensor, height: int, width: int) -> Tensor:
    """Return how little noise each pixel has, (B, C, H, W) -> (B, 1, height, width) in [0, 1].

    Brightness after a box blur of 5 x 5, divided by what the blur removed; the largest value of each image
    becomes one (Xu et al., SNR-Aware Low-Light Image Enhancement, CVPR 2022).
    """
    gray = luma(degraded) if degraded.shape[1] == 3 else degraded.mean(1, keepdim=True)
    mode = "reflect" if min(gray.shape[2:]) > 2 else "replicate"
    blurred = avg_pool2d(pad(gray, (2, 2, 2, 2), mode=mode), 5, 1)
    ratio = blurred / ((gray - blurred).abs() + 1e-4)
    ratio = (ratio / (ratio.amax((1, 2, 3), keepdim=True) + 1e-4)).clamp(0, 1)
    return nn.functional.interpolate(ratio, (height, width), mode="nearest")
