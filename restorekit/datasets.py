"""What a folder of photographs is: clean images, or pairs of degraded and clean ones in a usual layout.

Nothing is opened here but folders. Training and evaluation read the files that this room names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from restorekit.errors import ImageError, near
from restorekit.imagefiles import SUFFIXES

# Names that folders of degraded and of clean images have in the field's datasets, in lower case.
_DEGRADED = (
    *("input", "inputc", "source", "lq", "lr", "low", "degraded", "noisy", "noise", "rain", "rainy"),
    *("rainstreak", "hazy", "haze", "blur", "blurry", "blurred", "synthetic", "data", "compressed", "real"),
)
_CLEAN = (
    *("target", "targetc", "gt", "hq", "hr", "high", "normal", "clean", "clear", "norain", "sharp"),
    *("groundtruth", "ground_truth", "reference", "original", "mean"),
)
# Words by which the names of partners differ: 01_noise.png and 01_gt.png, rain-001.png and norain-001.png.
_WORDS = "|".join(sorted({*_DEGRADED, *_CLEAN}, key=len, reverse=True))
_MARKS = re.compile(rf"(?:^|(?<=[-_.]))(?:{_WORDS})(?:\d*)(?=$|[-_.])", re.IGNORECASE)
_MARKED = re.compile(rf"^(?P<name>.+)[-_](?P<mark>{_WORDS})\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Sample:
    """One image to restore.

    Attributes:
        name: what reports call it, unique in its dataset.
        clean: the file to compare with.
        degraded: the file to restore; None where it is made from the clean one.
    """

    name: str
    clean: Path
    degraded: Path | None = None


@dataclass(frozen=True)
class Dataset:
    """The samples of a folder.

    Attributes:
        folder: where they are.
        layout: how they were found, for people: ``input -> target``, or ``clean images``.
        samples: in the order of their names.
        unpaired: files of a paired layout that have no partner.
    """

    folder: Path
    layout: str
    samples: tuple[Sample, ...]
    unpaired: tuple[Path, ...] = ()

    @property
    def paired(self) -> bool:
        """Whether degraded images are there and need not be made."""
        return self.layout != CLEAN

    def __str__(self) -> str:
        first = self.samples[0]
        count = len(self.samples)
        if first.degraded is None:
            return f"{count} clean images of {self.folder}"
        return (
            f"{count} pairs of {self.folder}: {self.layout}, as {first.degraded.name} -> {first.clean.name}"
        )


CLEAN = "clean images"


def find(folder: Path, layout: str | None = None) -> Dataset:
    """Return what a folder holds.

    Pairs lie in two folders with one of the field's usual names (``input`` and ``target``, ``LQ`` and ``GT``,
    ``rain`` and ``norain`` ...), at any depth; or side by side, told apart by such a word (``a_blur1.png``,
    ``a_sharp1.png``). Partners have the same name, up to that word; one clean image may have several degraded
    ones, whose names go on after an underscore (``1400_0.8.png`` belongs to ``1400.png``).

    Args:
        folder: to look into.
        layout: ``DEGRADED:CLEAN``, two folders inside; or ``clean``, where pairs are to be ignored.

    Raises:
        ImageError: there are no images, several layouts are possible, or no file has a partner.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is no folder", "give a folder of images with --data")
    if layout == "clean":
        return _clean(folder, [path for path in sorted(folder.rglob("*")) if _is_image(path)])
    if layout is not None:
        degraded, colon, clean = layout.partition(":")
        if not colon or not (folder / degraded).is_dir() or not (folder / clean).is_dir():
            raise ImageError(
                f"layout {layout!r} does not name two folders of {folder}",
                "write it as --layout DEGRADED:CLEAN",
            )
        return _in_folders(folder, [(folder / degraded, folder / clean)])
    if twins := _twin_folders(folder):
        return _in_folders(folder, twins)
    files = [path for path in sorted(folder.iterdir()) if _is_image(path)]
    return _side_by_side(folder, files) or _clean(folder, files)


