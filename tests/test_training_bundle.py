import json

import pytest
import yaml
from PIL import Image
from training_cases import document, install, write_photographs

from restorekit.training.folder import read_run


@pytest.fixture
def trained(tmp_path, monkeypatch, run):
    """Train for some steps; return the folder of the run and that of its photographs."""
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "site").mkdir()
    monkeypatch.syspath_prepend(str(install(tmp_path / "site")))
    (tmp_path / "photographs").mkdir()
    photographs = write_photographs(tmp_path / "photographs")
    config, folder = tmp_path / "tiny.yaml", tmp_path / "run"
    facts = document(photographs, description="A tiny network for tests")
    config.write_text(yaml.safe_dump({**facts, "backbone": {"name": "learner", "params": {"dropout": 0.1}}}))
    code, _, err = run("train", config, "-o", folder, "--device", "cpu")
    assert code == 0, err
    return folder, photographs


def evaluated(run, weights, photographs, target, sigma=25):
    words = ("--data", photographs, "-m", f"learner/{weights}", "--set", f"sigma={sigma}", "--json")
    code, out, err = run("eval", *words)
    assert code == 0, err
    target.write_text(out)
    return json.loads(out)


def test_run_becomes_weights_that_restore_and_a_card_with_measured_figures(run, trained, tmp_path):
    folder, photographs = trained
    facts = evaluated(run, read_run(folder).weights, photographs, tmp_path / "report.json")
    target = tmp_path / "bundle" / "tiny.safetensors"
    words = ("--license", "Apache-2.0", "--report", tmp_path / "report.json")
    code, out, err = run("weights", "convert", folder, "-o", target, *words)
    assert code == 0 and str(target) in out and str(target.with_suffix(".md")) in out, err
    card = target.with_suffix(".md").read_text()
    assert "A tiny network for tests" in card and "license: apache-2.0" in card
    row = f"| photographs | 4 | `restormer-gaussian-color` sigma=25 | psnr | {facts['degraded']['psnr']:.4g} "
    assert f"{row}| {facts['psnr']:.4g} |" in card
    assert read_run(folder).data_sha256 in card and "on 3 photographs; 1 more were held out" in card
    assert "name: learner" in card and "84 parameters" in card
    # The bundle knows its own arguments, and gives the figures of its card.
    again = evaluated(run, target, photographs, tmp_path / "again.json")
    assert again["psnr"] == facts["psnr"]
    Image.new("RGB", (20, 20), (90, 90, 90)).save(tmp_path / "photo.png")
    words = ("-o", tmp_path / "restored.png", "-m", f"learner/{target}", "--json")
    code, out, _ = run("restore", tmp_path / "photo.png", *words)
    assert code == 0 and "Apache-2.0" in out


def test_report_of_other_weights_is_refused(run, trained, tmp_path):
    folder, photographs = trained
    report = tmp_path / "report.json"
    facts = evaluated(run, read_run(folder).weights, photographs, report)
    report.write_text(json.dumps({**facts, "weights_sha256": {"other": "0" * 64}}))
    target = tmp_path / "tiny.safetensors"
    code, _, err = run("weights", "convert", folder, "-o", target, "--license", "MIT", "--report", report)
    assert code == 2 and "was made with other weights" in err
    assert not target.exists() and not target.with_suffix(".md").exists()


def test_card_without_reports_says_so(run, trained, tmp_path):
    target = tmp_path / "tiny.safetensors"
    code, _, err = run("weights", "convert", trained[0], "-o", target, "--license", "MIT")
    assert code == 0 and "the card has no figures" in err
    assert "Not measured" in target.with_suffix(".md").read_text()


def test_card_that_exists_is_kept(run, trained, tmp_path):
    target = tmp_path / "tiny.safetensors"
    target.with_suffix(".md").write_text("mine")
    words = ("weights", "convert", trained[0], "-o", target, "--license", "MIT")
    code, _, err = run(*words)
    assert code == 2 and "tiny.md exists" in err and not target.exists()
    assert target.with_suffix(".md").read_text() == "mine"
    assert run(*words, "--overwrite")[0] == 0 and "mine" not in target.with_suffix(".md").read_text()


def test_licence_has_to_be_given(run, trained, tmp_path):
    code, _, err = run("weights", "convert", trained[0], "-o", tmp_path / "tiny.safetensors")
    assert code == 2 and "--license" in err


def test_folder_without_a_run_is_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    words = ("-o", tmp_path / "tiny.safetensors", "--license", "MIT")
    code, _, err = run("weights", "convert", tmp_path / "empty", *words)
    assert code == 2 and "is no folder of a run" in err


def test_report_belongs_to_a_run(run, tmp_path):
    (tmp_path / "net.pth").touch()
    words = ("-o", tmp_path / "net.safetensors", "--report", tmp_path / "report.json")
    code, _, err = run("weights", "convert", tmp_path / "net.pth", *words)
    assert code == 2 and "give the folder of the run" in err
