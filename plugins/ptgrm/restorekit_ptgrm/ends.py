"""R_e and R_d: from two images, or from a backbone's features, to the latent and back.

Shapes as in the package's docstring; L features of a backbone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, instance_norm, pixel_shuffle

from restorekit_ptgrm.guidance import activated
from restorekit_ptgrm.strips import Strip, Work, exact, row_bytes

_EPS = 1e-5


class ImageEncoder(nn.Module):
    """R_e: compares the restored with the degraded image, at a quarter of the side.

    Args:
        channels: of both images together.
        features: D.
    """

    def __init__(self, channels: int, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, padding=1, bias=False)
        self.norm1 = nn.InstanceNorm2d(features, eps=_EPS, affine=True)
        self.second = nn.Conv2d(features, features, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.InstanceNorm2d(features, eps=_EPS, affine=True)
        self.third = nn.Conv2d(features, features, 3, stride=2, padding=1, bias=False)

    def forward(self, restored: Tensor, degraded: Tensor, work: Work) -> Tensor:
        """(B, C, H, W) twice, sides multiples of 4 -> (B, D, H / 4, W / 4)."""
        weight = self.first.weight
        if work.budget is None:
            x = self.first(torch.cat([restored, degraded], 1).to(weight.device, weight.dtype))
            x = self.second(activated(_normed(x, self.norm1)))
            latent: Tensor = self.third(_normed(x, self.norm2)).to(restored.device)
            return latent

        def both(strip: Strip) -> Tensor:
            return torch.cat([strip.read(image, 2, weight) for image in (restored, degraded)], 1)

        height, row = restored.shape[2] // 2, 2 * row_bytes(restored, 3 * len(weight))
        moments = Moments()
        for strip in (half.scaled(2) for half in work.strips(height, row)):
            moments.add(strip.trim(self.first(both(strip)), 2))
        # The normalisation goes into the filters, which saves two passes over the map.
        scale, shift = (value.to(weight.dtype) for value in moments.affine(self.norm1))
        small = Moments()

        def act(half: Strip) -> Tensor:
            strip = half.scaled(2)
            image = both(strip)
            filtered = [
                conv2d(one[None], weight * by[:, None, None, None], plus, padding=1)
                for one, by, plus in zip(image, scale, shift, strict=True)
            ]
            part = _halved(self.second, activated(strip.trim(torch.cat(filtered), 2, 1)), half)
            small.add(part)
            return part

        x = work.map(act, height, row, restored.device)
        by, plus = (value.to(x)[:, :, None, None] for value in small.affine(self.norm2))
        x.mul_(by).add_(plus)

        def third(quarter: Strip) -> Tensor:
            return _halved(self.third, quarter.scaled(2).read(x, 1, weight), quarter)

        return work.map(third, height // 2, 2 * row_bytes(x, 3 * len(weight)), restored.device)


class ImageDecoder(nn.Module):
    """R_d: mask and residual from the latent.

    Args:
        features: D.
        channels: of mask and residual together.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, 4 * features, 3, padding=1, bias=False)
        self.second = nn.Conv2d(features, 4 * features, 3, padding=1, bias=False)
        self.third = nn.Conv2d(features, features, 3, padding=1)
        self.last = nn.Conv2d(features, channels, 3, padding=1)

    def forward(self, f: Tensor, work: Work, finish: Callable[[Tensor, Strip], Tensor]) -> Tensor:
        """(B, D, h, w) -> what ``finish`` makes of mask and residual (B, C', 4 rows, 4 w) of each strip."""
        weight, bias = self.last.weight, self.last.bias
        assert bias is not None
        channels = len(weight)
        if weight.device.type == "cpu" and not torch.is_grad_enabled():
            # Convolutions fill vectors of eight channels: six take a third longer than eight.
            weight, bias = (
                torch.cat([value, value.new_zeros(-channels % 8, *value.shape[1:])])
                for value in (weight, bias)
            )

        def act(strip: Strip) -> Tensor:
            x = strip.trim(self.first(strip.read(f, 2, self.first.weight)), 2, 1)
            half, whole = strip.scaled(2), strip.scaled(4)
            # Each layer gets the rows that the ones after it look at, and no more.
            x = half.trim(self.second(activated(pixel_shuffle(x, 2))), 2, 1)
            x = whole.trim(self.third(activated(pixel_shuffle(x, 2))), 2, 1)
            return finish(whole.trim(conv2d(activated(x), weight, bias, padding=1), 1)[:, :channels], whole)

        return work.map(act, f.shape[2], 16 * row_bytes(f, 2 * f.shape[1]), f.device)


