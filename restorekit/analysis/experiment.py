"""What a reproduction of the FAIG experiment is: one YAML file, typed. Holds no torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from restorekit.config import Component, Spec
from restorekit.training.spec import DataSpec, TrainSpec

LABELS: tuple[str, ...] = ("blur", "noise")

Share = Annotated[float, Field(gt=0, le=1)]


class ImagesSpec(Spec):
    """Clean images: where they lie, how many, and what part of each."""

    folder: str | None = Field(
        default=None, description="of images; by default the photographs that training holds out"
    )
    first: int = Field(default=0, ge=0, description="how many are left out at the front, in order of names")
    count: int = Field(default=14, gt=0, description="how many are taken at most")
    reduce: int = Field(default=1, gt=0, description="factor by which they are reduced first")
    crop: int = Field(default=0, ge=0, description="side of the middle, in degraded pixels; 0 for all")


class FitSpec(Spec):
    """A stretch of training by the release's rules: L1, Adam, cosine decay, averaged weights."""

    steps: int = Field(gt=0)
    patch: int = Field(default=32, gt=0, description="side of degraded patches")
    batch: int = Field(default=16, gt=0)
    lr: float = Field(default=2e-4, gt=0)


class OverlapSpec(Spec):
    """Telling degradations by overlap scores."""

    images: ImagesSpec = ImagesSpec()
    fit: int = Field(default=8, gt=0, description="first images, on which thresholds are fitted")
    steps: int = Field(default=16, gt=0, description="gradients for each image")


class ExperimentSpec(Spec):
    """The experiment of the FAIG paper at any size."""

    description: str = ""
    published: Literal["srcnn", "srresnet"] = Field(description="whose published figures stand beside")
    backbone: Component = Field(description="network that enlarges two-fold")
    data: DataSpec
    seeds: tuple[int, ...] = Field(
        default=(0, 1, 2), min_length=1, description="each trains its own baseline and target"
    )
    shared_baseline: bool = Field(
        default=False, description="all targets start from the first seed's baseline; cheaper"
    )
    blur_std: float = Field(default=2.0, gt=0, description="of the blur, in pixels of the clean image")
    noise_sigma: float = Field(default=25.5, gt=0, description="of the noise, in 8-bit levels")
    probability: Share = Field(default=0.5, description="of each of the two in the target's training")
    baseline: FitSpec
    target: FitSpec
    discovery: ImagesSpec = ImagesSpec()
    shares_weight: Annotated[float, Field(ge=0)] | Literal["masking"] = Field(
        default=0.0,
        description="adds a column: FAIG contrasted in shares, the other's subtracted so often; 0 for none,"
        " masking for as often as masking the images of discovery says, for each network",
    )
    steps: int | Literal["auto"] = Field(default=100, description="gradients for each image of discovery")
    rule: Literal["mid", "left"] = "left"
    evaluation: ImagesSpec
    ratios: tuple[Share, ...] = Field(default=(0.01, 0.05), min_length=1)
    retrain: FitSpec
    retrain_ratio: Share = 0.01
    overlap: OverlapSpec = OverlapSpec()
    drawn: ImagesSpec = Field(
        default=ImagesSpec(count=1, crop=64), description="the first is drawn, restored by degrees"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.data.pairs:
            raise _wrong("the experiment degrades clean photographs itself", "write data: {folder: PATH}")
        if len(set(self.seeds)) < len(self.seeds):
            raise _wrong(f"a seed stands twice in {list(self.seeds)}", "name different ones")
        left = self.overlap.images.count - self.overlap.fit
        if left < 1:
            raise _wrong(
                "overlap.images leave none to test on",
                "raise overlap.images.count, or lower fit",
            )
        return self

    def recipe(self, label: str, scale: int) -> dict[str, Any]:
        """Return what images suffer, after they were reduced: the recipe of a degradation.

        The paper blurs before reducing; training here reduces first, so that the blur is narrower by the
        scale, which comes to the same up to what the reduction's own filter does.
        """
        blur = {"name": "gaussian_blur", "std": self.blur_std / scale}
        noise = {"name": "gaussian", "sigma": self.noise_sigma}
        chains = {
            "clean": [],
            "blur": [blur],
            "noise": [noise],
            "both": [{**each, "probability": self.probability} for each in (blur, noise)],
        }
        return {"chain": [*chains[label], "quantisation"]}

    def training(self, what: Literal["baseline", "target"], seed: int, scale: int, weights: str) -> TrainSpec:
        """Return the training run of a network.

        Args:
            what: which network.
            seed: of the run.
            scale: of the network.
            weights: file that it starts from; empty for none.
        """
        fit = self.baseline if what == "baseline" else self.target
        component = self.backbone.model_copy(update={"weights": weights or self.backbone.weights})
        return TrainSpec.model_validate(
            {
                "description": f"{what} of a FAIG experiment",
                "seed": seed,
                "backbone": component.model_dump(),
                "data": self.data.model_dump(),
                "degradation": self.recipe("clean" if what == "baseline" else "both", scale),
                "stages": [{"steps": fit.steps, "patch": fit.patch, "batch": fit.batch}],
                "loss": "l1",
                "optimizer": {
                    "lr": fit.lr,
                    "min_lr": 1e-7,
                    "betas": [0.9, 0.99],
                    "warmup": min(100, fit.steps // 10),
                },
                "validate_every": fit.steps // 5 if fit.steps >= 50 else fit.steps,
                "save_every": max(1, min(500, fit.steps // 4)),
                "pictures": 2,
                # The difference of two networks is small: it must not be rounded.
                "half": False,
            }
        )


def _wrong(message: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("experiment", "{message}", {"message": message, "hint": hint})
