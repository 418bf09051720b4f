"""The picture of a run: loss and validation over steps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

Row = dict[str, float]

# Columns of a row that are not figures of validation.
RAW, AVERAGED = "val_", "ema_"


def draw_curve(rows: Sequence[Row], path: Path) -> None:
    """Draw training loss, and validation PSNR of the averaged weights (raw ones dotted), to a PNG file."""
    figure = Figure(figsize=(9, 3.6))
    # Margins in shares of the figure: working them out would take twice as long as drawing.
    margins = {"left": 0.08, "right": 0.98, "bottom": 0.14, "top": 0.96, "wspace": 0.2}
    loss_axes, psnr_axes = figure.subplots(1, 2, gridspec_kw=margins)
    steps = [row["step"] for row in rows]
    loss_axes.plot(steps, [row["loss"] for row in rows])
    loss_axes.set(xlabel="step", ylabel="training loss")
    names = [name.removeprefix(RAW) for name in rows[0] if name.startswith(RAW)]
    told = names == ["kinds"]
    # Per cent beside dB would flatten both.
    for name in names if told else [name for name in names if name != "kinds"]:
        (line,) = psnr_axes.plot(
            steps, [row.get(AVERAGED + name, row[RAW + name]) for row in rows], label=name
        )
        if AVERAGED + name in rows[0]:
            psnr_axes.plot(steps, [row[RAW + name] for row in rows], ":", color=line.get_color())
    psnr_axes.set(xlabel="step", ylabel="kinds told right, %" if told else "validation PSNR, dB")
    psnr_axes.legend(fontsize="small")
    for axes in (loss_axes, psnr_axes):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
