import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from restorekit.errors import ConfigError, ContractError
from restorekit.tiling import Tiler, pad_to_multiple

NUMPY_MODES = {"reflect": "reflect", "replicate": "edge", "zeros": "constant"}


def image(height, width, channels=3, seed=0, dtype=torch.float32):
    return torch.rand(1, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def convolutions(radius, channels=3):
    """A local network: each output pixel depends on the input up to ``radius`` pixels away."""
    torch.manual_seed(radius)
    layers = []
    for _ in range(radius):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()]
    return nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.parametrize("mode", NUMPY_MODES)
@pytest.mark.parametrize("sides", [(1, 1), (1, 7), (2, 3), (3, 16), (13, 5), (16, 16)])
@pytest.mark.parametrize("multiple", [4, 16])
def test_padding_of_any_size_equals_that_of_numpy(mode, sides, multiple):
    x = image(*sides)
    missing = [(0, 0), (0, 0)] + [(0, -side % multiple) for side in sides]
    expected = np.pad(x.numpy(), missing, mode=NUMPY_MODES[mode])
    np.testing.assert_array_equal(pad_to_multiple(x, multiple, mode).numpy(), expected)


def test_an_image_of_the_right_size_is_not_copied():
    x = image(16, 8)
    assert all(pad_to_multiple(x, 8, mode) is x for mode in NUMPY_MODES)


def test_an_unknown_padding_names_the_known_ones():
    with pytest.raises(ContractError, match=r"'wrap'(.|\n)*reflect, replicate or zeros"):
        pad_to_multiple(image(3, 3), 4, "wrap")


def test_windows_cover_evenly_with_the_overlap_that_was_asked():
    choose = random.Random(0)
    for _ in range(500):
        multiple, overlap = choose.choice([1, 2, 7, 8, 32]), choose.randrange(0, 40)
        size = choose.randrange(max(1, 2 * overlap), 2 * overlap + 100)
        height, width = choose.randrange(1, 400), choose.randrange(1, 400)
        tiler = Tiler(size, overlap)
        windows = tiler.windows(height, width, multiple)
        assert len(windows) == tiler.count(height, width, multiple) == len({str(w) for w in windows})
        bound, shared = -(-size // multiple) * multiple, -(-overlap // multiple) * multiple
        for axis, length in ((0, height), (1, width)):
            spans = sorted({(w[axis].start, w[axis].stop) for w in windows})
            sides = {stop - start for start, stop in spans}
            assert len(sides) == 1
            assert sides.pop() <= max(bound, 2 * shared)
            assert all(start % multiple == 0 and stop % multiple == 0 for start, stop in spans)
            assert spans[0][0] == 0
            assert spans[-1][1] == -(-length // multiple) * multiple
            overlaps = [a[1] - b[0] for a, b in pairwise(spans)]
            assert all(found >= shared for found in overlaps)
            assert max(overlaps, default=0) - min(overlaps, default=0) <= multiple


def test_tiles_shrink_to_what_their_number_needs():
    windows = Tiler(256, 32).windows(720, 1280, multiple=8)
    computed = sum((rows.stop - rows.start) * (columns.stop - columns.start) for rows, columns in windows)
    # Tiles of 256 pushed back from the border compute 1.71 times the image with as many tiles.
    assert len(windows) == 24
    assert computed / (720 * 1280) < 1.31


def test_tiles_keep_their_size_where_that_is_asked_for_and_share_more():
    tiler = Tiler(64, 16, keep=True)
    windows = tiler.windows(92, 150, 4)
    assert {(rows.stop - rows.start, columns.stop - columns.start) for rows, columns in windows} == {(64, 64)}
    assert windows[0] == (slice(0, 64), slice(0, 64)) and windows[-1] == (slice(28, 92), slice(88, 152))
    image = torch.rand(1, 2, 92, 150)
    torch.testing.assert_close(tiler(lambda x: x + 1, image, multiple=4), image + 1)


@pytest.mark.parametrize("size", [0, 64, 1000])
def test_what_fits_one_tile_is_run_once_and_as_a_whole(size):
    x, seen, steps = image(64, 50), [], []
    tiler = Tiler(size, 8)
    result = tiler(lambda w: seen.append(w) or w, x, progress=lambda *step: steps.append(step))
    assert len(seen) == 1
    assert seen[0].data_ptr() == x.data_ptr()
    assert steps == [(1, 1)]
    assert tiler.is_whole(64, 50)
    assert torch.equal(result, x)


@pytest.mark.parametrize("overlap", [0, 1, 2, 3, 8, 13])
@pytest.mark.parametrize("size", [27, 40])
def test_weights_sum_to_one_everywhere(overlap, size):
    tiler, x = Tiler(size, overlap), image(83, 61)
    assert not tiler.is_whole(83, 61)
    assert (tiler(torch.ones_like, x) - 1).abs().max() < 1e-6
    assert (tiler(lambda w: w, x, multiple=4) - x).abs().max() < 1e-6


@pytest.mark.parametrize("radius", [1, 2, 3])
@pytest.mark.parametrize(("height", "width", "size", "multiple"), [(97, 61, 30, 1), (50, 128, 40, 4)])
def test_tiles_equal_the_whole_image_where_the_overlap_is_four_radii(radius, height, width, size, multiple):
    network, x = convolutions(radius), image(height, width)
    options = {"multiple": multiple, "padding": "reflect"}
    whole = Tiler(0)(network, x, **options)
    assert (Tiler(size, 4 * radius)(network, x, **options) - whole).abs().max() < 1e-6


def test_tiles_differ_where_the_receptive_field_is_larger():
    network, x = convolutions(6), image(97, 61)
    assert (Tiler(30, 8)(network, x) - network(x)).abs().max() > 1e-6
    assert (Tiler(30, 0)(network, x) - network(x)).abs().max() > 1e-3


def test_strided_networks_see_the_same_grid_in_every_tile():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 4, stride=4), nn.Tanh(), nn.ConvTranspose2d(8, 3, 4, stride=4))
    network.requires_grad_(False)
    x = image(75, 90)
    # A pixel depends on its own cell of 4 x 4, hence on pixels up to 3 away.
    whole = Tiler(0)(network, x, multiple=4)
    assert whole.shape == x.shape
    assert (Tiler(32, 12)(network, x, multiple=4) - whole).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_of_a_larger_output_equal_the_whole_image(scale):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 3 * scale**2, 3, padding=1), nn.PixelShuffle(scale))
    network.requires_grad_(False)
    x = image(45, 70)
    whole = Tiler(0)(network, x, multiple=8, scale=scale)
    assert whole.shape == (1, 3, 45 * scale, 70 * scale)
    assert (Tiler(24, 4)(network, x, multiple=8, scale=scale) - whole).abs().max() < 1e-6


