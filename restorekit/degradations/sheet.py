"""A contact sheet: one photograph under every degradation, from the clean one to the severest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor

from restorekit.config import check
from restorekit.degradations.catalogue import KINDS, STRENGTHS
from restorekit.degradations.recipe import apply, draw, streams
from restorekit.degradations.spec import RecipeSpec

PANEL = 240  # pixels; width of one picture, shown at its own pixels
MARGIN = 8
LABEL = 26
INK, FAINT, PAPER = (32, 32, 32), (110, 110, 110), (255, 255, 255)


def contact_sheet(photo: PIL.Image.Image, names: Sequence[str], seed: int) -> PIL.Image.Image:
    """Return a picture with a row for each name: clean, then the three strengths.

    The photograph is reduced to the width of a panel before it is degraded; a smaller result is enlarged
    without smoothing, so that its pixels are seen.

    Args:
        photo: clean.
        names: of degradations and compositions.
        seed: of everything that is drawn.
    """
    size = (PANEL, max(1, round(photo.height * PANEL / photo.width)))
    small = photo.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)
    clean = _tensor(small)
    width = len(STRENGTHS) * (PANEL + MARGIN) + PANEL + 2 * MARGIN
    row = size[1] + LABEL + MARGIN // 2
    sheet = PIL.Image.new("RGB", (width, LABEL + len(names) * row + MARGIN), PAPER)
    pen = PIL.ImageDraw.Draw(sheet)
    font, thin = PIL.ImageFont.load_default(17), PIL.ImageFont.load_default(14)
    for column, heading in enumerate(("clean", *STRENGTHS)):
        pen.text((MARGIN + column * (PANEL + MARGIN), 5), heading, FAINT, font)
    for index, name in enumerate(names):
        top = LABEL + index * row
        pen.text((MARGIN, top + 3), name, INK, font)
        sheet.paste(small, (MARGIN, top + LABEL))
        for column, strength in enumerate(STRENGTHS, 1):
            spec = check(RecipeSpec, {"name": name, "strength": strength}, name)
            # One stream for a row: the strengths share what they draw, where they can.
            random, drops = streams(seed, name)
            drawn = draw(spec, random)
            degraded = apply(drawn, clean, torch.Generator().manual_seed(drops))
            left = MARGIN + column * (PANEL + MARGIN)
            sheet.paste(_picture(degraded).resize(size, PIL.Image.Resampling.NEAREST), (left, top + LABEL))
            told = KINDS[name].strengths[strength] if name in KINDS else drawn[0].params
            said = ", ".join(f"{key} {_short(drawn[0].params[key])}" for key in told)
            said = said if len(drawn) == 1 else ", ".join(each.name for each in drawn)
            pen.text((left, top + 6), _fitting(said, thin, PANEL), FAINT, thin)
    return sheet


def _tensor(photo: PIL.Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo, dtype=np.float32) / 255).permute(2, 0, 1)


def _picture(image: Tensor) -> PIL.Image.Image:
    levels = (image.clamp(0, 1) * 255).round().to(torch.uint8)
    return PIL.Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _short(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _fitting(text: str, font: PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont, width: int) -> str:
    while font.getlength(text) > width:
        text = text[:-2].rstrip() + "…"
    return text