def find_between(degraded: Path, clean: Path) -> Dataset:
    """Return the pairs of two folders, wherever they lie; their names are those of the degraded files.

    Raises:
        ImageError: one is no folder, or no file has a partner.
    """
    for folder in (degraded, clean):
        if not folder.is_dir():
            raise ImageError(f"{folder} is no folder", "check the path")
    return _in_folders(degraded, [(degraded, clean)])


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.is_file()


def _clean(folder: Path, files: Iterable[Path]) -> Dataset:
    samples = tuple(Sample(path.relative_to(folder).as_posix(), path) for path in files)
    if not samples:
        raise ImageError(
            f"{folder} holds no images, and no two folders of a layout that is known",
            "give a folder of images, or name the two with --layout DEGRADED:CLEAN",
        )
    return Dataset(folder, CLEAN, samples)


def _twin_folders(folder: Path) -> list[tuple[Path, Path]]:
    """Return pairs of sibling folders with the names of a layout, at any depth."""
    twins = []
    for parent in (folder, *sorted(path for path in folder.rglob("*") if path.is_dir())):
        inside = {path.name.lower(): path for path in sorted(parent.iterdir()) if path.is_dir()}
        degraded = [inside[name] for name in _DEGRADED if name in inside]
        clean = [inside[name] for name in _CLEAN if name in inside]
        if len(degraded) > 1 or len(clean) > 1:
            names = ", ".join(path.name for path in (*degraded, *clean))
            raise ImageError(
                f"{parent} holds several folders that could be pairs: {names}",
                "say which with --layout DEGRADED:CLEAN",
            )
        if degraded and clean:
            twins.append((degraded[0], clean[0]))
    return twins


def _in_folders(folder: Path, twins: list[tuple[Path, Path]]) -> Dataset:
    samples: list[Sample] = []
    unpaired: list[Path] = []
    for degraded_folder, clean_folder in twins:
        degraded = [path for path in sorted(degraded_folder.rglob("*")) if _is_image(path)]
        clean = [path for path in sorted(clean_folder.rglob("*")) if _is_image(path)]
        partners = _partners(degraded, clean, degraded_folder, clean_folder)
        scene = degraded_folder.parent
        scene = scene.relative_to(folder) if scene.is_relative_to(folder) else Path()
        for path in degraded:
            if path in partners:
                name = (scene / path.relative_to(degraded_folder)).as_posix()
                samples.append(Sample(name, partners[path], path))
        unpaired += [path for path in degraded if path not in partners]
        unpaired += [path for path in clean if path not in set(partners.values())]
    layouts = dict.fromkeys(f"{degraded.name} -> {clean.name}" for degraded, clean in twins)
    if not samples:
        raise ImageError(
            f"{folder} has the layout {next(iter(layouts))}, and no file has a partner of the same name"
            if unpaired
            else f"{folder} has the layout {next(iter(layouts))}, and holds no images",
            "give partners the same name",
        )
    return Dataset(folder, ", ".join(layouts), tuple(samples), tuple(unpaired))


def _partners(
    degraded: list[Path], clean: list[Path], degraded_folder: Path, clean_folder: Path
) -> dict[Path, Path]:
    """Return the clean file of each degraded one that has one."""

    def name(path: Path, top: Path) -> str:
        return path.relative_to(top).with_suffix("").as_posix().lower()

    by_name = {name(path, clean_folder): path for path in clean}
    by_core: dict[str, Path] = {}
    for path in clean:
        by_core.setdefault(_core(name(path, clean_folder)), path)
    found = {}
    for path in degraded:
        own = name(path, degraded_folder)
        parts = own.split("_")
        # 1400_0.8_0.2 belongs to 1400; the longest name wins.
        shorter = ("_".join(parts[:count]) for count in range(len(parts), 0, -1))
        partner = by_name.get(own) or by_core.get(_core(own))
        partner = partner or next((by_name[each] for each in shorter if each in by_name), None)
        if partner is not None:
            found[path] = partner
    return found


def _core(name: str) -> str:
    """Return a name without the words that tell degraded from clean, and without a factor such as x4."""
    bare = re.sub(r"x[2348]$", "", _MARKS.sub("", name))
    return re.sub(r"[-_.]+", "_", bare).strip("_")


