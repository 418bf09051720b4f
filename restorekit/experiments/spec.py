"""What an experiment is: one YAML file, typed. Holds no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from restorekit.config import Component, ComponentRef, Spec, check
from restorekit.degradations.spec import RecipeSpec
from restorekit.training.spec import DataSpec, Share, TrainSpec

Row = Literal[
    "independent",
    "unified",
    "larger",
    "longer",
    "specialists",
    "adaptive",
    "decided",
    "cautious",
    "oracle",
    "polished",
    "polished-decided",
    "polished-cautious",
    "polished-oracle",
    "uniform",
    "random",
    "delta",
    "copied",
]


# Of the adapter's params: the chain says these itself, and chooses the filters of each degradation alone.
_FILLED = ("degradations", "scores", "specialists", "parts", "train", "none", "exclusive")


class DiscoverySpec(Spec):
    """How the filters of a degradation are found: FAIG from the unified model to a specialist."""

    images: int = Field(default=32, gt=0, description="windows of training photographs, for each degradation")
    patch: int = Field(default=96, gt=0, description="side of the windows in pixels")
    rule: Literal["mid", "left"] = Field(default="mid", description="rule of the path's integral")
    steps: int | Literal["auto"] = Field(default="auto", description="of the path; auto by completeness")


class ComparisonSpec(Spec):
    """Test images, and what stands beside the adaptive model in the table."""

    data: str = Field(description="folder of clean test images, which nothing was trained on")
    limit: int | None = Field(default=None, gt=0, description="use the first images only")
    seed: int = Field(default=0, ge=0, description="of the degradation of test images")
    degradations: Mapping[str, RecipeSpec] = Field(
        default={}, description="of test images, where they differ from those of training"
    )
    rows: tuple[Row, ...] = Field(
        default=("independent", "unified", "adaptive", "oracle", "random"), min_length=1
    )
    least: Share = Field(default=0.5, description="share that the first choice has where row cautious acts")
    larger: Mapping[str, Any] = Field(
        default={}, description="params that make the backbone as large as the whole adaptive model"
    )


class AdaptiveSpec(Spec):
    """An adaptive model from nothing: unified model, specialists, filters, deltas, classifier, polish.

    Each stage is a run of `restorekit train`: what stands under it, over what stands under ``common``, are
    keys of its config. The chain fills in backbone, data, degradation and weights.
    """

    description: str = ""
    seed: int = Field(default=0, ge=0)
    backbone: Component
    adapter: Component = Field(default=ComponentRef(name="adms"), description="with its params")
    data: DataSpec
    degradations: Mapping[str, RecipeSpec] = Field(min_length=2, description="by name: what is to be undone")
    clean: Share = Field(default=0.1, description="share of patches that are left clean: the class none")
    common: Mapping[str, Any] = Field(default={}, description="keys of every run")
    unified: Mapping[str, Any] = Field(description="keys of the run on all degradations")
    specialists: Mapping[str, Any] = Field(description="keys of the runs from it to one degradation each")
    independent: Mapping[str, Any] = Field(
        default={},
        description="keys of the runs on one degradation each, from nothing, over those of unified",
    )
    discovery: DiscoverySpec = DiscoverySpec()
    deltas: Mapping[str, Any] = Field(description="keys of the runs of the filters of one degradation each")
    classifier: Mapping[str, Any] = Field(description="keys of the run of the classifier")
    polish: Mapping[str, Any] | None = Field(
        default=None,
        description="keys of the run that trains filters and classifier on together; none without it",
    )
    comparison: ComparisonSpec | None = Field(default=None, description="the table; none without it")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if "clean" in self.degradations or "none" in self.degradations:
            raise wrong("clean images are a class of their own", "leave it out, and set clean: 0.1")
        filled = [name for name in _FILLED if name in self.adapter.params]
        if filled:
            raise wrong(f"adapter.params: the chain says {', '.join(filled)} itself", "leave that out")
        if self.comparison:
            for name in self.comparison.degradations:
                if name not in self.degradations:
                    raise wrong(f"the table names {name!r}, which is not trained", "use the same names")
            if "larger" in self.comparison.rows and not self.comparison.larger:
                raise wrong("row larger needs params", "write, for example, larger: {width: 20}")
            polished = [row for row in self.comparison.rows if row.startswith("polished")]
            if polished and self.polish is None:
                raise wrong(f"row {polished[0]} needs the stage polish", "write, for example, polish: {}")
        return self

    def run(self, stage: str, **filled: Any) -> TrainSpec:
        """Return the config of one run.

        Args:
            stage: the field that holds its keys.
            filled: what the chain fills in; over the stage's own keys.

        Raises:
            ConfigError: a key of the stage is unknown or wrong; the path names the stage.
        """
        own = {"seed": self.seed, "data": self.data.model_dump(mode="json")}
        given = {key: value for key, value in filled.items() if value is not None}
        return run_spec(stage, own, self.common, getattr(self, stage), given)


def run_spec(stage: str, *layers: Mapping[str, Any]) -> TrainSpec:
    """Return the config of one run.

    Args:
        stage: what errors call it.
        layers: keys of the config, the later ones over the earlier.

    Raises:
        ConfigError: a key is unknown or wrong; the path names the stage.
    """
    return check(TrainSpec, {key: value for layer in layers for key, value in layer.items()}, stage)


def wrong(message: str, hint: str) -> PydanticCustomError:
    """Return an error of a spec, and what to do about it."""
    # config.check adds the whole input to any other type of error.
    return PydanticCustomError("step", "{message}", {"message": message, "hint": hint})
