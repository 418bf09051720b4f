"""From what the user names to pairs of input and output file; nothing is read or written here.

Folders keep their inner structure; two inputs never share an output.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from restorekit.errors import ImageError, OutputError
from restorekit.imagefiles import FORMATS, SUFFIXES


@dataclass(frozen=True)
class Job:
    """One image to restore, and where the result goes."""

    source: Path
    target: Path


def collect(
    inputs: Sequence[str], output: Path, *, recursive: bool = False, suffix: str = "", ending: str = ""
) -> list[Job]:
    """Return a job for every image among files, folders and patterns.

    Args:
        inputs: files, folders (their images), or patterns such as ``photos/*.jpg``.
        output: a file when there is one input file and this name ends like an image; a folder otherwise.
        recursive: also take the images of folders within folders; they keep their place.
        suffix: put after the stem of every output name.
        ending: of every output in a folder, as ``.png``; empty keeps the input's where it can be written.

    Raises:
        ImageError: an input does not exist, or a folder or pattern holds no image.
        OutputError: two inputs would be written to one file.
    """
    found = [pair for text in inputs for pair in _expand(text, recursive)]
    if not found:
        raise ImageError("no input given", "name image files, folders or patterns")
    one_file = len(inputs) == 1 and len(found) == 1 and not Path(inputs[0]).is_dir()
    if one_file and output.suffix.lower() in FORMATS and not output.is_dir():
        return [Job(found[0][0], output)]
    if output.suffix.lower() in FORMATS and not output.is_dir():
        raise OutputError(
            f"{output} names one file, and there are {len(found)} inputs", "name a folder with -o"
        )
    jobs: dict[Path, Job] = {}
    for source, relative in found:
        own = relative.suffix if relative.suffix.lower() in FORMATS else ".png"
        target = output / relative.with_name(f"{relative.stem}{suffix}{ending or own}")
        other = jobs.get(target)
        if other and other.source.resolve() != source.resolve():
            raise OutputError(
                f"{other.source} and {source} would both be written to {target}", "restore them apart"
            )
        jobs[target] = Job(source, target)
    return list(jobs.values())


def _expand(text: str, recursive: bool) -> list[tuple[Path, Path]]:
    """Return (file, path relative to the output folder) for one argument."""
    path = Path(text)
    if path.is_dir():
        files = sorted(path.rglob("*") if recursive else path.glob("*"))
        images = [
            (file, file.relative_to(path))
            for file in files
            if file.suffix.lower() in SUFFIXES and file.is_file()
        ]
        if not images:
            inner = "" if recursive else "; -r looks into folders within"
            raise ImageError(f"{path} holds no images", f"images end in {', '.join(sorted(SUFFIXES))}{inner}")
        return images
    if path.exists():
        return [(path, Path(path.name))]
    # Path.glob takes no absolute patterns.
    matches = [Path(match) for match in sorted(glob.glob(text, recursive=True)) if Path(match).is_file()]  # noqa: PTH207
    if not matches:
        raise ImageError(f"{text} does not exist", "check the path; patterns are put in quotes")
    return [(match, Path(match.name)) for match in matches]
