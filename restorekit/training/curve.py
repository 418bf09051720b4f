"""The picture of a run: loss and validation over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from restorekit.files import replacing


def draw_curve(rows: Sequence[dict[str, float]], path: Path) -> None:
    """Draw training loss, and validation PSNR of the averaged weights (raw ones dotted), to a PNG file."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss_axes, psnr_axes = figure.subplots(1, 2)
    steps = [row["step"] for row in rows]
    loss_axes.plot(steps, [row["loss"] for row in rows])
    loss_axes.set(xlabel="step", ylabel="training loss")
    for name in (name for name in rows[0] if name.startswith("ema_")):
        label = name.removeprefix("ema_")
        (line,) = psnr_axes.plot(steps, [row[name] for row in rows], label=label)
        psnr_axes.plot(steps, [row[f"val_{label}"] for row in rows], ":", color=line.get_color())
    psnr_axes.set(xlabel="step", ylabel="validation PSNR, dB")
    psnr_axes.legend(fontsize="small")
    for axes in (loss_axes, psnr_axes):
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
