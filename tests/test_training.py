import csv
import errno
import resource

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from training_cases import document, install, spec_for, write_photographs

from restorekit.config import ComponentRef, PipelineSpec
from restorekit.errors import TrainingError
from restorekit.image import Image as Picture
from restorekit.pipeline import Pipeline
from restorekit.training import checkpoint
from restorekit.training.folder import read_run
from restorekit.training.loop import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(autouse=True)
def components(tmp_path_factory, monkeypatch):
    """Offer the components of training_cases, and keep decoded photographs out of the user's cache."""
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))


def begin(spec, path, resume=False):
    return prepare(spec, path, "cpu", resume=resume)


def curve(path):
    return list(csv.DictReader((path / "curve.csv").read_text().splitlines()))


def weights_of(run):
    return {name: value.clone() for name, value in run.learner.trainee.state().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class KilledError(Exception):
    pass


def kill_at(step):
    def report(done, row):
        if done == step:
            raise KilledError

    return report


def test_run_learns_and_writes_all_that_its_folder_promises(folder, tmp_path):
    spec = spec_for(
        folder,
        stages=[{"steps": 150, "patch": 32, "batch": 4}],
        optimizer={"lr": 1e-2},
        validate_every=50,
        save_every=60,
        pictures=3,
    )
    weights = begin(spec, tmp_path / "run").train()
    rows = curve(tmp_path / "run")
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 1
    assert float(rows[-1]["ema_sigma50"]) > 14.5  # the noisy patches themselves have 14.2 dB
    with Image.open(tmp_path / "run" / "curve.png") as picture:
        assert picture.width > 600
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        *("config.yaml", "environment.json", "curve.csv", "curve.png", "pictures"),
        *("last.safetensors", "best.safetensors", "weights.safetensors"),
    }
    assert load_file(weights).keys() == {"conv.weight", "conv.bias"}
    # Three patches side by side, three rows, four pixels between them.
    with Image.open(tmp_path / "run" / "pictures" / "step-0000150.png") as picture:
        assert picture.size == (3 * 128 + 2 * 4, 3 * 128 + 2 * 4)


def test_gradients_below_eps_are_not_learned_from_unless_eps_is_lower(folder, tmp_path):
    def moved(**settings):
        optimizer = {"lr": 1e-3, "warmup": 0, "clip": 1e-11, **settings}
        run = begin(
            spec_for(folder, optimizer=optimizer, stages=[{"steps": 1, "patch": 32, "batch": 2}], ema=0),
            tmp_path / f"{len(settings)}",
        )
        before = weights_of(run)
        run.train()
        return max((value - before[name]).abs().max() for name, value in weights_of(run).items())

    # The norm of all gradients is clipped to 1e-11, so that each of them is far below the default of 1e-8.
    assert moved() < 1e-6
    assert moved(eps=1e-15) == pytest.approx(1e-3, rel=0.02)


def test_weights_of_a_run_work_in_a_pipeline(folder, tmp_path):
    weights = begin(spec_for(folder), tmp_path).train()
    with safe_open(weights, "pt") as file:
        assert file.metadata()["restorekit.component"] == "learner"
    spec = PipelineSpec.load({"steps": [{"restore": {"name": "learner", "weights": str(weights)}}]})
    restored = Pipeline.build(spec, "cpu")(Picture.of(folder / "0.png"))
    assert restored.image.pixels.shape == (3, 160, 192)


@pytest.mark.parametrize("killed_at", [1, 5, 7])
def test_resumed_run_ends_with_the_same_weights_and_curve(folder, tmp_path, killed_at):
    # Dropout draws random numbers, and a checkpoint every third step means that steps are done again.
    backbone = {"name": "learner", "params": {"dropout": 0.3}}
    spec = spec_for(folder, backbone=backbone, save_every=3, validate_every=5)
    whole = begin(spec, tmp_path / "whole")
    whole.train()
    with pytest.raises(KilledError):
        begin(spec, tmp_path / "parts").train(kill_at(killed_at))
    resumed = begin(spec, tmp_path / "parts", resume=True)
    assert resumed.progress.step == killed_at // 3 * 3
    resumed.train()
    assert same(weights_of(whole), weights_of(resumed))
    assert same(whole.learner.average.values, resumed.learner.average.values)
    for name in ("weights", "best"):
        assert same(*(load_file(tmp_path / part / f"{name}.safetensors") for part in ("whole", "parts")))
    one, other = (
        [{name: value for name, value in row.items() if name != "seconds"} for row in curve(tmp_path / part)]
        for part in ("whole", "parts")
    )
    assert one == other


