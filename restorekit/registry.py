"""Address book: names from entry points, classes on demand.

The installed environment is the registry. Nothing is remembered between two looks, so there is nothing to
reset, and nothing is imported until ``Entry.load``. What a class must be able to do is contracts.py.
"""

from __future__ import annotations

import configparser
import re
from abc import ABCMeta
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import entrypoints

from restorekit.errors import DuplicateComponentError, PluginLoadError, UnknownComponentError, near

if TYPE_CHECKING:
    from restorekit.catalog import Pretrained
    from restorekit.contracts import Adapter, Backbone, Prior, Refiner

T = TypeVar("T")

_PREFIX = "restorekit."
_FIELDS = ("Name", "Version", "Summary", "License-Expression", "License")
# Kinds that are classes, and the base class in contracts.py that each must have. Weights are data.
_CONTRACTS = {"backbone": "Backbone", "adapter": "Adapter", "refiner": "Refiner", "prior": "Prior"}


@dataclass(frozen=True)
class Entry(Generic[T]):
    """One component that an installed distribution offers, as its metadata tells; nothing is imported yet.

    Attributes:
        kind: ``backbone``, ``adapter``, ``refiner``, ``prior``, ``weights``, ``official`` or ``metric``.
        name: what pipelines call it.
        dist: name of the distribution.
        version: of the distribution.
        summary: what the distribution says of itself in one line.
        licence: SPDX expression where the distribution gives one; may be empty.
        value: where it is, ``module:attribute``.
    """

    kind: str
    name: str
    dist: str
    version: str
    summary: str
    licence: str
    value: str

    def load(self) -> T:
        """Import and return the component: a class for every kind but weights, officials and metrics.

        Raises:
            PluginLoadError: it cannot be imported, or is not a class of its kind.
        """
        offer = f"{self.kind} {self.name!r} of {self.dist} {self.version}"
        try:
            found = entrypoints.EntryPoint.from_string(self.value, self.name).load()
        # A stranger's module may fail in any way while it is imported.
        except Exception as error:
            missing = error.name if isinstance(error, ModuleNotFoundError) else None
            raise PluginLoadError(
                f"{offer} cannot be imported: {type(error).__name__}: {_one_line(error)}",
                f"install what provides {missing!r}, or uninstall {self.dist}"
                if missing
                else f"reinstall or uninstall {self.dist}",
            ) from error
        if contract := _CONTRACTS.get(self.kind):
            base = getattr(import_module("restorekit.contracts"), contract)
            if not (isinstance(found, type) and issubclass(found, base)):
                described = "the class" if isinstance(found, type) else "an object of"
                raise PluginLoadError(
                    f"{offer} is not a {contract}: {self.value} is {described} {_type_name(found)}",
                    f"point it at a subclass of restorekit.contracts.{contract}, or uninstall {self.dist}",
                )
            if isinstance(found, ABCMeta) and found.__abstractmethods__:
                left = ", ".join(sorted(found.__abstractmethods__))
                raise PluginLoadError(
                    f"{offer} is unfinished: {self.value} does not define {left}", f"uninstall {self.dist}"
                )
        return cast(T, found)


@dataclass(frozen=True)
class Problem:
    """Something wrong with an installed distribution: it concerns no other one.

    Attributes:
        dist: name of the distribution, or names of those that disagree.
        message: what is wrong.
    """

    dist: str
    message: str


