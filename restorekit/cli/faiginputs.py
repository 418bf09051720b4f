"""What the commands of ``restorekit faig`` share: their options, and what these name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from restorekit.cli.evaluate import recipe_of
from restorekit.cli.output import note, say
from restorekit.config import split_setting
from restorekit.errors import ConfigError, OutputError
from restorekit.files import ensure_writable

if TYPE_CHECKING:
    import PIL.Image

    from restorekit.analysis.images import FilePairs
    from restorekit.contracts import Backbone
    from restorekit.datasets import Dataset
    from restorekit.degradations.spec import RecipeSpec
    from restorekit.filterscores import FilterScores

BackboneName = Annotated[
    str, typer.Option("-b", "--backbone", help="Name of the backbone.", show_default="as the weights say")
]
Params = Annotated[
    list[str] | None, typer.Option("--set", help="Argument of the backbone, as KEY=VALUE; may be repeated.")
]
Base = Annotated[str, typer.Option("--base", help="Weights before training on the degradation.")]
Target = Annotated[str, typer.Option("--target", help="Weights after it.")]
Data = Annotated[
    Path, typer.Option("--data", help="Folder of clean images, or of pairs as input/ and target/.")
]
Layout = Annotated[
    str | None, typer.Option(help="DEGRADED:CLEAN, two folders; or clean, to leave pairs aside.")
]
Degrade = Annotated[
    str | None,
    typer.Option("--degrade", help="Degrade clean images by KIND, KIND/STRENGTH or a recipe in a YAML file."),
]
Recipes = Annotated[
    list[str], typer.Option("--degrade", help="LABEL=RECIPE for each label of the scores; repeat it.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of all that is random, with a file's name.")]
Crop = Annotated[int, typer.Option(min=0, help="Take the middle of each image: pixels of the degraded one.")]
PartOf = Annotated[
    str,
    typer.Option(
        "--part",
        help="Take every N-th image from the K-th on, as K/N; `join` puts the parts together.",
        show_default="all",
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Use the first images only.")]
Ratio = Annotated[float, typer.Option(min=0, max=1, help="Share of the filters that is chosen.")]
Budget = Annotated[
    Literal["filters", "parameters"], typer.Option(help="What the share counts; filters as in the paper.")
]
Scope = Annotated[
    Literal["network", "layer"],
    typer.Option(help="Choose over the whole network as in the paper, or the ratio in each layer by itself."),
]
Share = Annotated[
    float, typer.Option(min=0, max=1, help="Largest part of one layer that is chosen, for --scope network.")
]
ScoreFile = Annotated[Path, typer.Argument(help="Scores of filters, as `attribute` writes them.")]
ScoreFiles = Annotated[
    list[Path], typer.Argument(help="Scores of filters, as `attribute` and `rank` write them.")
]
OtherBase = Annotated[
    bool, typer.Option("--other-base", help="Take scores that are for another base, on purpose.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Steps = Annotated[str, typer.Option(help="Gradients for each image: a number, or auto.")]
Rule = Annotated[Literal["mid", "left", "gauss"], typer.Option(help="How the path is walked.")]
Unit = Annotated[
    Literal["kernel", "out", "weight"],
    typer.Option(help="A filter is a k x k slice, all of an output channel, or a single weight."),
]
LossName = Annotated[
    Literal["sse", "mse"], typer.Option(help="sse as in the paper; mse where images differ in size.")
]
Include = Annotated[str, typer.Option(help="Regular expression that names of weights must match.")]
Exclude = Annotated[str, typer.Option(help="Regular expression of weights to leave out.")]
Raw = Annotated[str, typer.Option(help="Regular expression of parameters outside of layers to score too.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)]
Label = Annotated[str, typer.Option(help="What the filters are for.", show_default="--degrade's name")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with an interrupted attribution.")]
MethodName = Literal["faig", "ig", "delta", "gradxdelta", "random"]
# Methods that look at no image: they take no time, and leave nothing to go on from.
BLIND = ("delta", "random")


def check_free(path: Path, overwrite: bool) -> None:
    """Refuse an output that exists, or is a folder, before anything is computed."""
    if path.is_dir():
        raise OutputError(f"{path} is a folder", "name a file in it with -o")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists", "add --overwrite, or change -o")
    ensure_writable(path.parent)


def kind_name(text: str) -> str:
    """Return what a degradation is called: the kind, or the name of its file."""
    return Path(text).stem if text.endswith((".yaml", ".yml")) else text.partition("/")[0]


def labelled(text: str) -> tuple[str, RecipeSpec]:
    """Read LABEL=RECIPE."""
    label, equals, recipe = text.partition("=")
    if not equals or not label:
        raise ConfigError(
            "--degrade", f"{text!r} has no label", "write LABEL=RECIPE, as noise=gaussian/severe"
        )
    return label, recipe_of(recipe)


def recipes_of(texts: Sequence[str]) -> dict[str, RecipeSpec]:
    """Read LABEL=RECIPE of each label."""
    recipes: dict[str, RecipeSpec] = {}
    for label, recipe in map(labelled, texts):
        if label in recipes:
            raise ConfigError("--degrade", f"{label} stands there twice", "give one recipe for each label")
        recipes[label] = recipe
    return recipes


def find_dataset(data: Path, layout: str | None, recipe: RecipeSpec | None) -> Dataset:
    """Return the images of a folder, and say what was found; with a recipe the clean ones alone."""
    from restorekit import datasets

    found = datasets.find(data, "clean" if recipe else layout)
    note(str(found))
    return found


def two_networks(
    backbone: str, params: list[str] | None, base: str, target: str, device: str
) -> tuple[Backbone, Backbone]:
    """Return baseline and target on the device."""
    pair = [
        one_network(backbone, params, weights, where, device)[0]
        for where, weights in (("--base", base), ("--target", target))
    ]
    return pair[0], pair[1]


def one_network(
    backbone: str, params: list[str] | None, weights: str, where: str, device: str
) -> tuple[Backbone, tuple[str, str]]:
    """Return a network on the device; and its name and the arguments of its constructor, for its metadata."""
    from restorekit.analysis.networks import load_backbone
    from restorekit.runtime import resolve_device, tune_allocator

    tune_allocator()
    given = dict(split_setting(text) for text in params or [])
    network, name, complete = load_backbone(backbone, given, weights, where)
    return network.to(resolve_device(device)), (name, json.dumps(complete))


def file_pairs(
    found: Dataset,
    network: Backbone,
    recipe: RecipeSpec | None,
    seed: int,
    crop: int,
    limit: int | None,
    part: str = "1/1",
) -> FilePairs:
    """Return the pairs that a network is looked at with."""
    from restorekit.analysis.images import FilePairs

    return FilePairs.of(found, network, recipe, seed=seed, crop=crop, limit=limit, part=_part(part))


def _part(text: str) -> tuple[int, int]:
    numbers = text.split("/")
    if len(numbers) == 2 and all(number.isdecimal() for number in numbers):
        one, of = int(numbers[0]), int(numbers[1])
        if 1 <= one <= of:
            return one, of
    raise ConfigError("--part", f"{text!r} is no part of a whole", "write --part 2/4 for the second of four")


def read_scores(paths: Sequence[Path], base: Backbone, other_base: bool) -> list[FilterScores]:
    """Read scores; refuse those of other filters than the base has, and of another base if not meant."""
    from restorekit.filters import fingerprint
    from restorekit.filterscores import FilterScores

    read = [FilterScores.load(path) for path in paths]
    own = {name: tuple(value.shape) for name, value in base.named_parameters()}
    mark = fingerprint(base.state_dict())
    for path, one in zip(paths, read, strict=True):
        wrong = [tensor for tensor in one.table if own.get(tensor.name) != tensor.shape]
        if wrong:
            raise ConfigError(
                str(path),
                f"its filters are of another network: {wrong[0].name} {wrong[0].shape}",
                "give the networks that the scores were made from",
            )
        if one.table != read[0].table:
            raise ConfigError(str(path), f"its filters are not those of {paths[0]}", "use one --unit")
        if one.base != mark and not other_base:
            raise ConfigError(
                str(path),
                f"its scores are for the base {one.base[:16]}, --base is {mark[:16]}",
                "give the base that they were made from, in the same precision, or add --other-base",
            )
    return read


def by_label(paths: Sequence[Path], read: Sequence[FilterScores], command: str) -> dict[str, FilterScores]:
    """Return scores by what they are of; refuse two of one degradation."""
    homes: dict[str, Path] = {}
    for path, one in zip(paths, read, strict=True):
        if one.label in homes:
            raise ConfigError(
                command,
                f"{homes[one.label]} and {path} are both scores of {one.label}",
                "give one file for each degradation; another name is given by attribute --label",
            )
        homes[one.label] = path
    return {one.label: one for one in read}


def save_picture(picture: PIL.Image.Image, path: Path, overwrite: bool, quiet: bool = False) -> None:
    """Write a picture, and say where."""
    from restorekit.image import Image

    saved = Image.of(picture).save(path, overwrite=overwrite)
    if not quiet:
        say(str(saved))