def test_every_image_is_cut_at_the_same_window():
    rows, columns = torch.meshgrid(torch.arange(50.0), torch.arange(70.0), indexing="ij")
    place = (rows * 100 + columns)[None, None]
    shapes = set()

    def same(a, b):
        assert torch.equal(a[:, :1], b)
        shapes.add(tuple(a.shape))
        return a

    result = Tiler(24, 8)(same, place.expand(1, 3, 50, 70), place, multiple=8)
    assert shapes == {(1, 3, 24, 24)}
    assert (result - place).abs().max() < 1e-3


def test_neighbouring_tiles_blend_without_a_step():
    calls = []

    def checkered(window):
        calls.append(window)
        return torch.full_like(window, float(len(calls) % 2))

    result = Tiler(64, 32)(checkered, image(64, 128))[0, 0, 0]
    assert len(calls) == 3
    # A smoothstep over half of the overlap rises by at most 1.5 of its mean slope, 1 / 16.
    assert result.diff().abs().max() <= 1.5 / 16
    assert result.min() == 0
    assert result.max() == 1


def test_the_border_of_a_tile_counts_only_at_the_border_of_the_image():
    def framed(window):
        output = torch.zeros_like(window)
        output[..., :2, :], output[..., -2:, :], output[..., :2], output[..., -2:] = 1, 1, 1, 1
        return output

    x = image(60, 90)
    assert torch.equal(Tiler(32, 8)(framed, x), framed(x))


def test_the_result_has_at_least_single_precision():
    for given, expected in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        x = image(40, 40, dtype=torch.float64).to(given)
        for tiler in (Tiler(0), Tiler(24, 8)):
            assert tiler(lambda w: w.bfloat16(), x).dtype == expected


def test_windows_are_moved_to_the_device_one_at_a_time():
    seen = []

    def on_meta(window):
        seen.append((window.device.type, tuple(window.shape)))
        return torch.zeros(window.shape)

    result = Tiler(24, 8)(on_meta, image(40, 40), device=torch.device("meta"))
    assert seen == [("meta", (1, 3, 24, 24))] * 4
    assert result.device.type == "cpu"


def test_progress_counts_to_the_number_of_windows():
    steps = []
    Tiler(24, 8)(lambda w: w, image(60, 90), multiple=8, progress=lambda *step: steps.append(step))
    total = Tiler(24, 8).count(60, 90, 8)
    assert steps == [(i, total) for i in range(1, total + 1)]


@pytest.mark.parametrize("size", [0, 24])
def test_a_wrong_shape_says_what_came_and_what_was_promised(size):
    with pytest.raises(
        ContractError, match=r"returned \(1, 3, (12, 11|40, 40)\) .* promised was \(1, 3, (24, 23|80, 80)\)"
    ):
        Tiler(size, 8)(lambda w: interpolate(w, scale_factor=0.5), image(24 if size else 80, 80))
    with pytest.raises(ContractError, match="returned tuple for an image of"):
        Tiler(size, 8)(lambda w: (w, w), image(80, 80))
    with pytest.raises(ContractError, match="promised was"):
        Tiler(size, 8)(lambda w: w[:, :1], image(80, 80))


def test_images_of_different_sizes_are_refused():
    with pytest.raises(ContractError, match=r"\(1, 3, 8, 8\) and \(1, 3, 8, 9\)"):
        Tiler()(torch.add, image(8, 8), image(8, 9))


def test_a_tile_that_fails_ends_the_run():
    calls = []

    def fails_at_third(window):
        calls.append(window)
        if len(calls) == 3:
            raise RuntimeError("broken")
        return window

    with pytest.raises(RuntimeError, match="broken"):
        Tiler(24, 8)(fails_at_third, image(60, 90))
    assert len(calls) == 3


def test_a_tile_smaller_than_two_overlaps_is_refused():
    with pytest.raises(
        ConfigError, match=r"tile.size: a tile of 63(.|\n)*at least 64, or an overlap of at most 31"
    ):
        Tiler(63, 32)
    with pytest.raises(ConfigError, match=r"tile\.overlap: is -1"):
        Tiler(64, -1)
    with pytest.raises(ConfigError, match=r"tile\.size: is -8"):
        Tiler(-8)
