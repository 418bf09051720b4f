"""Images in files: every level comes back, and what lies beside the pixels."""

from __future__ import annotations

import logging

import numpy as np
import PIL.Image
import pytest
import tifffile
from image_cases import SRGB, noise, opened, photo, png16, png_chunk, some_exif
from PIL import ImageOps, PngImagePlugin

from restorekit.errors import ConfigError, OutputError
from restorekit.image import Image

# Files


@pytest.mark.parametrize("suffix", [".png", ".tif", ".TIFF"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 2), (9, 13, 3), (9, 13, 4)])
def test_saved_file_holds_every_level(tmp_path, shape, dtype, suffix):
    array = noise(*shape, dtype=dtype)
    path = Image.of(array).save(tmp_path / f"ä 图{suffix}")
    read = Image.of(path)
    assert read.depth == dtype
    assert read.meta.format == ("PNG" if suffix == ".png" else "TIFF")
    np.testing.assert_array_equal(read.to_array(dtype), array)
    again = read.save(tmp_path / f"again{suffix}")
    np.testing.assert_array_equal(Image.of(again).to_array(dtype), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_files_are_read_alike_by_other_programs(tmp_path, channels):
    array = noise(9, 13, channels, dtype="uint16")
    image = Image.of(array)
    opened_png = opened(image.save(tmp_path / "a.png"))
    if channels == 1:
        np.testing.assert_array_equal(np.asarray(opened_png), array[..., 0])
    if channels > 2:
        np.testing.assert_array_equal(np.asarray(opened_png), array >> 8)
    np.testing.assert_array_equal(tifffile.imread(image.save(tmp_path / "a.tif")).reshape(array.shape), array)


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (2, 4), (3, 2), (4, 6)])
def test_16_bit_png_of_other_programs_is_read_exactly(tmp_path, channels, colour_type):
    array = noise(9, 13, channels, dtype="uint16")
    path = tmp_path / "a.png"
    path.write_bytes(png16(array, colour_type))
    image = Image.of(path)
    assert image.depth == "uint16"
    np.testing.assert_array_equal(image.to_array("uint16").reshape(array.shape), array)


@pytest.mark.parametrize(("channels", "colour_type"), [(1, 0), (3, 2)])
def test_transparent_colour_of_a_16_bit_png_becomes_alpha(tmp_path, channels, colour_type):
    array = noise(3, 4, channels, dtype="uint16")
    key = array[1, 2].astype(">u2").tobytes()
    path = tmp_path / "a.png"
    path.write_bytes(png16(array, colour_type, png_chunk(b"tRNS", key)))
    read = Image.of(path)
    np.testing.assert_array_equal(read.to_array("uint16")[..., :channels], array)
    assert read.alpha[0, 1, 2] == 0
    assert read.alpha.sum() == 11


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}])
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 3), (9, 13, 4)])
def test_16_bit_tiff_of_other_programs_is_read_exactly(tmp_path, shape, byteorder, options):
    array = noise(*shape, dtype="uint16")
    kind = "minisblack" if len(shape) == 2 else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=kind, byteorder=byteorder, **options)
    np.testing.assert_array_equal(Image.of(tmp_path / "a.tif").to_array("uint16"), array)


