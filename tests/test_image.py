from __future__ import annotations

import io
import struct

import numpy as np
import PIL.Image
import pytest
import tifffile
import torch
from image_cases import noise, opened, photo, png16, png_chunk

from restorekit import imagefiles
from restorekit.errors import ContractError, ImageError, OutputError
from restorekit.image import Image

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