def test_resume_without_a_checkpoint_is_refused(folder, tmp_path):
    with pytest.raises(TrainingError, match="nothing to resume"):
        begin(spec_for(folder), tmp_path, resume=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"optimizer": {"warmup": 2, "lr": 0.5}}, r"optimizer.lr is 0.5, the run was begun with 0.001"),
        ({"seed": 3}, "seed is 3"),
        ({"backbone": "steps"}, "backbone.name is steps"),
    ],
)
def test_resume_with_another_config_names_what_differs(folder, tmp_path, changes, named):
    with pytest.raises(KilledError):
        begin(spec_for(folder), tmp_path).train(kill_at(2))
    with pytest.raises(TrainingError, match=named):
        begin(spec_for(folder, **changes), tmp_path, resume=True)


def test_what_moves_no_weight_may_change_between_sessions(folder, tmp_path):
    with pytest.raises(KilledError):
        begin(spec_for(folder), tmp_path).train(kill_at(2))
    begin(spec_for(folder, validate_every=5, pictures=0, description="more"), tmp_path, resume=True).train()
    assert [row["step"] for row in curve(tmp_path)] == ["5", "10"]


def test_resume_on_other_photographs_is_refused(folder, tmp_path):
    with pytest.raises(KilledError):
        begin(spec_for(folder), tmp_path / "run").train(kill_at(2))
    (tmp_path / "others").mkdir()
    others = write_photographs(tmp_path / "others", 5)
    with pytest.raises(TrainingError, match="photographs are not those"):
        begin(spec_for(others), tmp_path / "run", resume=True)


def test_damaged_checkpoint_is_named(folder, tmp_path):
    with pytest.raises(KilledError):
        begin(spec_for(folder), tmp_path).train(kill_at(2))
    (tmp_path / "last.safetensors").write_bytes(b"rubbish")
    with pytest.raises(TrainingError, match=r"last\.safetensors is no checkpoint"):
        begin(spec_for(folder), tmp_path, resume=True)


def test_loss_that_is_not_finite_stops_the_run_and_keeps_its_batch(folder, tmp_path):
    run = begin(spec_for(folder), tmp_path)

    def poison(step, row):
        if step == 3:
            with torch.no_grad():
                run.learner.trainee.network.conv.weight.fill_(float("nan"))

    with pytest.raises(TrainingError, match="the loss is nan at step 3, its batch is in") as error:
        run.train(poison)
    batch = load_file(tmp_path / "bad-batch-3.safetensors")
    assert str(tmp_path / "bad-batch-3.safetensors") in error.value.message
    assert batch["degraded"].shape == batch["clean"].shape == (2, 3, 16, 16)
    state, progress = checkpoint.load(tmp_path / "last.safetensors")
    assert progress.step == 3
    assert all(torch.isfinite(value).all() for value in state["weights"].values())


def test_full_disk_stops_the_run_and_keeps_the_previous_checkpoint(folder, tmp_path, monkeypatch):
    spec = spec_for(folder)
    whole = begin(spec, tmp_path / "whole")
    whole.train()
    real = checkpoint.save_file

    def full(tensors, path, facts):
        _, progress = checkpoint.load(tmp_path / "run" / "last.safetensors")
        if progress.step == 2:
            path.write_bytes(b"the first half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, facts)

    with pytest.raises(KilledError):
        begin(spec, tmp_path / "run").train(kill_at(1))
    run = begin(spec, tmp_path / "run", resume=True)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full)
        with pytest.raises(TrainingError, match=r"last\.safetensors cannot be written: No space left"):
            run.train()
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    resumed = begin(spec, tmp_path / "run", resume=True)
    assert resumed.progress.step == 2
    resumed.train()
    assert same(weights_of(whole), weights_of(resumed))


def test_disk_that_fills_up_for_real_keeps_the_previous_checkpoint(folder, tmp_path):
    run = begin(spec_for(folder, save_every=100), tmp_path)
    run.train()
    before = (tmp_path / "last.safetensors").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(TrainingError, match=r"last\.safetensors cannot be written"):
            run._save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "last.safetensors").read_bytes() == before
    assert begin(spec_for(folder, save_every=100), tmp_path, resume=True).progress.step == 10


def test_average_follows_the_weights_from_the_start(folder, tmp_path):
    stages = [{"steps": 40, "patch": 16, "batch": 1}]
    run = begin(
        spec_for(folder, optimizer={"lr": 1e-2, "warmup": 0}, stages=stages, validate_every=40), tmp_path
    )
    start = weights_of(run)["backbone.conv.weight"]
    run.train()
    end, average = weights_of(run)["backbone.conv.weight"], run.learner.average.values["backbone.conv.weight"]
    assert (average - end).norm() < 0.5 * (end - start).norm()


def test_run_without_average_measures_the_weights_alone(folder, tmp_path):
    begin(spec_for(folder, ema=0), tmp_path).train()
    assert {"val_sigma25"} <= curve(tmp_path)[0].keys()
    assert not [name for name in curve(tmp_path)[0] if name.startswith("ema_")]


