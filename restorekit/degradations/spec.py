"""What is done to clean images, as YAML says it. Holds no torch.

A recipe is one degradation, several in a row, or one of several::

    chain:
      - {name: gaussian_blur, std: [0.5, 2], probability: 0.8}
      - one_of:
          - {name: gaussian, sigma: {log: [2, 50]}, weight: 3}
          - {name: rain, strength: severe}
          - clean
      - {name: jpeg, quality: [30, 95], subsample: [true, false]}

A number is fixed, a pair of numbers is a range that is drawn from uniformly, ``{log: [low, high]}`` a range
whose logarithm is drawn uniformly, a list of words or of true and false is a choice. Parameters that are not
given keep their defaults, or those of a ``strength``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_serializer, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from restorekit.config import Spec
from restorekit.degradations.catalogue import COMPOSITIONS, KINDS, STRENGTHS, Parameter
from restorekit.errors import near

#: The kind of an image that nothing was done to.
CLEAN = "clean"
_VERBS = ("name", "chain", "one_of")
_COMMON = ("probability", "weight", "label")


class RecipeSpec(Spec):
    """One degradation with its parameters beside its name, a chain of them, or one of several.

    In YAML the parameters stand beside the name; here they are ``params``. The name of a composition is
    replaced by what it is made of.
    """

    name: str | None = Field(default=None, description="of a degradation, or of a composition")
    params: Mapping[str, Any] = Field(default={}, description="fixed values, ranges and choices")
    chain: tuple[RecipeSpec, ...] = Field(default=(), min_length=1, description="one after the other")
    shuffle: bool = Field(default=False, description="the chain in an order drawn for each image")
    one_of: tuple[RecipeSpec, ...] = Field(default=(), min_length=1, description="one, by the weights")
    probability: Annotated[float, Field(ge=0, le=1)] = Field(default=1.0, description="that it is done")
    weight: Annotated[float, Field(ge=0)] = Field(default=1.0, description="beside others of a one_of")
    label: str = Field(default="", description="what training calls this kind of degradation")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: object) -> object:
        return value if isinstance(value, cls) else _read(value)

    @model_validator(mode="after")
    def _weights_have_a_use(self) -> RecipeSpec:
        if any("weight" in step.model_fields_set for step in self.chain):
            raise _wrong("weight has no meaning in a chain", "use probability, or one_of")
        if self.one_of and not sum(option.weight for option in self.one_of) > 0:
            raise _wrong("all weights of one_of are 0", "give one a weight above 0")
        return self

    def names(self) -> frozenset[str]:
        """Return every degradation that may come of it."""
        inner = (step.names() for step in (*self.chain, *self.one_of))
        return frozenset(({self.name} if self.name else set()).union(*inner))

    @property
    def kind(self) -> str:
        """What this kind of degradation is called: its label, or else its names with a plus between."""
        if self.label or self.name:
            return self.label or str(self.name)
        return "+".join(dict.fromkeys(step.kind for step in (*self.chain, *self.one_of)))

    @property
    def chooser(self) -> RecipeSpec | None:
        """The recipe whose options are the kinds: this one, or the only ``one_of`` in its chain."""
        choosers = [step for step in (self, *self.chain) if step.one_of]
        return choosers[0] if len(choosers) == 1 and not self.label else None

    @property
    def kinds(self) -> tuple[str, ...]:
        """Every kind that an image may be of, in order; options of one label are one kind.

        Where there is no choice, or several, the whole is the only kind. ``clean`` comes last where a missed
        probability may leave an image as it is.
        """
        chooser = self.chooser
        options = chooser.one_of if chooser else (self,)
        spared = chooser is not None and min(self.probability, chooser.probability) < 1
        missed = spared or any(option.may_do_nothing for option in options)
        return tuple(dict.fromkeys([*(option.kind for option in options), *([CLEAN] if missed else [])]))

    @property
    def may_do_nothing(self) -> bool:
        """Whether missed probabilities can leave nothing of it to be done."""
        inner = [step.may_do_nothing for step in (*self.chain, *self.one_of)]
        return self.probability < 1 or (any(inner) if self.one_of else bool(inner) and all(inner))

    @model_serializer
    def _as_read(self) -> dict[str, Any]:
        """Return what YAML would hold."""
        document: dict[str, Any] = {}
        if self.name is not None:
            document = {"name": self.name, **self.params}
        elif self.chain:
            document = {"chain": [step._as_read() for step in self.chain]}
            document |= {"shuffle": True} if self.shuffle else {}
        else:
            document = {"one_of": [option._as_read() for option in self.one_of]}
        given = {key: getattr(self, key) for key in _COMMON if key in self.model_fields_set}
        return document | given


def _read(value: object) -> object:
    """Return a mapping with the fields of the spec, ``params`` apart."""
    document = {"name": value} if isinstance(value, str) else value
    if not isinstance(document, Mapping):
        message = "expected the name of a degradation or a mapping, found {found}"
        raise _wrong(message, "write, for example: - {name: gaussian, sigma: [0, 50]}", found=repr(value))
    verbs = [key for key in _VERBS if key in document]
    if len(verbs) != 1:
        keys = ", ".join(map(str, document)) or "nothing"
        close = [near(str(key), _VERBS) for key in document if key not in _VERBS]
        raise _wrong(
            "a degradation has exactly one of name, chain and one_of; found {found}",
            next(filter(None, close), "write, for example: name: gaussian"),
            found=keys,
        )
    if verbs[0] == "name":
        named = _named(document)
        return named if "params" in named else _read(named)
    allowed = (verbs[0], *_COMMON, *(("shuffle",) if verbs[0] == "chain" else ()))
    for key in document:
        if key not in allowed:
            hint = near(str(key), allowed) or f"allowed: {', '.join(allowed)}"
            raise _wrong("unknown key {key}", hint, key=repr(key))
    return document


def _wrong(message: str, hint: str, **facts: str) -> PydanticCustomError:
    # config.check adds the whole input to any other type of error.
    return PydanticCustomError("step", message, {**facts, "hint": hint})


def _named(document: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the document with its checked parameters as ``params``, or what a composition stands for."""
    name, strength = document["name"], document.get("strength", "medium")
    rest = {key: value for key, value in document.items() if key not in ("name", "strength", *_COMMON)}
    common = {key: document[key] for key in _COMMON if key in document}
    if not isinstance(name, str) or name not in {**KINDS, **COMPOSITIONS}:
        known = [*KINDS, *COMPOSITIONS]
        raise _at("name", name, f"no degradation called {name!r}", near(str(name), known) or _listed(known))
    if strength not in STRENGTHS:
        hint = near(str(strength), STRENGTHS) or _listed(STRENGTHS)
        raise _at("strength", strength, f"no strength called {strength!r}", hint)
    if name in COMPOSITIONS:
        for key in rest:
            hint = "write its recipe out to change it: `restorekit degrade --list --json` prints it"
            raise _at(str(key), rest[key], f"{name} is a composition and has no parameters", hint)
        return {**COMPOSITIONS[name].strengths[strength], **common}
    parameters = KINDS[name].parameters
    given = {**KINDS[name].strengths[strength], **rest} if "strength" in document else rest
    params = {}
    for key, value in given.items():
        if key not in parameters:
            hint = near(str(key), parameters) or _listed([*parameters, *_COMMON, "strength"])
            raise _at(str(key), value, f"{name} has no parameter {key!r}", hint)
        params[key] = _value(str(key), value, parameters[key])
    return {"name": name, "params": params, **common}


