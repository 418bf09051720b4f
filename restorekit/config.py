"""YAML in, typed and checked specs out.

"Spec" always means: came from YAML, holds no torch. Nothing here looks a component up or opens a checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from restorekit.errors import ConfigError, near


class Spec(BaseModel):
    """Base of everything that came from YAML: frozen, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ComponentRef(Spec):
    """One component by name, with the arguments of its constructor and its weights."""

    name: str = Field(description="entry-point name, as `restorekit list` prints it")
    params: Mapping[str, Any] = Field(default={}, description="arguments of the component's constructor")
    weights: str | None = Field(default=None, description="a bundled or published tag, or the path of a file")


def _word_or_mapping(value: object) -> str:
    return "word" if isinstance(value, str) else "mapping"


def _named(value: str | ComponentRef) -> ComponentRef:
    return ComponentRef(name=value) if isinstance(value, str) else value


Component = Annotated[
    Annotated[str, Tag("word")] | Annotated[ComponentRef, Tag("mapping")],
    Discriminator(_word_or_mapping),
    AfterValidator(_named),
]
