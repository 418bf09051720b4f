import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from restorekit.image import Image

LEVELS = np.random.default_rng(0).integers(0, 256, (24, 31, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "inner/b.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(LEVELS).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def test_one_file_is_restored(run, photo, tmp_path):
    code, out, err = run("restore", photo, "-o", tmp_path / "out.png", "-p", "median")
    assert code == 0, err
    assert "out.png" in out
    with PIL.Image.open(tmp_path / "out.png") as restored:
        assert restored.size == (31, 24)


def test_version_is_printed(run):
    assert run("--version")[:2] == (0, f"{version('restorekit')}\n")


def test_folder_is_restored_in_its_structure(run, folder, tmp_path):
    code, _, err = run("restore", folder, "-o", tmp_path / "out", "-p", "median", "-r", "--suffix", "-clean")
    assert code == 0, err
    found = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert found == ["a-clean.png", "inner/b-clean.jpg"]


def test_json_on_stdout_and_nothing_else(run, photo, tmp_path):
    code, out, _ = run(
        "restore", "-i", photo, "-o", tmp_path / "o.png", "-p", "median", "--json", "--set", "1.window=5"
    )
    (record,) = json.loads(out)
    assert code == 0
    assert record["output"] == str(tmp_path / "o.png")
    assert record["steps"][0]["parameters"] == {"window": 5}


def test_one_model_can_be_named_instead_of_a_pipeline(run, photo, tmp_path):
    code, out, err = run("restore", photo, "-o", tmp_path, "-m", "nafnet/denoise", "--suffix", "-1", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["steps"][0]["weights"] == "nafnet/denoise"
    code, _, err = run("restore", photo, "-o", tmp_path, "-m", "nafnet/denois", "--suffix", "-2")
    assert code == 2 and "did you mean 'denoise'?" in err


def test_format_depth_and_metadata_are_chosen(run, tmp_path):
    source = PIL.Image.fromarray(LEVELS)
    source.save(tmp_path / "photo.png", dpi=(300, 300))
    words = ("restore", tmp_path / "photo.png", "-o", tmp_path / "out", "-p", "median")
    assert run(*words, "--format", "webp", "--quality", "80")[0] == 0
    assert run(*words, "--bit-depth", "16", "--suffix", "-deep")[0] == 0
    assert run(*words, "--metadata", "strip", "--suffix", "-bare")[0] == 0
    assert Image.of(tmp_path / "out" / "photo-deep.png").depth == "uint16"
    with PIL.Image.open(tmp_path / "out" / "photo.webp") as image:
        assert image.format == "WEBP"
    for name, kept in (("photo-deep.png", True), ("photo-bare.png", False)):
        with PIL.Image.open(tmp_path / "out" / name) as image:
            assert ("dpi" in image.info) is kept


def test_dry_run_writes_nothing(run, folder, tmp_path):
    code, out, _ = run("restore", folder, "-o", tmp_path / "out", "-p", "median", "-r", "--dry-run")
    assert code == 0 and len(out.splitlines()) == 2 and " -> " in out
    assert not (tmp_path / "out").exists()


def test_comparison_is_written_beside(run, photo, tmp_path):
    code, _, err = run("restore", photo, "-o", tmp_path / "o.png", "-p", "median", "--compare")
    assert code == 0, err
    with PIL.Image.open(tmp_path / "o.compare.png") as picture:
        assert picture.width > 2 * 31


def test_existing_output_is_refused_and_kept(run, photo, tmp_path):
    (tmp_path / "o.png").write_text("precious")
    code, _, err = run("restore", photo, "-o", tmp_path / "o.png", "-p", "median")
    assert code == 2 and "exists" in err and "--overwrite" in err
    assert (tmp_path / "o.png").read_text() == "precious"
    assert run("restore", photo, "-o", tmp_path / "o.png", "-p", "median", "--skip-existing")[0] == 0
    assert (tmp_path / "o.png").read_text() == "precious"
    assert run("restore", photo, "-o", tmp_path / "o.png", "-p", "median", "--overwrite")[0] == 0
    with PIL.Image.open(tmp_path / "o.png") as restored:
        assert restored.size == (31, 24)


def test_one_bad_input_does_not_stop_the_others(run, folder, tmp_path):
    (folder / "broken.png").write_text("this is text")
    (folder / "empty.png").touch()
    code, out, err = run("restore", folder, "-o", tmp_path / "out", "-p", "median", "--json")
    assert code == 3
    assert "broken.png" in err and "empty.png" in err and "2 of 3 inputs failed" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    assert [("error" in record) for record in json.loads(out)] == [False, True, True]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["restore", "missing.png"], "missing.png does not exist"),
        (["restore"], "no input"),
        (["restore", "PHOTO", "-p", "denois"], "did you mean 'denoise'?"),
        (["restore", "PHOTO", "-p", "median", "--set", "median.widow=3"], "did you mean 'window'?"),
        (["restore", "PHOTO", "-p", "median", "--device", "gpu"], "gpu"),
        (["restore", "PHOTO", "-p", "median", "--dtype", "int8"], "int8"),
        (["restore", "PHOTO", "-p", "median", "-t", "big"], "expected auto or a number"),
        (["restore", "PHOTO", "-p", "median", "-o", "out.xyz/"], None),
        (["info", "medan"], "did you mean 'median'?"),
        (["list", "backbon"], "did you mean 'backbone'?"),
        (["plan", "nothing"], "presets: "),
        (["eval", "--data", "nowhere"], "is no folder"),
        (["eval", "--data", ".", "--protocol", "psnr"], "known: restormer-gaussian-color"),
        (["train", "nowhere.yaml"], "no such file"),
    ],
)
def test_wrong_requests_end_in_two_lines_and_exit_code_2(run, photo, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = run(*[str(photo) if word == "PHOTO" else word for word in words])
    if says is None:
        assert code == 0
        return
    assert code == 2
    assert says in err and err.startswith("error: ") and "Traceback" not in err
    assert len(err.strip().splitlines()) <= 2
    assert not list(tmp_path.glob("**/.*"))


def test_text_file_called_png_is_one_error(run, tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    code, _, err = run("restore", tmp_path / "text.png", "-o", tmp_path / "o.png", "-p", "median")
    assert code == 2 and err.count("error: ") == 1 and "text.png" in err
    assert not (tmp_path / "o.png").exists()


def test_folder_that_cannot_be_written_is_refused_before_anything_runs(run, photo, tmp_path):
    (tmp_path / "file").touch()
    code, _, err = run("restore", photo, "-o", tmp_path / "file" / "inner", "-p", "median")
    assert code == 2 and "cannot be written to" in err


def test_list_shows_every_kind(run):
    code, out, _ = run("list", "--json")
    rows = {(row["kind"], row["name"]) for row in json.loads(out)}
    assert code == 0
    assert {("backbone", "median"), ("backbone", "nafnet"), ("weights", "nafnet/denoise")} <= rows
    assert ("pipeline", "denoise") in rows
    assert all(
        kind == "backbone"
        for kind, _ in {(r["kind"], 0) for r in json.loads(run("list", "backbones", "--json")[1])}
    )


@pytest.mark.parametrize("name", ["median", "nafnet", "nafnet/denoise", "denoise"])
def test_info_shows_one_thing(run, name):
    code, out, err = run("info", name)
    assert code == 0, err
    assert name in out
    assert json.loads(run("info", name, "--json")[1])


def test_plan_shows_weights_licences_parameters_and_memory(run):
    code, out, err = run("plan", "denoise", "--json")
    assert code == 0, err
    facts = json.loads(out)
    (part,) = facts["parts"]
    assert facts["licences"] == ["Apache-2.0"]
    assert (
        part["parameters"] == 676_211 and part["memory_per_pixel"] > 0 and len(part["weights_sha256"]) == 64
    )
    built = json.loads(run("plan", "denoise", "--build", "--json")[1])["parts"][0]
    assert {**built, "memory_per_pixel": 0} == {**part, "memory_per_pixel": 0}
    assert "676,211" in run("plan", "denoise")[1]


def test_schema_is_json(run):
    code, out, _ = run("schema")
    assert code == 0 and json.loads(out)["properties"]["steps"]


def test_doctor_finds_nothing_wrong_here(run):
    code, out, err = run("doctor", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["problems"] == [], err
    assert facts["versions"]["torch"] and "cpu" in facts["devices"]


def test_eval_prints_the_protocol_with_the_figure(run, folder, tmp_path):
    words = ["eval", "-p", "median", "--data", folder, "--set", "sigma=15", "--set", "median.window=3"]
    code, out, err = run(*words, "--csv", tmp_path / "figures.csv")
    assert code == 0, err
    assert "restormer-gaussian-color sigma=15" in out
    header = "image,psnr,ssim,psnr_degraded,ssim_degraded,seconds"
    assert (tmp_path / "figures.csv").read_text().startswith(f"{header}\na.png,")
    facts = json.loads(run(*words, "--json")[1])
    assert 5 < facts["psnr"] < 60 and facts["protocol"] == "restormer-gaussian-color"


def test_train_from_a_config_resumes_and_refuses_to_start_over(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for index in range(2):
        PIL.Image.fromarray(LEVELS).resize((160, 150)).save(tmp_path / "photos" / f"{index}.png")
    (tmp_path / "tiny.yaml").write_text(
        "backbone:\n"
        "  name: nafnet\n"
        "  params: {width: 2, encoder_blocks: [1], middle_blocks: 1, decoder_blocks: [1]}\n"
        "data: {folder: photos, hold_out: 1}\n"
        "stages: [{steps: 2, patch: 16, batch: 1}]\n"
    )
    code, out, err = run("train", "tiny.yaml")
    assert code == 0, err
    assert Path(out.strip()).as_posix() == "runs/tiny/weights.safetensors" and Path(out.strip()).exists()
    code, _, err = run("train", "tiny.yaml")
    assert code == 2 and "--resume" in err
    assert run("train", "tiny.yaml", "--resume")[0] == 0
    code, _, err = run("train", "tiny.yaml", "--set", "optimiser.lr=1")
    assert code == 2 and "did you mean 'optimizer'?" in err
    code, _, err = run("train", "tiny.yaml", "-o", "other", "--set", "backbone.params.widht=4")
    assert code == 2 and "did you mean 'width'?" in err


def test_installed_command_runs():
    command = Path(sys.executable).with_name("restorekit")
    shown = subprocess.run([command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(
        name in shown for name in ("restore", "list", "info", "plan", "schema", "doctor", "eval", "train")
    )


def test_restore_prints_what_was_found(strangers, photo, tmp_path, run):
    code, out, err = run("restore", photo, "-o", tmp_path / "out.png", "-m", "judge", "-q")
    assert code == 0, err
    assert re.search(r"out\.png   \d\.\d s   (dark|bright) 5\d %\n", out)