class Registry(Mapping[str, Entry[T]]):
    """The installed components of one kind, by name; every look reads the metadata again.

    A name that two distributions offer is listed once and refused when asked for; ``values`` and ``items``
    ask for every name, so they refuse it too. ``entries`` lists everything and never fails.

    Args:
        kind: as in messages; the entry-point group is ``restorekit.<kind>s``, or ``restorekit.weights``.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.group = f"{_PREFIX}{kind.removesuffix('s')}s"

    def __repr__(self) -> str:
        return f"<Registry of {self.group}>"

    def __getitem__(self, name: str) -> Entry[T]:
        entries, problems = self._look()
        found = [entry for entry in entries if entry.name == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise DuplicateComponentError(
                _duplicate(found), f"uninstall one of them, as with `pip uninstall {found[-1].dist}`"
            )
        names = sorted({entry.name for entry in entries})
        message = f"no {self.kind} called {name!r}; installed: {', '.join(names) or 'none'}"
        if suspects := sorted({problem.dist for problem in problems}):
            message += f"; partly unreadable: {', '.join(suspects)}"
        doubt = "run `restorekit doctor`" if suspects else f"run `restorekit list {self.kind}`"
        raise UnknownComponentError(message, near(name, names) or doubt)

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({entry.name for entry in self.entries()}))

    def __len__(self) -> int:
        return len({entry.name for entry in self.entries()})

    def __contains__(self, name: object) -> bool:
        return any(entry.name == name for entry in self.entries())

    def entries(self) -> tuple[Entry[T], ...]:
        """Return every entry by name, those of one name by distribution."""
        return self._look()[0]

    def _look(self) -> tuple[tuple[Entry[T], ...], list[Problem]]:
        entries, problems = _scan()
        mine = (entry for entry in entries if entry.kind == self.kind)
        return tuple(sorted(mine, key=lambda entry: (entry.name, entry.dist))), problems


backbones: Registry[type[Backbone]] = Registry("backbone")
adapters: Registry[type[Adapter]] = Registry("adapter")
refiners: Registry[type[Refiner]] = Registry("refiner")
priors: Registry[type[Prior]] = Registry("prior")
weights: Registry[Iterable[Pretrained]] = Registry("weights")
# By the name of a published class: what builds our network from the arguments of that class's constructor.
officials: Registry[Callable[[Mapping[str, Any]], Backbone]] = Registry("official")
# Clean image, restored image (H, W, C) and the peak of their range -> a figure; see evaluation/protocols.py.
metrics: Registry[Callable[[Any, Any, float], float]] = Registry("metric")

REGISTRIES: tuple[Registry[Any], ...] = (
    backbones,
    adapters,
    refiners,
    priors,
    weights,
    officials,
    metrics,
)


def problems() -> tuple[Problem, ...]:
    """Return what metadata alone shows to be wrong: manifests, single entries, names offered twice."""
    entries, found = _scan()
    named: dict[tuple[str, str], list[Entry[Any]]] = {}
    for entry in entries:
        named.setdefault((entry.kind, entry.name), []).append(entry)
    for same in named.values():
        if len(same) > 1:
            found.append(Problem(", ".join(entry.dist for entry in same), _duplicate(same)))
    return tuple(sorted(set(found), key=lambda problem: (problem.dist, problem.message)))


def load_problems() -> tuple[Problem, ...]:
    """Load every installed component and return what failed; imports everything, so it takes its time."""
    failures = []
    for registry in REGISTRIES:
        for entry in registry.entries():
            try:
                entry.load()
            except PluginLoadError as error:
                failures.append(Problem(entry.dist, error.message))
    return tuple(failures)


def _scan() -> tuple[list[Entry[Any]], list[Problem]]:
    """Read the manifests that mention restorekit, each by itself.

    ``entrypoints`` parses and loads. Its own walk over the installed distributions is not used: there, one
    file that cannot be parsed, of whatever package, ends the walk; a ``%`` is taken for interpolation; files
    are read in the encoding of the locale; ``My_Dist`` and ``my-dist`` are two; and an old version shows
    through a newer one that has no entry points.
    """
    entries: list[Entry[Any]] = []
    problems: list[Problem] = []
    seen: set[str] = set()
    for dist in metadata.distributions():
        if _PREFIX not in _manifest(dist):
            continue
        name = _metadata(dist).get("Name", "")
        # PEP 503: names that differ in case, or in runs of these characters, are one.
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        try:
            # The first of this name on sys.path is the installed one, whether it offers anything or not.
            first = metadata.distribution(name)
        except (metadata.PackageNotFoundError, ValueError):
            folder = str(getattr(dist, "_path", "its folder"))
            problems.append(
                Problem(name or folder, f"half installed: {folder} has no METADATA of the same name in UTF-8")
            )
            continue
        seen.add(key)
        for item in _read(first, name):
            if isinstance(item, Problem):
                problems.append(item)
            else:
                entries.append(item)
    return entries, problems


def _read(dist: metadata.Distribution, dist_name: str) -> Iterator[Entry[Any] | Problem]:
    text = _manifest(dist)
    if _PREFIX not in text:
        return
    parser = entrypoints.CaseSensitiveConfigParser(delimiters=("=",), interpolation=None)
    try:
        if "\N{REPLACEMENT CHARACTER}" in text:
            raise configparser.ParsingError("not UTF-8")
        parser.read_string(text, "entry_points.txt")
    except configparser.Error as error:
        yield Problem(dist_name, f"its entry_points.txt cannot be parsed: {_one_line(error)}")
        return
    about = _metadata(dist)
    licence = about.get("License-Expression") or about.get("License", "").partition("\n")[0]
    kinds = {registry.group: registry.kind for registry in REGISTRIES}
    for group in parser.sections():
        if not group.startswith(_PREFIX):
            continue
        if group not in kinds:
            hint = near(group, kinds) or f"groups are {', '.join(kinds)}"
            yield Problem(dist_name, f"it offers components in {group!r}, which is no group; {hint}")
            continue
        for name, value in parser[group].items():
            if spec := _spec(value):
                yield Entry(
                    kind=kinds[group],
                    name=name,
                    dist=about.get("Name", dist_name),
                    version=about.get("Version", "?"),
                    summary=about.get("Summary", ""),
                    licence=licence,
                    value=spec,
                )
            else:
                yield Problem(
                    dist_name, f"{kinds[group]} {name!r} points to {value!r}, not to module:attribute"
                )


def _spec(value: str) -> str:
    """Return ``module:attribute`` without extras, or an empty string when the value is not of this form."""
    try:
        point = entrypoints.EntryPoint.from_string(value, "")
    except entrypoints.BadEntryPoint:
        return ""
    words = [*point.module_name.split("."), *(point.object_name or "").split(".")]
    return f"{point.module_name}:{point.object_name}" if all(map(str.isidentifier, words)) else ""


def _manifest(dist: metadata.Distribution) -> str:
    """Return the text of entry_points.txt; where it is not UTF-8, with replacement characters."""
    try:
        return dist.read_text("entry_points.txt") or ""
    except UnicodeDecodeError as error:
        return error.object.decode("utf-8", "replace")
    except OSError:
        return ""


def _metadata(dist: metadata.Distribution) -> dict[str, str]:
    try:
        about = dist.metadata
    except (OSError, ValueError):
        return {}
    return {field: about[field] for field in _FIELDS if field in about}


def _duplicate(entries: list[Entry[Any]]) -> str:
    owners = " and ".join(f"{entry.dist} {entry.version}" for entry in entries)
    return f"{entries[0].kind} {entries[0].name!r} is offered by {owners}"


def _type_name(found: object) -> str:
    kind = found if isinstance(found, type) else type(found)
    return f"{kind.__module__}.{kind.__qualname__}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