def test_batch_that_is_taken_in_parts_gives_the_same_weights(folder, tmp_path):
    stages = [{"steps": 5, "patch": 16, "batch": 4}]
    runs = []
    for parts in (1, 4):
        run = begin(spec_for(folder, stages=stages, accumulate=parts), tmp_path / str(parts))
        run.train()
        runs.append(weights_of(run))
    for name, value in runs[0].items():
        torch.testing.assert_close(value, runs[1][name], rtol=1e-4, atol=1e-6)


def test_bf16_learns_and_keeps_weights_in_float32(folder, tmp_path):
    stages = [{"steps": 60, "patch": 32, "batch": 4}]
    spec = spec_for(folder, stages=stages, precision="bf16", optimizer={"lr": 1e-2}, validate_every=20)
    run = begin(spec, tmp_path)
    run.train()
    assert {value.dtype for value in weights_of(run).values()} == {torch.float32}
    assert run.progress.rows[-1]["loss"] < run.progress.rows[0]["loss"]


def test_best_weights_are_those_of_the_best_validation(folder, tmp_path):
    # A rate that grows without end spoils the weights after the first validation.
    spec = spec_for(
        folder, optimizer={"lr": 30.0, "warmup": 1000}, validate_every=3, export="best", ema=0, half=False
    )
    run = begin(spec, tmp_path)
    seen = {}
    run.train(lambda step, row: seen.setdefault(step, weights_of(run)))
    rows = [
        (row["val_sigma15"] + row["val_sigma25"] + row["val_sigma50"], row["step"])
        for row in run.progress.rows
    ]
    best = int(max(rows)[1])
    assert best == run.progress.best_step < 10
    result = load_file(tmp_path / "weights.safetensors")
    assert torch.equal(result["conv.weight"], seen[best]["backbone.conv.weight"])


def test_weights_beyond_16_bits_are_stored_in_32(folder, tmp_path):
    run = begin(spec_for(folder), tmp_path)
    with torch.no_grad():
        run.learner.trainee.network.conv.bias[0] = 1e6
    run._write_weights(tmp_path / "weights.safetensors", averaged=False)
    stored = load_file(tmp_path / "weights.safetensors")
    assert stored["conv.bias"].dtype == torch.float32 and stored["conv.weight"].dtype == torch.float16


def test_tensorboard_gets_figures_and_pictures(folder, tmp_path):
    pytest.importorskip("tensorboard")
    begin(spec_for(folder, tensorboard=True), tmp_path).train()
    (events,) = (tmp_path / "board").iterdir()
    content = events.read_bytes()
    assert all(name in content for name in (b"ema/sigma25", b"loss", b"validation"))


def test_folder_of_a_run_is_read_back(folder, tmp_path):
    spec = spec_for(folder, validate_every=5)
    run = begin(spec, tmp_path)
    weights = run.train()
    record = read_run(tmp_path)
    assert record.spec == spec and record.finished and record.weights == weights
    assert [row["step"] for row in record.curve] == [5, 10]
    assert record.environment["versions"]["torch"] == torch.__version__
    assert record.environment["versions"]["acme-learners"] == "1.0"
    assert record.data_sha256 == run.source.sha256
    assert len(record.data_names["trained"]) == 3 and len(record.data_names["held_out"]) == 1


def test_run_that_is_not_done_offers_its_best_weights(folder, tmp_path):
    with pytest.raises(KilledError):
        begin(spec_for(folder, validate_every=5), tmp_path).train(kill_at(7))
    record = read_run(tmp_path)
    assert record.weights == tmp_path / "best.safetensors" and not record.finished


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="no folder of a run"):
        read_run(tmp_path)


def test_command_trains_refuses_to_overwrite_and_resumes(folder, tmp_path, run):
    config, output = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(document(folder)))
    code, out, err = run(
        "train", config, "-o", output, "--device", "cpu", "--set", "stages=[{steps: 2, patch: 16, batch: 1}]"
    )
    assert code == 0 and out.strip() == str(output / "weights.safetensors"), err
    assert "forward+backward" in err
    code, _, err = run("train", config, "-o", output, "--device", "cpu")
    assert code == 2 and "holds a run already" in err
    code, out, _ = run("train", output, "--resume", "--device", "cpu")
    assert code == 0 and out.strip() == str(output / "weights.safetensors")


def test_component_ref_of_the_config_is_in_the_metadata(folder, tmp_path):
    backbone = ComponentRef(name="learner", params={"dropout": 0.5})
    weights = begin(spec_for(folder, backbone=backbone), tmp_path).train()
    with safe_open(weights, "pt") as file:
        assert file.metadata()["restorekit.params"] == '{"dropout": 0.5}'
