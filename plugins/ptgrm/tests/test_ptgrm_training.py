"""PTG-RM in training: every mode, the prior it was trained with, and its mean."""

import hashlib
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from guides import SEEN, Deep, Statistics, install
from ptgrm_cases import IMAGE, chain, run_command, saved
from safetensors.torch import save_file
from torch.nn.functional import l1_loss

from restorekit import Pipeline, PipelineSpec, plan, restore
from restorekit.catalog import PARAMS_KEY, PRIOR_KEY, Checkpoint
from restorekit.contracts import PriorFeatures
from restorekit.errors import ConfigError, ContractError, TrainingError, WeightsError
from restorekit.training.build import build_networks
from restorekit.training.folder import read_run
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec
from restorekit_ptgrm.network import PTGRM


@pytest.fixture(autouse=True)
def guides(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    SEEN.clear()


def photographs(folder):
    random = np.random.default_rng(0)
    for index in range(4):
        coarse = random.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        PIL.Image.fromarray(coarse).resize((96, 80), PIL.Image.Resampling.BICUBIC).save(
            folder / f"{index}.png"
        )
    return folder


def training(tmp_path, backbone=None, **changes):
    if not (tmp_path / "photos").exists():
        photographs((tmp_path / "photos").mkdir() or tmp_path / "photos")
        torch.manual_seed(0)
    document = {
        "backbone": backbone or {"name": "deep", "weights": saved(tmp_path, Deep(), "deep")},
        "refiner": "ptgrm",
        "prior": "statistics",
        "data": {"folder": str(tmp_path / "photos"), "hold_out": 1, "cache": str(tmp_path / "cache")},
        "stages": [{"steps": 3, "patch": 32, "batch": 2}],
        "loss": "l1",
        "optimizer": {"warmup": 0},
        "pictures": 0,
        "validate_every": 3,
        **changes,
    }
    return TrainSpec.model_validate(document)


MODES = {
    "joint": {"trained": ["refiner", "backbone"], "backbone": "deep"},
    "warm joint": {"trained": ["refiner", "backbone"], "optimizer": {"factors": {"backbone": 0.1}}},
    "frozen": {},
    "frozen features": {"refiner": {"name": "ptgrm", "params": {"level": "feature"}}},
    "joint features": {
        "refiner": {"name": "ptgrm", "params": {"level": "feature"}},
        "trained": ["refiner", "backbone"],
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_what_it_says_by_equation_8(tmp_path, mode):
    networks = build_networks(training(tmp_path, **{**MODES[mode], "prior": "learned"}))
    trainee, joint = networks.trainee, "joint" in mode
    torch.manual_seed(1)
    for name, parameter in trainee.refiner.named_parameters():
        # Away from the identity, where the last layer lets no gradient through.
        parameter.data += 0.05 * torch.randn_like(parameter) * ("norm" not in name)
    degraded, clean = torch.rand(2, 2, 3, 32, 32)
    outputs = trainee(degraded).images
    assert len(outputs) == (2 if joint else 1)
    assert networks.parts["refiner"].params["prior_features"] == 16
    if joint:
        # The engine adds the loss of each output: lambda is 1.
        assert torch.equal(outputs[1], trainee.backbone(degraded))
    sum(l1_loss(output, clean) for output in outputs).backward()
    silent = [name for name, p in trainee.refiner.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    reached = [p.grad is not None and bool(p.grad.any()) for p in trainee.backbone.parameters()]
    assert all(reached) if joint else not any(reached)
    told = list(trainee.prior.parameters())
    assert told and all(p.grad is None for p in told)


def test_refined_loss_trains_the_backbone_too_unless_detached(tmp_path):
    def gradient(**params):
        refiner = {"name": "ptgrm", "params": {"start": "random", **params}}
        spec = training(tmp_path, trained=["refiner", "backbone"], refiner=refiner)
        trainee = build_networks(spec).trainee
        trainee(torch.rand(1, 3, 32, 32)).images[0].sum().backward()
        return [p.grad for p in trainee.backbone.parameters()]

    assert all(one is not None and one.any() for one in gradient())
    assert all(one is None for one in gradient(detach=True))


@pytest.mark.parametrize("mode", MODES)
def test_prior_is_asked_once_of_a_validation_patch(tmp_path, mode):
    (tmp_path / "mark").write_text("one")
    prior = {"name": "filed", "params": {"file": str(tmp_path / "mark")}}
    changes = {**MODES[mode], "prior": prior, "stages": [{"steps": 2, "patch": 32, "batch": 2}]}
    asked = []
    for often in (2, 1):
        run = prepare(training(tmp_path, **changes, validate_every=often), tmp_path / f"run-{often}")
        SEEN.clear()
        run.train()
        asked.append(len(SEEN))
    # Two batches, and each way in which the validation degrades its patches.
    assert asked[0] == asked[1] > 2


def test_the_shipped_config_is_run_by_the_command_in_three_modes(tmp_path, capsys, monkeypatch):
    config = Path(__file__).parents[3] / "configs" / "train" / "ptgrm-denoise.yaml"
    document = yaml.safe_load(config.read_text())
    document["backbone"] = {"name": "deep", "weights": saved(tmp_path, Deep(), "deep")}
    document |= {"prior": "statistics", "pictures": 0, "stages": [{"steps": 2, "patch": 32, "batch": 1}]}
    document["data"] = {"folder": str(photographs(tmp_path)), "hold_out": 1, "cache": str(tmp_path / "cache")}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    modes = {
        "warm": [],
        "frozen": ["--set", "trained=[refiner]"],
        "joint": ["--set", "backbone.weights=null", "--set", "optimizer.factors={}"],
    }
    for mode, settings in modes.items():
        words = ("train", tmp_path / "run.yaml", "-o", tmp_path / mode, *settings)
        code, _, said = run_command(capsys, monkeypatch, *words)
        assert code == 0, said
        run = read_run(tmp_path / mode)
        assert run.finished and run.spec.trained_parts[0] == "refiner"
        assert [*run.others] == ([] if mode == "frozen" else ["backbone"])
        facts = Checkpoint("refiner", run.weights).metadata()
        assert json.loads(facts[PARAMS_KEY])["prior_features"] == 16


@pytest.mark.parametrize("mode", MODES)
def test_trained_refiner_is_used_by_a_pipeline_as_it_was_validated(tmp_path, mode):
    run = prepare(training(tmp_path, **MODES[mode], half=False, ema=0), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train()), "prior": "statistics"}
    folder = tmp_path / "run" if "joint" in mode else tmp_path
    file = folder / ("weights-backbone.safetensors" if "joint" in mode else "deep.safetensors")
    steps = {"restore": {"name": "deep", "weights": str(file)}}, {"refine": refine}
    image = IMAGE[:44, :60]
    degraded = torch.from_numpy(image).permute(2, 0, 1)[None]
    with run.learner.evaluating(averaged=False):
        validated = run.learner.restore(degraded, torch.zeros(1, 0))[0].permute(1, 2, 0)
    np.testing.assert_allclose(restore(image, chain(*steps)), validated, atol=1e-5)


def test_prior_that_a_refiner_was_not_trained_with_is_refused(tmp_path):
    run = prepare(training(tmp_path), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train()), "prior": "broken"}
    with pytest.raises(ConfigError, match="was trained with statistics, this is broken"):
        # Before it is built, and fetched: a plan says so too.
        plan.parts(PipelineSpec.parse(chain({"refine": refine})))
    refine["prior"] = {"name": "statistics", "params": {"features": 16}}
    with pytest.raises(ConfigError, match=r"trained with statistics, this is statistics \(features 16\)"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))
    refine["prior"] = {"name": "statistics", "params": {"features": 8}}
    with pytest.raises(ConfigError, match=r"trained with statistics, this is statistics \(features 8\)"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))


