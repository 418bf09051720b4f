import numpy as np
import PIL.Image
import pytest
import torch

from restorekit.mapsheet import LABEL, MARGIN, PANEL, TALLEST, sheet


def drawn(width, height):
    """Draw a sheet of a black image, its restored twin, a map and values by channel."""
    image = torch.zeros(3, height, width)
    maps = {"mask": torch.zeros(1, 1, height, width), "gains": torch.linspace(-1, 1, 8)[None]}
    return sheet(image, image, {"1 refine": maps})


def black(picture):
    """Return width and height of the first picture of a sheet of black images."""
    panel = picture.crop((MARGIN, MARGIN + LABEL, MARGIN + PANEL, picture.height - MARGIN))
    return panel.convert("L").point(lambda level: 255 * (level == 0)).getbbox()[2:]


def test_a_picture_is_as_wide_as_its_panel():
    picture = drawn(64, 48)
    assert picture.size == (4 * (PANEL + MARGIN) + MARGIN, 240 + LABEL + 2 * MARGIN)
    assert black(picture) == (PANEL, 240)


@pytest.mark.parametrize(
    ("width", "height", "shown"),
    [
        (4, 900, (3, TALLEST)),
        (1, 3000, (1, TALLEST)),
        (40, 100, (256, TALLEST)),
        (40, 80, (PANEL, TALLEST)),
        (3000, 1, (PANEL, 1)),
    ],
)
def test_a_picture_fits_its_box_and_keeps_its_aspect(width, height, shown):
    picture = drawn(width, height)
    assert picture.size == (4 * (PANEL + MARGIN) + MARGIN, shown[1] + LABEL + 2 * MARGIN)
    assert black(picture) == shown


def test_values_by_channel_keep_the_width_of_a_panel_beside_a_tall_image():
    left = MARGIN + 3 * (PANEL + MARGIN)
    bars = drawn(4, 900).crop((left, MARGIN + LABEL, left + PANEL, MARGIN + LABEL + TALLEST))
    assert bars.getpixel((PANEL - 2, 1)) != (255, 255, 255)
    assert len(bars.getcolors()) == 3


def test_the_sheet_of_a_tall_image_can_be_opened(tmp_path):
    drawn(4, 900).save(tmp_path / "tall.maps.png")
    with PIL.Image.open(tmp_path / "tall.maps.png") as picture:
        picture.load()


def test_images_that_leave_the_range_are_shown_as_files_hold_them():
    dark = torch.full((3, 60, 80), 0.25)
    beyond = dark.clone()
    beyond[:, :2, :2], beyond[:, -2:, -2:] = -0.5, 1.5
    one, other = (np.asarray(sheet(dark, image, {})) for image in (dark, beyond))
    middle = (LABEL + MARGIN + 100, MARGIN + PANEL + MARGIN + 100)
    assert (one[middle] == 64).all() and (other[middle] == 64).all()
