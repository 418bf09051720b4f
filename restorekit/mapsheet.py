"""A sheet of what components offer to look at: images, maps and values by channel, each with its range.

It draws tensors and knows no component.
"""

from __future__ import annotations

from collections.abc import Mapping

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor
from torch.nn.functional import interpolate

PANEL = 320  # pixels; width of one panel
TALLEST = 2 * PANEL  # of one picture: a strip a few pixels wide would make a sheet that no viewer opens
MARGIN = 8
LABEL = 44
COLUMNS = 4
INK, FAINT, PAPER = (32, 32, 32), (110, 110, 110), (255, 255, 255)


def sheet(degraded: Tensor, restored: Tensor, looks: Mapping[str, Mapping[str, Tensor]]) -> PIL.Image.Image:
    """Return a picture of the images, then of every map of every step.

    A map of three channels is shown in colour, one of another number by its mean, values by channel as bars.
    What is never negative is white at its largest value, or at 1 if that is larger; what has a sign is gray
    where it is zero. Images are shown as files would hold them, clipped to [0, 1]. Every picture has the
    aspect of the degraded image, as large as ``PANEL`` by ``TALLEST`` allows.

    Args:
        degraded: (C, H, W).
        restored: (C, H, W).
        looks: by step, then by name: (1, D, h, w), or (1, D).
    """
    width, height = _fitted(degraded.shape[2], degraded.shape[1])
    panels = [
        _panel(f"images: {name}", image[None], (width, height), clipped=True)
        for name, image in {"degraded": degraded, "restored": restored}.items()
    ]
    panels += [
        _panel(f"{step.partition(' ')[2] or step}: {name}", value, (width, height))
        for step, maps in looks.items()
        for name, value in maps.items()
    ]
    rows = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    size = (columns * (PANEL + MARGIN) + MARGIN, rows * (height + LABEL + MARGIN) + MARGIN)
    picture = PIL.Image.new("RGB", size, PAPER)
    for index, panel in enumerate(panels):
        row, column = divmod(index, COLUMNS)
        picture.paste(panel, (MARGIN + column * (PANEL + MARGIN), MARGIN + row * (height + LABEL + MARGIN)))
    return picture


def _fitted(width: int, height: int) -> tuple[int, int]:
    scale = min(PANEL / width, TALLEST / height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _panel(title: str, value: Tensor, size: tuple[int, int], *, clipped: bool = False) -> PIL.Image.Image:
    value = value[0].detach().cpu().float()
    panel = PIL.Image.new("RGB", (PANEL, size[1] + LABEL), PAPER)
    pen = PIL.ImageDraw.Draw(panel)
    sides = "x".join(map(str, value.shape))
    pen.text((0, 2), title, INK, PIL.ImageFont.load_default(15))
    said = f"{sides}   {value.min():.3g} to {value.max():.3g}, mean {value.mean():.3g}"
    pen.text((0, 23), said, FAINT, PIL.ImageFont.load_default(13))
    value = value.clamp(0, 1) if clipped else value
    drawn = _bars(value, (PANEL, size[1])) if value.ndim == 1 else _picture(value, size)
    panel.paste(drawn, (0, LABEL))
    return panel


def _picture(value: Tensor, size: tuple[int, int]) -> PIL.Image.Image:
    if len(value) not in (1, 3):
        value = value.mean(0, keepdim=True)
    largest = value.abs().max().clamp_min(1e-12)
    signed = bool((value < 0).any())
    value = 0.5 + value / (2 * largest) if signed else value / largest.clamp_min(1.0)
    # Small maps are enlarged without smoothing, so that their pixels are seen.
    mode = "nearest" if value.shape[2] <= size[0] else "area"
    shown = interpolate(value[None], (size[1], size[0]), mode=mode)[0].expand(3, -1, -1)
    levels = (shown.clamp(0, 1) * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _bars(values: Tensor, size: tuple[int, int]) -> PIL.Image.Image:
    picture = PIL.Image.new("RGB", size, (236, 236, 236))
    pen = PIL.ImageDraw.Draw(picture)
    width, height = size
    step = width / len(values)
    largest = max(1.0, float(values.abs().max()))
    for index, value in enumerate(values.tolist()):
        top = height - round(abs(value) / largest * (height - 1))
        box = (
            index * step + step / 8,
            top,
            max(index * step + step / 8, (index + 1) * step - step / 8),
            height,
        )
        pen.rectangle(box, INK if value >= 0 else FAINT)
    return picture