def _listed(known: Iterable[str]) -> str:
    return f"known: {', '.join(known)}"


def _at(key: str, value: object, message: str, hint: str) -> ValidationError:
    """Return an error whose place is a key of this mapping."""
    error = PydanticCustomError("step", "{message}", {"message": message, "hint": hint})
    return ValidationError.from_exception_data(
        "RecipeSpec", [InitErrorDetails(type=error, loc=(key,), input=value)]
    )


def _value(key: str, value: object, parameter: Parameter) -> object:
    """Return a fixed value, a range or a choice, checked."""
    if not parameter.is_number:
        choices = value if isinstance(value, (list, tuple)) else (value,)
        kind = type(parameter.default)
        if not choices or not all(
            isinstance(choice, kind) and (not parameter.words or choice in parameter.words)
            for choice in choices
        ):
            word = choices[0] if choices else ""
            hint = (
                near(str(word), parameter.words) or f"write, for example: {key}: {_text(parameter.default)}"
            )
            raise _at(key, value, f"expected {parameter.expected}, or a list of these; found {value!r}", hint)
        return tuple(choices) if isinstance(value, (list, tuple)) else value
    log = isinstance(value, Mapping) and set(value) == {"log"}
    inner: Any = value["log"] if isinstance(value, Mapping) and log else value
    is_range = isinstance(inner, (list, tuple))
    numbers = tuple(inner) if is_range else (inner,)
    example = f"write, for example: {key}: {parameter.default}"
    if len(numbers) != (2 if log or is_range else 1):
        raise _at(key, value, f"expected a number, or a range of two; found {value!r}", example)
    for number in numbers:
        whole = isinstance(number, int) or not isinstance(parameter.default, int)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not whole:
            raise _at(key, value, f"expected {parameter.expected}, or a range; found {value!r}", example)
        if not parameter.low <= number <= parameter.high:
            raise _at(key, value, f"expected {parameter.expected}; found {number!r}", example)
    if numbers[0] > numbers[-1]:
        raise _at(key, value, f"the range {value!r} runs backwards", f"write {key}: {sorted(numbers)}")
    if log and numbers[0] <= 0:
        raise _at(key, value, f"a range of logarithms begins above 0; found {value!r}", "raise its low end")
    return {"log": numbers} if log else numbers if is_range else value


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
