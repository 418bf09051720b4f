"""YAML in, typed and checked specs out.

"Spec" always means: came from YAML, holds no torch. Nothing here looks a component up or opens a checkpoint.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from restorekit.errors import ConfigError, near

PACKAGE = Path(__file__).parent


class Spec(BaseModel):
    """Base of everything that came from YAML: frozen, and unknown keys are errors with a near name."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _knows_its_keys(cls, value: object) -> object:
        if isinstance(value, Mapping):
            for key in value:
                if key not in cls.model_fields:
                    hint = near(str(key), cls.model_fields) or f"allowed: {', '.join(cls.model_fields)}"
                    raise PydanticCustomError(
                        "unknown_key", "unknown key {key}", {"key": repr(key), "hint": hint}
                    )
        return value


class ComponentRef(Spec):
    """One component by name, with the arguments of its constructor and its weights."""

    name: str = Field(description="entry-point name, as `restorekit list` prints it")
    params: Mapping[str, Any] = Field(default={}, description="arguments of the component's constructor")
    weights: str | None = Field(default=None, description="tag of declared weights, or the path of a file")


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


# A component is one word, or a mapping.
Component = Annotated[ComponentRef, BeforeValidator(_named, json_schema_input_type=str | ComponentRef)]


class RestoreRef(ComponentRef):
    """A backbone, and the adapter that is attached to it."""

    adapter: Component | None = None


class RefineRef(ComponentRef):
    """A refiner, and the prior that guides it."""

    prior: Component = Field(
        description="describes the degraded image; none for the mean that the refiner's weights hold instead"
    )


class RestoreSpec(Spec):
    """Step ``restore``: run a backbone on the image."""

    restore: Annotated[RestoreRef, BeforeValidator(_named, json_schema_input_type=str | RestoreRef)]


class RefineSpec(Spec):
    """Step ``refine``: improve what the steps before made; a prior, or ``none``, has to be named."""

    # One word alone is never enough; taken as a name, the error says that its prior is what is missing.
    refine: Annotated[RefineRef, BeforeValidator(_named)]


VERBS = ("restore", "refine")


def _one_verb(step: object) -> object:
    """Refuse a step that is not a mapping with one verb, before its content is looked at."""
    keys = [str(key) for key in step] if isinstance(step, Mapping) else []
    if isinstance(step, (Mapping, str)) and (len(keys) != 1 or keys[0] not in VERBS):
        found = ", ".join(keys) if keys else repr(step)
        hint = (near(keys[0], VERBS) if keys else "") or "write, for example: - restore: median"
        message = "a step has exactly one verb, restore or refine; found {found}"
        raise PydanticCustomError("step", message, {"found": found, "hint": hint})
    return step


def _verb(step: object) -> str | None:
    if isinstance(step, Mapping):
        return str(next(iter(step)))
    return "restore" if isinstance(step, RestoreSpec) else "refine" if isinstance(step, RefineSpec) else None


Step = Annotated[
    Annotated[RestoreSpec, Tag("restore")] | Annotated[RefineSpec, Tag("refine")],
    Discriminator(_verb),
    BeforeValidator(_one_verb),
]


def _pixels(value: object) -> object:
    if value != "auto" and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise PydanticCustomError("pixels", "expected auto or a number of pixels, 0 for the whole image")
    return value


TileSize = Annotated[int | Literal["auto"], BeforeValidator(_pixels)]


class TileSpec(Spec):
    """How large images are cut: ``auto`` decides by the memory of the device."""

    size: TileSize = Field(default="auto", description="side in pixels; 0 for the whole image")
    overlap: TileSize = Field(
        default="auto", description="pixels shared by neighbours; auto asks the network"
    )


def _tile(value: object) -> object:
    return value if isinstance(value, (Mapping, TileSpec)) else {"size": value}


class PipelineSpec(Spec):
    """A restore chain: the steps in order, and how images are tiled."""

    description: str = ""
    steps: tuple[Step, ...] = Field(min_length=1)
    tile: TileSpec = TileSpec()

    @model_validator(mode="before")
    @classmethod
    def _short_tile(cls, value: object) -> object:
        if isinstance(value, Mapping) and "tile" in value:
            return {**value, "tile": _tile(value["tile"])}
        return value

    @classmethod
    def parse(cls, document: object, source: str = "pipeline", settings: Sequence[str] = ()) -> Self:
        """Check a mapping as YAML gives it.

        Args:
            document: mapping with ``steps`` and, optionally, ``description`` and ``tile``.
            source: what errors call it.
            settings: overrides ``STEP.PARAM=VALUE``; STEP is a component's name or the number of a step, from
                1.

        Raises:
            ConfigError: a key or a value is wrong; the error holds its path.
        """
        spec = check(cls, document, source)
        for setting in settings:
            spec = spec._set(setting)
        return spec

    @classmethod
    def load(cls, pipeline: str | Path | Mapping[str, Any], settings: Sequence[str] = ()) -> Self:
        """Read a pipeline by the name of a preset, from a YAML file, or from a mapping.

        Raises:
            ConfigError: there is no such preset or file, or it is wrong.
        """
        if isinstance(pipeline, Mapping):
            return cls.parse(pipeline, settings=settings)
        path = find_pipeline(pipeline)
        return cls.parse(_beside(read_yaml(path), path.parent), path.name, settings)

    def _set(self, setting: str) -> Self:
        key, value = split_setting(setting)
        target, _, param = key.partition(".")
        document = self.model_dump()
        components = [component for step in document["steps"] for component in _components(step)]
        if target == "tile" and param:
            document["tile"][param] = value
        elif target.isdecimal() and 0 < int(target) <= len(self.steps) and param:
            next(iter(document["steps"][int(target) - 1].values()))["params"][param] = value
        else:
            named = [component for component in components if component["name"] == target]
            known = [component["name"] for component in components]
            if not named or not param:
                raise ConfigError(
                    f"--set {setting}",
                    f"{target!r} is no step of this pipeline; steps: {', '.join(known)}",
                    near(target, known)
                    or "write --set STEP.PARAM=VALUE, STEP a component's name or a number from 1",
                )
            if len(named) > 1:
                raise ConfigError(
                    f"--set {setting}",
                    f"{target!r} stands in {len(named)} places",
                    "give the step's number instead",
                )
            named[0]["params"] = {**named[0]["params"], param: value}
        return check(type(self), document, f"--set {setting}")


