"""``list``, ``info``, ``plan`` and ``schema``: what is installed, and what a pipeline would use."""

from __future__ import annotations

import inspect
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from restorekit.cli.output import AsJson, LicensePolicy, Settings, download_of, note, say, say_json, table
from restorekit.config import PipelineSpec, presets, read_yaml
from restorekit.errors import ConfigError, UnknownComponentError, near

if TYPE_CHECKING:
    from restorekit.catalog import Pretrained

MEGAPIXEL = 1_000_000


def list_components(
    kind: Annotated[
        str | None, typer.Argument(help="backbone, adapter, refiner, prior, weights or pipeline.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List what is installed: components by kind, weights, pipelines."""
    from restorekit import catalog, registry

    rows: list[dict[str, str]] = []
    for book in (registry.backbones, registry.adapters, registry.refiners, registry.priors):
        for entry in book.entries():
            made_by = f"{entry.dist} {entry.version}"
            rows.append({"kind": book.kind, "name": entry.name, "from": made_by, "summary": entry.summary})
    for item in catalog.declared():
        rows.append({"kind": "weights", "name": item.name, "from": item.licence, "summary": item.task})
    for name, path in presets().items():
        document = read_yaml(path)
        summary = str(document.get("description", "")) if isinstance(document, dict) else ""
        rows.append({"kind": "pipeline", "name": name, "from": path.name, "summary": summary})
    kinds = ("backbone", "adapter", "refiner", "prior", "weights", "pipeline")
    if kind is not None and kind.removesuffix("s") not in {known.removesuffix("s") for known in kinds}:
        hint = near(kind, kinds) or f"kinds: {', '.join(kinds)}"
        raise ConfigError("list", f"no kind of component called {kind!r}", hint)
    if kind is not None:
        rows = [row for row in rows if row["kind"].removesuffix("s") == kind.removesuffix("s")]
    if as_json:
        say_json(rows)
    else:
        cells: list[tuple[str, ...]] = [
            (row["kind"], row["name"], row["from"], row["summary"]) for row in rows
        ]
        say(table(cells, ("KIND", "NAME", "FROM", "SUMMARY")))
    for problem in registry.problems():
        note(f"warning: {problem.dist}: {problem.message}")


def info(
    name: Annotated[str, typer.Argument(help="A component, weights as component/tag, or a pipeline.")],
    as_json: AsJson = False,
) -> None:
    """Show one component, file of weights or pipeline: origin, licence, arguments."""
    from restorekit import catalog, registry

    books = (registry.backbones, registry.adapters, registry.refiners, registry.priors)
    declared = catalog.declared()
    found: list[dict[str, Any]] = []
    for book in books:
        if name in book:
            entry = book[name]
            kind = entry.load()
            # What a pipeline may say; a DetectedBackbone is given its tensors and their file by the core.
            given = 2 if hasattr(kind, "from_tensors") else 0
            signature = inspect.signature(getattr(kind, "from_tensors", kind))
            arguments = [str(parameter) for parameter in signature.parameters.values()][given:]
            found.append(
                {
                    "kind": book.kind,
                    "name": name,
                    "from": f"{entry.dist} {entry.version}",
                    "licence": entry.licence or "unknown",
                    "arguments": arguments,
                    "weights": [item.name for item in declared if item.component == name],
                    "about": inspect.getdoc(kind) or entry.summary,
                }
            )
    for item in declared:
        if item.name == name:
            found.append(_weights_facts(item))
    known_pipelines = presets()
    if name in known_pipelines:
        text = known_pipelines[name].read_text(encoding="utf-8")
        found.append({"kind": "pipeline", "name": name, "file": str(known_pipelines[name]), "about": text})
    if not found:
        names = [
            *(each for book in books for each in book),
            *(item.name for item in declared),
            *known_pipelines,
        ]
        raise UnknownComponentError(
            f"nothing installed is called {name!r}",
            near(name, names) or "`restorekit list` prints every name",
        )
    if as_json:
        say_json(found if len(found) > 1 else found[0])
        return
    for facts in found:
        about = facts.pop("about", "")
        for key, value in facts.items():
            values = value if isinstance(value, list | tuple) else [value]
            between = f"\n{'':17}" if key in ("figures", "urls") else ", "
            say(f"{key:16} {between.join(map(str, values))}")
        say(f"\n{about}" if about else "")


def _weights_facts(item: Pretrained) -> dict[str, Any]:
    from restorekit.catalog import Checkpoint

    checkpoint = Checkpoint(item.name, item.path, item)
    countable = item.parameters is None and checkpoint.is_here and item.path.suffix == ".safetensors"
    if item.reference:
        from restorekit.references import state

        stated = {key: value for key, value in asdict(item).items() if value not in (None, "", (), {}, False)}
        needs = {"needs": [" or ".join(need.names) for need in item.needs]} if item.needs else {}
        return {"kind": "weights", "name": item.name, **stated, **needs, "state": state(item)}
    facts = {
        "kind": "weights",
        "name": item.name,
        **{key: value for key, value in asdict(item).items() if value not in (None, "", (), {}, False)},
        "file": str(item.path) if checkpoint.is_here else "not on this machine",
        "sha256": checkpoint.expected_sha256 or "not published; pinned by the first download",
        **({"parameters": checkpoint.parameter_count()} if countable else {}),
        "figures": [
            f"{figure.dataset}: {figure.psnr:.2f} dB"
            + (f" / {figure.ssim}" if figure.ssim else "")
            + f" by {figure.protocol} ({figure.source})"
            for figure in item.figures
        ],
    }
    card = item.path.with_suffix(".md")
    return facts | ({"about": card.read_text(encoding="utf-8")} if card.is_file() else {})


def plan(
    pipeline: Annotated[str, typer.Argument(help="Name of a preset, or a YAML file.")],
    settings: Settings = None,
    build: Annotated[
        bool,
        typer.Option(
            "--build", help="Also build the networks, without memory, to check arguments and tensors."
        ),
    ] = False,
    license_policy: LicensePolicy = None,
    as_json: AsJson = False,
) -> None:
    """Show what a pipeline would use: components, weights, licences, parameters, memory. Runs nothing."""
    from restorekit import licences as terms
    from restorekit import plan as planning

    spec = PipelineSpec.load(pipeline, settings or [])
    found = [part for step in planning.parts(spec) for part in step]
    notices = terms.check_licences(found, terms.resolve_policy(license_policy))
    facts = [part.facts() for part in found]
    if build:
        from restorekit.building import built_facts

        facts = [built_facts(part) for part in found]
    licences = sorted({licence for part in facts for licence in part["licences"]})
    if as_json:
        say_json({"pipeline": spec.model_dump(mode="json"), "parts": facts, "licences": licences})
        return
    say(spec.description or pipeline)
    for part in facts:
        say(f"\n{part['where']}: {part['kind']} {part['name']}   from {part['distribution']}")
        for key, value in part["params"].items():
            say(f"  {key} = {value}")
        if architecture := part.get("architecture"):
            say(f"  detected    {architecture}")
        if part["weights"]:
            known = part["weights_sha256"]
            say(f"  weights     {part['weights']}   sha256 {known[:16] if known else 'not known yet'}")
        if part["to_download"] != 0:
            say(f"  download    needed{download_of(part['to_download'])}")
        say(f"  licences    {', '.join(part['licences'])}")
        count = part["parameters"]
        say(f"  parameters  {'not known without --build' if count is None else f'{count:,}'}")
        # An adapter works in the memory of its backbone.
        if part["kind"] != "adapter" or part["memory_per_pixel"] is not None:
            say(f"  memory      {_memory(part)}")
    say(f"\ntile {spec.tile.size}, overlap {spec.tile.overlap}; licences: {', '.join(licences)}")
    for notice in notices:
        note(f"notice: {notice}")


def _memory(part: dict[str, Any]) -> str:
    """Return the estimate for a photograph of two megapixels that is run whole, in float32."""
    per_pixel, count = part["memory_per_pixel"], part["parameters"]
    if per_pixel is None or count is None:
        return "not known without --build"
    total = count * 4 + per_pixel * 2 * MEGAPIXEL
    return f"about {total / MEGAPIXEL:,.0f} MB for 2 megapixels at a time ({per_pixel:,} bytes a pixel)"


def schema() -> None:
    """Print the JSON schema of pipeline files, for editors."""
    say_json({"$schema": "https://json-schema.org/draft/2020-12/schema", **PipelineSpec.model_json_schema()})
