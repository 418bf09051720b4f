"""What a training run is: one YAML file, typed. Holds no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from restorekit.config import Component, Spec
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import near

Share = Annotated[float, Field(ge=0, le=1)]
TrainedPart = Literal["backbone", "adapter", "refiner"]

LOSS_NAMES = ("psnr", "charbonnier", "l1", "fft", "edge", "ssim", "perceptual", "kind")


def _several(value: object) -> object:
    return (value,) if isinstance(value, (str, Mapping)) else value


class PairSpec(Spec):
    """Two folders with one photograph each of the same scene, under the same name."""

    degraded: str
    clean: str
    kind: str = Field(default="", description="what the degraded ones suffer from, as rain")


Folders = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | list[str])]
PairFolders = Annotated[
    tuple[str | PairSpec, ...],
    BeforeValidator(_several, json_schema_input_type=str | PairSpec | list[str | PairSpec]),
]


def _wrong(message: str, hint: str) -> PydanticCustomError:
    return PydanticCustomError("train", "{message}", {"message": message, "hint": hint})


class DataSpec(Spec):
    """Photographs to cut patches from: clean ones that are degraded on demand, or pairs."""

    folder: Folders = Field(
        default=(), description="folder of clean photographs, or several, relative to the current one"
    )
    pairs: PairFolders = Field(
        default=(), description="folder of pairs, or {degraded: FOLDER, clean: FOLDER}, or several of these"
    )
    scales: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0,),
        min_length=1,
        description="each clean photograph is also used reduced by these factors",
    )
    hold_out: int = Field(default=4, ge=1, description="photographs kept for validation, never trained on")
    workers: int = Field(default=1, ge=0, description="threads that prepare batches ahead; 0 for none")
    cache: str | None = Field(
        default=None, description="folder of decoded photographs; by default in restorekit's cache folder"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.folder) == bool(self.pairs):
            raise _wrong("needs either folder or pairs", "write, for example: data: {folder: PATH}")
        if self.pairs and self.scales != (1.0,):
            raise _wrong(
                "pairs cannot be reduced: that would change their degradation", "leave out data.scales"
            )
        return self


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


def _degradation(value: object) -> object:
    """A word, or a mapping with one of a recipe's verbs, is a recipe."""
    recipe = isinstance(value, str) or (isinstance(value, Mapping) and {"name", "chain", "one_of"} & {*value})
    if recipe:
        return RecipeSpec.model_validate(value)
    return DenoiseSpec.model_validate(value) if isinstance(value, Mapping) else value


Degradation = Annotated[DenoiseSpec | RecipeSpec, BeforeValidator(_degradation)]


class AugmentSpec(Spec):
    """What is done to patches beside degrading them; both of a pair alike."""

    rotate: bool = Field(default=True, description="turn by quarters")
    flip: bool = Field(default=True, description="mirror half of them")
    gray: Share = Field(
        default=0.0,
        description="share of clean patches taken gray, with the same noise in every colour",
    )
    levels: float = Field(
        default=0.0,
        ge=0,
        lt=0.5,
        description="how far black is raised and white lowered at most, in shares of the range",
    )
    mixup: Share = Field(default=0.0, description="share of batches blended with themselves in another order")


class StageSpec(Spec):
    """A stretch of training with one patch size; stages follow each other."""

    steps: int = Field(gt=0)
    patch: int = Field(gt=0, description="side of the square degraded patches in pixels")
    batch: int = Field(gt=0, description="patches a step, over all processes")
    context: Annotated[int, Field(ge=0)] | Literal["whole"] = Field(
        default=0,
        description="side of the window that is degraded, of which the patch is a part; for degradations that"
        " depend on the place in the image, as haze does, and for refiners, whose prior is asked of the"
        " window; whole for all of the photograph; 0 for the patch itself",
    )

    @property
    def window(self) -> int:
        """Side of what is cut from a photograph and degraded; of a whole one, the least that it has to be."""
        return self.patch if self.context == "whole" else max(self.patch, self.context)

    @property
    def within(self) -> bool:
        """Whether patches are parts of what is degraded."""
        return self.context == "whole" or self.context > self.patch


class OptimizerSpec(Spec):
    """AdamW with linear warm-up and cosine decay over all stages."""

    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=1e-6, ge=0)
    betas: tuple[float, float] = (0.9, 0.9)
    eps: float = Field(
        default=1e-8,
        gt=0,
        description="added to the root of the second moment; far below the gradients of every part: clipping"
        " makes those of a prior's path through a refiner as small as 1e-11",
    )
    weight_decay: float = Field(default=0.0, ge=0)
    warmup: int = Field(default=200, ge=0, description="steps of linear warm-up")
    clip: float = Field(default=1.0, gt=0, description="largest norm of the gradient")
    factors: Mapping[TrainedPart, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="factor on the learning rate of a part, as {backbone: 0.1}"
    )


def _law(value: object) -> object:
    return {"protocol": value} if isinstance(value, str) else value


class ValidationSpec(Spec):
    """A protocol of `restorekit eval`, on patches of the photographs held out."""

    protocol: str
    settings: Mapping[str, float] = Field(default={}, description="of the protocol, as {sigma: 25}")


Validations = Annotated[
    tuple[Annotated[ValidationSpec, BeforeValidator(_law, json_schema_input_type=str | ValidationSpec)], ...],
    BeforeValidator(_several),
]