def _components(step: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the mappings of a dumped step that name a component."""
    main: dict[str, Any] = next(iter(step.values()))
    return [main, *(main[slot] for slot in ("adapter", "prior") if main.get(slot))]


def _beside(document: object, folder: Path) -> object:
    """Return the document with the weights that lie beside the YAML file written as full paths."""
    if isinstance(document, dict):
        moved = {key: _beside(value, folder) for key, value in document.items()}
        weights = moved.get("weights")
        if isinstance(weights, str) and not Path(weights).exists() and (folder / weights).is_file():
            moved["weights"] = str(folder / weights)
        return moved
    return [_beside(item, folder) for item in document] if isinstance(document, list) else document


SpecT = TypeVar("SpecT", bound=Spec)


def check(kind: type[SpecT], document: object, source: str) -> SpecT:
    """Return the document as a spec.

    Raises:
        ConfigError: the first thing that is wrong, with its path, as ``denoise.yaml: steps[1].refine``.
    """
    if not isinstance(document, Mapping):
        found = type(document).__name__
        raise ConfigError(source, f"expected a mapping, found {found}", "write keys, as in steps: ...")
    try:
        return kind.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = _path(first["loc"])
        given = "" if first["type"] in ("unknown_key", "step", "missing") else f", found {first['input']!r}"
        what = "is missing" if first["type"] == "missing" else first["msg"][:1].lower() + first["msg"][1:]
        raise ConfigError(f"{source}: {path}" if path else source, what + given, _hint(first)) from error


def _hint(fault: ErrorDetails) -> str:
    """Return how to mend what pydantic found."""
    context = fault.get("ctx", {})
    if fault["type"] == "missing":
        return f"write it there, as {fault['loc'][-1]}: ..."
    if fault["type"] in ("tuple_type", "list_type"):
        return f"write a list, as [{fault['input']}]"
    if fault["type"] == "literal_error":
        return near(str(fault["input"]), re.findall("'([^']+)'", str(context.get("expected", ""))))
    return str(context.get("hint", ""))


def _path(loc: tuple[int | str, ...]) -> str:
    """Return ``steps[1].refine.prior`` for pydantic's location, without the tags of unions."""
    path = ""
    previous: int | str = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part != previous:  # the tag of a step repeats its verb: steps, 1, refine, refine
            path += f".{part}" if path else part
        previous = part
    return path


class _StrictLoader(yaml.SafeLoader):
    """YAML without code, and without silently dropping a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.MarkedYAMLError(problem=f"key {key!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> object:
    """Return the document of a YAML file.

    Raises:
        ConfigError: the file is missing, unreadable or not YAML; with line and column.
    """
    try:
        # The loader is a SafeLoader: it builds plain values only.
        return yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except FileNotFoundError:
        raise ConfigError(str(path), "no such file", "check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), f"cannot be read: {error}", "give a UTF-8 text file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise ConfigError(
            where, f"not YAML: {getattr(error, 'problem', None) or error}", "mend that line"
        ) from error


def configs_folder() -> Path:
    """Return the folder of presets: inside an installed wheel, or at the root of a checkout."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else PACKAGE.parent / "configs"


def presets() -> dict[str, Path]:
    """Return the presets by name."""
    return {path.stem: path for path in sorted(configs_folder().glob("*.yaml"))}


def find_pipeline(pipeline: str | Path) -> Path:
    """Return the file of a preset by its name, or the path of a YAML file.

    Raises:
        ConfigError: neither exists; with near names.
    """
    known = presets()
    if str(pipeline) in known:
        return known[str(pipeline)]
    path = Path(pipeline)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(str(path), "no such pipeline file", f"presets go by name: {', '.join(known)}")
        return path
    raise ConfigError(
        "pipeline",
        f"no preset called {str(pipeline)!r}; presets: {', '.join(known)}",
        near(str(pipeline), known) or "give one of these, or the path of a .yaml file",
    )


def one_step(model: str) -> dict[str, Any]:
    """Return the pipeline of one backbone, NAME or NAME/WEIGHTS."""
    name, _, weights = model.partition("/")
    return {"description": model, "steps": [{"restore": {"name": name, "weights": weights or None}}]}


def split_setting(setting: str) -> tuple[str, Any]:
    """Return key and value of ``key=value``; the value is read as YAML, never evaluated."""
    key, equals, text = setting.partition("=")
    if not key or not equals:
        raise ConfigError(
            f"--set {setting}", "expected KEY=VALUE", "write, for example, --set median.window=5"
        )
    try:
        return key, yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}", f"the value is not YAML: {text}", "quote it") from error


def with_settings(document: object, settings: Sequence[str]) -> object:
    """Return the document with each ``path.to.key=value`` set; keys are checked when it is parsed."""
    for setting in settings:
        key, value = split_setting(setting)
        document = _with(document, key.split("."), value)
    return document


def _with(document: object, keys: Sequence[str], value: object) -> object:
    if not keys:
        return value
    inner = document if isinstance(document, Mapping) else {}
    return {**inner, keys[0]: _with(inner.get(keys[0]), keys[1:], value)}
