import numpy as np
import pytest
import torch
from training_cases import Deaf, Edges

from restorekit.config import check
from restorekit.errors import ConfigError, TrainingError
from restorekit.training.losses import (
    LOSSES,
    charbonnier,
    edge_loss,
    fft_loss,
    kind_loss,
    l1,
    perceptual_loss,
    psnr_loss,
    ssim_loss,
    weighted,
)
from restorekit.training.spec import TrainSpec


def image(seed=0, side=24):
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed))


def test_psnr_loss_is_minus_psnr_and_finite_for_equal_images():
    clean = torch.zeros(2, 3, 8, 8)
    assert float(psnr_loss(clean + 0.1, clean)) == pytest.approx(-20, abs=0.01)
    assert float(psnr_loss(clean, clean)) == pytest.approx(-50)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_descent_on_every_loss_leads_to_the_clean_image(name):
    clean = image(side=16)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    restored = (clean + 0.1 * noise).requires_grad_()
    optimizer = torch.optim.Adam([restored], 0.01)
    start = float(LOSSES[name](restored.detach(), clean))
    for _ in range(20):
        optimizer.zero_grad()
        loss = LOSSES[name](restored, clean)
        loss.backward()
        assert torch.isfinite(restored.grad).all()
        optimizer.step()
    assert float(loss.detach()) < start


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_gradient_is_finite_where_both_images_are_the_same(name):
    clean = image()
    restored = clean.clone().requires_grad_()
    LOSSES[name](restored, clean).backward()
    assert torch.isfinite(restored.grad).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_of_a_batch_is_the_mean_over_its_images(name):
    restored, clean = image(0), image(1)
    parts = [LOSSES[name](*(some[index : index + 1] for some in (restored, clean))) for index in range(2)]
    assert float(LOSSES[name](restored, clean)) == pytest.approx(float(sum(parts)) / 2, rel=1e-5)


def test_fft_loss_is_that_of_the_spectrum():
    restored, clean = image(0), image(1)
    difference = (restored - clean).numpy().astype(np.float64)
    spectrum = np.fft.rfft2(difference, norm="ortho")
    expected = (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2
    assert float(fft_loss(restored, clean)) == pytest.approx(expected, rel=1e-5)


def test_edge_loss_sees_edges_and_no_shift_of_level():
    clean = image()
    assert float(edge_loss(clean + 0.3, clean)) == pytest.approx(1e-3, rel=0.01)
    other = image(1)
    padded = np.pad((clean - other).numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)), mode="edge")
    rows, columns = padded[..., 1:-1], padded[..., 1:-1, :]
    neighbours = rows[..., :-2, :] + rows[..., 2:, :] + columns[..., :-2] + columns[..., 2:]
    expected = np.sqrt((neighbours - 4 * padded[..., 1:-1, 1:-1]) ** 2 + 1e-6).mean()
    assert float(edge_loss(clean, other)) == pytest.approx(expected, rel=1e-5)


def test_ssim_loss_agrees_with_the_definition():
    one, other = image(0, 11)[:1, :1], image(1, 11)[:1, :1]
    place = np.arange(11) - 5
    bell = np.exp(-(place**2) / (2 * 1.5**2))
    window = np.outer(bell, bell) / np.outer(bell, bell).sum()
    x, y = (some[0, 0].numpy().astype(np.float64) for some in (one, other))
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    cov = (window * (x - mx) * (y - my)).sum()
    ssim = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert float(ssim_loss(one, other)) == pytest.approx(1 - ssim, abs=1e-5)
    assert float(ssim_loss(one, one)) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(ssim_loss(image(0, 5), image(1, 5)))


def test_charbonnier_is_a_smooth_l1():
    restored, clean = image(0), image(1)
    assert float(charbonnier(restored, clean)) == pytest.approx(float(l1(restored, clean)), rel=1e-3)
    assert float(charbonnier(clean, clean)) == pytest.approx(1e-3)


def test_perceptual_loss_compares_dense_features_of_a_prior():
    clean = image()
    restored = image(1).requires_grad_()
    loss = perceptual_loss(Edges())(restored, clean)
    loss.backward()
    one, other = (some.detach()[..., 1:] - some.detach()[..., :-1] for some in (restored, clean))
    assert float(loss.detach()) == pytest.approx(float((one - other).abs().mean()), rel=1e-5)
    assert restored.grad.abs().sum() > 0


def test_prior_that_passes_no_gradient_is_refused_as_a_loss():
    with pytest.raises(TrainingError, match="prior Deaf passes no gradient on"):
        perceptual_loss(Deaf())(image().requires_grad_(), image(1))


def test_weighted_sum_adds_up():
    restored, clean = image(0), image(1)
    both = weighted({"psnr": 2.0, "perceptual": 0.5}, Edges())(restored, clean)
    expected = 2 * psnr_loss(restored, clean) + 0.5 * perceptual_loss(Edges())(restored, clean)
    torch.testing.assert_close(both, expected)


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        ("psrn", "no loss called 'psrn'.*\n.*did you mean 'psnr'"),
        ({"psnr": 1, "fff": 1}, "no loss called 'fff'"),
        ({"psnr": 0}, "greater than 0"),
        ({}, "at least 1"),
        ("perceptual", "the perceptual loss and its prior go together"),
    ],
)
def test_loss_that_is_unknown_or_empty_is_refused(loss, problem):
    document = {
        "backbone": "learner",
        "data": {"folder": "x"},
        "stages": [{"steps": 1, "patch": 8, "batch": 1}],
        "loss": loss,
    }
    with pytest.raises(ConfigError, match=problem):
        check(TrainSpec, document, "run.yaml")


def test_loss_of_kinds_is_least_where_the_right_kind_is_nearly_certain():
    kinds = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    sure = torch.tensor([[-2.0, 2.0], [2.0, -2.0]])
    assert float(kind_loss(sure, kinds)) < float(kind_loss(-sure, kinds))
    # Labels are smoothed: more than certain is worse again.
    assert float(kind_loss(10 * sure, kinds)) > float(kind_loss(sure, kinds))
