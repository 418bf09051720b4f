import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from restorekit import load_pipeline, restore
from restorekit.config import check
from restorekit.degradations.spec import RecipeSpec
from restorekit.evaluation.metrics import psnr
from restorekit.evaluation.run import by_recipe
from restorekit.image import Image
from restorekit.testing import check_weights
from restorekit_zoo import WEIGHTS

EXAMPLE = Path(__file__).parents[3] / "examples" / "noisy.png"
every_weight = pytest.mark.parametrize("weights", WEIGHTS, ids=lambda item: item.name)


@every_weight
def test_file_is_the_declared_one_and_small(weights):
    content = weights.file.read_bytes()
    assert hashlib.sha256(content).hexdigest() == weights.sha256
    assert len(content) <= 4_000_000


@every_weight
def test_declaration_is_sound(weights):
    check_weights(weights)


@every_weight
def test_card_states_licence_data_and_figures(weights):
    card = weights.file.with_suffix(".md").read_text(encoding="utf-8")
    assert card.startswith("---\n") and f"license: {weights.licence.lower()}" in card
    for heading in ("Intended use", "Limits", "Training", "Figures"):
        assert f"## {heading}" in card
    figures = card.partition("## Figures")[2]
    assert weights.sha256 in figures
    assert re.search(r"\| (sigma 25|rain) \| \d\d\.\d\d ", figures)


def clean_scene():
    """Return smooth areas, an edge and fine stripes, (96, 128, 3), floats in [0, 1]."""
    rows, columns = np.mgrid[:96, :128].astype(np.float32)
    scene = np.stack([columns / 160 + 0.1, rows / 120 + 0.1, 0.5 + 0.3 * np.sin(columns / 3)], -1)
    scene[:, 64:] *= 0.6
    return scene.astype(np.float32)


@pytest.mark.parametrize(("sigma", "gain"), [(15, 5), (25, 7), (50, 10)])
def test_denoiser_removes_noise(sigma, gain):
    clean = clean_scene()
    noisy = clean + np.random.default_rng(0).normal(0, sigma / 255, clean.shape).astype(np.float32)
    restored = restore(noisy, "denoise").clip(0, 1)
    assert psnr(clean, restored, 1) > psnr(clean, noisy.clip(0, 1), 1) + gain


def test_denoiser_removes_the_noise_of_a_gray_image():
    clean = clean_scene().mean(2)
    noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape).astype(np.float32)
    restored = restore(noisy, "denoise").clip(0, 1)
    assert psnr(clean[..., None], restored[..., None], 1) > psnr(clean[..., None], noisy[..., None], 1) + 7


def test_denoiser_leaves_clean_images_alone():
    clean = clean_scene()
    assert psnr(clean, restore(clean, "denoise"), 1) > 38


RECIPES = {
    "noise": {"name": "gaussian", "sigma": [25, 25]},
    "rain": {"name": "rain", "streaks": [12000, 12000], "length": [20, 20], "opacity": [0.7, 0.7]},
    "haze": {"name": "haze", "beta": [1.2, 1.2], "airlight": [0.85, 0.85]},
    "darkness": {"name": "low_light", "gamma": [2.2, 2.2], "gain": [0.6, 0.6]},
    "jpeg": {"name": "jpeg", "quality": [12, 12]},
}


@pytest.fixture(scope="module")
def photograph():
    """The example without its noise, at half its size."""
    restored = restore(EXAMPLE, "denoise")
    return np.asarray(restored.reduce(2), np.float32) / 255


@pytest.mark.parametrize(
    ("kind", "gain"), [("noise", 5), ("rain", 2), ("haze", 3), ("darkness", 3), ("jpeg", 0.3)]
)
def test_all_in_one_finds_out_what_is_wrong_and_undoes_it(kind, gain, photograph):
    clean = photograph
    degraded = by_recipe(check(RecipeSpec, RECIPES[kind], kind), 0)(clean, "kitten.png")
    result = restore(degraded, "all-in-one", return_result=True)
    assert result.verdict.kind == kind
    assert psnr(clean, result.to_numpy().clip(0, 1), 1) > psnr(clean, degraded, 1) + gain


@pytest.mark.slow
def test_tiles_of_a_two_megapixel_photograph_agree_with_the_whole():
    photo = Image.of(EXAMPLE).pixels.permute(1, 2, 0).numpy()
    # Mirrored and darkened, so that no two corners are alike.
    photo = np.pad(photo, ((0, 500), (0, 840), (0, 0)), mode="symmetric")
    photo *= np.linspace(0.5, 1, photo.shape[1], dtype=np.float32)[None, :, None]
    assert photo.shape[0] * photo.shape[1] >= 2_000_000
    pipeline = load_pipeline("denoise")
    whole = restore(photo, pipeline, tile=0)
    tiled = restore(photo, pipeline, tile=512, return_result=True)
    assert tiled.steps[0].tile == 512
    assert np.abs(tiled.to_numpy() - whole).max() < 1 / 255
