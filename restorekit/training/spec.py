"""What a training run is: one YAML file, typed. Holds no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from restorekit.config import Component, Spec

Share = Annotated[float, Field(ge=0, le=1)]


class DataSpec(Spec):
    """Photographs to cut patches from."""

    folder: str = Field(description="folder of clean photographs, relative to the current one")
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0,), min_length=1, description="each photograph is also used reduced by these factors"
    )
    hold_out: int = Field(default=4, ge=1, description="photographs kept for validation, never trained on")


class DenoiseSpec(Spec):
    """Noise and compression that are put on clean patches; the shares are of all patches."""

    sigma: tuple[float, float] = Field(
        default=(0, 55), description="range of the noise level in 8-bit levels"
    )
    clean: Share = Field(default=0.05, description="share of patches left as they are")
    eight_bit: Share = Field(
        default=0.25, description="share of noisy patches clipped and rounded, as files are"
    )
    jpeg: Share = Field(default=0.15, description="share of patches with light noise, then JPEG compression")
    jpeg_quality: tuple[int, int] = Field(default=(40, 95), description="range of libjpeg's quality")
    jpeg_sigma: tuple[float, float] = Field(
        default=(0, 15), description="range of the noise before compression"
    )


class StageSpec(Spec):
    """A stretch of training with one patch size; stages follow each other."""

    steps: int = Field(gt=0)
    patch: int = Field(gt=0, description="side of the square patches in pixels")
    batch: int = Field(gt=0)


class OptimizerSpec(Spec):
    """AdamW with linear warm-up and cosine decay over all stages."""

    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=1e-6, ge=0)
    betas: tuple[float, float] = (0.9, 0.9)
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=200, ge=0, description="steps of linear warm-up")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")


class TrainSpec(Spec):
    """One training run."""

    description: str = ""
    seed: int = 0
    backbone: Component
    data: DataSpec
    degradation: DenoiseSpec = DenoiseSpec()
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    loss: Literal["psnr", "charbonnier", "l1"] = "psnr"
    optimizer: OptimizerSpec = OptimizerSpec()
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="decay of the averaged weights"
    )
    validate_every: int = Field(default=1000, gt=0, description="steps")
    save_every: int = Field(default=500, gt=0, description="steps between checkpoints")

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return sum(stage.steps for stage in self.stages)
