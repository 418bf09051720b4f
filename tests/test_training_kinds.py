"""What batches say of the degradation of each patch, and windows that are degraded as a whole."""

import pytest
import torch
from training_cases import FIXTURES, document, pairs_of, source_of, write_pairs

from restorekit.config import check
from restorekit.degradations.spec import RecipeSpec
from restorekit.errors import ConfigError, TrainingError
from restorekit.training.data import Batches, load_source
from restorekit.training.spec import AugmentSpec, DataSpec, StageSpec, TrainSpec
from restorekit.training.validation import validation_set

folder, pairs, cache_folder = FIXTURES


def labelled(source, count=8, step=0, degradation=None, **facts):
    return Batches(source, degradation, **facts).batch(step, StageSpec(steps=1, patch=24, batch=count))


def test_batch_tells_the_kind_of_each_patch(folder):
    recipe = RecipeSpec.model_validate({"one_of": ["clean", {"name": "gaussian", "sigma": 50}]})
    batch = labelled(source_of(folder), degradation=recipe, kinds=recipe.kinds)
    changed = (batch.degraded != batch.clean).flatten(1).any(1)
    assert torch.equal(batch.kinds, torch.stack([~changed, changed], 1).float())
    assert 0 < changed.sum() < len(changed)


def test_kinds_change_no_draw(folder):
    recipe = RecipeSpec.model_validate({"one_of": ["clean", {"name": "gaussian", "sigma": 50}]})
    one, other = (
        labelled(source_of(folder), degradation=recipe, kinds=kinds) for kinds in ((), recipe.kinds)
    )
    assert torch.equal(one.degraded, other.degraded) and one.kinds.shape == (8, 0)


def test_balanced_batches_have_as_many_of_each_kind(folder):
    recipe = RecipeSpec.model_validate({"one_of": ["clean", "jpeg", {"name": "gaussian", "weight": 9}]})
    source = source_of(folder)
    batches = [labelled(source, 4, step, recipe, kinds=recipe.kinds, balanced=True) for step in range(3)]
    assert torch.stack([batch.kinds.sum(0) for batch in batches]).tolist() == [
        [2, 1, 1],
        [1, 2, 1],
        [1, 1, 2],
    ]


def test_pairs_say_what_they_suffer_from(tmp_path):
    for name in ("rain", "snow"):
        write_pairs(tmp_path / name)
    found = [
        {"degraded": str(tmp_path / name / "input"), "clean": str(tmp_path / name / "target"), "kind": name}
        for name in ("rain", "snow")
    ]
    source = pairs_of(found)
    batch = labelled(source, 6, kinds=("rain", "snow"), balanced=True)
    assert batch.kinds.tolist() == [[1, 0], [0, 1]] * 3
    chosen = validation_set(Batches(source, None, kinds=("rain", "snow")))
    assert chosen.kinds["pairs"].shape == (4, 2)


def test_mixup_blends_kinds_as_it_blends_images(folder):
    recipe = RecipeSpec.model_validate({"one_of": ["clean", {"name": "gaussian", "sigma": 50}]})
    batch = labelled(
        source_of(folder),
        degradation=recipe,
        kinds=recipe.kinds,
        augment=AugmentSpec(mixup=1.0),
        balanced=True,
    )
    assert torch.allclose(batch.kinds.sum(1), torch.ones(8)) and ((batch.kinds > 0) & (batch.kinds < 1)).any()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"loss": "kind"}, "one kind of degradation, or nobody knows"),
        ({"balanced": True, "degradation": "rain"}, "one kind of degradation, or nobody knows"),
        (
            {"balanced": True, "degradation": {"one_of": ["rain", "snow"], "probability": 0.5}},
            "missed probability makes clean patches",
        ),
    ],
)
def test_kinds_that_nobody_knows_are_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        check(TrainSpec, document("x", **changes), "run.yaml")


def hazy(folder, context, scale=1, patch=16):
    recipe = check(RecipeSpec, {"name": "haze", "beta": 2.0}, "haze")
    source = load_source(DataSpec(folder=str(folder), hold_out=1), scale)
    stage = StageSpec(steps=1, patch=patch, batch=8, context=context)
    return Batches(source, recipe, scale=scale).batch(0, stage)


def test_patches_are_cut_from_the_window_that_was_degraded(folder):
    alone, within = hazy(folder, 0), hazy(folder, 96)
    assert within.degraded.shape == within.clean.shape == alone.degraded.shape
    # By itself, each patch has the horizon and the foreground; within a window only a part of the depth.
    spread = [
        (batch.degraded - batch.clean).abs().mean((1, 3)).std(1).mean().item() for batch in (alone, within)
    ]
    assert spread[1] < spread[0] / 2
    # The horizon of some windows lies above their patch, that of others in it.
    strength = (within.degraded - within.clean).abs().mean((1, 2, 3))
    assert strength.max() > 2 * strength.min()


def test_windows_of_a_network_that_enlarges_keep_degraded_and_clean_together(folder):
    batch = hazy(folder, 32, scale=2)
    assert batch.degraded.shape[-1] == 16 and batch.clean.shape[-1] == 32
    # Haze keeps what is bright: the two correlate where they lie in one place, and only there.
    small = torch.nn.functional.avg_pool2d(batch.clean, 2)
    same = torch.corrcoef(torch.stack([small.flatten(), batch.degraded.flatten()]))[0, 1]
    moved = torch.corrcoef(torch.stack([small.flip(-1).flatten(), batch.degraded.flatten()]))[0, 1]
    assert same > moved + 0.1


def test_windows_larger_than_every_photograph_are_refused(folder):
    with pytest.raises(TrainingError, match="at least 500 pixels"):
        hazy(folder, 500)
