"""Filters and the classifier, trained by the engine from a config, and used in a pipeline afterwards."""

import json

import numpy as np
import PIL.Image
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from restorekit.config import PipelineSpec
from restorekit.errors import ConfigError, RestoreKitError, TrainingError, WeightsError
from restorekit.filters import FilterTable, fingerprint
from restorekit.filterscores import FilterScores
from restorekit.image import Image
from restorekit.pipeline import Pipeline
from restorekit.registry import backbones
from restorekit.training.build import build_networks
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec

SMALL = {"width": 8, "encoder_blocks": [1], "middle_blocks": 1, "decoder_blocks": [1]}
BOTH = {
    "one_of": [
        {"name": "gaussian", "sigma": 40, "label": "noise"},
        {"name": "gaussian_blur", "label": "blur"},
    ]
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for index in range(4):
        levels = np.random.default_rng(index).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        picture = PIL.Image.fromarray(levels).resize((96, 80), PIL.Image.Resampling.BICUBIC)
        picture.save(folder / f"{index}.png")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    torch.manual_seed(0)
    network = backbones["nafnet"].load()(**SMALL)
    for parameter in network.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    path = tmp_path_factory.mktemp("base") / "um.safetensors"
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def scores(base, tmp_path_factory):
    """Scores of random values for each degradation, in files as `restorekit faig` writes them."""
    state, folder = load_file(base), tmp_path_factory.mktemp("scores")
    with torch.device("meta"):
        table = FilterTable.of(backbones["nafnet"].load()(**SMALL))
    return {
        label: str(
            FilterScores(
                table,
                torch.rand(len(table), generator=torch.Generator().manual_seed(seed)),
                "faig",
                label,
                fingerprint(state),
            ).save(folder / f"{label}.safetensors")
        )
        for seed, label in enumerate(("noise", "blur"))
    }


def spec_for(folder, base, params, **changes):
    facts = {
        "backbone": {"name": "nafnet", "params": SMALL, "weights": str(base)},
        "adapter": {"name": "adms", "params": params},
        "data": {"folder": str(folder), "hold_out": 1},
        "degradation": BOTH,
        "stages": [{"steps": 6, "patch": 32, "batch": 4}],
        "validate_every": 6,
        "save_every": 2,
        "pictures": 1,
        "optimizer": {"lr": 1e-2, "warmup": 0, "weight_decay": 0.1},
        "half": False,
        **changes,
    }
    return TrainSpec.model_validate(facts)


def train(spec, path):
    run = prepare(spec, path, "cpu")
    return run, run.train()


def pipeline_of(base, weights, **params):
    step = {"name": "nafnet", "params": SMALL, "weights": str(base)}
    step["adapter"] = {"name": "adms", "weights": str(weights), "params": params}
    return Pipeline.build(PipelineSpec.load({"steps": [{"restore": step}]}), "cpu")


def values_of(weights, name):
    return torch.cat(
        [
            value.flatten()
            for key, value in load_file(weights).items()
            if key.startswith(f"deltas.{name}.") and "idx" not in key
        ]
    )


def test_filters_of_one_degradation_are_trained_and_nothing_else_moves(folder, base, scores, tmp_path):
    params = {"degradations": ["noise"], "scores": {"noise": scores["noise"]}}
    spec = spec_for(folder, base, params, degradation={"name": "gaussian", "sigma": 40})
    run, weights = train(spec, tmp_path)
    before, frozen = load_file(base), run.networks.trainee.network.backbone.state_dict()
    assert before.keys() == frozen.keys()
    assert all(torch.equal(before[name], frozen[name]) for name in before)
    parameters = sum(value.numel() for value in run.learner.parameters.values())
    kernels = FilterScores.load(scores["noise"]).table.parameters
    assert 0.02 * kernels < parameters <= 0.03 * kernels
    # What the optimizer remembers is as small as what it trains.
    moments = [v for key, v in run.learner.state()["optimizer"].items() if key.startswith("exp_avg/")]
    assert sum(value.numel() for value in moments) == parameters
    assert values_of(weights, "noise").abs().min() > 0
    expected = FilterScores.load(scores["noise"]).top(0.03)
    found = FilterScores.load(scores["noise"]).table.chosen(expected)
    kept = {
        k.removeprefix("deltas.noise.tensors.")[:-4]: v
        for k, v in load_file(weights).items()
        if k.endswith(".idx")
    }
    assert kept.keys() == found.keys()
    assert all(torch.equal(kept[name].long(), found[name]) for name in found)


def test_each_patch_trains_the_filters_of_its_own_kind(folder, base, scores, tmp_path):
    params = {"degradations": ["noise", "blur"], "scores": scores}
    only_blur = {"one_of": [BOTH["one_of"][0] | {"weight": 0}, BOTH["one_of"][1]]}
    spec = spec_for(folder, base, params, degradation=only_blur, optimizer={"lr": 1e-2, "warmup": 0})
    _, weights = train(spec, tmp_path / "blur")
    assert values_of(weights, "blur").abs().sum() > 0 == values_of(weights, "noise").abs().sum()
    _, weights = train(spec_for(folder, base, params, balanced=True), tmp_path / "both")
    assert values_of(weights, "blur").abs().min() > 0 and values_of(weights, "noise").abs().min() > 0


def test_file_of_a_run_states_how_it_acts_and_no_paths(folder, base, scores, tmp_path):
    params = {"degradations": ["noise", "blur"], "scores": scores, "temperature": 2.0}
    _, weights = train(spec_for(folder, base, params), tmp_path)
    with safe_open(weights, "pt") as file:
        facts = file.metadata()
    assert json.loads(facts["restorekit.params"]) == {"degradations": ["noise", "blur"], "temperature": 2.0}
    assert facts["adms.base"] == fingerprint(load_file(base))
    assert json.loads(facts["adms.choice"])["ratio"] == 0.03
    assert all(isinstance(value, str) for value in facts.values())


def test_classifier_is_trained_on_kinds_and_its_verdict_reaches_the_user(folder, base, scores, tmp_path):
    deltas = {"degradations": ["noise", "blur"], "scores": scores}
    _, filters = train(spec_for(folder, base, deltas), tmp_path / "deltas")
    spec = spec_for(
        folder,
        base,
        {"parts": [str(filters)], "train": "classifier"},
        loss="kind",
        balanced=True,
        stages=[{"steps": 60, "patch": 48, "batch": 8}],
        optimizer={"lr": 1e-3, "warmup": 0},
        validate_every=30,
    )
    run, weights = train(spec, tmp_path / "classifier")
    assert run.progress.rows[-1]["val_kinds"] == 100
    assert run.progress.rows[-1]["loss"] < run.progress.rows[0]["loss"]
    whole, part = load_file(weights), load_file(filters)
    assert all(torch.equal(whole[name], part[name]) for name in part)
    chain = pipeline_of(base, weights)
    image = Image.of(folder / "0.png").replace_pixels(
        Image.of(folder / "0.png").pixels + 40 / 255 * torch.randn(3, 80, 96)
    )
    result = chain(image)
    assert result.verdict.kind == "noise" and result.verdict.source == "classifier"
    assert sum(result.verdict.shares.values()) == pytest.approx(1)
    assert json.loads(result.to_json())["steps"][0]["verdict"]["shares"] == result.verdict.shares
    # Seen once and whole, whatever the tiles are.
    tiled = chain(image, tile=64)
    assert tiled.steps[0].tile == 64 and tiled.verdict == result.verdict


def test_narrow_classifier_is_read_back_from_its_file(folder, base, scores, tmp_path):
    deltas = {"degradations": ["noise", "blur"], "scores": scores}
    _, filters = train(spec_for(folder, base, deltas), tmp_path / "deltas")
    params = {"parts": [str(filters)], "train": "classifier", "widths": [4, 6]}
    spec = spec_for(folder, base, params, loss="kind", stages=[{"steps": 2, "patch": 32, "batch": 2}])
    _, weights = train(spec, tmp_path / "classifier")
    assert load_file(weights)["classifier.head.weight"].shape == (2, 6)
    assert pipeline_of(base, weights)(Image.of(folder / "0.png")).verdict.source == "classifier"
    again = spec_for(folder, base, {"parts": [str(weights)], "train": "all"})
    assert build_networks(again).trainee.adapter.widths == (4, 6)
    with pytest.raises(ConfigError, match=r"params.widths: \[0\] are no widths"):
        build_networks(spec_for(folder, base, {"parts": [str(filters)], "widths": [0]}))


def test_filters_and_classifier_are_polished_together(folder, base, scores, tmp_path):
    deltas = {"degradations": ["noise", "blur"], "scores": scores}
    spec = spec_for(folder, base, {**deltas, "train": "all"}, loss={"psnr": 1, "kind": 1}, validate_every=3)
    run, weights = train(spec, tmp_path)
    assert {"val_kinds", "val_degraded"} <= run.progress.rows[-1].keys()
    assert values_of(weights, "blur").abs().sum() > 0 and values_of(weights, "noise").abs().sum() > 0
    start = build_networks(spec).trainee.adapter.classifier.state_dict()
    assert any(not torch.equal(start[name], load_file(weights)[f"classifier.{name}"]) for name in start)


def test_parts_of_different_people_are_put_together(folder, base, scores, tmp_path):
    files = []
    for name, recipe in zip(("noise", "blur"), BOTH["one_of"], strict=True):
        params = {"degradations": [name], "scores": {name: scores[name]}}
        files.append(train(spec_for(folder, base, params, degradation=recipe), tmp_path / name)[1])
    params = {"degradations": ["blur", "noise"], "train": "classifier"}
    files.append(train(spec_for(folder, base, params, loss="kind"), tmp_path / "classifier")[1])
    spec = spec_for(folder, base, {"parts": [str(file) for file in files], "train": "all"})
    adapter = build_networks(spec).trainee.adapter
    assert adapter.names == ("noise", "blur")
    own = load_file(files[2])
    # The classifier was told the two in another order.
    assert torch.equal(adapter.classifier.head.bias, own["classifier.head.bias"].flip(0))
    assert torch.equal(adapter.classifier.head.weight, own["classifier.head.weight"].flip(0))


def test_resumed_run_ends_with_the_same_filters(folder, base, scores, tmp_path):
    params = {"degradations": ["noise", "blur"], "scores": scores, "vectors": "all", "train": "all"}
    spec = spec_for(folder, base, params, loss={"psnr": 1, "kind": 0.1})
    _, whole = train(spec, tmp_path / "whole")

    class KilledError(Exception):
        pass

    def kill(step, row):
        if step == 4:
            raise KilledError

    with pytest.raises(KilledError):
        prepare(spec, tmp_path / "parts", "cpu").train(kill)
    resumed = prepare(spec, tmp_path / "parts", "cpu", resume=True)
    assert resumed.progress.step == 4
    one, other = load_file(whole), load_file(resumed.train())
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_filters_work_in_a_pipeline_without_a_classifier(folder, base, scores, tmp_path):
    params = {"degradations": ["noise", "blur"], "scores": scores}
    _, weights = train(spec_for(folder, base, params), tmp_path)
    image = Image.of(folder / "0.png")
    with pytest.raises(RestoreKitError, match="nothing tells noise, blur apart"):
        pipeline_of(base, weights)(image)
    with pytest.raises(ConfigError, match="no degradation 'nose'; it knows: noise, blur") as caught:
        pipeline_of(base, weights, router={"name": "oracle", "label": "nose"})
    assert caught.value.where == "steps[0].restore.adapter.params.router.label"
    assert caught.value.hint == "did you mean 'noise'?"
    with pytest.raises(ConfigError, match=r"steps\[0\]\.restore\.adapter\.params\.mode: "):
        pipeline_of(base, weights, mode="merged")
    noise = pipeline_of(base, weights, router={"name": "oracle", "label": "noise"})(image)
    blur = pipeline_of(base, weights, router={"name": "oracle", "label": "blur"})(image)
    assert str(noise.verdict) == "noise 100 %"
    assert not torch.equal(noise.image.pixels, blur.image.pixels)


def test_base_of_another_hash_is_refused(folder, base, scores, tmp_path):
    params = {"degradations": ["noise", "blur"], "scores": scores}
    _, weights = train(spec_for(folder, base, params), tmp_path)
    other = {name: value + 1e-3 for name, value in load_file(base).items()}
    save_file(other, tmp_path / "other.safetensors")
    ours, theirs = fingerprint(load_file(base))[:16], fingerprint(other)[:16]
    with pytest.raises(WeightsError, match=f"made for the base {ours}, the network is {theirs}") as caught:
        pipeline_of(tmp_path / "other.safetensors", weights)
    assert caught.value.message.startswith("steps[0].restore.adapter: ")
    assert caught.value.message.endswith(f"({weights} on {tmp_path / 'other.safetensors'})")
    with pytest.raises(WeightsError, match=f"for the base {ours}, the network is {theirs}"):
        build_networks(spec_for(folder, tmp_path / "other.safetensors", params))


@pytest.mark.parametrize(
    ("params", "changes", "problem"),
    [
        (
            {"degradations": ["rain", "blur"], "mask": "random"},
            {},
            "no degradation 'noise'; it knows: rain, blur",
        ),
        (
            {"degradations": ["noise", "blur"], "mask": "random"},
            {"degradation": None},
            "nobody knows which patches",
        ),
        ({"degradations": ["noise", "blur"]}, {}, "there are no scores for noise"),
        (
            {"degradations": ["noise", "blur", "rain"], "train": "classifier"},
            {"loss": "kind"},
            "no patches of rain",
        ),
        ({"degradations": ["noise", "blur"], "mask": "random"}, {"loss": "kind"}, "nothing here tells kinds"),
        ({"degradations": ["noise", "blur"], "mask": "random", "ratio": 1e-6}, {}, "less than one filter"),
        ({}, {}, "has no degradation|knows no degradation"),
    ],
)
def test_runs_that_make_no_sense_are_refused(folder, base, params, changes, problem):
    with pytest.raises((RestoreKitError, ConfigError, TrainingError), match=problem):
        build_networks(spec_for(folder, base, params, **changes))
