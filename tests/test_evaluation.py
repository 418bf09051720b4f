import math

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from restorekit import datasets
from restorekit.errors import ConfigError, ImageError
from restorekit.evaluation.metrics import psnr, ssim, studio_luma
from restorekit.evaluation.protocols import PROTOCOLS, bicubic, find_protocol, gray, to_levels
from restorekit.evaluation.run import average, evaluate, fingerprint

GAUSSIAN = PROTOCOLS["restormer-gaussian-color"]
PAIRED = [name for name, each in PROTOCOLS.items() if each.degrade is None]
COLOUR = np.random.default_rng(3).integers(40, 216, (37, 53, 3), dtype=np.uint8)
FLOATS = COLOUR.astype(np.float32) / np.float32(255)


def save(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(1)
    for name in ("b.png", "a.png"):
        save(tmp_path / "clean" / name, random.integers(40, 216, (30, 41, 3), dtype=np.uint8))
    return tmp_path / "clean"


@pytest.fixture
def paired(tmp_path):
    random = np.random.default_rng(2)
    for name in ("a.png", "b.png"):
        clean = random.integers(40, 216, (33, 50, 3), dtype=np.uint8)
        save(tmp_path / "pairs" / "target" / name, clean)
        save(tmp_path / "pairs" / "input" / name, np.clip(clean.astype(int) + 9, 0, 255).astype(np.uint8))
    return tmp_path / "pairs"


def measure(folder, protocol, restorer=lambda degraded: degraded, **settings):
    law = find_protocol(protocol)
    return evaluate(restorer, datasets.find(folder).samples, law, law.with_settings(settings))


def test_gaussian_noise_is_the_published_draw():
    clean = np.full((5, 6, 3), 128, np.uint8).astype(np.float32) / 255
    np.random.seed(0)
    published = clean + np.random.normal(0, 25 / 255, clean.shape)
    degraded = GAUSSIAN.degrade(clean, {"sigma": 25})
    np.testing.assert_allclose(degraded, published, atol=1e-7)
    assert degraded.dtype == np.float32


def test_gray_noise_is_the_published_draw_over_one_channel():
    law = find_protocol("restormer-gaussian-gray")
    clean, degraded = law.pair(FLOATS, None, {"sigma": 25})
    np.random.seed(0)
    published = clean + np.random.normal(0, 25 / 255, (37, 53, 1))
    np.testing.assert_allclose(degraded, published, atol=1e-7)


def test_all_in_one_noise_is_clipped_and_cast_without_rounding():
    clean, degraded = find_protocol("allinone-rgb").pair(FLOATS, None, {"sigma": 50})
    np.random.seed(0)
    noisy = np.clip(to_levels(clean) + np.random.randn(*clean.shape) * 50, 0, 255).astype(np.uint8)
    assert clean.shape == (32, 48, 3)
    np.testing.assert_array_equal(to_levels(degraded), noisy)


def test_noise_does_not_touch_the_global_generator():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    for law in PROTOCOLS.values():
        if law.degrade:
            law.degrade(np.zeros((8, 8, 3), np.float32), {"sigma": 50, "scale": 2})
    assert (np.random.get_state()[1] == before).all()


def test_noise_is_not_clipped():
    degraded = GAUSSIAN.degrade(np.zeros((50, 50, 3), np.float32), {"sigma": 50})
    assert degraded.min() < 0


def test_levels_round_half_to_even_and_clip():
    values = np.array([-1, 0.5 / 255, 1.5 / 255, 2.6 / 255, 2])
    assert to_levels(values).tolist() == [0, 0, 2, 3, 255]


def test_known_figure_of_the_noise_itself(folder):
    report = measure(folder, "restormer-gaussian-color", sigma=25)
    # 20 log10(255 / 25), a little above by clipping.
    assert report.mean("psnr") == pytest.approx(20.2, abs=0.3)
    assert report.figures == report.degraded
    assert report.images == ("a.png", "b.png")


def test_identity_protocol_sees_any_change(folder):
    unchanged = measure(folder, "clean-identity-rgb")
    assert unchanged.mean("psnr") == math.inf and unchanged.facts()["psnr"] is None
    darker = measure(folder, "clean-identity-rgb", lambda image: image - 1 / 255)
    assert darker.mean("psnr") == pytest.approx(48.13, abs=0.01)


@pytest.mark.parametrize("protocol", PAIRED)
def test_clean_images_alone_are_refused_where_pairs_are_needed(protocol, folder):
    with pytest.raises(ImageError, match=rf"a\.png: protocol {protocol} needs pairs"):
        measure(folder, protocol)


@pytest.mark.parametrize("protocol", ["gopro-rgb", "lol-rgb", "paired-rgb"])
def test_pairs_are_compared_in_eight_bits(protocol, paired):
    report = measure(paired, protocol)
    assert report.mean("psnr") == pytest.approx(20 * math.log10(255 / 9), abs=1e-9)
    # A change that rounding takes back is none.
    assert measure(paired, protocol, lambda image: image + 0.4 / 255).figures == report.figures


@pytest.mark.parametrize("protocol", ["sidd-rgb", "dpdd-rgb"])
def test_floats_are_not_rounded(protocol, paired):
    shifted = measure(paired, protocol, lambda image: image + 0.4 / 255)
    assert shifted.mean("psnr") == pytest.approx(20 * math.log10(255 / 9.4), abs=1e-4)


def test_two_and_three_dimensional_ssim_are_both_reported(paired):
    facts = measure(paired, "gopro-rgb", lambda image: np.sqrt(image)).facts()
    assert abs(facts["ssim"] - facts["ssim_3d"]) > 1e-4


def test_defocus_protocol_has_the_absolute_error_and_the_uniform_window(paired):
    restored = FLOATS**1.1
    figures = find_protocol("dpdd-rgb").score(FLOATS, restored, {})
    assert figures["mae"] == pytest.approx(np.abs(FLOATS - restored).mean(), rel=1e-5)
    theirs = structural_similarity(FLOATS.astype(float), restored.astype(float), channel_axis=2, data_range=1)
    assert figures["ssim"] == pytest.approx(theirs, abs=1e-10)


def test_all_in_one_figures_are_scikit_image_s_on_floats():
    restored = np.clip(FLOATS + 0.1, 0, 2)
    figures = find_protocol("allinone-rgb").score(FLOATS, restored, {"sigma": 25})
    clean, clipped = FLOATS.astype(float), np.clip(restored, 0, 1).astype(float)
    assert figures["psnr"] == pytest.approx(peak_signal_noise_ratio(clean, clipped, data_range=1), abs=1e-10)
    theirs = structural_similarity(clean, clipped, channel_axis=2, data_range=1)
    assert figures["ssim"] == pytest.approx(theirs, abs=1e-10)


def test_deraining_compares_rounded_luma_of_eight_bits():
    restored = FLOATS * 0.9
    figures = find_protocol("rain13k-y").score(FLOATS, restored, {})
    luma = [np.rint(studio_luma(to_levels(image))) for image in (FLOATS, restored)]
    assert figures == {"psnr": psnr(*luma), "ssim": ssim(*luma)}


def test_super_resolution_compares_exact_luma_without_the_border():
    law = find_protocol("sr-y-crop")
    spoilt = FLOATS.copy()
    spoilt[:4], spoilt[:, -4:] = 0, 1
    assert law.score(FLOATS, spoilt, {"scale": 4})["psnr"] == math.inf
    figures = law.score(FLOATS, FLOATS * 0.9, {"scale": 4})
    inner = [studio_luma(to_levels(image))[4:-4, 4:-4] for image in (FLOATS, FLOATS * 0.9)]
    assert figures["psnr"] == pytest.approx(psnr(*inner), abs=1e-10)
    assert figures["ssim"] == pytest.approx(ssim(*inner), abs=1e-10)


def test_super_resolution_makes_small_images_and_wants_large_ones(folder):
    enlarged = measure(folder, "sr-y-crop", lambda small: small.repeat(2, 0).repeat(2, 1), scale=2)
    assert enlarged.mean("psnr") > 10 and not enlarged.degraded
    with pytest.raises(ImageError, match=r"a\.png: the restored image is 20 x 15, the clean one 40 x 30"):
        measure(folder, "sr-y-crop", scale=2)


def test_bicubic_keeps_constants_and_halves_sides():
    small = bicubic(np.full((12, 8, 3), 0.2, np.float32), {"scale": 2})
    assert small.shape == (6, 4, 3) and np.abs(small - 0.2).max() < 1e-6


def test_larger_clean_images_are_cut_to_their_hazy_partners(tmp_path):
    clean = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    save(tmp_path / "gt" / "1400.png", clean)
    save(tmp_path / "hazy" / "1400_1.png", clean[2:46, 10:54])
    assert measure(tmp_path, "sots-rgb").mean("psnr") == math.inf
    with pytest.raises(ImageError, match=r"1400_1\.png: the degraded image is 44 x 44, the clean one 64"):
        measure(tmp_path, "paired-rgb")


def test_sides_are_cut_to_sixteens_in_the_middle():
    clean, degraded = find_protocol("sots-rgb").pair(FLOATS, FLOATS, {})
    np.testing.assert_array_equal(clean, FLOATS[2:34, 2:50])
    np.testing.assert_array_equal(degraded, clean)


def test_brightness_is_not_matched_in_low_light(paired):
    assert measure(paired, "lol-rgb", lambda image: image * 0.5).mean("psnr") < 15


def test_pairs_are_left_aside_where_the_protocol_makes_its_own_noise(paired):
    report = measure(paired, "restormer-gaussian-color", sigma=25)
    assert report.mean("psnr") == pytest.approx(20.2, abs=0.3)


def test_pairs_are_used_where_the_protocol_takes_both(paired):
    report = measure(paired, "allinone-rgb")
    assert report.mean("psnr") == pytest.approx(20 * math.log10(255 / 9), abs=1e-4)


def test_images_too_small_for_a_metric_are_named(tmp_path):
    save(tmp_path / "tiny.png", np.zeros((5, 5, 3), np.uint8))
    with pytest.raises(ImageError, match=r"tiny\.png: ssim needs an image of 11 pixels"):
        measure(tmp_path, "restormer-gaussian-color")
    with pytest.raises(ImageError, match=r"tiny\.png: the image is 5 x 5, smaller than 16"):
        measure(tmp_path, "allinone-rgb")


def test_gray_is_the_luma_of_full_range_and_gray_stays():
    levels = to_levels(gray(FLOATS))[..., 0]
    expected = np.asarray(Image.fromarray(COLOUR).convert("L")).astype(int)
    assert np.abs(levels - expected).max() <= 1
    same = np.repeat(COLOUR[..., :1], 3, axis=2)
    np.testing.assert_array_equal(to_levels(gray(same.astype(np.float32) / np.float32(255))), same[..., :1])


def test_gray_images_reach_the_restorer_with_one_channel(folder):
    seen = []

    def restorer(degraded):
        seen.append(degraded.shape)
        return degraded[..., 0]

    report = measure(folder, "restormer-gaussian-gray", restorer)
    assert seen == [(30, 41, 1)] * 2 and report.mean("psnr") == pytest.approx(20.2, abs=0.4)


def test_facts_name_protocol_settings_and_data(folder):
    facts = measure(folder, "restormer-gaussian-color", sigma=15).facts()
    assert facts["protocol"] == "restormer-gaussian-color" and facts["settings"] == {"sigma": 15}
    assert len(facts["dataset_sha256"]) == 64 and len(facts["per_image"]) == 2
    assert facts["psnr"] == pytest.approx(np.mean([row["psnr"] for row in facts["per_image"]]), abs=1e-4)
    assert set(facts["per_image"][0]) == {
        *("image", "psnr", "ssim", "psnr_degraded", "ssim_degraded", "seconds")
    }


def test_dataset_hash_follows_names_and_contents_alone(paired, tmp_path):
    first = fingerprint(datasets.find(paired).samples)
    moved = paired.rename(tmp_path / "moved")
    assert fingerprint(datasets.find(moved).samples) == first
    save(moved / "target" / "a.png", COLOUR)
    assert fingerprint(datasets.find(moved).samples) != first


def test_means_of_datasets_are_averaged(folder, paired):
    reports = [
        measure(each, "clean-identity-rgb", lambda image: image - 2 / 255) for each in (folder, paired)
    ]
    mean = average([report.facts() for report in reports])
    assert mean["psnr"] == pytest.approx(np.mean([report.mean("psnr") for report in reports]), abs=1e-3)
    assert mean["protocol"] == "clean-identity-rgb" and mean["datasets"] == 2


@pytest.mark.parametrize(
    ("protocol", "settings"), [("clean-identity-rgb", {}), ("restormer-gaussian-color", {"sigma": 15})]
)
def test_different_protocols_and_settings_are_not_averaged(folder, protocol, settings):
    reports = [
        measure(folder, "restormer-gaussian-color", sigma=25).facts(),
        measure(folder, protocol, lambda image: image - 1 / 255, **settings).facts(),
    ]
    with pytest.raises(ConfigError, match=f"cannot be averaged: .* sigma=25 and {protocol}"):
        average(reports)


def test_nothing_is_not_averaged():
    with pytest.raises(ConfigError, match="no reports"):
        average([])


def test_more_metrics_see_the_colours_also_where_luma_is_compared():
    seen = []

    def probe(clean, restored, peak):
        seen.append((clean.shape, peak))
        return 1.0

    figures = find_protocol("rain13k-y").score(FLOATS, FLOATS, {}, {"probe": probe})
    assert figures["probe"] == 1.0 and seen == [((37, 53, 3), 255.0)]


def test_unknown_protocols_and_settings_have_near_names():
    with pytest.raises(ConfigError) as caught:
        find_protocol("restormer-gaussian-colour")
    assert caught.value.hint == "did you mean 'restormer-gaussian-color'?"
    with pytest.raises(ConfigError, match="no setting 'sgma'"):
        GAUSSIAN.with_settings({"sgma": 25})
    with pytest.raises(ConfigError, match="expected a number"):
        GAUSSIAN.with_settings({"sigma": "loud"})
