"""BM3D on the images of a protocol, told the true noise level: the classical method to compare with.

    $ python benchmarks/bm3d_baseline.py --data DIR --sigma 15 25 50

It uses the package ``bm3d`` (its authors' binaries, for non-commercial use), which restorekit itself never
imports. Figures and inputs are those of ``restorekit eval --protocol restormer-gaussian-color``.
"""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing import Pool
from pathlib import Path

import bm3d
import numpy as np
from rich.progress import track

from restorekit import datasets
from restorekit.evaluation.protocols import PROTOCOLS
from restorekit.evaluation.run import read

PROTOCOL = PROTOCOLS["restormer-gaussian-color"]


def one(job: tuple[Path, float]) -> dict[str, str | float]:
    """Return PSNR in dB and seconds for one image."""
    path, sigma = job
    settings = {"sigma": sigma}
    clean, noisy = PROTOCOL.pair(read(path), None, settings)
    started = time.perf_counter()
    # Processes share the cores already, and one thread gives the same sums every time.
    profile = bm3d.BM3DProfile()
    profile.num_threads = 1
    restored = bm3d.bm3d_rgb(noisy.astype(np.float64), sigma / 255, profile)
    figure = PROTOCOL.score(clean, restored, settings)["psnr"]
    return {"image": path.name, "sigma": sigma, "psnr": figure, "seconds": time.perf_counter() - started}


def main() -> None:
    """Add a line an image to the output, then print the means; what is there already is not run again."""
    parser = argparse.ArgumentParser(description="BM3D on the images of a protocol, told the noise level")
    parser.add_argument("--data", type=Path, required=True, help="folder of clean images")
    parser.add_argument("--sigma", type=float, nargs="+", default=[15, 25, 50])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/bm3d.jsonl"))
    arguments = parser.parse_args()
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    lines = arguments.output.read_text().splitlines() if arguments.output.exists() else []
    done = {(line["image"], line["sigma"]): line for line in map(json.loads, lines)}
    paths = [sample.clean for sample in datasets.find(arguments.data).samples]
    wanted = [(path, sigma) for path in paths for sigma in arguments.sigma]
    jobs = [(path, sigma) for path, sigma in wanted if (path.name, sigma) not in done]
    with Pool(arguments.processes) as pool, arguments.output.open("a") as file:
        for line in track(pool.imap_unordered(one, jobs), "BM3D", total=len(jobs)):
            done[line["image"], line["sigma"]] = line
            print(json.dumps(line), file=file, flush=True)
    for sigma in arguments.sigma:
        lines_of = [done[path.name, level] for path, level in wanted if level == sigma]
        psnr, seconds = (np.array([line[key] for line in lines_of]) for key in ("psnr", "seconds"))
        median = np.median(seconds)
        print(f"sigma {sigma:g}: {psnr.mean():.2f} dB, {median:.1f} s an image, {len(psnr)} images")


if __name__ == "__main__":
    main()
