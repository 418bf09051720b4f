"""Before and after in one picture: both whole images, and a magnified detail of each."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

PANEL = 800  # pixels; width of one of the two whole images
MARGIN = 12
INK, PAPER = (32, 32, 32), (255, 255, 255)


def comparison(before: PIL.Image.Image, after: PIL.Image.Image, captions: tuple[str, str]) -> PIL.Image.Image:
    """Return a picture with the degraded image on the left and the restored one on the right.

    Below each stands the most detailed square of the restored image, at its own pixels magnified two-fold.

    Args:
        before: degraded image.
        after: restored image; may be larger by a whole factor.
        captions: written above the two.
    """
    before = before.convert("RGB").resize(after.size, PIL.Image.Resampling.NEAREST)
    after = after.convert("RGB")
    width = min(PANEL, after.width)
    height = round(after.height * width / after.width)
    side = min(width // 2, after.width, after.height)
    left, top = _detail(after, side)
    font = PIL.ImageFont.load_default(20)
    caption = 20 + MARGIN
    sheet = PIL.Image.new("RGB", (2 * width + 3 * MARGIN, caption + height + 2 * side + 3 * MARGIN), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for column, (image, text) in enumerate(zip((before, after), captions, strict=True)):
        x = MARGIN + column * (width + MARGIN)
        draw.text((x, MARGIN // 2), text, INK, font)
        sheet.paste(image.resize((width, height), PIL.Image.Resampling.LANCZOS), (x, caption))
        detail = image.crop((left, top, left + side, top + side))
        magnified = detail.resize((2 * side, 2 * side), PIL.Image.Resampling.NEAREST)
        sheet.paste(magnified, (x, caption + height + MARGIN))
    return sheet


def _detail(image: PIL.Image.Image, side: int) -> tuple[int, int]:
    """Return left and top of the square with the strongest edges."""
    gray = np.asarray(image.convert("L"), dtype=np.float32)
    edges = np.zeros_like(gray)
    edges[:-1, :-1] = np.abs(np.diff(gray, axis=0))[:, :-1] + np.abs(np.diff(gray, axis=1))[:-1]
    step = max(1, side // 4)
    corners = [
        (left, top)
        for top in range(0, image.height - side + 1, step)
        for left in range(0, image.width - side + 1, step)
    ]
    return max(corners, key=lambda at: float(edges[at[1] : at[1] + side, at[0] : at[0] + side].mean()))
