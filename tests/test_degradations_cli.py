"""``restorekit degrade`` end to end."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import yaml

from restorekit.config import check
from restorekit.degradations import COMPOSITIONS, KINDS, RecipeSpec


def opened(path):
    with PIL.Image.open(path) as image:
        image.load()
        return image


def levels(path):
    return np.asarray(opened(path))


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "clean" / "inner").mkdir(parents=True)
    for name in ("a.png", "b.png", "inner/c.jpg"):
        pixels = random.integers(60, 190, (40, 52, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(tmp_path / "clean" / name)
    return tmp_path / "clean"


@pytest.mark.parametrize("kind", [*KINDS, *COMPOSITIONS])
def test_every_kind_writes_an_image(run, photo, tmp_path, kind):
    code, out, err = run("degrade", photo, "-o", tmp_path / "out.png", "--kind", kind, "--device", "cpu")
    assert code == 0 and "error" not in err and out.startswith(str(tmp_path / "out.png"))
    smaller = (31 // 3, 24 // 3)
    assert opened(tmp_path / "out.png").size == (smaller if kind == "downscale" else (31, 24))
    assert (kind == "clean") == np.array_equal(levels(photo), levels(tmp_path / "out.png"))


def test_a_folder_is_degraded_with_its_structure_and_recorded(run, folder, tmp_path):
    words = (
        "degrade",
        folder,
        "-r",
        "-o",
        tmp_path / "out",
        "-k",
        "gaussian",
        "--set",
        "sigma=[5, 50]",
        "--json",
    )
    code, out, _ = run(*words)
    records = json.loads(out)
    assert code == 0 and [record["output"] for record in records] == [
        str(tmp_path / "out" / name) for name in ("a.png", "b.png", "inner/c.png")
    ]
    sigmas = [record["degradations"][0]["params"]["sigma"] for record in records]
    assert len(set(sigmas)) == 3 and all(5 <= sigma <= 50 for sigma in sigmas)
    noise = levels(tmp_path / "out" / "a.png").astype(float) - levels(folder / "a.png")
    assert noise.std() == pytest.approx(sigmas[0], rel=0.05)


def test_an_image_is_degraded_alike_alone_and_in_company(run, folder, tmp_path):
    for seed in ("0", "1"):
        run("degrade", folder, "-o", tmp_path / f"all{seed}", "-k", "rain", "--seed", seed)
        run("degrade", folder / "b.png", "-o", tmp_path / f"one{seed}.png", "-k", "rain", "--seed", seed)
        assert np.array_equal(levels(tmp_path / f"all{seed}/b.png"), levels(tmp_path / f"one{seed}.png"))
    assert not np.array_equal(levels(tmp_path / "one0.png"), levels(tmp_path / "one1.png"))


def test_a_recipe_file_is_followed(run, photo, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("chain:\n- {name: gaussian_blur, std: 1}\n- {name: gaussian, sigma: [2, 4]}\n")
    code, out, _ = run("degrade", photo, "-o", tmp_path / "out", "--recipe", recipe, "--json")
    steps = json.loads(out)[0]["degradations"]
    assert code == 0 and [step["name"] for step in steps] == ["gaussian_blur", "gaussian"]
    recipe.write_text("chain:\n- {name: gaussian_blur, sdt: 1}\n")
    code, _, err = run("degrade", photo, "-o", tmp_path / "other", "--recipe", recipe)
    said, hint = "gaussian_blur has no parameter 'sdt'", "did you mean 'std'?"
    assert code == 2 and err == f"error: recipe.yaml: chain[0].sdt: {said}\n  hint: {hint}\n"


def test_strengths_differ(run, photo, tmp_path):
    errors = []
    for strength in ("mild", "medium", "severe"):
        target = tmp_path / f"{strength}.png"
        run("degrade", photo, "-o", target, "-k", "gaussian", "--strength", strength)
        errors.append(np.square(levels(target).astype(float) - levels(photo)).mean())
    assert errors[0] < errors[1] < errors[2]


def test_a_depth_map_of_the_same_stem_is_used_for_haze(run, photo, tmp_path):
    (tmp_path / "depth").mkdir()
    depth = np.zeros((24, 31), np.uint8)
    depth[:, 16:] = 255
    PIL.Image.fromarray(depth).save(tmp_path / "depth" / "photo.png")
    words = ("degrade", photo, "-o", tmp_path / "out.png", "-k", "haze", "--set", "beta=20")
    assert run(*words, "--depth", tmp_path / "depth")[0] == 0
    hazy = levels(tmp_path / "out.png")
    assert np.array_equal(hazy[:, :16], levels(photo)[:, :16]) and set(hazy[:, 16:].flat) == {224}
    shutil.move(tmp_path / "depth" / "photo.png", tmp_path / "depth" / "other.png")
    code, _, err = run(*words, "--depth", tmp_path / "depth", "--overwrite")
    assert code == 2 and "holds no depth map for photo.png" in err and "hint: name it photo.png" in err
    code, _, err = run("degrade", photo, "-k", "rain", "--depth", tmp_path / "depth")
    assert code == 2 and "--depth: nothing here is haze" in err


def test_gray_and_transparent_images_keep_their_form(run, tmp_path):
    gray = np.linspace(0, 255, 40 * 30).reshape(30, 40).astype(np.uint8)
    PIL.Image.fromarray(gray).save(tmp_path / "gray.png")
    clear = np.dstack([gray, gray, gray, 255 - gray])
    PIL.Image.fromarray(clear).save(tmp_path / "clear.png")
    for kind in ("jpeg", "rain", "real_world"):
        out = tmp_path / kind
        assert run("degrade", tmp_path / "gray.png", tmp_path / "clear.png", "-o", out, "-k", kind)[0] == 0
        assert opened(out / "gray.png").mode == "L"
        assert np.array_equal(levels(out / "clear.png")[..., 3], 255 - gray)


def test_outputs_that_exist_are_kept(run, photo, tmp_path):
    target = tmp_path / "out.png"
    target.write_text("precious")
    code, _, err = run("degrade", photo, "-o", target, "-k", "jpeg")
    assert code == 2 and f"error: {target} exists\n  hint: add --overwrite" in err
    assert target.read_text() == "precious"
    assert run("degrade", photo, "-o", target, "-k", "jpeg", "--overwrite")[0] == 0
    assert opened(target).size == (31, 24)


def test_broken_inputs_are_named_and_do_not_stop_the_others(run, folder, tmp_path):
    (folder / "aa.png").write_text("no image")
    code, out, err = run("degrade", folder, "-o", tmp_path / "out", "-k", "jpeg", "--json")
    records = json.loads(out)
    assert code == 3 and "aa.png" in err and "1 of 3 inputs failed" in err
    assert ["error" in record for record in records] == [False, True, False]


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        ((), "degrade: give either --kind or --recipe; found neither", "--list"),
        (("-k", "rain", "--recipe", "x.yaml"), "found both", "--list"),
        (("-k", "rian"), "no degradation called 'rian'", "did you mean 'rain'?"),
        (("-k", "rain", "--set", "streak=5"), "rain has no parameter 'streak'", "did you mean 'streaks'?"),
        (("-k", "rain", "--set", "streaks"), "expected KEY=VALUE", ""),
        (("-k", "jpeg", "--set", "quality=0"), "expected a whole number from 1 to 95; found 0", ""),
        (("--recipe", "missing.yaml"), "missing.yaml: no such file", ""),
        (("--recipe", "x.yaml", "--strength", "mild"), "--strength and --set belong to --kind", ""),
        (("-k", "rain", "--device", "gpu"), "gpu", ""),
        (("--sheet", "sheet.png", "--recipe", "x.yaml"), "a sheet shows every degradation", "leave out"),
    ],
)
def test_requests_that_cannot_be_carried_out_take_two_lines(run, photo, tmp_path, words, message, hint):
    code, out, err = run("degrade", photo, "-o", tmp_path / "out.png", *words)
    assert code == 2 and not out and len(err.splitlines()) == 2
    assert message in err and hint in err and not (tmp_path / "out.png").exists()


def test_the_list_names_everything(run):
    _, text, _ = run("degrade", "--list")
    facts = json.loads(run("degrade", "--list", "--json")[1])
    assert list(facts["kinds"]) == list(KINDS) and list(facts["compositions"]) == list(COMPOSITIONS)
    for name, kind in KINDS.items():
        assert f"{name} " in text and kind.source in text and all(key in text for key in kind.parameters)
    assert all(name in text for name in COMPOSITIONS)


def test_a_sheet_shows_clean_and_three_strengths_in_a_row(run, photo, tmp_path):
    target = tmp_path / "sheet.png"
    assert run("degrade", photo, "--sheet", target, "-k", "jpeg")[0] == 0
    one = opened(target)
    code, _, err = run("degrade", photo, "--sheet", target)
    assert code == 2 and f"{target} exists" in err
    assert run("degrade", photo, "--sheet", target, "--overwrite")[0] == 0
    everything = opened(target)
    assert everything.width == one.width > 4 * 31
    assert everything.height > (len(KINDS) + len(COMPOSITIONS) - 2) * (one.height // 2)
    opened(photo).save(photo.with_name("other.png"))
    code, _, err = run("degrade", photo, photo.with_name("other.png"), "--sheet", tmp_path / "two.png")
    assert code == 2 and "a sheet shows one photograph, found 2" in err


def test_the_document_names_everything():
    text = (Path(__file__).parents[1] / "docs" / "degradations.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in (*KINDS, *COMPOSITIONS))
    for block in re.findall(r"^```text\n(.*?)^```$", text, re.M | re.S):
        check(RecipeSpec, yaml.safe_load(block), "degradations.md")
