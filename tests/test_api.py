import numpy as np
import PIL.Image
import pytest
import torch

from restorekit import restore
from restorekit.errors import ImageError

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)


def median(image, **more):
    return restore(image, "median", **more)


@pytest.fixture(scope="module")
def expected():
    return median(LEVELS)


@pytest.mark.parametrize(
    "dtype", [np.uint8, np.uint16, np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__
)
def test_array_in_array_out_in_its_type_and_range(expected, dtype):
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1
    image = (LEVELS * (top / 255)).astype(dtype)
    restored = median(image)
    assert restored.dtype == dtype and restored.shape == image.shape
    np.testing.assert_allclose(restored / top, expected / 255, atol=1e-3)


def test_range_comes_from_the_type_and_never_from_the_content():
    dark = (LEVELS // 64).astype(np.uint16)
    assert median(dark).max() <= 3
    assert median(np.ones((8, 8, 3), np.float32)).max() == 1


@pytest.mark.parametrize("shape", [(3, 24, 31), (1, 24, 31), (2, 3, 24, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_tensor_in_tensor_out_in_its_layout(shape, dtype):
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    restored = median(image)
    assert restored.shape == image.shape and restored.dtype == dtype and restored.device == image.device


def test_batch_is_each_image_alone():
    batch = torch.rand(3, 3, 20, 22, generator=torch.Generator().manual_seed(0))
    assert torch.equal(median(batch)[1], median(batch[1]))


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_pil_in_pil_out_in_its_mode(mode):
    restored = median(PIL.Image.fromarray(LEVELS).convert(mode))
    assert isinstance(restored, PIL.Image.Image) and restored.mode == mode and restored.size == (31, 24)


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_path_in_pil_out(tmp_path, expected, kind):
    PIL.Image.fromarray(LEVELS).save(tmp_path / "a.png")
    restored = median(kind(tmp_path / "a.png"))
    assert (np.asarray(restored) == expected).all()


def test_list_in_list_out_each_in_its_kind(expected):
    restored = median([LEVELS, PIL.Image.fromarray(LEVELS), LEVELS / 255])
    assert [type(item) for item in restored] == [np.ndarray, PIL.Image.Image, np.ndarray]
    assert (restored[0] == expected).all() and (np.asarray(restored[1]) == expected).all()
    assert median([]) == []


def test_list_of_results(expected):
    results = median([LEVELS, LEVELS], return_result=True)
    assert all((result.to_numpy() == expected).all() for result in results)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [np.asarray, lambda array: torch.from_numpy(array).permute(2, 0, 1)])
def test_nan_and_infinity_are_refused(value, kind):
    image = np.zeros((8, 9, 3), np.float32)
    image[2, 3, 1] = value
    with pytest.raises(ImageError):
        median(kind(image))


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3), np.int64), np.zeros((8, 8, 5), np.uint8), object(), None, 3]
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(ImageError):
        median(image)


def test_input_is_left_as_it_was():
    image, tensor = LEVELS.copy(), torch.rand(3, 9, 9)
    kept = tensor.clone()
    median(image), median(tensor)
    assert (image == LEVELS).all() and torch.equal(tensor, kept)