def _weights(value: object) -> object:
    """Read a loss as a weighted sum: one name is that loss alone."""
    losses: Any = {value: 1.0} if isinstance(value, str) else value
    for name in losses if isinstance(losses, Mapping) else ():
        if name not in LOSS_NAMES:
            hint = near(str(name), LOSS_NAMES) or f"losses are {', '.join(LOSS_NAMES)}"
            raise _wrong(f"no loss called {name!r}", hint)
    return losses


Losses = Annotated[
    Mapping[str, Annotated[float, Field(gt=0)]],
    Field(min_length=1),
    BeforeValidator(_weights, json_schema_input_type=str | dict[str, float]),
]


class TrainSpec(Spec):
    """One training run."""

    description: str = ""
    seed: int = Field(default=0, ge=0)
    backbone: Component
    adapter: Component | None = Field(default=None, description="attached to the backbone and trained")
    refiner: Component | None = Field(default=None, description="put behind the backbone and trained")
    prior: Component | None = Field(default=None, description="guides the refiner; always frozen")
    trained: tuple[TrainedPart, ...] = Field(
        default=(), description="parts that are trained; by default the last of backbone, adapter, refiner"
    )
    data: DataSpec
    degradation: Degradation | None = Field(
        default=None,
        description="what clean patches suffer: a recipe, or shares of noise and JPEG; for pairs nothing",
    )
    balanced: bool = Field(
        default=False, description="as many patches of each kind of degradation in every batch"
    )
    augment: AugmentSpec = AugmentSpec()
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    accumulate: int = Field(default=1, gt=0, description="parts in which a batch goes through the network")
    loss: Losses = Field(
        default={"psnr": 1.0}, description="a loss, or weights of several: {psnr: 1, fft: 0.1}"
    )
    perceptual: Component | None = Field(
        default=None, description="prior that the perceptual loss compares with"
    )
    optimizer: OptimizerSpec = OptimizerSpec()
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="bf16: autocast, weights in fp32")
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.999, description="decay of the averaged weights; 0 for none"
    )
    validation: Validations = Field(
        default=(),
        description="protocols that say which weights are better; by default PSNR at fixed noise levels",
    )
    validate_every: int = Field(default=1000, gt=0, description="steps")
    save_every: int = Field(default=500, gt=0, description="steps between checkpoints")
    pictures: int = Field(default=4, ge=0, description="validation patches drawn: degraded, restored, clean")
    export: Literal["last", "best"] = Field(
        default="last", description="which step the final weights are of; best is by validation"
    )
    half: bool = Field(default=True, description="store the final weights in 16 bits")
    tensorboard: bool = Field(default=False, description="also write figures and pictures for TensorBoard")

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @property
    def trained_parts(self) -> tuple[TrainedPart, ...]:
        """What is trained, outermost first: its weights are the run's."""
        if self.trained:
            order: tuple[TrainedPart, ...] = ("refiner", "adapter", "backbone")
            return tuple(part for part in order if part in self.trained)
        return ("refiner",) if self.refiner else ("adapter",) if self.adapter else ("backbone",)

    @property
    def noise(self) -> DenoiseSpec | RecipeSpec | None:
        """What clean patches suffer; None for pairs."""
        return None if self.data.pairs else self.degradation or DenoiseSpec()

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of degradation that patches are of, in order; empty where the config does not say."""
        if self.data.pairs:
            named = [folder.kind if isinstance(folder, PairSpec) else "" for folder in self.data.pairs]
            return tuple(dict.fromkeys(named)) if all(named) else ()
        return self.noise.kinds if isinstance(self.noise, RecipeSpec) else ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if bool(self.refiner) != bool(self.prior):
            raise _wrong("refiner and prior go together", "name both, or neither")
        if ("perceptual" in self.loss) != bool(self.perceptual):
            raise _wrong(
                "the perceptual loss and its prior go together",
                "write perceptual: PRIOR, and its weight in loss",
            )
        if (self.balanced or "kind" in self.loss) and len(self.kinds) < 2:
            raise _wrong(
                "there is one kind of degradation, or nobody knows which patches are of which",
                "write degradation: {one_of: [...]}, or a kind for each of data.pairs",
            )
        if self.balanced and isinstance(self.noise, RecipeSpec):
            options = self.noise.chooser.one_of if self.noise.chooser else ()
            if {*self.kinds} - {option.kind for option in options}:
                raise _wrong(
                    "a missed probability makes clean patches, and cannot be balanced",
                    "make clean an option of its own, and leave out the probabilities",
                )
        if self.data.pairs and self.degradation:
            raise _wrong("pairs are degraded already", "leave out degradation")
        for part in self.trained:
            if getattr(self, part) is None:
                raise _wrong(f"trained names the {part}, and there is none", f"add {part}: NAME")
        if self.refiner and (not {"refiner"} <= {*self.trained_parts} <= {"refiner", "backbone"}):
            raise _wrong("a refiner is trained alone or with its backbone", "write trained: [refiner]")
        if self.refiner and self.augment.mixup and any(stage.within for stage in self.stages):
            raise _wrong(
                "a blended patch is no part of one image, of which a refiner's prior could be asked",
                "leave out augment.mixup, or stages.context",
            )
        if self.adapter and "backbone" in self.trained_parts:
            raise _wrong("a backbone is not trained under its adapter", "train the adapter, or leave it out")
        for stage in self.stages:
            if stage.batch % self.accumulate:
                raise _wrong(
                    f"a batch of {stage.batch} cannot be cut in {self.accumulate}",
                    "make accumulate a divisor of every stage's batch",
                )
        return self
