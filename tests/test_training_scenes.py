"""Patches and the windows that they are parts of, which a refiner's prior is asked of."""

import numpy as np
import pytest
import torch
from training_cases import FIXTURES, Seeing, document, install, pairs_of, photograph, source_of, write_pairs

from restorekit.config import check
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, TrainingError
from restorekit.experiments.compute import Compute, cost_of
from restorekit.registry import backbones, refiners
from restorekit.training.build import build_networks
from restorekit.training.data import Batches
from restorekit.training.loop import prepare
from restorekit.training.spec import StageSpec, TrainSpec
from restorekit.training.trainee import RefinerTrainee

folder, pairs, cache_folder = FIXTURES

NOISE = check(RecipeSpec, {"name": "gaussian", "sigma": 25}, "noise")


def stage(context, patch=16, batch=8):
    return StageSpec(steps=1, patch=patch, batch=batch, context=context)


def mixed(tmp_path):
    """Return photographs of several sizes."""
    for index, size in enumerate([(192, 160), (96, 128), (64, 80), (192, 160)]):
        photograph(index, *size).save(tmp_path / f"{index}.png")
    return source_of(tmp_path)


def of_pairs(tmp_path):
    return pairs_of(write_pairs(tmp_path / "pairs"))


@pytest.mark.parametrize("context", [48, "whole"])
@pytest.mark.parametrize("make", [mixed, of_pairs])
def test_patches_lie_in_their_scenes_where_it_says(tmp_path, make, context):
    degradation = None if make is of_pairs else NOISE
    made = Batches(make(tmp_path), degradation, scenes=True).batch(0, stage(context))
    assert made.degraded.shape == made.clean.shape == (8, 3, 16, 16)
    sizes = set()
    for patch, scene, place in zip(made.degraded, made.scenes, made.places.long().tolist(), strict=True):
        top, left, height, width = place
        assert torch.equal(patch, scene[:, top : top + 16, left : left + 16])
        assert top + 16 <= height and left + 16 <= width
        assert not scene[:, height:].any() and not scene[:, :, width:].any()
        sizes.add(tuple(sorted((height, width))))
    if context == 48:
        assert sizes == {(48, 48)}
    else:
        assert sizes >= ({(160, 192)} if make is of_pairs else {(64, 80), (96, 128)})
    assert len({tuple(place) for place in made.places[:, :2].tolist()}) == 8


def test_clean_patches_are_of_the_same_place(tmp_path):
    made = Batches(of_pairs(tmp_path), None, scenes=True).batch(0, stage("whole"))
    # The degraded half of these pairs has half the levels.
    np.testing.assert_allclose(made.degraded, made.clean / 2, atol=1 / 255)
    large = Batches(pairs_of(write_pairs(tmp_path / "twice", scale=2), 2), None, scale=2)
    made = large.batch(0, stage("whole"))
    small = torch.nn.functional.avg_pool2d(made.clean, 2)
    np.testing.assert_allclose(made.degraded, small / 2, atol=2 / 255)


def test_whole_photographs_of_odd_sides_suit_a_network_that_enlarges(tmp_path):
    for index in range(2):
        photograph(index, 65, 49).save(tmp_path / f"{index}.png")
    made = Batches(source_of(tmp_path), NOISE, scale=2).batch(0, stage("whole"))
    assert made.degraded.shape[-1] == 16 and made.clean.shape[-1] == 32


def test_scenes_change_no_patch_and_are_kept_where_somebody_looks(folder):
    source = source_of(folder)
    kept, plain = (Batches(source, NOISE, scenes=wanted).batch(0, stage(48)) for wanted in (True, False))
    assert torch.equal(kept.degraded, plain.degraded) and torch.equal(kept.clean, plain.clean)
    assert kept.scenes.shape == (8, 3, 48, 48) and plain.scenes.numel() == plain.places.numel() == 0
    alone = Batches(source, NOISE, scenes=True).batch(0, stage(0))
    assert alone.scenes.numel() == alone.places.numel() == 0


def test_a_cut_batch_keeps_what_belongs_together(folder):
    whole = Batches(source_of(folder), NOISE, scenes=True).batch(0, stage(48))
    parts = whole.parts(4)
    assert [len(part.degraded) for part in parts] == [2] * 4
    for name, value in vars(whole).items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), value)


def refined(folder, **changes):
    changes = {"refiner": "touch", "prior": "edges", "trained": ["refiner", "backbone"], **changes}
    return TrainSpec.model_validate(document(folder, **changes))


@pytest.mark.parametrize("context", [48, "whole"])
def test_every_part_of_a_batch_is_seen_with_its_scenes(folder, tmp_path, monkeypatch, context):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    stages = [{"steps": 2, "patch": 16, "batch": 4, "context": context}]
    gradients = []
    for count in (1, 2):
        spec = refined(folder, stages=stages, accumulate=count)
        run = prepare(spec, tmp_path / f"run-{count}")
        run.learner.learn(run.batches.batch(0, spec.stages[0]), 0)
        gradients.append(run.networks.trainee.refiner.tint.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])
    run.train()
    assert run.progress.step == 2


def test_scenes_of_one_size_are_seen_without_what_fills_them_up(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    trainee = prepare(refined(folder), tmp_path / "run").networks.trainee
    degraded, scenes = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 40, 40)
    places = torch.tensor([[0.0, 0, 32, 24], [16, 8, 32, 24]])
    with torch.no_grad():
        padded = trainee(degraded, None, scenes, places).images[0]
        plain = trainee(degraded, None, scenes[:, :, :32, :24], places).images[0]
    torch.testing.assert_close(padded, plain)


def test_a_refiner_that_may_take_maps_is_refused_whole_photographs(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    monkeypatch.setattr(refiners["touch"].load(), "dense_features", None)
    stages = [{"steps": 2, "patch": 16, "batch": 4, "context": "whole"}]
    with pytest.raises(TrainingError, match="Touch may take the prior's maps") as refused:
        build_networks(refined(folder, stages=stages))
    assert "dense_features = 0" in refused.value.hint
    build_networks(refined(folder, stages=[{**stages[0], "context": 48}]))


def test_blended_patches_are_no_part_of_a_scene(folder):
    stages = [{"steps": 2, "patch": 16, "batch": 4, "context": 48}]
    with pytest.raises(ConfigError, match="blended patch is no part of one image"):
        changes = {"refiner": "touch", "prior": "edges", "augment": {"mixup": 0.5}, "stages": stages}
        check(TrainSpec, document(folder, **changes), "run.yaml")
    check(TrainSpec, document(folder, augment={"mixup": 0.5}, stages=stages), "run.yaml")


def test_a_prior_costs_what_it_costs_of_the_scene(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    trainee = RefinerTrainee(refiners["touch"].load()(3), Seeing(), backbones["learner"].load()(), joint=True)
    alone, within = cost_of(trainee, 16), cost_of(trainee, 16, 48)
    assert within.alone == alone.alone
    assert within.refined - alone.refined == 2 * 3 * 3 * (48**2 - 16**2)


def test_what_photographs_of_every_size_cost_is_not_counted(folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    spec = refined(folder, stages=[{"steps": 1, "patch": 16, "batch": 2, "context": "whole"}])
    with pytest.raises(TrainingError, match="photographs differ in size"):
        Compute("compute", spec, tmp_path / "compute.json").run(lambda *_: None)
