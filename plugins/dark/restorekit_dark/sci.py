"""SCI: the image divided by its light, which a few filters find. Shapes as in the package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from restorekit.contracts import Backbone

# No light is weaker, for the sake of the division.
_DARKEST = 1e-4


class _Repeating(nn.Module):
    """One block that runs several times, and has a name for each of them in published files."""

    blocks: nn.ModuleList

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_apart)  # type: ignore[no-untyped-call]

    def repeated(self, x: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        for block in self.blocks:
            x = x + block(x)
        return x


class _Light(_Repeating):
    """The light of an image: itself and what the network finds beside, in [1e-4, 1]."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(_conv(3, width), nn.ReLU())
        self.conv = nn.Sequential(_conv(width, width), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.ModuleList(self.conv for _ in range(blocks))
        self.out_conv = nn.Sequential(_conv(width, 3), nn.Sigmoid())

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        light: Tensor = self.out_conv(self.repeated(self.in_conv(image))) + image
        return light.clamp(_DARKEST, 1)


class _Calibration(_Repeating):
    """What a later stage of the training is to add to its input, so that all stages agree."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(_conv(3, width), nn.BatchNorm2d(width), nn.ReLU())
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [_conv(width, width), nn.BatchNorm2d(width), nn.ReLU()]
        self.convs = nn.Sequential(*layers)
        self.blocks = nn.ModuleList(self.convs for _ in range(blocks))
        self.out_conv = nn.Sequential(_conv(width, 3), nn.Sigmoid())

    def forward(self, bright: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W)."""
        difference: Tensor = bright - self.out_conv(self.repeated(self.in_conv(bright)))
        return difference


class SCI(Backbone):
    """Self-calibrated illumination (Ma, Ma, Liu, Fan, Luo, CVPR 2022, arXiv 2204.10137).

    ``restored = degraded / light``, in [0, 1]. One stage is enough once it is trained: the calibration serves
    training alone, where every stage sees the dark image corrected by what the one before found. The paper's
    loss needs no clean images; here each stage is compared with the clean one.

    Args:
        width: features of the light's convolutions; 3 in the published files.
        blocks: how often its middle block runs.
        calibration: features of the calibration's convolutions.
        calibrations: how often its middle block runs.
        stages: of the training.

    Raises:
        ValueError: a number is below 1.
    """

    def __init__(
        self, width: int = 3, blocks: int = 1, calibration: int = 16, calibrations: int = 3, stages: int = 3
    ) -> None:
        super().__init__()
        for name, number in (
            ("width", width),
            ("blocks", blocks),
            ("calibration", calibration),
            ("calibrations", calibrations),
            ("stages", stages),
        ):
            if number < 1:
                raise ValueError(f"{name} is {number}, not 1 or more")
        self.stages = stages
        # Every convolution reaches one pixel.
        # What lies within a quarter of the overlap of a cut is never used.
        self.overlap = 4 * (blocks + 2)
        self.enhance = _Light(width, blocks)
        self.calibrate = _Calibration(calibration, calibrations)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W) in [0, 1]."""
        return self._divided(degraded, degraded)

    def training_outputs(self, degraded: Tensor) -> Sequence[Tensor]:
        """Return the image as each stage would restore it; the first is what ``forward`` returns."""
        outputs, seen = [], degraded
        for stage in range(self.stages):
            outputs.append(self._divided(degraded, seen))
            if stage + 1 < self.stages:
                seen = degraded + self.calibrate(outputs[-1])
        return outputs

    def maps(self, degraded: Tensor) -> dict[str, Tensor]:
        """Return the light."""
        return {"light": self.enhance(degraded)}

    def _divided(self, degraded: Tensor, seen: Tensor) -> Tensor:
        light: Tensor = self.enhance(seen)
        return (degraded / light).clamp(0, 1)


def _apart(module: nn.Module, state: dict[str, Tensor], prefix: str, _: Any) -> None:
    """Give a state dict tensors of their own under each name: a file of safetensors has none twice."""
    for name in [name for name in state if name.startswith(f"{prefix}blocks.")]:
        state[name] = state[name].clone()


def _conv(features: int, filters: int) -> nn.Conv2d:
    return nn.Conv2d(features, filters, 3, padding=1)
