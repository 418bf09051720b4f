"""What arguments of constructors may be, and how one that a user got wrong is told by its key.

What only one component knows of its own arguments it checks itself. Needs no torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from restorekit.errors import ConfigError

# One of them, and several.
_WORDS = {
    bool: ("true or false", "true and false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
}


def chosen_layers(layers: Sequence[int], count: int, hint: str) -> list[int]:
    """Return which of ``count`` layers are chosen: in order, each once, the last of all always as -1.

    -1 is what the last is called by default, so that a fingerprint is the same however it was written.

    Args:
        layers: indices from 0, or from the end where negative.
        count: of all layers.
        hint: says how many there are.

    Raises:
        ConfigError: they are no list of whole numbers, or empty, or there is no such layer.
    """
    if not _fits(layers, Sequence[int]):
        raise ConfigError(
            "params.layers", f"are {layers!r}", "give a list of whole numbers; [-1] is the last"
        )
    if not layers or any(not -count <= layer < count for layer in layers):
        raise ConfigError("params.layers", f"are {list(layers)}", hint)
    chosen = {layer % count for layer in layers}
    return [-1 if layer == count - 1 else layer for layer in sorted(chosen)]


def missing(constructor: Callable[..., Any], given: Iterable[str]) -> list[str]:
    """Return the arguments that a constructor needs and is not given."""
    named = set(given)
    return [
        name
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        and name not in named
    ]


def mistyped(constructor: Callable[..., Any], given: Mapping[str, object]) -> tuple[str, str] | None:
    """Return the first argument of another type than its annotation, and what is wanted; or None.

    Meant for what a constructor has refused: annotations that nobody can read are taken to be met.
    """
    try:
        known = inspect.signature(constructor, eval_str=True).parameters
    # Names that are imported for type checkers alone.
    except NameError:
        return None
    for name, value in given.items():
        if name in known and not _fits(value, known[name].annotation):
            return name, _wanted(known[name].annotation)
    return None


def _fits(value: object, annotation: Any) -> bool:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(_fits(value, each) for each in inner)
    if origin is Literal:
        # Which words there are a component says better itself.
        return any(isinstance(value, type(each)) for each in inner)
    kind = origin or annotation
    if kind in (None, NoneType):
        return value is None
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind in (Sequence, Iterable, list, tuple):
        items = [each for each in inner if each is not ...]
        # Text is a sequence too, and never the one that is meant.
        if not isinstance(value, Sequence) or isinstance(value, str):
            return False
        return not items or all(any(_fits(one, each) for each in items) for one in value)
    if kind in (Mapping, dict):
        return isinstance(value, Mapping)
    return True


def _wanted(annotation: Any) -> str:
    """Return what an annotation means to someone who writes YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return " or ".join(_wanted(each) for each in inner if each is not NoneType)
    if origin is Literal:
        return " or ".join(map(str, inner))
    if annotation in _WORDS:
        return _WORDS[annotation][0]
    if (origin or annotation) in (Mapping, dict):
        return "a mapping of names to values"
    kinds = {_WORDS[each][1] for each in inner if each in _WORDS}
    return f"a list of {' or '.join(sorted(kinds))}" if kinds else "a list"
