from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from PIL import ImageCms, ImageOps, PngImagePlugin

from restorekit import imagefiles
from restorekit.errors import ConfigError, ContractError, ImageError, OutputError
from restorekit.image import Image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def noise(*shape: int, dtype: str = "uint8", seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        return rng.random(shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def photo(mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> PIL.Image.Image:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return PIL.Image.fromarray(noise(size[1], size[0], *channels))


def some_exif(orientation: int = 1) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x010F] = "A maker"
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2024:05:06 07:08:09"
    exif.get_ifd(0x8825)[1] = "N"
    return exif.tobytes()


def opened(path: Path) -> PIL.Image.Image:
    with PIL.Image.open(path) as image:
        image.load()
        return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png16(samples: np.ndarray, colour_type: int, extra: bytes = b"") -> bytes:
    """Encode by the standard's plainest means, independent of the writer under test."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    data = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + data + png_chunk(b"IEND", b"")


# Kinds and depths


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 2), (5, 7, 3), (5, 7, 4)])
def test_array_comes_back_exactly(shape, dtype):
    array = noise(*shape, dtype=dtype)
    back = Image.of(array).like_source()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_every_level_of_16_bits_comes_back():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(Image.of(levels).like_source(), levels)
    tensor = torch.from_numpy(levels.astype(np.int32)).to(torch.uint16)[None]
    np.testing.assert_array_equal(Image.of(tensor).like_source().numpy(), tensor.numpy())


def test_doubles_come_back_as_doubles_with_the_precision_of_floats():
    array = noise(4, 5, 3, dtype="float64")
    back = Image.of(array).like_source()
    assert back.dtype == np.float64
    np.testing.assert_allclose(back, array, rtol=1e-6)


def test_foreign_byte_order_and_negative_strides_are_read():
    array = noise(6, 5, 3, dtype="uint16")
    np.testing.assert_array_equal(Image.of(array.astype(">u2")[::-1, ::-1]).like_source(), array[::-1, ::-1])


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "float16", "bfloat16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_tensor_comes_back_exactly(channels, dtype):
    tensor = torch.from_numpy(noise(channels, 5, 7)).float() / 255
    kind = getattr(torch, dtype)
    tensor = (tensor * 255).to(kind) if dtype.startswith("u") else tensor.to(kind)
    back = Image.of(tensor).like_source()
    assert back.dtype == kind
    assert back.device == tensor.device
    np.testing.assert_array_equal(back.double().numpy(), tensor.double().numpy())


def test_the_source_is_copied():
    array, tensor = noise(4, 4, 3, dtype="float32"), torch.rand(3, 4, 4, requires_grad=True)
    before = array.copy(), tensor.detach().clone()
    for source in (array, tensor):
        image = Image.of(source)
        image.pixels.zero_()
        assert not image.pixels.requires_grad
    np.testing.assert_array_equal(array, before[0])
    assert torch.equal(tensor, before[1])


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pil_image_comes_back_exactly(mode):
    source = photo(mode)
    back = Image.of(source).like_source()
    assert back.mode == mode
    np.testing.assert_array_equal(np.asarray(back), np.asarray(source))


def test_deep_gray_pil_images_keep_their_depth():
    deep = PIL.Image.fromarray(noise(4, 6, dtype="uint16"))
    real = PIL.Image.fromarray(noise(4, 6, dtype="float32") * 3 - 1)
    for source in (deep, real):
        back = Image.of(source).like_source()
        assert back.mode == source.mode
        np.testing.assert_array_equal(np.asarray(back), np.asarray(source))


def test_pil_images_of_other_modes_become_gray_or_rgb():
    rgba = photo("RGBA")
    for source, mode in [
        (photo("L").convert("1"), "L"),
        (photo("RGB").quantize(8), "RGB"),
        (rgba.convert("RGBa"), "RGBA"),
        (photo("LA").convert("La"), "LA"),
        (photo("RGB").convert("YCbCr"), "RGB"),
        (photo("RGB").convert("CMYK"), "RGB"),
        (photo("RGB").convert("HSV"), "RGB"),
        (photo("RGB").convert("RGBX"), "RGB"),
    ]:
        assert Image.of(source).like_source().mode == mode, source.mode


def test_image_is_returned_itself():
    image = Image.of(photo())
    assert Image.of(image) is image


def test_path_gives_a_pil_image(tmp_path):
    photo().save(tmp_path / "a.png")
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(Image.of(path).like_source()), np.asarray(photo()))


# Range


def test_floats_outside_the_range_are_kept():
    array = np.array([[-0.5, 0.25, 1.75]], np.float32)
    image = Image.of(array)
    assert image.pixels.tolist() == [[[-0.5, 0.25, 1.75]]]
    np.testing.assert_array_equal(image.like_source(), array)


def test_range_comes_from_the_type_and_never_from_the_values():
    dark = np.full((2, 2), 200, np.uint16)
    assert Image.of(dark).pixels.max() == pytest.approx(200 / 65535)
    bright = np.full((2, 2), 200, np.float32)
    assert Image.of(bright).pixels.max() == 200
    black = np.ones((2, 2), np.uint8)
    assert Image.of(black).pixels.max() == pytest.approx(1 / 255)


def test_levels_are_rounded_half_to_even_and_clipped():
    values = np.array([[-1, 0.5 / 255, 0.9 / 255, 1.2 / 255, 254.6 / 255, 9]], np.float32)
    expected = [[0, round(float(values[0, 1] * np.float32(255))), 1, 1, 255, 255]]
    assert Image.of(values).to_array(np.uint8).tolist() == expected
    as_levels = Image(torch.from_numpy(values)[None], depth="uint8").to_tensor()
    assert as_levels[0].tolist() == expected


def test_array_of_another_type_can_be_asked_for():
    image = Image.of(noise(4, 5, 3))
    assert image.to_array().dtype == np.uint8
    assert image.to_array(np.uint16).max() <= 65535
    np.testing.assert_array_equal(image.to_array("uint16"), noise(4, 5, 3).astype(np.uint16) * 257)
    assert image.to_array(np.float32).dtype == np.float32
    with pytest.raises(ImageError, match="int64"):
        image.to_array(np.int64)


# Pixels


def test_other_pixels_keep_the_rest_and_resize_alpha():
    image = Image.of(noise(4, 6, 4))
    same = image.replace_pixels(torch.zeros(3, 4, 6))
    assert torch.equal(same.alpha, image.alpha)
    doubled = image.replace_pixels(torch.zeros(3, 8, 12))
    assert doubled.alpha.shape == (1, 8, 12)
    assert 0 <= doubled.alpha.min() <= doubled.alpha.max() <= 1
    assert doubled.like_source().shape == (8, 12, 4)
    with pytest.raises(ContractError, match=r"\(2, 4, 6\)"):
        image.replace_pixels(torch.zeros(2, 4, 6))


def test_flat_array_restored_in_colour_gains_channels():
    assert Image.of(noise(4, 6)).replace_pixels(torch.zeros(3, 4, 6)).like_source().shape == (4, 6, 3)


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


# Errors in reading


def refused(source: object, *words: str) -> None:
    with pytest.raises(ImageError) as caught:
        Image.of(source)
    for word in words:
        assert word in str(caught.value)
    assert caught.value.hint


def test_missing_file_names_the_nearest_beside_it(tmp_path):
    photo().save(tmp_path / "photo.png")
    refused(tmp_path / "phto.png", "phto.png: no such file", "did you mean 'photo.png'?")
    refused(tmp_path / "nowhere" / "photo.png", "no such file")


def test_folder_is_refused(tmp_path):
    refused(tmp_path, "is a folder, not an image")


def test_text_called_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("hello, this is text")
    refused(tmp_path / "a.png", "a.png is not a PNG, JPEG")


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    refused(tmp_path / "a.png", "a.png is empty (0 bytes)")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_truncated_file_is_refused(tmp_path, kind):
    whole = io.BytesIO()
    photo(size=(120, 90)).save(whole, kind)
    for share in (0.6, 0.001):
        size = max(17, int(len(whole.getvalue()) * share))
        (tmp_path / "a.png").write_bytes(whole.getvalue()[:size])
        refused(tmp_path / "a.png", "a.png is damaged or incomplete")


def test_truncated_16_bit_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png16(noise(50, 60, 3, dtype="uint16"), 2)[:9000])
    refused(tmp_path / "a.png", "a.png is damaged or incomplete")


def test_truncated_float_tiff_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", noise(50, 60, 3, dtype="float32"), photometric="rgb")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:9000])
    refused(tmp_path / "a.tif", "a.tif is damaged or incomplete")


def test_image_above_a_gigapixel_is_refused_before_it_is_decoded(tmp_path):
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    data = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    refused(tmp_path / "a.png", "40000 x 40000", "1,000,000,000")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tif"])
def test_large_image_below_that_is_read_without_a_warning(tmp_path, monkeypatch, name):
    photo().save(tmp_path / name)
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10)
    assert Image.of(tmp_path / name).pixels.shape == (3, 9, 13)
    monkeypatch.setattr(imagefiles, "MAX_PIXELS", 100)
    refused(tmp_path / name, "claims 13 x 9 pixels")


def test_array_without_pixels_is_refused():
    refused(np.zeros((0, 4, 3), np.uint8), "shape (0, 4, 3)", "no pixels")
    refused(torch.zeros(3, 4, 0), "shape (3, 4, 0)")
    refused(np.zeros((0, 0), np.float32), "no pixels")


def test_nan_and_infinity_are_counted_and_placed():
    array = np.zeros((4, 5, 3), np.float32)
    array[2, 3, 1], array[3, 0, 0] = np.nan, np.inf
    refused(array, "NaN or infinity in 2 of 60 samples", "row 3, column 0, channel 0")
    array[3, 0, 0] = 0
    refused(array, "in 1 of 60 samples", "row 2, column 3, channel 1")
    refused(torch.full((1, 2, 2), torch.inf), "4 of 4")
    refused(np.full((2, 2), 1e300), "infinity in 4 of 4")


@pytest.mark.parametrize("dtype", ["bool", "int8", "int16", "int32", "int64", "uint32"])
def test_type_without_a_range_is_refused(dtype):
    refused(np.zeros((4, 5, 3), dtype), f"holds {dtype}", "convert it to uint8")
    refused(torch.zeros((3, 4, 5), dtype=getattr(torch, dtype)), f"holds {dtype}", "convert it to uint8")
    if dtype == "int32":
        refused(PIL.Image.new("I", (3, 3)), "32-bit integers")


def test_other_layouts_are_refused_with_a_way_out():
    refused(np.zeros((3, 64, 64), np.uint8), "array.transpose(1, 2, 0)")
    refused(np.zeros((64, 64, 5), np.uint8), "channels last")
    refused(np.zeros((2, 8, 8, 3), np.uint8), "batch")
    refused(np.zeros(5, np.uint8), "(H, W)")
    refused(torch.zeros(64, 64, 3), "tensor.permute(2, 0, 1)")
    refused(torch.zeros(4, 8, 8), "1 or 3 channels")
    refused(torch.zeros(2, 3, 8, 8), "batch", "restorekit.restore")
    refused(torch.zeros(8, 8), "tensor[None]")
    refused(b"bytes", "a bytes cannot be taken as an image")


def test_message_says_where():
    with pytest.raises(ImageError, match="images\\[3\\] holds int64"):
        Image.of(np.zeros((2, 2), np.int64), where="images[3]")


# Errors in writing


def test_existing_file_is_kept_unless_told(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"a\.png exists\n  hint: .*--overwrite"):
        Image.of(photo()).save(path)
    assert path.read_text() == "precious"
    Image.of(photo()).save(path, overwrite=True)
    assert opened(path).size == (13, 9)


def test_unknown_suffix_lists_the_known(tmp_path):
    for name in ("a.xyz", "a.gif", "a"):
        with pytest.raises(OutputError, match=r"\.png, \.jpg"):
            Image.of(photo()).save(tmp_path / name)


def test_missing_folder_is_made(tmp_path):
    assert Image.of(photo()).save(str(tmp_path / "x" / "y" / "a.png")).is_file()


def test_folder_that_cannot_be_made_or_written_is_reported(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        Image.of(photo()).save(tmp_path / "file" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(OutputError, match="is a folder"):
        Image.of(photo()).save(tmp_path / "a.png", overwrite=True)


def test_failed_write_leaves_neither_a_part_nor_a_change(tmp_path):
    wide = Image.of(np.zeros((1, 20_000, 3), np.uint8))
    path = tmp_path / "a.webp"
    path.write_text("precious")
    with pytest.raises(OutputError, match=r"16383"):
        wide.save(path, overwrite=True)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]
