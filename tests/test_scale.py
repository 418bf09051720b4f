"""Super-resolution from end to end, with a small network of random weights."""

from __future__ import annotations

import json
import sys

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from restorekit import load_pipeline, restore
from restorekit.cli import main
from restorekit.image import Image
from restorekit.registry import backbones

WIDTHS = [4, 6]
LEVELS = np.random.default_rng(0).integers(0, 256, (40, 52, 3), dtype=np.uint8)

if "srcnn" not in {entry.name for entry in backbones.entries()}:
    pytest.skip("no network with a scale is installed: plugins/srcnn", allow_module_level=True)


@pytest.fixture
def step(tmp_path):
    """Return a function that makes the step of a network of a scale, its weights in a file."""

    def step(scale, channels=3):
        torch.manual_seed(scale)
        params = {"widths": WIDTHS, "scale": scale, "channels": channels}
        network = backbones.get("srcnn").load()(**params)
        # About the middle of the range, so that few values are clipped.
        network.features[-1].bias.data.fill_(0.5)
        path = tmp_path / f"x{scale}-{channels}.safetensors"
        save_file(network.state_dict(), path)
        return {"restore": {"name": "srcnn", "params": params, "weights": str(path)}}

    return step


@pytest.fixture
def upscale(step):
    """Return a pipeline that doubles H and W."""
    return load_pipeline({"steps": [step(2)]})


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command line in this process; return exit code, stdout and stderr."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["restorekit", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return run


def some_exif(orientation=1, width=52, height=40):
    exif = PIL.Image.Exif()
    exif[0x010F] = "A maker"
    exif[0x0112] = orientation
    entries = {0x9003: "2024:05:06 07:08:09", 0x829A: 0.004, 0x927C: b"a maker's note", 40962: width}
    exif[0x8769], exif[0x8825] = {**entries, 40963: height}, {1: "N"}
    return exif.tobytes()


def stated_size(path):
    with PIL.Image.open(path) as image:
        entries = image.getexif().get_ifd(0x8769)
        return entries.get(40962), entries.get(40963)


