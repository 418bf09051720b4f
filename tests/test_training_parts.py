import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_cases import Learner, document, install, spec_for, write_pairs, write_photographs

from restorekit.config import PipelineSpec, check, read_yaml
from restorekit.errors import ConfigError, TrainingError, UnknownComponentError, WeightsError
from restorekit.image import Image
from restorekit.pipeline import Pipeline
from restorekit.training.build import build_networks
from restorekit.training.folder import read_run
from restorekit.training.loop import prepare
from restorekit.training.schedule import learning_rate, stage_at
from restorekit.training.spec import OptimizerSpec, StageSpec, TrainSpec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(autouse=True)
def components(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(5)
    path = tmp_path / "learner.safetensors"
    save_file(Learner().state_dict(), path)
    return str(path)


FAST = {"optimizer": {"lr": 1e-2, "warmup": 0}, "validate_every": 10}


def test_adapter_is_trained_on_a_backbone_that_stays_as_it_is(folder, tmp_path, weights):
    backbone = {"name": "learner", "weights": weights}
    run = prepare(spec_for(folder, backbone=backbone, adapter="shift", **FAST), tmp_path / "run", "cpu")
    frozen = run.learner.trainee.network.backbone
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    result = run.train()
    after = frozen.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert load_file(result).keys() == {"colour"} and load_file(result)["colour"].abs().sum() > 0
    with safe_open(result, "pt") as file:
        assert file.metadata()["restorekit.kind"] == "adapter"
    adapter = {"name": "shift", "weights": str(result)}
    steps = [{"restore": {"name": "learner", "weights": weights, "adapter": adapter}}]
    Pipeline.build(PipelineSpec.load({"steps": steps}), "cpu")(Image.of(folder / "0.png"))


def test_adapter_that_copies_its_parameters_is_refused(folder, tmp_path, weights):
    backbone = {"name": "learner", "weights": weights}
    run = prepare(spec_for(folder, backbone=backbone, adapter="copying"), tmp_path / "run", "cpu")
    with pytest.raises(TrainingError, match="no gradient reaches the parameters of adapter copying"):
        run.train()


def test_refiner_is_trained_behind_a_frozen_backbone(folder, tmp_path, weights):
    backbone = {"name": "learner", "weights": weights}
    spec = spec_for(folder, backbone=backbone, refiner="touch", prior="edges", **FAST)
    run = prepare(spec, tmp_path / "run", "cpu")
    before = run.learner.trainee.backbone.conv.weight.clone()
    result = run.train()
    assert torch.equal(run.learner.trainee.backbone.conv.weight, before)
    assert not run.learner.trainee.backbone.training
    assert load_file(result).keys() == {"conv.weight", "conv.bias", "tint.weight", "tint.bias"}
    with safe_open(result, "pt") as file:
        assert file.metadata()["restorekit.params"] == '{"prior_features": 3}'
    steps = [
        {"restore": {"name": "learner", "weights": weights}},
        {"refine": {"name": "touch", "prior": "edges", "weights": str(result)}},
    ]
    Pipeline.build(PipelineSpec.load({"steps": steps}), "cpu")(Image.of(folder / "0.png"))


def test_refiner_and_backbone_are_trained_together_at_their_own_rates(folder, tmp_path):
    spec = spec_for(
        folder,
        refiner="touch",
        prior="edges",
        trained=["backbone", "refiner"],
        optimizer={"lr": 1e-2, "warmup": 0, "factors": {"backbone": 0.1}},
        validate_every=10,
        export="best",
    )
    run = prepare(spec, tmp_path, "cpu")
    start = {name: value.detach().clone() for name, value in run.learner.parameters.items()}
    degraded = torch.rand(2, 3, 16, 16)
    assert len(run.learner.trainee(degraded).images) == 2
    run.train()
    moved = {name: float((run.learner.parameters[name].detach() - start[name]).abs().max()) for name in start}
    assert 0 < moved["backbone.conv.weight"] < 0.3 * moved["refiner.conv.weight"]
    record = read_run(tmp_path)
    assert record.weights.name == "weights.safetensors"
    assert load_file(record.others["backbone"]).keys() == {"conv.weight", "conv.bias"}


def test_outputs_of_every_stage_are_compared(folder, tmp_path):
    run = prepare(spec_for(folder, backbone="steps", **FAST), tmp_path, "cpu")
    start = run.learner.trainee.network.second.weight.clone()
    run.train()
    assert not torch.equal(run.learner.trainee.network.second.weight, start)


@pytest.mark.parametrize("backbone", ["double", {"name": "learner", "params": {"channels": 1}}])
def test_networks_that_enlarge_and_gray_ones_are_trained(folder, tmp_path, backbone):
    prepare(spec_for(folder, backbone=backbone, **FAST), tmp_path, "cpu").train()


def test_pairs_are_trained_on(tmp_path):
    write_pairs(tmp_path / "pairs")
    spec = spec_for(
        None,
        data={"pairs": str(tmp_path / "pairs"), "hold_out": 1},
        stages=[{"steps": 80, "patch": 16, "batch": 4}],
        optimizer={"lr": 2e-2, "warmup": 0},
        validate_every=40,
        loss={"charbonnier": 1, "edge": 0.05, "fft": 0.01},
    )
    run = prepare(spec, tmp_path / "run", "cpu")
    run.train()
    assert run.progress.rows[-1]["val_pairs"] > run.progress.rows[0]["val_pairs"]


def test_training_goes_on_from_weights(folder, tmp_path, weights):
    spec = spec_for(folder, backbone={"name": "learner", "weights": weights})
    network = build_networks(spec).trainee.network
    assert torch.equal(network.conv.weight, load_file(weights)["conv.weight"])


def test_frozen_network_without_weights_is_refused(folder):
    with pytest.raises(WeightsError, match="backbone: learner is a network, and no weights are given"):
        build_networks(spec_for(folder, adapter="shift"))


def test_unknown_argument_is_refused_before_weights_and_photographs_are_read(tmp_path):
    spec = spec_for(
        tmp_path / "missing",
        backbone={"name": "learner", "params": {"dropuot": 0.1}, "weights": str(__file__)},
    )
    with pytest.raises(ConfigError, match=r"backbone.params: learner takes no 'dropuot'\n.*'dropout'"):
        prepare(spec, tmp_path / "run", "cpu")
    spec = spec_for(
        tmp_path / "missing",
        backbone={"name": "learner", "weights": str(__file__)},
        refiner={"name": "touch", "params": {"prior_featuers": 3}},
        prior="edges",
    )
    with pytest.raises(ConfigError, match=r"refiner.params: touch takes no 'prior_featuers'"):
        prepare(spec, tmp_path / "run", "cpu")
    assert not (tmp_path / "run").exists()


def test_unknown_component_is_refused_with_a_near_name(folder):
    with pytest.raises(UnknownComponentError, match="did you mean 'learner'"):
        build_networks(spec_for(folder, backbone="learnr"))


def test_patch_that_does_not_fit_the_network_is_refused_with_one_that_does(folder):
    stages = [{"steps": 1, "patch": 16, "batch": 1}, {"steps": 1, "patch": 20, "batch": 1}]
    with pytest.raises(ConfigError, match=r"stages\[1\].patch: 20 is no multiple of 8(.|\n)*write 24"):
        build_networks(spec_for(folder, backbone="steps", stages=stages))


def test_bf16_is_refused_for_a_network_that_is_not_known_to_work_in_it(folder):
    with pytest.raises(ConfigError, match="precision: the network is not known to work in bf16"):
        build_networks(spec_for(folder, backbone="strict", precision="bf16"))


def test_network_without_parameters_is_refused(folder):
    with pytest.raises(TrainingError, match="median has no parameters to train"):
        build_networks(spec_for(folder, backbone="median"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"refiner": "touch"}, "refiner and prior go together"),
        ({"trained": ["refiner"]}, "trained names the refiner, and there is none"),
        ({"adapter": "shift", "trained": ["backbone"]}, "not trained under its adapter"),
        ({"refiner": "touch", "prior": "edges", "trained": ["backbone"]}, "alone or with its backbone"),
        ({"accumulate": 3}, "a batch of 2 cannot be cut in 3"),
        ({"data": {"pairs": "x"}, "degradation": {"sigma": [0, 5]}}, "pairs are degraded already"),
        ({"optimiser": {}}, "unknown key 'optimiser'(.|\n)*did you mean 'optimizer'"),
    ],
)
def test_config_that_makes_no_sense_is_refused(changes, problem):
    with pytest.raises(ConfigError, match=problem):
        check(TrainSpec, document("x", **changes), "run.yaml")


def test_learning_rate_warms_up_and_decays_to_the_least():
    settings = OptimizerSpec(lr=1.0, min_lr=0.1, warmup=10)
    rates = [learning_rate(settings, step, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[60] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=0.001)
    assert all(one >= other for one, other in pairwise(rates[9:]))


def test_stages_follow_each_other():
    stages = (StageSpec(steps=2, patch=8, batch=1), StageSpec(steps=3, patch=16, batch=1))
    assert [stage_at(stages, step).patch for step in range(5)] == [8, 8, 16, 16, 16]


def test_examples_in_the_document_are_configs():
    text = (Path(__file__).parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```yml\n(.*?)^```$", text, re.M | re.S)
    assert len(examples) == 4
    for example in examples:
        check(TrainSpec, yaml.safe_load(example), "training.md")


def test_shipped_configs_are_whole():
    for path in (Path(__file__).parents[1] / "configs" / "train").glob("*.yaml"):
        check(TrainSpec, read_yaml(path), path.name)