@pytest.mark.parametrize("prior", ["joined", {"name": "statistics", "params": {"features": 8}}])
def test_training_goes_on_under_the_prior_that_a_refiner_was_trained_with(tmp_path, prior):
    refiner = {"name": "ptgrm", "weights": str(prepare(training(tmp_path), tmp_path / "run").train())}
    build_networks(training(tmp_path, refiner=refiner))
    with pytest.raises(ConfigError, match=r"refiner.prior: .*was trained with statistics, this is"):
        build_networks(training(tmp_path, refiner=refiner, prior=prior))


@pytest.mark.parametrize("mode", MODES)
def test_training_names_a_prior_that_says_no_numbers(tmp_path, mode):
    with pytest.raises(ContractError, match="prior Broken returned values that are not finite"):
        prepare(training(tmp_path, **{**MODES[mode], "prior": "broken"}), tmp_path / "run").train()


def test_prior_that_cannot_be_had_and_is_not_wanted_is_no_reason_to_fetch_it(tmp_path):
    (tmp_path / "prior.bin").write_bytes(b"then")
    prior = {"name": "filed", "params": {"file": str(tmp_path / "prior.bin")}}
    run = prepare(training(tmp_path, prior=prior), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train())}
    refine["prior"] = {"name": "filed", "params": {"file": str(tmp_path / "nowhere.bin")}}
    with pytest.raises(ConfigError, match=r"trained with filed .*prior\.bin\), this is filed .*nowhere"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))
    (tmp_path / "prior.bin").unlink()
    with pytest.raises(WeightsError, match=r"no file .*prior\.bin"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": {**refine, "prior": prior}})))


def test_prior_whose_files_changed_is_refused_and_one_that_moved_is_not(tmp_path, capsys, monkeypatch):
    file = tmp_path / "prior.bin"
    file.write_bytes(b"then")
    prior = {"name": "filed", "params": {"file": str(file)}}
    run = prepare(training(tmp_path, prior=prior), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train()), "prior": prior}
    (tmp_path / "refine.yaml").write_text(yaml.safe_dump(chain({"refine": refine})))
    PIL.Image.fromarray((IMAGE * 255).astype(np.uint8)).save(tmp_path / "photo.png")
    words = ("restore", tmp_path / "photo.png", "-p", tmp_path / "refine.yaml", "-o", tmp_path / "o.png")
    code, out, _ = run_command(capsys, monkeypatch, *words, "--json")
    then, now = (hashlib.sha256(text).hexdigest()[:32] for text in (b"then", b"other"))
    said = json.loads(out)[0]["steps"][0]["prior"]
    assert code == 0 and said == {"name": "filed", "fingerprint": then, "library": "acme 1.0"}
    moved = tmp_path / "moved.bin"
    moved.write_bytes(b"then")
    elsewhere = {"name": "filed", "params": {"file": str(moved)}}
    Pipeline.build(PipelineSpec.parse(chain({"refine": {**refine, "prior": elsewhere}})))
    file.write_bytes(b"other")
    with pytest.raises(ConfigError, match=rf"filed .* of fingerprint {then}, here its fingerprint is {now}"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))


