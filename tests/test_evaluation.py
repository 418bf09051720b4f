import math

import numpy as np
import pytest
from PIL import Image

from restorekit.errors import ConfigError, ImageError
from restorekit.evaluation.metrics import psnr
from restorekit.evaluation.protocols import PROTOCOLS, find_protocol, to_levels
from restorekit.evaluation.run import clean_images, evaluate

GAUSSIAN = PROTOCOLS["restormer-gaussian-color"]


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(1)
    for name in ("b.png", "a.png"):
        Image.fromarray(random.integers(40, 216, (30, 41, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_psnr_by_hand():
    black = np.zeros((4, 4, 3), np.uint8)
    assert psnr(black, black + 255) == 0
    assert psnr(black, black + 1) == pytest.approx(48.1308, abs=1e-4)
    assert psnr(black, black) == math.inf
    assert psnr(black / 255, (black + 1) / 255, peak=1) == pytest.approx(48.1308, abs=1e-4)


def test_psnr_does_not_wrap_around_in_eight_bits():
    dark, light = np.array([[0]], np.uint8), np.array([[255]], np.uint8)
    assert psnr(dark, light) == psnr(light, dark) == 0


def test_psnr_of_different_shapes_is_refused():
    with pytest.raises(ValueError, match="one shape"):
        psnr(np.zeros((2, 2)), np.zeros((2, 3)))


def test_gaussian_noise_is_the_published_draw():
    clean = np.full((5, 6, 3), 128, np.uint8)
    np.random.seed(0)
    published = clean.astype(np.float32) / 255 + np.random.normal(0, 25 / 255, clean.shape)
    degraded = GAUSSIAN.degrade(clean, {"sigma": 25})
    np.testing.assert_allclose(degraded, published, atol=1e-7)
    assert degraded.dtype == np.float32


def test_noise_does_not_touch_the_global_generator():
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    GAUSSIAN.degrade(np.zeros((4, 4, 3), np.uint8), {"sigma": 50})
    assert (np.random.get_state()[1] == before).all()


def test_noise_is_not_clipped():
    degraded = GAUSSIAN.degrade(np.zeros((50, 50, 3), np.uint8), {"sigma": 50})
    assert degraded.min() < 0


def test_levels_round_half_to_even_and_clip():
    values = np.array([-1, 0.5 / 255, 1.5 / 255, 2.6 / 255, 2])
    assert to_levels(values).tolist() == [0, 0, 2, 3, 255]


def test_known_figure_of_the_noise_itself(folder):
    report = evaluate(lambda degraded: degraded, clean_images(folder), GAUSSIAN, {"sigma": 25})
    assert report.mean("psnr") == pytest.approx(
        20.2, abs=0.3
    )  # 20 log10(255 / 25), a little above by clipping
    assert report.figures == report.degraded
    assert report.images == ("a.png", "b.png")


def test_identity_protocol_sees_any_change(folder):
    protocol = find_protocol("clean-identity-rgb")
    unchanged = evaluate(lambda image: image, clean_images(folder), protocol, {})
    assert unchanged.mean("psnr") == math.inf and unchanged.facts()["psnr"] is None
    darker = evaluate(lambda image: image - 1 / 255, clean_images(folder), protocol, {})
    assert darker.mean("psnr") == pytest.approx(48.13, abs=0.01)


def test_facts_name_protocol_settings_and_data(folder):
    facts = evaluate(lambda image: image, clean_images(folder), GAUSSIAN, {"sigma": 15}).facts()
    assert facts["protocol"] == "restormer-gaussian-color" and facts["settings"] == {"sigma": 15}
    assert len(facts["dataset_sha256"]) == 64 and len(facts["per_image"]) == 2


def test_unknown_protocols_and_settings_have_near_names():
    with pytest.raises(ConfigError) as caught:
        find_protocol("restormer-gaussian-colour")
    assert caught.value.hint == "did you mean 'restormer-gaussian-color'?"
    with pytest.raises(ConfigError, match="no setting 'sgma'"):
        GAUSSIAN.with_settings({"sgma": 25})
    with pytest.raises(ConfigError, match="expected a number"):
        GAUSSIAN.with_settings({"sigma": "loud"})


def test_folder_without_images_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ImageError, match=r"holds no images|is no folder"):
            clean_images(folder)