class FeatureEncoder(nn.Module):
    """R_e for the deepest features of a backbone, at their size.

    Args:
        latent: L.
        features: D.
    """

    def __init__(self, latent: int, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(latent, features, 3, padding=1, bias=False)
        self.norm = nn.InstanceNorm2d(features, eps=_EPS, affine=True)
        self.second = nn.Conv2d(features, features, 3, padding=1, bias=False)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, L, h, w) -> (B, D, h, w)."""
        encoded: Tensor = self.second(activated(_normed(self.first(latent), self.norm)))
        return encoded


class FeatureDecoder(nn.Module):
    """R_d for the deepest features of a backbone.

    Args:
        features: D.
        channels: of mask and residual together, 1 + L.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(features, features, 3, padding=1)
        self.last = nn.Conv2d(features, channels, 3, padding=1)

    def forward(self, f: Tensor) -> Tensor:
        """(B, D, h, w) -> (B, 1 + L, h, w)."""
        decoded: Tensor = self.last(activated(self.first(f)))
        return decoded


class Moments:
    """Mean and variance of each channel over pixels that come in pieces.

    Pieces are joined by the formula of Chan, Golub and LeVeque (1979), in float64, so that nothing is lost
    where the mean is large beside the deviation.
    """

    def __init__(self) -> None:
        self.count, self.mean, self.deviation = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Take in pixels (B, D, rows, W)."""
        x = x.to(exact(x))
        count = x.shape[2] * x.shape[3]
        mean = x.sum((2, 3), keepdim=True) / count
        deviation = (x - mean).square_().sum((2, 3)).double()
        mean = mean[:, :, 0, 0].double()
        if self.count == 0:
            self.count, self.mean, self.deviation = count, mean, deviation
            return
        total, apart = self.count + count, mean - self.mean
        self.deviation = self.deviation + deviation + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def affine(self, norm: nn.InstanceNorm2d) -> tuple[Tensor, Tensor]:
        """Return the factor and the summand (B, D) that normalise as ``norm`` does."""
        assert norm.weight is not None and norm.bias is not None
        scale = norm.weight * (self.deviation / self.count + norm.eps).rsqrt()
        return scale, norm.bias - self.mean * scale


def _normed(x: Tensor, norm: nn.InstanceNorm2d) -> Tensor:
    assert norm.weight is not None and norm.bias is not None
    if x.shape[2:].numel() == 1:
        # torch refuses a single pixel, of which nothing is left but the bias.
        return (x - x) * norm.weight[:, None, None] + norm.bias[:, None, None]
    weight, bias = norm.weight.to(exact(x)), norm.bias.to(exact(x))
    return instance_norm(x.to(exact(x)), weight=weight, bias=bias, eps=norm.eps).to(x.dtype)


def _halved(conv: nn.Conv2d, x: Tensor, half: Strip) -> Tensor:
    """Return the rows of a strip at half the size; ``x`` is its rows at full size with a halo of one."""
    # What lies beyond the border is zero; at a strip's own first row it is the neighbour above.
    top = 1 if half.start == 0 else 0
    return conv2d(x, conv.weight, stride=2, padding=(top, 1))[:, :, : half.stop - half.start]
