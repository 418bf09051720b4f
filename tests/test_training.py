import csv
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from restorekit.contracts import Backbone
from restorekit.degradations import add_gaussian_noise, compress_jpeg, quantise
from restorekit.errors import TrainingError
from restorekit.training.data import Photographs, training_batch, validation_patches
from restorekit.training.loop import Run, learning_rate, stage_at
from restorekit.training.losses import LOSSES, psnr_loss
from restorekit.training.spec import DataSpec, DenoiseSpec, OptimizerSpec, StageSpec, TrainSpec


class Tiny(Backbone):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, degraded):
        return degraded + self.conv(degraded)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    random = np.random.default_rng(0)
    for index in range(4):
        coarse = Image.fromarray(random.integers(0, 256, (20, 24, 3), dtype=np.uint8))
        coarse.resize((192, 160), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


def spec_for(folder, **changes):
    facts = dict(
        backbone={"name": "tiny"},
        data={"folder": str(folder), "hold_out": 1, "scales": [1.0, 0.5]},
        stages=[{"steps": 6, "patch": 16, "batch": 2}, {"steps": 4, "patch": 32, "batch": 1}],
        validate_every=5,
        save_every=1,
        optimizer={"warmup": 2},
    )
    return TrainSpec.model_validate({**facts, **changes})


def nothing(step, row):
    pass


def test_run_learns_and_writes_weights_and_curve(folder, tmp_path):
    spec = spec_for(
        folder, stages=[{"steps": 150, "patch": 32, "batch": 4}], optimizer={"lr": 1e-2}, validate_every=50
    )
    run = Run(spec, Tiny(), tmp_path / "run", torch.device("cpu"))
    weights = run.train(Photographs.load(spec.data), nothing)
    rows = list(csv.DictReader((tmp_path / "run" / "curve.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 1
    assert float(rows[-1]["ema_sigma50"]) > 14.5  # the noisy patches themselves have 14.2 dB
    with Image.open(tmp_path / "run" / "curve.png") as picture:
        assert picture.width > 600
    assert load_file(weights).keys() == Tiny().state_dict().keys()


def test_resumed_run_ends_with_the_same_weights(folder, tmp_path):
    class KilledError(Exception):
        pass

    def kill_at_seven(step, row):
        if step == 7:
            raise KilledError

    spec = spec_for(folder)
    photographs = Photographs.load(spec.data)
    whole = Run(spec, Tiny(), tmp_path / "whole", torch.device("cpu"))
    whole.train(photographs, nothing)
    with pytest.raises(KilledError):
        Run(spec, Tiny(), tmp_path / "parts", torch.device("cpu")).train(photographs, kill_at_seven)
    resumed = Run(spec, Tiny(), tmp_path / "parts", torch.device("cpu"))
    resumed.resume()
    assert resumed.step == 7
    resumed.train(photographs, nothing)
    for one, other in ((whole.network, resumed.network), (whole.average, resumed.average)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name])
    curves = [
        list(csv.DictReader((tmp_path / name / "curve.csv").read_text().splitlines()))
        for name in ("whole", "parts")
    ]
    columns = set(curves[0][0]) - {"seconds", "loss"}
    assert [[row[column] for column in columns] for row in curves[0]] == [
        [row[column] for column in columns] for row in curves[1]
    ]


def test_resume_without_or_with_a_strange_checkpoint_is_refused(folder, tmp_path):
    spec = spec_for(folder)
    run = Run(spec, Tiny(), tmp_path, torch.device("cpu"))
    with pytest.raises(TrainingError, match="nothing to resume"):
        run.resume()
    run._save()
    other = Tiny()
    other.more = nn.Conv2d(1, 1, 1)
    with pytest.raises(TrainingError, match="another network"):
        Run(spec, other, tmp_path, torch.device("cpu")).resume()


def test_loss_that_is_not_finite_stops_the_run_with_the_checkpoint_intact(folder, tmp_path):
    spec = spec_for(folder)
    run = Run(spec, Tiny(), tmp_path, torch.device("cpu"))

    def poison(step, row):
        with torch.no_grad():
            run.network.conv.weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match="the loss is nan at step 1"):
        run.train(Photographs.load(spec.data), poison)
    state = torch.load(run.checkpoint, weights_only=True)
    assert state["step"] == 1 and torch.isfinite(state["network"]["conv.weight"]).all()


def test_average_follows_the_weights_from_the_start(folder, tmp_path):
    spec = spec_for(
        folder, optimizer={"lr": 1e-2, "warmup": 0}, stages=[{"steps": 40, "patch": 16, "batch": 1}]
    )
    run = Run(spec, Tiny(), tmp_path, torch.device("cpu"))
    start = Tiny().conv.weight
    run.train(Photographs.load(spec.data), nothing)
    moved = (run.network.conv.weight - start).norm()
    assert (run.average.conv.weight - run.network.conv.weight).norm() < 0.5 * moved


def test_held_out_photographs_are_never_trained_on(folder):
    photographs = Photographs.load(DataSpec(folder=str(folder), hold_out=2))
    assert not set(photographs.names) & set(photographs.held_out_names)
    assert len(photographs.names) == len(photographs.held_out_names) == 2


def test_unreadable_files_are_named_and_left_out(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "broken.png").write_text("no image")
    photographs = Photographs.load(DataSpec(folder=str(tmp_path), hold_out=1))
    assert photographs.unreadable == (str(tmp_path / "broken.png"),)
    assert len(photographs.names) == 3


def test_folder_without_enough_photographs_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="holds 0 readable images"):
        Photographs.load(DataSpec(folder=str(tmp_path)))


def test_batches_are_a_function_of_seed_and_step(folder):
    photographs = Photographs.load(DataSpec(folder=str(folder), hold_out=1))

    def batch(seed, step):
        return training_batch(photographs, DenoiseSpec(), patch=24, batch=3, seed=seed, step=step)

    for one, other in zip(batch(0, 5), batch(0, 5), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(batch(0, 5)[1], batch(0, 6)[1])
    assert not torch.equal(batch(0, 5)[1], batch(1, 5)[1])


def test_patches_larger_than_every_photograph_are_refused(folder):
    photographs = Photographs.load(DataSpec(folder=str(folder), hold_out=1))
    with pytest.raises(TrainingError, match="at least 500 pixels"):
        training_batch(photographs, DenoiseSpec(), patch=500, batch=1, seed=0, step=0)


def test_shares_of_the_degradation_are_kept(folder):
    photographs = Photographs.load(DataSpec(folder=str(folder), hold_out=1))
    for spec, unchanged in ((DenoiseSpec(clean=1, jpeg=0), True), (DenoiseSpec(clean=0, jpeg=1), False)):
        degraded, clean = training_batch(photographs, spec, patch=32, batch=4, seed=0, step=0)
        assert torch.equal(degraded, clean) is unchanged


def test_validation_patches_stay_the_same(folder):
    photographs = Photographs.load(DataSpec(folder=str(folder), hold_out=1))
    first, second = (validation_patches(photographs, side=48) for _ in range(2))
    assert first.shape == (4, 3, 48, 48) and torch.equal(first, second)


def test_noise_has_the_level_it_says_and_is_not_clipped():
    clean = torch.full((3, 200, 200), 0.02)
    noisy = add_gaussian_noise(clean, 25, torch.Generator().manual_seed(0))
    assert float((noisy - clean).std() * 255) == pytest.approx(25, rel=0.01)
    assert float(noisy.min()) < 0


def test_eight_bit_rounding_is_what_a_file_keeps():
    levels = quantise(torch.tensor([-0.2, 0.4999 / 255, 0.501 / 255, 1.3])) * 255
    assert levels.tolist() == pytest.approx([0, 0, 1, 255])


def test_jpeg_loses_more_at_lower_quality():
    image = torch.rand(3, 40, 40, generator=torch.Generator().manual_seed(0))
    errors = [float((compress_jpeg(image, quality) - image).square().mean()) for quality in (20, 60, 95)]
    assert errors[0] > errors[1] > errors[2] > 0


def test_psnr_loss_is_minus_psnr_and_finite_for_equal_images():
    clean = torch.zeros(2, 3, 8, 8)
    assert float(psnr_loss(clean + 0.1, clean)) == pytest.approx(-20, abs=0.01)
    assert float(psnr_loss(clean, clean)) == pytest.approx(-50)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_pull_towards_the_clean_image(name):
    clean = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    restored = (clean + 0.1).requires_grad_()
    LOSSES[name](restored, clean).backward()
    assert (restored.grad > 0).all()


def test_learning_rate_warms_up_and_decays_to_the_least():
    settings = OptimizerSpec(lr=1.0, min_lr=0.1, warmup=10)
    rates = [learning_rate(settings, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=0.001)
    assert all(one >= other for one, other in pairwise(rates[9:]))


def test_stages_follow_each_other():
    stages = (StageSpec(steps=2, patch=8, batch=1), StageSpec(steps=3, patch=16, batch=1))
    assert [stage_at(stages, step).patch for step in range(5)] == [8, 8, 16, 16, 16]