def _side_by_side(folder: Path, files: list[Path]) -> Dataset | None:
    """Return pairs of one folder whose names end in words of a layout, or None when none does."""
    sides: dict[str, dict[str, Path]] = {"degraded": {}, "clean": {}}
    marks: dict[str, str] = {}
    for path in files:
        if match := _MARKED.match(path.stem):
            side = "degraded" if match["mark"].lower() in _DEGRADED else "clean"
            sides[side].setdefault(match["name"].lower(), path)
            marks.setdefault(side, match["mark"])
    common = sorted(sides["degraded"].keys() & sides["clean"].keys())
    if not common:
        return None
    samples = tuple(
        Sample(sides["degraded"][name].name, sides["clean"][name], sides["degraded"][name]) for name in common
    )
    paired = {path for sample in samples for path in (sample.clean, sample.degraded)}
    unpaired = tuple(path for path in files if path not in paired)
    return Dataset(folder, f"*_{marks['degraded']} -> *_{marks['clean']}", samples, unpaired)


@dataclass(frozen=True)
class Named:
    """A test set of the literature.

    Attributes:
        images: how many it has when complete.
        protocol: by which its figures are usually given.
    """

    images: int
    protocol: str


_COLOUR, _GRAY = "restormer-gaussian-color", "restormer-gaussian-gray"
NAMED: Mapping[str, Named] = {
    "cbsd68": Named(68, _COLOUR),
    "kodak24": Named(24, _COLOUR),
    "mcmaster": Named(18, _COLOUR),
    "set12": Named(12, _GRAY),
    "bsd68": Named(68, _GRAY),
    "test100": Named(100, "rain13k-y"),
    "rain100h": Named(100, "rain13k-y"),
    "rain100l": Named(100, "rain13k-y"),
    "test2800": Named(2800, "rain13k-y"),
    "test1200": Named(1200, "rain13k-y"),
    "gopro": Named(1111, "gopro-rgb"),
    "hide": Named(2025, "gopro-rgb"),
    "sidd": Named(1280, "sidd-rgb"),
    "dpdd": Named(76, "dpdd-rgb"),
    "lol-v1": Named(15, "lol-rgb"),
    "sots-indoor": Named(500, "sots-rgb"),
    "sots-outdoor": Named(500, "sots-rgb"),
    "set5": Named(5, "sr-y-crop"),
    "set14": Named(14, "sr-y-crop"),
    "bsd100": Named(100, "sr-y-crop"),
    "urban100": Named(100, "sr-y-crop"),
    "manga109": Named(109, "sr-y-crop"),
}


def named(name: str) -> Named:
    """Return what is known of a test set of the literature; case, hyphens and underscores do not count.

    Raises:
        ImageError: the name is unknown.
    """
    for known, facts in NAMED.items():
        if _plain(known) == _plain(name):
            return facts
    hint = near(name, NAMED) or "give its folder with --data"
    raise ImageError(f"no dataset called {name!r}; known: {', '.join(NAMED)}", hint)


def find_named(name: str, root: Path | None = None) -> Path:
    """Return the folder of a test set of the literature.

    Args:
        name: a key of ``NAMED``; case, hyphens and underscores do not count.
        root: folder that holds the sets; else RESTOREKIT_DATA_DIR, else ``data`` in the current folder.

    Raises:
        ImageError: the name is unknown, or there is no such folder.
    """
    named(name)
    root = root or Path(os.environ.get("RESTOREKIT_DATA_DIR") or "data")
    inside = sorted(path for path in root.glob("*") if path.is_dir()) if root.is_dir() else []
    for path in inside:
        if _plain(path.name) == _plain(name):
            return path
    raise ImageError(
        f"dataset {name} is not in {root}",
        "put its folder there, or name the folder that holds your datasets with --data-root or"
        " RESTOREKIT_DATA_DIR",
    )


def _plain(name: str) -> str:
    return re.sub(r"[-_ ]", "", name).lower()
