"""Write the project of a new plug-in: a distribution that installs, is tested, and does something small."""

from __future__ import annotations

import keyword
import os
import re
import shutil
from pathlib import Path
from string import Template
from typing import Literal, get_args
from uuid import uuid4

from restorekit.errors import ConfigError, OutputError, near

Kind = Literal["backbone", "adapter", "refiner", "prior", "weights"]

_TEMPLATES = Path(__file__).parent / "templates"
_SUMMARIES: dict[Kind, str] = {
    "backbone": "A restoration network for restorekit",
    "adapter": "An adapter of restoration networks for restorekit",
    "refiner": "A refiner of restored images for restorekit",
    "prior": "A pretrained prior for restorekit",
    "weights": "Trained weights for restorekit",
}


def write_project(name: str, kind: str, folder: Path) -> list[Path]:
    """Write ``folder/restorekit-<name>``, whole or not at all; return its files.

    Args:
        name: one word, or several with hyphens: ``acme-net``. It is what pipelines will call the component.
        kind: backbone, adapter, refiner, prior or weights.
        folder: where the project's folder is made.

    Raises:
        ConfigError: the name or the kind is none.
        OutputError: the project's folder exists or cannot be made.
    """
    known = get_args(Kind)
    if kind not in known:
        raise ConfigError("--kind", f"no kind {kind!r}", near(kind, known) or f"kinds: {', '.join(known)}")
    word = name.removeprefix("restorekit-")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", word) or keyword.iskeyword(word):
        raise ConfigError(
            "new-plugin", f"{name!r} is no name", "use lower-case letters and digits, and single hyphens"
        )
    project = folder / f"restorekit-{word}"
    if project.exists():
        raise OutputError(f"{project} exists", "choose another name or folder")
    package = word.replace("-", "_")
    words = {
        "word": word,
        "package": package,
        "object": "WEIGHTS" if kind == "weights" else "".join(map(str.capitalize, word.split("-"))),
        "group": "weights" if kind == "weights" else f"{kind}s",
        "summary": _SUMMARIES[kind],  # type: ignore[index]
        "info": f"nafnet/{word}" if kind == "weights" else word,
    }
    files = {
        "pyproject.toml": "common/pyproject.toml",
        "README.md": "common/README.md",
        f"restorekit_{package}/__init__.py": f"{kind}/__init__.py",
        f"tests/test_{package}.py": f"{kind}/test.py",
    }
    temporary = folder / f".restorekit-{word}.{uuid4().hex[:8]}"
    try:
        for target, source in files.items():
            path = temporary / target
            path.parent.mkdir(parents=True, exist_ok=True)
            text = (_TEMPLATES / f"{source}.tmpl").read_text(encoding="utf-8")
            path.write_text(Template(text).substitute(words), encoding="utf-8")
        (temporary / f"restorekit_{package}" / "py.typed").touch()
        os.replace(temporary, project)
    except OSError as error:
        raise OutputError(
            f"{project} cannot be written: {error.strerror}", "name another folder with -o"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return sorted(path for path in project.rglob("*") if path.is_file())
