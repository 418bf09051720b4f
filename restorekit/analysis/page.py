"""The page of a reproduction: our figures beside the published ones, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

from restorekit.analysis.experiment import LABELS, ExperimentSpec
from restorekit.analysis.published import (
    MASKING,
    MASKING_SET,
    METHODS,
    OVERLAP,
    OVERLAP_THRESHOLDS,
    RETRAINING,
    SHARES_METHOD,
    UPPER_BOUND,
    Figure,
)
from restorekit.files import Marks, replacing

_NAMES = {
    "faig": "FAIG",
    "ig": "IG",
    "delta": "relative change",
    "random": "random",
    SHARES_METHOD: "FAIG, in shares",
}
_INPUTS = {"clean": "clean", "blur": "blurry", "noise": "noisy"}


def render(spec: ExperimentSpec, results: Mapping[str, Any], pictures: str = "") -> str:
    """Return the page.

    Args:
        spec: the experiment.
        results: what ``reproduce`` returned.
        pictures: what to put before the names of pictures; empty leaves them out.
    """
    found = results["summary"]
    parts = [
        _setting(spec, results),
        _masking(spec, found["masking"]["release"], results["seeds"]),
        _retraining(spec, found),
        _overlap(spec, found["overlap"]),
        _distribution(found["distribution"], spec),
    ]
    if pictures:
        parts.append(
            "\n\n".join(
                [
                    f"![Where the discovered filters lie]({pictures}map.png)",
                    *(
                        f"![{label} filters from the baseline's to beyond the target's]"
                        f"({pictures}modulation-{label}.png)"
                        for label in LABELS
                    ),
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def publish(place: Marks, name: str, spec: ExperimentSpec, results: Mapping[str, Any], folder: Path) -> None:
    """Put the page into a document, and its pictures into the folder ``images`` beside that.

    Args:
        place: in the document.
        name: what files of pictures begin with.
        spec: the experiment.
        results: what ``reproduce`` returned.
        folder: of the experiment.
    """
    images = place.path.parent / "images"
    images.mkdir(exist_ok=True)
    for drawn in sorted((folder / f"seed-{spec.seeds[0]}").glob("*.png")):
        with replacing(images / f"{name}-{drawn.name}") as temporary:
            copyfile(drawn, temporary)
    place.write(render(spec, results, f"images/{name}-").strip())


def _setting(spec: ExperimentSpec, results: Mapping[str, Any]) -> str:
    quality = results["summary"]["quality"]
    rows = [
        [name, *(_shown(quality[name][label], 2) for label in ("clean", *LABELS))]
        for name in ("baseline", "target")
    ]
    tests = spec.evaluation.folder or "photographs held out"
    return "\n".join(
        [
            f"Network: {spec.backbone.name} {dict(spec.backbone.params) or ''}, {len(spec.seeds)} seeds, each"
            + " with"
            + (
                " its own target and one baseline for all."
                if spec.shared_baseline
                else " its own baseline and target."
            ),
            f"Baseline {spec.baseline.steps} steps of {spec.baseline.batch} patches of {spec.baseline.patch}"
            f" pixels, target {spec.target.steps} more. PSNR in dB (RGB, 8 bits) on up to"
            f" {spec.evaluation.count} images of `{Path(tests).name}`:",
            "",
            _table(["", "downsampled", "blurry", "noisy"], rows),
            "",
            "What differs from the paper: photographs, number of steps and test images (the release trains 1M"
            " and 100k steps on DIV2K with 64-pixel clean patches); images are reduced by antialiased bicubic"
            " interpolation, and blurred after instead of before (the two differ by"
            f" {results['summary']['blur_order']['psnr']['mean']:.1f} dB PSNR). Figures of different networks"
            " and images do not compare in size; the order of the methods does.",
        ]
    )


def _masking(spec: ExperimentSpec, found: Mapping[str, Any], seeds: Mapping[str, Any]) -> str:
    lines = [
        "**Masking.** The baseline's filters put into the target: mean squared change of gradient maps of the"
        " output, in thousandths, metric of the release. Rows: input, and what the filters were discovered"
        " for; a method should be large where the two agree and small where they differ.",
        "",
    ]
    methods = _methods(spec)
    for ratio in spec.ratios:
        own = found[f"{ratio:g}"]
        rows = [
            [f"{_INPUTS[shown]}, {label} filters", *(_shown(own[shown][label][method]) for method in methods)]
            for shown in LABELS
            for label in LABELS
        ]
        for shown in LABELS:
            known = MASKING[spec.published][shown].get(ratio)
            if known:
                rows.append([f"*{_INPUTS[shown]}, published*", *(f"*{_of(figure)}*" for figure in known)])
        lines += [_table([f"{ratio:.0%} of the filters", *map(_NAMES.__getitem__, methods)], rows), ""]
    lines.append(f"Published: {MASKING_SET[spec.published]}, slides of the authors.")
    if spec.shares_weight:
        lines.append(
            "In shares, ours: each filter's share of the sum of its scores, less"
            f" {_weights(spec, seeds)} that of the other degradation."
        )
    return "\n".join(lines)


def _weights(spec: ExperimentSpec, seeds: Mapping[str, Any]) -> str:
    """Return how often the other degradation was subtracted, in words."""
    if spec.shares_weight != "masking":
        return f"{spec.shares_weight:g} times"
    found = [own["weights"] for own in seeds.values()]
    each = "; ".join(f"{label} {', '.join(f'{own[label]:g}' for own in found)}" for label in LABELS)
    return f"as often as masking the images of discovery says (by seed, times: {each})"


def _retraining(spec: ExperimentSpec, summary: Mapping[str, Any]) -> str:
    found, quality, methods = summary["retraining"], summary["quality"], _methods(spec)
    rows = []
    for shown in LABELS:
        for label in LABELS:
            figures = [_shown(found[label][method][shown], 2) for method in methods]
            rows.append([f"{_INPUTS[shown]}, {label} filters", *figures])
            for deck, table in RETRAINING.items():
                known = [f"*{_of(figure)}*" for figure in table[shown][label]]
                rows.append([f"*{_INPUTS[shown]}, {label} filters, {deck}*", *known])
    bounds = ", ".join(
        f"{_INPUTS[label]} {_shown(quality['baseline'][label], 2)} and {_shown(quality['target'][label], 2)}"
        f" (*target {_of(UPPER_BOUND[label])}*)"
        for label in LABELS
    )
    return "\n".join(
        [
            f"**Retraining.** Only {spec.retrain_ratio:.0%} of the baseline's filters trained, on the"
            f" degradation they were discovered for, {spec.retrain.steps} steps; PSNR in dB.",
            "",
            _table(["", *map(_NAMES.__getitem__, methods)], rows),
            "",
            f"Baseline and fully trained target: {bounds}. Published figures of two decks of slides, which"
            " disagree; neither is called the paper's here.",
        ]
    )


def _overlap(spec: ExperimentSpec, found: Mapping[str, Any]) -> str:
    header, rows = [""], [[label] for label in LABELS]
    for among, question in (("degraded", "blurry or noisy"), ("all", "or clean")):
        for ratio in spec.ratios:
            header.append(f"{question}, {ratio:.0%}")
            for label, row in zip(LABELS, rows, strict=True):
                own = found[among][str(ratio)]
                accuracy = _shown(own["accuracy"][label], percent=True)
                row.append(f"{accuracy} (over {own['thresholds'][label]['mean']:.2f})")
    for label, row in zip(LABELS, rows, strict=True):
        row.append(f"*{OVERLAP[label]:.0%} (over {OVERLAP_THRESHOLDS[label]:.2f})*")
    return "\n".join(
        [
            "**Degradation by overlap score**, without clean images: balanced accuracy on"
            f" {round(found['tested']['mean'])} images, each blurry and noisy, in the last columns also"
            f" clean; thresholds, in brackets, fitted on {spec.overlap.fit} others. The share is that of the"
            " filters compared.",
            "",
            _table([*header, "*published*"], rows),
            "",
            "How the published figure finds the filters of an image, and among which images, is not known to"
            " us. An image that is clean is sharpened too, and by the filters of blur.",
        ]
    )


def _distribution(found: Mapping[str, Any], spec: ExperimentSpec) -> str:
    depths = ", ".join(f"{label} {_shown(found[label]['depth'], 2)}" for label in LABELS)
    return (
        f"**Distribution.** Mean depth of the top {spec.ratios[0]:.0%} of the filters, 0 the first layer and"
        f" 1 the last: {depths}. The paper finds deblurring filters in the back part and denoising ones"
        " everywhere."
    )


def _methods(spec: ExperimentSpec) -> tuple[str, ...]:
    return (*METHODS, SHARES_METHOD) if spec.shares_weight else METHODS


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells that a row lacks at its end are empty."""
    filled = [[*row, *[""] * (len(header) - len(row))] for row in rows]
    lines = [header, ["-"] * len(header), *filled]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _shown(figure: Mapping[str, float], digits: int | None = None, *, percent: bool = False) -> str:
    if percent:
        return f"{figure['mean']:.0%} ± {figure['deviation']:.0%}"
    if digits is None:
        return f"{figure['mean']:.3g} ± {figure['deviation']:.2g}"
    return f"{figure['mean']:.{digits}f} ± {figure['deviation']:.{digits}f}"


def _of(figure: Figure) -> str:
    return f"{figure[0]:g} ± {figure[1]:g}"
