import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr
from torchmetrics.functional.image import structural_similarity_index_measure

from restorekit.evaluation.metrics import mae, psnr, ssim, ssim_3d, ssim_uniform, studio_luma


def images(*shape, seed=0):
    """Return a smooth image of 8-bit levels, and the same with noise."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    waves = 128 + 80 * np.sin(rows / 7) * np.cos(columns / 5)
    clean = np.stack([np.roll(waves, 3 * k, axis=1) for k in range(shape[2])], axis=-1)
    noisy = clean + random.normal(0, 20, clean.shape)
    return tuple(np.rint(np.clip(image, 0, 255)).astype(np.uint8) for image in (clean, noisy))


PAIRS = [images(40, 53, 3), images(64, 64, 3, seed=1), images(31, 90, 1, seed=2)]
every_pair = pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "x".join(map(str, pair[0].shape)))


def test_psnr_by_hand():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(black, black) == math.inf
    assert psnr(black / 255, (black + 1) / 255, peak=1) == pytest.approx(48.1308, abs=1e-4)


def test_psnr_does_not_wrap_around_in_eight_bits():
    dark, light = np.array([[0]], np.uint8), np.array([[255]], np.uint8)
    assert psnr(dark, light) == psnr(light, dark) == 0


@pytest.mark.parametrize("metric", [psnr, mae, ssim, ssim_3d, ssim_uniform])
def test_images_of_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match=r"one shape.*\(20, 20, 3\).*\(20, 21, 3\)"):
        metric(np.zeros((20, 20, 3)), np.zeros((20, 21, 3)))


@every_pair
def test_psnr_is_that_of_scikit_image(pair):
    assert psnr(*pair) == pytest.approx(peak_signal_noise_ratio(*pair), abs=1e-10)


@every_pair
def test_psnr_is_that_of_torchmetrics_image_by_image(pair):
    clean, noisy = (torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1))[None] for image in pair)
    # It keeps the peak in the default type.
    torch.set_default_dtype(torch.float64)
    try:
        theirs = torchmetrics_psnr(
            noisy, clean, data_range=255.0, dim=(1, 2, 3), reduction="elementwise_mean"
        )
    finally:
        torch.set_default_dtype(torch.float32)
    assert psnr(*pair) == pytest.approx(float(theirs), abs=1e-10)


@every_pair
def test_gaussian_ssim_is_that_of_scikit_image_with_the_paper_s_options(pair):
    theirs = structural_similarity(
        *pair, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(*pair) == pytest.approx(theirs, abs=1e-10)


@every_pair
def test_gaussian_ssim_is_the_interior_of_torchmetrics_map(pair):
    clean, noisy = (torch.from_numpy(image.astype(np.float64).transpose(2, 0, 1))[None] for image in pair)
    _, theirs = structural_similarity_index_measure(noisy, clean, data_range=255.0, return_full_image=True)
    assert ssim(*pair) == pytest.approx(float(theirs[..., 5:-5, 5:-5].mean()), abs=1e-10)


@every_pair
def test_uniform_ssim_is_scikit_image_s_default(pair):
    assert ssim_uniform(*pair) == pytest.approx(structural_similarity(*pair, channel_axis=2), abs=1e-10)


def test_uniform_ssim_of_floats_is_scikit_image_s_default():
    clean, noisy = (image.astype(np.float64) / 255 for image in PAIRS[0])
    theirs = structural_similarity(clean, noisy, channel_axis=2, data_range=1)
    assert ssim_uniform(clean, noisy, peak=1) == pytest.approx(theirs, abs=1e-10)


@every_pair
def test_volume_ssim_is_a_gaussian_over_rows_columns_and_channels(pair):
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    x, y = (image.astype(np.float64) for image in pair)

    def mean(volume):
        return gaussian_filter(volume, 1.5, mode="nearest", radius=5)

    c1, c2 = 2.55**2, 7.65**2
    covariance = mean(x * y) - mean(x) * mean(y)
    variances = mean(x * x) - mean(x) ** 2 + mean(y * y) - mean(y) ** 2
    likeness = (2 * mean(x) * mean(y) + c1) * (2 * covariance + c2)
    likeness /= (mean(x) ** 2 + mean(y) ** 2 + c1) * (variances + c2)
    assert ssim_3d(*pair) == pytest.approx(likeness.mean(), abs=1e-10)


@pytest.mark.parametrize("metric", [ssim, ssim_3d, ssim_uniform])
def test_ssim_of_equal_images_is_one_and_of_worse_ones_is_less(metric):
    clean, noisy = PAIRS[0]
    worse = np.clip(clean + 3 * (noisy.astype(int) - clean), 0, 255).astype(np.uint8)
    assert metric(clean, clean) == pytest.approx(1, abs=1e-12)
    assert metric(clean, worse) < metric(clean, noisy) < 0.99


def test_kinds_of_ssim_are_not_the_same_figure():
    figures = [metric(*PAIRS[0]) for metric in (ssim, ssim_3d, ssim_uniform)]
    assert min(abs(a - b) for a, b in zip(figures, figures[1:] + figures[:1], strict=True)) > 1e-3


def test_ssim_of_two_dimensions_is_that_of_one_channel():
    clean, noisy = PAIRS[2]
    assert ssim(clean[..., 0], noisy[..., 0]) == ssim(clean, noisy)


@pytest.mark.parametrize(("metric", "side"), [(ssim, 11), (ssim_uniform, 7)])
def test_images_smaller_than_the_window_are_refused(metric, side):
    small = np.zeros((side - 1, 40, 3))
    with pytest.raises(ValueError, match=f"{side} pixels or more"):
        metric(small, small)
    assert metric(np.zeros((side, 40, 3)), np.zeros((side, 40, 3))) == 1


def test_volume_ssim_takes_images_smaller_than_its_window():
    assert ssim_3d(np.zeros((3, 4, 3)), np.zeros((3, 4, 3))) == 1


def test_mean_absolute_error_is_a_share_of_the_peak():
    assert mae(np.zeros((2, 2)), np.full((2, 2), 51)) == pytest.approx(0.2)
    assert mae(np.zeros((2, 2)), np.full((2, 2), 0.2), peak=1) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("colour", "luma"),
    [((0, 0, 0), 16), ((255, 255, 255), 235), ((255, 0, 0), 81.481), ((0, 255, 0), 144.553)],
)
def test_luma_has_the_studio_range(colour, luma):
    assert studio_luma(np.array([[colour]], np.uint8)) == pytest.approx(luma, abs=1e-9)
    assert studio_luma(np.array([[colour]]) / 255, peak=1) == pytest.approx(luma, abs=1e-9)


def test_figures_of_luma_differ_from_full_range_by_the_known_amount():
    clean, noisy = PAIRS[0]
    full = [image.astype(np.float64) @ np.array([65.481, 128.553, 24.966]) / 219 for image in (clean, noisy)]
    difference = psnr(studio_luma(clean), studio_luma(noisy)) - psnr(*full)
    assert difference == pytest.approx(20 * math.log10(255 / 219), abs=1e-9)
