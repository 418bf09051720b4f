import csv
import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from restorekit.datasets import Sample
from restorekit.evaluation import learned
from restorekit.evaluation.page import Page, error_map
from restorekit.evaluation.run import Outcome

FACTS = {
    "pipeline": "p",
    "protocol": "q",
    "settings": {"sigma": 9},
    "per_image": [{"psnr": 1}],
    "psnr": 1,
    "degraded": {},
}


@pytest.fixture
def pairs(tmp_path):
    random = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        clean = random.integers(30, 226, (24, 32, 3), dtype=np.uint8)
        for side, levels in (("target", clean), ("input", clean // 2)):
            folder = tmp_path / "pairs" / side
            folder.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(levels).save(folder / f"{name}.png")
    return tmp_path / "pairs"


@pytest.fixture
def brighter(strangers, tmp_path):
    """A pipeline that doubles the brightness."""
    path = tmp_path / "brighter.yaml"
    path.write_text("steps:\n  - restore: {name: gain, params: {gain: 2}}\n")
    return path


def test_pairs_are_measured_and_the_protocol_is_printed(run, pairs, brighter):
    code, out, err = run("eval", "--data", pairs, "-p", brighter)
    assert code == 0, err
    assert "protocol paired-rgb, 3 images of" in out and re.search(r"psnr\s+\d\d?\.\d\d\s+\d\d\.\d\d", out)
    assert "3 pairs of" in err and "input -> target, as a.png -> a.png" in err


def test_json_has_the_figures_at_its_top(run, pairs, brighter):
    code, out, _ = run("eval", "--data", pairs, "-p", brighter, "--protocol", "gopro-rgb", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["psnr"] > 45 and facts["ssim"] > 0.99 and facts["ssim_3d"] > 0.99
    assert facts["degraded"]["psnr"] < 15
    assert facts["protocol"] == "gopro-rgb" and facts["layout"] == "input -> target"
    assert facts["versions"].keys() >= {"python", "restorekit", "torch"}
    assert facts["device"] and facts["dtype"] and facts["tile"] == 0 and len(facts["dataset_sha256"]) == 64


def test_what_priors_say_is_kept_for_the_next_evaluation(run, pairs, strangers, tmp_path, monkeypatch):
    import strangers as components

    monkeypatch.setattr(components.Brightness, "fingerprint", "one", raising=False)
    path = tmp_path / "blend.yaml"
    path.write_text("steps:\n  - refine: {name: blend, prior: brightness}\n")
    kept = tmp_path / "features"
    first = run("eval", "--data", pairs, "-p", path, "--features", kept, "--json")
    assert first[0] == 0 and len(list(kept.rglob("*.safetensors"))) == 3, first
    monkeypatch.setattr(components.Brightness, "forward", lambda self, image: pytest.fail("asked again"))
    second = run("eval", "--data", pairs, "-p", path, "--features", kept, "--json")
    assert second[0] == 0 and json.loads(second[1])["psnr"] == json.loads(first[1])["psnr"]


def test_csv_has_a_line_an_image(run, pairs, brighter, tmp_path):
    code, _, _ = run("eval", "--data", pairs, "-p", brighter, "--csv", tmp_path / "figures.csv")
    rows = list(csv.DictReader((tmp_path / "figures.csv").read_text().splitlines()))
    assert code == 0 and [row["image"] for row in rows] == ["a.png", "b.png", "c.png"]
    assert float(rows[0]["psnr"]) > float(rows[0]["psnr_degraded"])


def test_page_holds_everything_it_shows(run, pairs, brighter, tmp_path):
    page = tmp_path / "page.html"
    code, _, err = run("eval", "--data", pairs, "-p", brighter, "--html", page, "--html-images", 2)
    assert code == 0, err
    text = page.read_text()
    assert text.count('<figure class="image"') == 2 and "1 images with a higher PSNR" in text
    assert text.count("data:image/webp;base64,") == 8
    assert not re.search(r'(src|href)="http', text) and "{{" not in text
    assert "paired-rgb" in text and "dataset_sha256" in text


def test_page_shows_the_worst_first():
    page, black = Page(2), np.zeros((4, 4, 3), np.float32)
    for name, figure in {"good": 40.0, "bad": 10.0, "fair": 20.0}.items():
        sample = Sample(name, Path(name))
        page.add(Outcome(sample, black, black, black, {"psnr": figure}, {}, 0.1))
    text = page.render(FACTS)
    assert text.index("bad") < text.index("fair") and "good" not in text


def test_metric_of_a_stranger_is_measured_beside(run, pairs, strangers):
    code, out, err = run("eval", "--data", pairs, "-m", "gain", "--metric", "brightness", "--json")
    facts = json.loads(out)
    assert code == 0 and 0.2 < facts["brightness"] < 0.3, err
    assert facts["per_image"][0]["brightness"] == pytest.approx(facts["brightness"], abs=0.05)
    assert facts["degraded"]["brightness"] == facts["brightness"]


def test_names_in_the_page_are_escaped():
    black = np.zeros((4, 4, 3), np.float32)
    page = Page(1)
    page.add(Outcome(Sample("<script>x", Path("x")), black, black, black, {"psnr": 1.0}, {}, 0.1))
    text = page.render({**FACTS, "pipeline": "<b>"})
    assert "<script>x" not in text and "&lt;script&gt;x" in text and "<title>&lt;b&gt;, q sigma=9" in text


def test_error_map_is_black_without_error_and_brightest_at_the_limit():
    clean = np.zeros((1, 2, 3))
    restored = np.array([[[0, 0, 0], [32 / 255] * 3]])
    assert error_map(clean, restored).tolist() == [[[0, 0, 0], [255, 255, 200]]]


def test_named_sets_bring_their_protocol_and_tell_what_is_missing(run, pairs, brighter, tmp_path):
    pairs.rename(tmp_path / "Rain100H")
    code, out, err = run("eval", "--dataset", "rain100h", "--data-root", tmp_path, "-p", brighter)
    assert code == 0 and "protocol rain13k-y" in out and "rain100h has 3 of 100 images" in err


def test_one_backbone_is_measured_by_its_name(run, pairs, strangers):
    code, out, _ = run("eval", "--data", pairs, "-m", "gain")
    assert code == 0 and "pipeline gain" in out


@pytest.mark.parametrize("kind", ["rain", "gaussian/severe"])
def test_degrading_on_the_fly_gives_the_figures_of_degraded_files(run, pairs, brighter, tmp_path, kind):
    name, _, strength = kind.partition("/")
    clean, made = pairs / "target", tmp_path / "made"
    words = ("-k", name, "--strength", strength or "medium", "--seed", 5)
    code, _, err = run("degrade", clean, "-o", made / "input", *words)
    assert code == 0, err
    clean.rename(made / "target")
    _, out, _ = run("eval", "--data", made, "-p", brighter, "--json")
    files = json.loads(out)
    words = ("--data", made / "target", "--degrade", kind, "--seed", 5)
    code, out, err = run("eval", *words, "-p", brighter, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["protocol"] == files["protocol"] == "paired-rgb", err
    assert facts["psnr"] == files["psnr"] and facts["degraded"] == files["degraded"]
    assert facts["degradation"]["name"] == name and facts["seed"] == 5


def test_clean_images_are_degraded_by_a_recipe_of_a_file(run, pairs, brighter, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("chain:\n  - {name: gaussian_blur, std: [1, 2]}\n  - {name: jpeg, quality: 40}\n")
    words = ("--data", pairs / "target", "--protocol", "gopro-rgb", "--degrade", recipe)
    code, out, err = run("eval", *words, "-p", brighter)
    assert code == 0 and "protocol gopro-rgb, 3 images" in out, err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--data", "PAIRS/target", "--degrade", "ran"), "no degradation called 'ran'"),
        (("--data", "PAIRS/target", "--degrade", "rain/wild"), "no strength called 'wild'"),
        (
            ("--data", "PAIRS", "--degrade", "rain", "--protocol", "restormer-gaussian-color"),
            "degrades by itself",
        ),
        ((), "needs either --data or --dataset"),
        (("--data", "PAIRS", "--dataset", "set5"), "needs either --data or --dataset"),
        (("--data", "PAIRS", "--protocol", "rain"), "no protocol called 'rain'"),
        (("--data", "PAIRS", "--set", "sigma=9"), "paired-rgb has no setting 'sigma'"),
        (("--data", "PAIRS/target", "--protocol", "gopro-rgb"), "needs pairs of degraded and clean images"),
        (("--data", "PAIRS", "--metric", "beauty"), "no metric called 'beauty'"),
        (("--data", "PAIRS", "--layout", "a:b"), "does not name two folders"),
        (("--dataset", "set6"), "no dataset called 'set6'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_two_lines(run, pairs, brighter, words, says):
    given = [str(word).replace("PAIRS", str(pairs)) for word in words]
    code, out, err = run("eval", *given, "-p", brighter)
    assert code == 2 and says in err and err.count("error:") == 1 and not out


@pytest.mark.parametrize("option", ["--csv", "--html"])
def test_a_report_that_cannot_be_written_is_refused_before_the_work(run, pairs, brighter, tmp_path, option):
    (tmp_path / "file").touch()
    code, out, err = run("eval", "--data", pairs, "-p", brighter, option, tmp_path / "file" / "report")
    assert code == 2 and "file" in err and not out


def test_files_without_partner_are_refused(run, pairs, brighter):
    (pairs / "target" / "a.png").unlink()
    code, _, err = run("eval", "--data", pairs, "-p", brighter)
    assert code == 2 and "1 files have no partner" in err and "a.png" in err


def test_pairs_of_different_size_are_refused_by_name(run, pairs, brighter):
    PIL.Image.new("RGB", (16, 16)).save(pairs / "input" / "b.png")
    code, _, err = run("eval", "--data", pairs, "-p", brighter)
    assert code == 2 and "b.png: the degraded image is 16 x 16, the clean one 32 x 24" in err


def test_reports_of_one_protocol_are_averaged_and_others_refused(run, pairs, brighter, tmp_path):
    for name, words in {"a": (), "b": (), "c": ("--protocol", "lol-rgb")}.items():
        _, out, _ = run("eval", "--data", pairs, "-p", brighter, "--json", *words)
        (tmp_path / f"{name}.json").write_text(out)
    code, out, err = run("average", tmp_path / "a.json", tmp_path / "b.json")
    assert code == 0 and "protocol paired-rgb, 2 datasets" in out, err
    code, out, err = run("average", tmp_path / "a.json", tmp_path / "c.json")
    assert code == 2 and "paired-rgb and lol-rgb" in err and not out
    (tmp_path / "d.json").write_text("{}")
    code, _, err = run("average", tmp_path / "d.json")
    assert code == 2 and "is no report" in err


def test_protocols_are_listed_with_their_source(run):
    code, out, _ = run("protocols")
    assert code == 0 and "rain13k-y" in out and "sr-y-crop scale=4" in out
    code, out, _ = run("protocols", "--json")
    assert {each["name"] for each in json.loads(out)} >= {"sidd-rgb", "dpdd-rgb", "allinone-rgb"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Torch's hub folder, empty; no network is asked."""
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    learned._network.cache_clear()
    yield tmp_path / "hub" / "checkpoints"
    learned._network.cache_clear()


@pytest.mark.parametrize(("metric", "file"), [("lpips", "alexnet-owt"), ("dists", "vgg16")])
def test_learned_metrics_name_the_file_they_need_offline(run, pairs, brighter, hub, metric, file):
    code, _, err = run("eval", "--data", pairs, "-p", brighter, "--metric", metric)
    assert code == 2 and f"metric {metric} needs" in err and file in err and str(hub) in err


def test_learned_distance_is_measured_with_a_file_of_the_hub_folder(hub):
    from torchvision.models import alexnet

    torch.manual_seed(0)
    hub.mkdir(parents=True)
    torch.save(alexnet(weights=None).state_dict(), hub / "alexnet-owt-7be5be79.pth")
    clean = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    near, far = (np.clip(clean + np.random.default_rng(1).normal(0, s, clean.shape), 0, 255) for s in (5, 50))
    assert learned.lpips(clean, clean) == pytest.approx(0, abs=1e-6)
    assert 0 < learned.lpips(clean, near) < learned.lpips(clean, far)
    floats = learned.lpips(clean / 255, near / 255, peak=1.0)
    assert floats == pytest.approx(learned.lpips(clean, near), abs=1e-5)


def test_pyiqa_is_asked_for_by_its_own_names(run, pairs, brighter):
    try:
        import pyiqa  # noqa: F401
    except ImportError:
        code, _, err = run("eval", "--data", pairs, "-p", brighter, "--metric", "pyiqa:niqe")
        assert code == 2 and "needs pyiqa" in err and "restorekit[iqa]" in err
    else:
        pytest.skip("pyiqa is installed; its metrics need weights that are not here")
