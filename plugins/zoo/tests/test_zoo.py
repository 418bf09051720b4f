import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from restorekit import load_pipeline, restore
from restorekit.evaluation.metrics import psnr
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
    assert weights.sha256 in card
    assert re.search(r"sigma 25 \| \d\d\.\d\d", card)


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
