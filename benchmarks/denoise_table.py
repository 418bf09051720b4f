"""The table of README and model card: the bundled denoiser by its protocols, BM3D beside it.

$ python benchmarks/bm3d_baseline.py --data CBSD68
$ python benchmarks/denoise_table.py --data CBSD68 --gray SET12 --write README.md CARD

The card is plugins/zoo/restorekit_zoo/files/nafnet-denoise.md. Each file of --write gets the table between
the lines `<!-- figures: begin -->` and `<!-- figures: end -->`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import track

from restorekit import datasets, load_pipeline, restore
from restorekit.evaluation.protocols import find_protocol
from restorekit.evaluation.run import Report, evaluate
from restorekit.files import Marks
from restorekit.runtime import tune_allocator

SIGMAS = (15, 25, 50)


def bm3d_scores(path: Path) -> dict[float, dict[str, float]]:
    """Return the PSNR of BM3D for each sigma and image that was run."""
    found: dict[float, dict[str, float]] = {}
    for line in map(json.loads, path.read_text().splitlines() if path.exists() else ()):
        found.setdefault(line["sigma"], {})[line["image"]] = line["psnr"]
    return found


def classical(scores: dict[str, float], report: Report) -> str:
    """Return the mean of BM3D; where it was run on some images only, beside the network's on the same."""
    pairs = [
        (scores[name], psnr)
        for name, psnr in zip(report.images, report.figures["psnr"], strict=True)
        if name in scores
    ]
    if not pairs:
        return "not run"
    theirs, ours = (statistics.fmean(column) for column in zip(*pairs, strict=True))
    if len(pairs) == len(report.images):
        return f"{theirs:.2f}"
    return f"{theirs:.2f} on {len(pairs)} images (`denoise` there: {ours:.2f})"


def main() -> None:
    """Measure, print the table, and write it where it is asked for."""
    parser = argparse.ArgumentParser(description="Table of the bundled denoiser")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of clean images, CBSD68 for the README"
    )
    parser.add_argument(
        "--gray", type=Path, required=True, help="folder of gray images, Set12 for the README"
    )
    parser.add_argument("--bm3d", type=Path, default=Path("runs/bm3d.jsonl"), help="from bm3d_baseline.py")
    parser.add_argument("--write", type=Path, nargs="*", default=[], help="files that hold the two marks")
    arguments = parser.parse_args()
    places = [Marks(path, "figures") for path in arguments.write]
    tune_allocator()
    samples = datasets.find(arguments.data).samples
    pipeline = load_pipeline("denoise")

    def restorer(degraded: NDArray[np.float32]) -> NDArray[np.floating]:
        restored: NDArray[np.floating] = restore(degraded, pipeline, tile=0)
        return restored

    reports: dict[str, Report] = {}
    gaussian = find_protocol("restormer-gaussian-color")
    for sigma in track(SIGMAS, "measuring"):
        reports[f"sigma {sigma}"] = evaluate(restorer, samples, gaussian, {"sigma": sigma})
    clean = evaluate(restorer, samples, find_protocol("clean-identity-rgb"), {})
    bm3d = bm3d_scores(arguments.bm3d)
    rows = ["| input | degraded | BM3D, told sigma | restorekit `denoise`, blind |", "|---|---|---|---|"]
    for sigma in SIGMAS:
        report = reports[f"sigma {sigma}"]
        before = statistics.fmean(report.degraded["psnr"])
        beside = classical(bm3d.get(sigma, {}), report)
        rows.append(f"| sigma {sigma} | {before:.2f} | {beside} | {report.mean('psnr'):.2f} |")
    rows.append(f"| clean | - | - | {clean.mean('psnr'):.2f} |")
    gray_law, gray_samples = find_protocol("restormer-gaussian-gray"), datasets.find(arguments.gray).samples
    for sigma in track(SIGMAS, "measuring gray"):
        report = evaluate(restorer, gray_samples, gray_law, {"sigma": sigma})
        before = statistics.fmean(report.degraded["psnr"])
        rows.append(f"| gray, sigma {sigma} | {before:.2f} | - | {report.mean('psnr'):.2f} |")
    weights = pipeline.steps[0].parts[0].checkpoint
    assert weights is not None
    seconds = [each for report in (*reports.values(), clean) for each in report.seconds]
    about = (
        f"PSNR in dB, mean over {len(samples)} images ({arguments.data.name}), whole images, RGB, 8-bit. "
        f"Protocols: `{gaussian.name}` (noise not clipped, numpy seed 0 for every image); clean: "
        f"`{clean.protocol}`; gray: `{gray_law.name}` on {len(gray_samples)} images ({arguments.gray.name}). "
        f"Median {statistics.median(seconds):.2f} s an image on {pipeline.device}. "
        f"Weights `{weights.name}`, sha256 `{weights.sha256}`; data sha256 `{clean.dataset_sha256[:16]}`."
    )
    table = "\n".join([*rows, "", about])
    print(table)
    for place in places:
        place.write(table)


if __name__ == "__main__":
    main()