def test_refiner_of_before_fingerprints_were_kept_is_used(tmp_path):
    (tmp_path / "prior.bin").write_bytes(b"any")
    prior = {"name": "filed", "params": {"file": str(tmp_path / "prior.bin")}}
    facts = {PARAMS_KEY: json.dumps({"prior_features": 16}), PRIOR_KEY: json.dumps(prior)}
    save_file(PTGRM(prior_features=16).state_dict(), tmp_path / "old.safetensors", facts)
    refine = {"name": "ptgrm", "weights": str(tmp_path / "old.safetensors"), "prior": prior}
    assert restore(IMAGE, chain({"refine": refine})).shape == IMAGE.shape


@pytest.mark.parametrize("mode", ["frozen", "frozen features"])
def test_mean_of_the_training_stands_in_for_the_prior(tmp_path, monkeypatch, mode):
    said, speaks = [], Statistics.forward

    def noting(self, image):
        features = speaks(self, image)
        said.append((image.shape[-1], features.glob))
        return features

    monkeypatch.setattr(Statistics, "forward", noting)
    changes = dict(half=False, ema=0, stages=[{"steps": 2, "patch": 32, "batch": 2}], validate_every=2)
    changes |= MODES[mode] | {"optimizer": {"warmup": 0, "lr": 1e-2}}
    weights = str(prepare(training(tmp_path, **changes), tmp_path / "run").train())
    # Validation looks at images that are not cut, and is no part of the mean.
    mean = torch.cat([glob for width, glob in said if width == 32]).mean(0)
    refine = {"name": "ptgrm", "weights": weights, "prior": "none"}
    steps = {"restore": {"name": "deep", "weights": str(tmp_path / "deep.safetensors")}}, {"refine": refine}
    asked = len(said)
    result = restore(IMAGE[:44, :60], chain(*steps), return_result=True)
    assert len(said) == asked
    assert result.warnings == ("ptgrm: ran without a prior: the mean of those of its training stood in",)
    assert result.steps[1].prior.name == "none" and result.steps[1].component == "ptgrm"
    monkeypatch.setattr(Statistics, "forward", lambda self, image: PriorFeatures(mean.expand(len(image), -1)))
    steps[1]["refine"]["prior"] = "statistics"
    np.testing.assert_allclose(result.to_numpy(), restore(IMAGE[:44, :60], chain(*steps)), atol=1e-5)


def test_mean_goes_on_when_a_run_is_resumed(tmp_path):
    networks = [build_networks(training(tmp_path)).trainee for _ in range(2)]
    images = torch.rand(3, 2, 3, 32, 32)
    for batch in images[:2]:
        networks[0](batch)
    networks[1].load_state(networks[0].state())
    networks[1](images[2])
    # What it says of images that are not trained on does not count.
    networks[1].eval()
    expected = networks[1].prior(images.flatten(0, 1)).glob.mean(0)
    assert networks[1].seen == 6
    torch.testing.assert_close(networks[1].mean, expected)
    old = {name: value for name, value in networks[0].state().items() if not name.startswith("guidance")}
    networks[1].load_state(old)


def test_width_of_a_dense_map_is_filled_in(tmp_path):
    params = {"concatenation": "map", "range_map": "sum"}
    spec = training(tmp_path, refiner={"name": "ptgrm", "params": params})
    assert build_networks(spec).trainee.refiner.dense_features == 16
    with pytest.raises(ContractError, match="Flat has none"):
        PTGRM.fitted(params, None, Flat())


class Flat(Statistics):
    """Has no dense map."""

    def forward(self, image):
        return PriorFeatures(super().forward(image).glob)


def test_gray_backbone_gets_a_gray_refiner_and_another_one_is_refused(tmp_path):
    networks = build_networks(training(tmp_path, backbone="gray-blurring"))
    assert networks.parts["refiner"].params["channels"] == 1
    with pytest.raises(TrainingError, match="refiner takes 3 channels, the backbone 1"):
        build_networks(
            training(tmp_path, backbone="gray-blurring", refiner={"name": "ptgrm", "params": {"channels": 3}})
        )