def test_lzw_tiff_of_16_bits_needs_no_further_library(tmp_path):
    array = noise(9, 13, dtype="uint16")
    PIL.Image.fromarray(array).save(tmp_path / "a.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(Image.of(tmp_path / "a.tif").to_array("uint16"), array)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(9, 13), (9, 13, 3), (9, 13, 4)])
def test_float_tiff_is_read_with_values_outside_the_range(tmp_path, shape, dtype):
    array = noise(*shape, dtype=dtype)
    array[0, 0] = 1.5 if len(shape) == 2 else (1.5, -0.5, 0.5, 1)[: shape[-1]]
    kind = "minisblack" if len(shape) == 2 else "rgb"
    tifffile.imwrite(tmp_path / "a.tif", array, photometric=kind)
    image = Image.of(tmp_path / "a.tif")
    assert image.depth == dtype
    np.testing.assert_allclose(image.to_array(dtype), array, rtol=1e-6)
    saved = Image.of(image.save(tmp_path / "b.tif"))
    assert saved.depth == "float32"
    np.testing.assert_array_equal(saved.to_array("float32"), image.to_array("float32"))


def test_planar_float_tiff_is_read(tmp_path):
    array = noise(9, 13, 3, dtype="float32")
    planes = array.transpose(2, 0, 1)
    tifffile.imwrite(tmp_path / "a.tif", planes, photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(Image.of(tmp_path / "a.tif").to_array("float32"), array)


def test_bit_depth_can_be_chosen(tmp_path):
    deep, shallow = Image.of(noise(4, 5, 3, dtype="uint16")), Image.of(noise(4, 5, 3))
    assert Image.of(deep.save(tmp_path / "8.png", bit_depth=8)).depth == "uint8"
    assert Image.of(shallow.save(tmp_path / "16.png", bit_depth=16)).depth == "uint16"
    assert Image.of(Image.of(noise(4, 5, dtype="float32")).save(tmp_path / "f.png")).depth == "uint8"
    with pytest.raises(OutputError, match="JPEG holds 8 bits"):
        shallow.save(tmp_path / "a.jpg", bit_depth=16)
    with pytest.raises(ConfigError, match="bit_depth: 12"):
        shallow.save(tmp_path / "a.png", bit_depth=12)


def test_16_bits_saved_as_jpeg_are_reported(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        Image.of(noise(4, 5, 3, dtype="uint16")).save(tmp_path / "a.jpg")
    assert "8 bits a sample, the image has 16" in caplog.text


def test_jpeg_keeps_full_colour_resolution(tmp_path):
    saved = opened(Image.of(photo()).save(tmp_path / "a.jpg"))
    assert all(layer[1:3] == (1, 1) for layer in saved.layer)
    with pytest.raises(ConfigError, match="quality: 101"):
        Image.of(photo()).save(tmp_path / "b.jpg", quality=101)


def test_webp_is_lossless_at_quality_100(tmp_path):
    source = photo("RGBA")
    path = Image.of(source).save(tmp_path / "a.webp", quality=100)
    np.testing.assert_array_equal(np.asarray(opened(path)), np.asarray(source))


def test_gray_is_kept_gray(tmp_path):
    for name in ("a.png", "a.jpg", "a.bmp", "a.tif"):
        assert opened(Image.of(photo("L")).save(tmp_path / name)).mode == "L"


def test_palette_becomes_rgb_and_its_transparency_alpha(tmp_path):
    source = photo("RGB").quantize(8)
    source.save(tmp_path / "opaque.png")
    source.save(tmp_path / "clear.png", transparency=3)
    assert Image.of(tmp_path / "opaque.png").alpha is None
    image = Image.of(tmp_path / "clear.png")
    np.testing.assert_array_equal(
        image.to_array(), np.asarray(opened(tmp_path / "clear.png").convert("RGBA"))
    )
    np.testing.assert_array_equal(image.alpha[0].numpy() == 0, np.asarray(source) == 3)


def test_transparent_colour_becomes_alpha(tmp_path):
    colour = photo()
    colour.save(tmp_path / "a.png", transparency=colour.getpixel((2, 1)))
    assert Image.of(tmp_path / "a.png").alpha[0, 1, 2] == 0
    PIL.Image.new("L", (3, 3), 7).save(tmp_path / "b.png", transparency=7)
    gray = Image.of(tmp_path / "b.png")
    assert len(gray.pixels) == 1
    assert gray.alpha.max() == 0
    PIL.Image.new("1", (3, 3), 1).save(tmp_path / "c.png", transparency=255)
    assert Image.of(tmp_path / "c.png").alpha.max() == 0


def test_alpha_is_untouched_by_a_restoration(tmp_path):
    source = photo("RGBA")
    source.save(tmp_path / "a.png")
    image = Image.of(tmp_path / "a.png")
    for name, quality in (("b.png", 95), ("b.tif", 95), ("b.webp", 95)):
        path = image.replace_pixels(1 - image.pixels).save(tmp_path / name, quality=quality)
        np.testing.assert_array_equal(Image.of(path).to_array()[..., 3], np.asarray(source)[..., 3])


@pytest.mark.parametrize("suffix", [".jpg", ".bmp"])
def test_alpha_is_laid_on_white_where_the_format_has_none(tmp_path, caplog, suffix):
    clear = np.zeros((8, 8, 4), np.uint8)
    with caplog.at_level(logging.WARNING):
        path = Image.of(clear).save(tmp_path / f"a{suffix}")
    assert "laid on white" in caplog.text
    assert Image.of(path).to_array().min() == 255


def test_cmyk_jpeg_becomes_rgb_with_a_note(tmp_path):
    photo().convert("CMYK").save(tmp_path / "a.jpg")
    image = Image.of(tmp_path / "a.jpg")
    assert len(image.pixels) == 3
    assert image.meta.icc is None
    assert any("converted from CMYK to RGB" in note for note in image.notes)


def test_cmyk_with_a_broken_profile_is_converted_plainly(caplog):
    source = photo().convert("CMYK")
    plain = np.asarray(source.convert("RGB"))
    source.info["icc_profile"] = b"no profile"
    image = Image.of(source)
    np.testing.assert_array_equal(image.to_array(), plain)
    assert "the CMYK profile cannot be used" in caplog.text
    assert image.meta.icc is None


def test_first_frame_of_an_animation_is_read_with_a_note(tmp_path):
    frames = [PIL.Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    image = Image.of(tmp_path / "a.gif")
    assert image.to_array()[0, 0].tolist() == [255, 0, 0]
    assert any("first of 2 frames" in note for note in image.notes)


def test_content_decides_the_format_and_not_the_suffix(tmp_path):
    photo().save(tmp_path / "a.jpg", format="PNG")
    image = Image.of(tmp_path / "a.jpg")
    assert image.meta.format == "PNG"
    assert image.meta.mode == "RGB"


# Metadata


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation, suffix):
    source = PIL.Image.fromarray(np.kron(noise(3, 4, 3), np.ones((16, 16, 1), np.uint8)))
    options = {"lossless": True} if suffix == ".webp" else {}
    source.save(tmp_path / f"a{suffix}", exif=some_exif(orientation), **options)
    stored = opened(tmp_path / f"a{suffix}")
    expected = np.asarray(ImageOps.exif_transpose(stored) or stored)
    first = Image.of(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(first.to_array(), expected)
    saved = first.save(tmp_path / "b.png")
    assert opened(saved).getexif()[0x0112] == 1
    np.testing.assert_array_equal(Image.of(saved).to_array(), expected)
    np.testing.assert_array_equal(Image.of(stored).to_array(), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_files_are_turned_as_shallow_ones(tmp_path, orientation):
    deep = noise(5, 7, 3, dtype="uint16")
    PIL.Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / "a.png", exif=some_exif(orientation))
    chunk = png_chunk(b"eXIf", some_exif(orientation).removeprefix(b"Exif\0\0"))
    (tmp_path / "b.png").write_bytes(png16(deep, 2, chunk))
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "c.tif", deep / np.float32(65535), photometric="rgb", extratags=tags)
    shallow = Image.of(tmp_path / "a.png").to_array()
    turned = Image.of(tmp_path / "b.png")
    np.testing.assert_array_equal(turned.to_array("uint16") >> 8, shallow)
    np.testing.assert_array_equal(Image.of(tmp_path / "c.tif").to_array("uint16"), turned.to_array("uint16"))


@pytest.mark.parametrize("target", ["b.png", "b.jpg", "b.tif", "b.webp", "deep.png", "deep.tif"])
@pytest.mark.parametrize("source", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_profile_exif_and_resolution_are_kept(tmp_path, source, target):
    photo().save(tmp_path / source, exif=some_exif(6), icc_profile=SRGB, dpi=(300, 150))
    path = Image.of(tmp_path / source).save(
        tmp_path / target, bit_depth=16 if target.startswith("deep") else "keep"
    )
    saved = opened(path)
    exif = saved.getexif()
    assert saved.info["icc_profile"] == SRGB
    assert (exif[0x010F], exif[0x0112]) == ("A maker", 1)
    assert exif.get_ifd(0x8769)[0x9003] == "2024:05:06 07:08:09"
    assert exif.get_ifd(0x8825)[1] == "N"
    if "webp" not in source + target:
        # Turned by a quarter, with the pixels.
        assert [float(side) for side in saved.info["dpi"]] == pytest.approx([150, 300], rel=1e-3)
    again = Image.of(path)
    assert again.meta.exif == Image.of(again.save(tmp_path / "last.png")).meta.exif


@pytest.mark.parametrize("target", ["b.png", "b.jpg", "b.tif", "b.webp", "deep.png"])
def test_xmp_is_kept_with_its_orientation_reset(tmp_path, target):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="6" xmp:Rating="4"/></x:xmpmeta>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    photo().save(tmp_path / "a.png", pnginfo=text)
    image = Image.of(tmp_path / "a.png")
    assert image.pixels.shape == (3, 13, 9)
    path = image.save(tmp_path / target, bit_depth=16 if target.startswith("deep") else "keep")
    again = Image.of(path)
    assert again.pixels.shape == (3, 13, 9)
    assert again.meta.xmp == xmp.replace(b'"6"', b'"1"')


def test_pil_result_carries_profile_and_exif(tmp_path):
    photo().save(tmp_path / "a.jpg", exif=some_exif(), icc_profile=SRGB)
    result = Image.of(tmp_path / "a.jpg").to_pil()
    assert result.info["icc_profile"] == SRGB
    assert result.getexif()[0x010F] == "A maker"


def test_profile_of_another_colour_space_is_left_out(tmp_path):
    photo().save(tmp_path / "a.png", icc_profile=SRGB)
    image = Image.of(tmp_path / "a.png")
    path = image.replace_pixels(image.pixels.mean(0, keepdim=True)).save(tmp_path / "b.png")
    assert "icc_profile" not in opened(path).info