# Sizes and kinds


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_every_kind_of_image_comes_back_enlarged(step, tmp_path, scale):
    pipeline = load_pipeline({"steps": [step(scale)]})
    picture = PIL.Image.fromarray(LEVELS)
    picture.save(tmp_path / "photo.png")
    tensor = torch.from_numpy(LEVELS).permute(2, 0, 1)
    height, width = 40 * scale, 52 * scale
    expected = restore(LEVELS, pipeline)
    assert expected.shape == (height, width, 3) and expected.dtype == np.uint8
    assert expected.std() > 1
    for same in (tmp_path / "photo.png", str(tmp_path / "photo.png"), picture):
        restored = restore(same, pipeline)
        assert isinstance(restored, PIL.Image.Image) and restored.size == (width, height)
        np.testing.assert_array_equal(np.asarray(restored), expected)
    batch = restore(torch.stack([tensor, tensor.flip(2)]), pipeline)
    assert batch.shape == (2, 3, height, width) and batch.dtype == torch.uint8
    for restored in (restore(tensor, pipeline), batch[0], *restore([tensor], pipeline)):
        np.testing.assert_array_equal(restored.permute(1, 2, 0), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_small_images_are_enlarged(upscale, size):
    assert restore(LEVELS[: size[0], : size[1]], upscale).shape == (2 * size[0], 2 * size[1], 3)


def test_gray_images_stay_gray(step, upscale):
    gray = LEVELS[..., 0]
    assert restore(gray, upscale).shape == (80, 104)
    one_channel = {"steps": [step(2, channels=1)]}
    assert restore(gray, one_channel).shape == (80, 104)
    colours = restore(LEVELS, one_channel)
    np.testing.assert_array_equal(colours[..., 0], restore(gray, one_channel))


@pytest.mark.parametrize("scale", [2, 3])
def test_tiles_equal_the_whole_image(step, scale):
    pipeline = load_pipeline({"steps": [step(scale)]})
    image = np.random.default_rng(1).random((150, 131, 3), dtype=np.float32)
    whole, tiled = (restore(image, pipeline, tile=tile, return_result=True) for tile in (0, 64))
    assert whole.steps[0].tile == 0
    assert (tiled.steps[0].tile, tiled.steps[0].overlap) == (64, 16)
    np.testing.assert_allclose(tiled.to_numpy(), whole.to_numpy(), rtol=1e-5, atol=1e-5)


def test_alpha_is_enlarged_with_the_colours(upscale):
    alpha = np.zeros((40, 52, 1), np.uint8)
    alpha[:, 26:] = 255
    restored = restore(np.concatenate([LEVELS, alpha], axis=-1), upscale)
    assert restored.shape == (80, 104, 4)
    np.testing.assert_array_equal(restored[..., :3], restore(LEVELS, upscale))
    halved = interpolate(torch.from_numpy(alpha / 255.0).permute(2, 0, 1)[None], (80, 104), mode="bilinear")
    np.testing.assert_allclose(restored[..., 3] / 255, halved[0, 0], atol=1 / 255)


def test_steps_follow_at_their_own_sizes(step):
    chain = {"steps": [step(2), {"restore": {"name": "median", "params": {"window": 3}}}]}
    image = LEVELS.astype(np.float32) / 255
    enlarged = restore(image, {"steps": [step(2)]})
    result = restore(image, chain, return_result=True)
    np.testing.assert_array_equal(result.to_numpy(), restore(enlarged, "median"))
    facts = json.loads(result.to_json())
    assert (facts["width"], facts["height"]) == (104, 80)
    assert restore(image, {"steps": [step(2), step(3)]}).shape == (240, 312, 3)


# Files


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("target", ["b.jpg", "b.png", "b.tif", "b.webp", "deep.png"])
@pytest.mark.parametrize("source", ["a.jpg", "a.png", "a.tif"])
def test_saved_exif_states_the_size_of_its_file(upscale, tmp_path, source, target, orientation):
    PIL.Image.fromarray(LEVELS).save(tmp_path / source, exif=some_exif(orientation), dpi=(300, 150))
    result = restore(tmp_path / source, upscale, return_result=True)
    path = result.image.save(tmp_path / target, bit_depth=16 if target == "deep.png" else "keep")
    turned = orientation >= 5
    size = (80, 104) if turned else (104, 80)
    with PIL.Image.open(path) as image:
        assert image.size == size
        exif = image.getexif()
        assert (exif[0x010F], exif[0x0112]) == ("A maker", 1)
        entries = exif.get_ifd(0x8769)
        assert (entries[0x9003], entries[0x829A]) == ("2024:05:06 07:08:09", 0.004)
        assert entries[0x927C] == b"a maker's note"
        assert exif.get_ifd(0x8825)[1] == "N"
        if target != "b.webp":
            dpi = [150, 300] if turned else [300, 150]
            assert [float(side) for side in image.info["dpi"]] == pytest.approx(dpi, rel=1e-3)
    assert stated_size(path) == size


def test_exif_states_the_size_of_an_image_that_was_only_turned(tmp_path):
    PIL.Image.fromarray(LEVELS).save(tmp_path / "a.jpg", exif=some_exif(6))
    assert stated_size(Image.of(tmp_path / "a.jpg").save(tmp_path / "b.jpg")) == (40, 52)


@pytest.mark.parametrize("target", ["b.jpg", "b.tif"])
def test_saved_xmp_states_the_size_of_its_file(upscale, tmp_path, target):
    xmp = (
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r exif:PixelXDimension="%d" tiff:ImageWidth="%d" '
        b'xmp:Rating="4"/><exif:PixelYDimension>%d</exif:PixelYDimension></x:xmpmeta>'
    )
    PIL.Image.fromarray(LEVELS).save(tmp_path / "a.jpg", xmp=xmp % (52, 52, 40))
    path = restore(tmp_path / "a.jpg", upscale, return_result=True).save(tmp_path / target)
    assert Image.of(path).meta.xmp == xmp % (104, 104, 80)


def test_pil_result_states_its_size(upscale, tmp_path):
    PIL.Image.fromarray(LEVELS).save(tmp_path / "a.jpg", exif=some_exif())
    entries = restore(tmp_path / "a.jpg", upscale).getexif().get_ifd(0x8769)
    assert (entries[40962], entries[40963]) == (104, 80)


def test_size_is_not_added_where_the_source_does_not_state_it(upscale, tmp_path):
    exif = PIL.Image.Exif()
    exif[0x8769] = {0x9003: "2024:05:06 07:08:09"}
    PIL.Image.fromarray(LEVELS).save(tmp_path / "a.jpg", exif=exif.tobytes())
    path = restore(tmp_path / "a.jpg", upscale, return_result=True).save(tmp_path / "b.jpg")
    assert stated_size(path) == (None, None)


# Command line


@pytest.fixture
def preset(step, tmp_path):
    (tmp_path / "upscale.yaml").write_text(json.dumps({"steps": [step(2)]}))
    return tmp_path / "upscale.yaml"


def test_command_line_writes_the_larger_file(run, preset, tmp_path):
    (tmp_path / "photos").mkdir()
    PIL.Image.fromarray(LEVELS).save(tmp_path / "photos" / "a.png")
    PIL.Image.fromarray(LEVELS).save(tmp_path / "photos" / "b.jpg", exif=some_exif(8), dpi=(300, 300))
    code, out, err = run("restore", tmp_path / "photos", "-o", tmp_path / "out", "-p", preset, "--json")
    assert code == 0, err
    assert [(record["width"], record["height"]) for record in json.loads(out)] == [(104, 80), (80, 104)]
    np.testing.assert_array_equal(
        np.asarray(PIL.Image.open(tmp_path / "out" / "a.png")), restore(LEVELS, preset)
    )
    with PIL.Image.open(tmp_path / "out" / "b.jpg") as image:
        assert image.size == (80, 104)
        assert [float(side) for side in image.info["dpi"]] == [300, 300]
    assert stated_size(tmp_path / "out" / "b.jpg") == (80, 104)


def test_comparison_shows_both_at_the_enlarged_size(run, preset, tmp_path):
    PIL.Image.fromarray(LEVELS).save(tmp_path / "a.png")
    code, _, err = run("restore", tmp_path / "a.png", "-o", tmp_path / "b.png", "-p", preset, "--compare")
    assert code == 0, err
    with PIL.Image.open(tmp_path / "b.compare.png") as picture:
        assert picture.width > 2 * 104
        # The degraded image stands on the left, below its caption, every pixel as large as two.
        left = np.asarray(picture.crop((12, 32, 12 + 104, 32 + 80)))
        right = np.asarray(picture.crop((24 + 104, 32, 24 + 208, 32 + 80)))
    np.testing.assert_array_equal(left, LEVELS.repeat(2, 0).repeat(2, 1))
    np.testing.assert_array_equal(right, restore(LEVELS, preset))
