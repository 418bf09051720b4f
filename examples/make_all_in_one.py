"""Make docs/images/all-in-one.webp: one photograph, degraded as `all-in-one` knows, and restored.

Run it from the root of the repository with the photograph: `python examples/make_all_in_one.py PHOTO`.
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from restorekit import load_pipeline, restore
from restorekit.config import check, read_yaml
from restorekit.evaluation.run import by_recipe
from restorekit.experiments.spec import AdaptiveSpec

CELL = (420, 280)
MARGIN, LINE = 8, 24
COLUMNS = 2  # pairs of a degraded and a restored picture in a row
INK, PAPER = (32, 32, 32), (255, 255, 255)


def picture(pixels: np.ndarray) -> PIL.Image.Image:
    """Return an array (H, W, 3) in [0, 1] as a picture."""
    return PIL.Image.fromarray((pixels.clip(0, 1) * 255).round().astype(np.uint8))


def main() -> None:
    """Degrade, restore, and put the pictures side by side."""
    parser = argparse.ArgumentParser(description="A picture of what the preset all-in-one does")
    parser.add_argument("photo", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/images/all-in-one.webp"))
    parser.add_argument("--config", type=Path, default=Path("configs/adapt/all-in-one.yaml"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    spec = check(AdaptiveSpec, read_yaml(arguments.config), arguments.config.name)
    pipeline = load_pipeline("all-in-one")
    photo = PIL.Image.open(arguments.photo).convert("RGB")
    photo.thumbnail((2 * CELL[0], 2 * CELL[0]))
    clean = np.asarray(photo, np.float32) / 255
    left, top = (photo.width - CELL[0]) // 2, (photo.height - CELL[1]) // 2
    font = PIL.ImageFont.load_default(15)
    width, height = 2 * CELL[0] + MARGIN, CELL[1] + LINE
    rows = -(-len(spec.degradations) // COLUMNS)
    sheet = PIL.Image.new("RGB", (COLUMNS * (width + 3 * MARGIN), rows * (height + 2 * MARGIN)), PAPER)
    draw = PIL.ImageDraw.Draw(sheet)
    for index, (name, recipe) in enumerate(spec.degradations.items()):
        x = MARGIN + index % COLUMNS * (width + 3 * MARGIN)
        y = index // COLUMNS * (height + 2 * MARGIN)
        degraded = by_recipe(recipe, arguments.seed)(clean, arguments.photo.name)
        result = restore(degraded, pipeline, return_result=True)
        for column, (pixels, text) in enumerate(
            ((degraded, name), (result.to_numpy(), f"restored (found {result.verdict})"))
        ):
            across = x + column * (CELL[0] + MARGIN)
            draw.text((across, y + 3), text, INK, font)
            detail = picture(pixels).crop((left, top, left + CELL[0], top + CELL[1]))
            sheet.paste(detail, (across, y + LINE))
    sheet.save(arguments.output, quality=80)


if __name__ == "__main__":
    main()
