import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from strangers import Trained

from restorekit import restore
from restorekit.cache import Pins
from restorekit.catalog import Figure

pytestmark = pytest.mark.usefixtures("strangers")


def pickled(tmp_path, state, name="net.pth"):
    torch.save({"params": state}, tmp_path / name)
    return tmp_path / name


def test_list_tells_what_is_here(run, published):
    published("plain", size=2_500_000)
    published("shy", urls=(), licence="CC-BY-NC-4.0")
    code, out, _ = run("weights", "list", "trained")
    header, *rows = [line.split() for line in out.splitlines()]
    assert code == 0 and header == ["NAME", "STATE", "SIZE", "LICENCE", "TASK"]
    assert rows == [
        ["trained/plain", "remote", "2.5", "MB", "MIT", "none"],
        ["trained/shy", "by", "hand", "?", "CC-BY-NC-4.0", "none"],
    ]
    assert run("weights", "download", "trained/plain")[0] == 0
    _, out, _ = run("weights", "list", "trained", "--json")
    assert [item["state"] for item in json.loads(out)] == ["here", "by hand"]
    code, _, err = run("weights", "list", "trainde")
    assert code == 2 and "no weights are declared for 'trainde'" in err


def test_help_of_download_names_every_way_to_name_weights(run):
    code, out, _ = run("weights", "download", "--help")
    assert code == 0 and "COMPONENT/TAG" in out and "prior:NAME" in out


def test_download_says_where_the_file_is(run, published, cache):
    item = published()
    code, out, _ = run("weights", "download", item.name)
    assert code == 0 and str(item.path) in out and item.path.is_relative_to(cache)
    assert hashlib.sha256(item.path.read_bytes()).hexdigest()[:16] in out


def test_one_failing_download_does_not_stop_the_others(run, published, shop):
    bad, good = published("bad", served="bad.pth"), published("good", served="good.pth")
    del shop.files["bad.pth"]
    code, out, err = run("weights", "download", bad.name, good.name)
    assert code == 3 and "404" in err and "1 of 2 failed" in err
    assert good.path.is_file() and out.startswith(good.name)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["download", "trained/plian"], "did you mean 'trained/plain'?"),
        (["download", "trained/plain", "--offline"], "downloads are off"),
        (["download", "trained/plain", "--from", "nowhere.pth"], "no file nowhere.pth"),
        (["download", "trained/plain", "trained/plain", "--from", "x"], "one file cannot be 2 weights"),
        (["verify", "trained/plain"], "not on this machine"),
        (["remove", "nafnet/denoise"], "part of an installed distribution"),
        (["convert", "trained/plain", "-o", "x.safetensors"], "not on this machine"),
        (["convert", "nowhere.pth", "-o", "x.safetensors"], "no weights are called 'nowhere.pth'"),
    ],
)
def test_wrong_requests_end_in_two_lines(words, says, run, published):
    published()
    code, _, err = run("weights", *words)
    assert code == 2 and says in err and "Traceback" not in err


def test_a_pipeline_downloads_what_it_needs(run, published, photo, tmp_path, shop):
    published()
    code, _, err = run("restore", photo, "-o", tmp_path / "a.png", "-m", "trained/plain", "--offline")
    assert code == 2 and "downloads are off" in err and shop.requests == []
    code, out, _ = run("restore", photo, "-o", tmp_path / "a.png", "-m", "trained/plain", "--json")
    (record,) = json.loads(out)
    assert code == 0 and record["licences"] == ["MIT"]
    assert record["steps"][0]["weights_sha256"] == Pins().get("trained/plain").sha256


def test_the_license_policy_is_held_before_any_download(run, published, photo, tmp_path, shop):
    published("nc", licence="CC-BY-NC-4.0")
    words = ("restore", photo, "-o", tmp_path / "a.png", "-m", "trained/nc")
    code, _, err = run(*words, "--license-policy", "permissive")
    assert code == 2 and "does not allow weights trained/nc (CC-BY-NC-4.0)" in err
    assert shop.requests == [] and not (tmp_path / "a.png").exists()
    assert run(*words, "--license-policy", "noncommercial")[0] == 0


def test_plan_shows_what_has_to_be_downloaded_without_doing_it(run, published, tmp_path, shop):
    published("nc", licence="CC-BY-NC-4.0", size=2_500_000, parameters=84)
    (tmp_path / "p.yaml").write_text("steps: [{restore: {name: trained, weights: nc}}]")
    code, out, err = run("plan", tmp_path / "p.yaml")
    assert code == 0 and "download    needed, 2.5 MB" in out and "parameters  84" in out
    assert "notice: weights trained/nc is for non-commercial use only" in err and shop.requests == []
    code, out, _ = run("plan", tmp_path / "p.yaml", "--json")
    assert json.loads(out)["parts"][0]["to_download"] == 2_500_000
    code, _, err = run("plan", tmp_path / "p.yaml", "--license-policy", "permissive")
    assert code == 2 and "trained/nc" in err


def test_verify_looks_at_hash_names_and_shapes(run, published, shop):
    item = published()
    run("weights", "download", item.name)
    code, out, _ = run("weights", "verify", item.name)
    assert code == 0 and out == "trained/plain   ok: hash of the first download, fits Trained\n"
    other = published("wide", served="wide.pth", params={"width": 5})
    run("weights", "download", other.name)
    code, _, err = run("weights", "verify")
    assert code == 3 and "differ in shape, first 'conv.weight'" in err
    item.path.write_bytes(item.path.read_bytes() + b"\0")
    code, out, _ = run("weights", "verify", item.name, "--json")
    assert code == 2 and "expected is" in json.loads(out)[0]["error"]


def test_remove_frees_the_disk_and_keeps_the_pin(run, published, cache):
    item = published()
    run("weights", "download", item.name)
    code, out, _ = run("weights", "remove", item.name)
    assert code == 0 and "MB freed" in out and not item.path.exists() and Pins().get(item.name)
    _, out, _ = run("weights", "remove", item.name, "--forget")
    assert "pin dropped" in out and Pins().get(item.name) is None


def test_info_shows_the_published_figures(run, published):
    published(
        figures=(Figure("CBSD68, sigma 25", "restormer-gaussian-color", 31.79, None, "paper, Table 6"),)
    )
    code, out, _ = run("info", "trained/plain")
    assert code == 0
    assert "CBSD68, sigma 25: 31.79 dB by restormer-gaussian-color (paper, Table 6)" in out
    assert "not on this machine" in out and "pinned by the first download" in out


def test_convert_writes_safetensors_that_say_what_they_are(run, tmp_path, photo):
    torch.manual_seed(1)
    state = Trained().state_dict()
    source, output = pickled(tmp_path, state), tmp_path / "net.safetensors"
    words = ("--component", "trained", "--set", "width=3", "--license", "CC-BY-4.0")
    code, out, _ = run("weights", "convert", source, "-o", output, *words)
    assert code == 0 and "2 tensors" in out and "CC-BY-4.0" in out
    with safe_open(output, "pt") as file:
        facts = file.metadata()
    assert facts["license"] == "CC-BY-4.0" and facts["restorekit.component"] == "trained"
    assert facts["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert json.loads(facts["restorekit.params"]) == {"width": 3}
    assert all(torch.equal(tensor, state[name]) for name, tensor in load_file(output).items())
    result = restore(
        photo,
        {"steps": [{"restore": {"name": "trained", "weights": str(output)}}]},
        return_result=True,
    )
    assert result.steps[0].parameters == {"width": 3} and "CC-BY-4.0" in result.licences


def test_convert_keeps_the_notes_that_still_hold(run, tmp_path):
    notes = {
        "restorekit.component": "trained",
        "restorekit.kind": "refiner",
        "restorekit.prior": '{"name": "clip", "params": {}, "fingerprint": "0123"}',
        "restorekit.params": '{"width": 3}',
        "acme.choice": "few",
        "source": "elsewhere",
    }
    save_file(Trained().state_dict(), tmp_path / "first.safetensors", notes)

    def converted(source, name, *words):
        code, _, _ = run("weights", "convert", tmp_path / source, "-o", tmp_path / name, *words)
        assert code == 0
        with safe_open(tmp_path / name, "pt") as file:
            return file.metadata()

    facts = converted("first.safetensors", "second.safetensors", "--half")
    assert facts | {"source": "elsewhere"} == facts | notes and facts["source"] == "first.safetensors"
    assert (
        converted("second.safetensors", "third.safetensors")["restorekit.prior"] == notes["restorekit.prior"]
    )
    save_file(
        Trained().state_dict(), tmp_path / "other.safetensors", notes | {"restorekit.component": "gain"}
    )
    of_another = converted("other.safetensors", "fourth.safetensors", "--component", "trained")
    assert of_another["restorekit.component"] == "trained" and "restorekit.prior" not in of_another
    save_file(Trained().state_dict(), tmp_path / "strange.safetensors", {"note": "of others"})
    assert "note" not in converted("strange.safetensors", "fifth.safetensors")


def test_convert_takes_what_is_declared_of_downloaded_weights(run, published, tmp_path):
    item = published(licence="CC-BY-NC-4.0", params={"width": 3})
    run("weights", "download", item.name)
    output = tmp_path / "net.safetensors"
    assert run("weights", "convert", item.name, "-o", output, "--half")[0] == 0
    with safe_open(output, "pt") as file:
        facts = file.metadata()
    assert facts["license"] == "CC-BY-NC-4.0" and facts["source_url"] == item.urls[0]
    assert {tensor.dtype for tensor in load_file(output).values()} == {torch.float16}


def test_convert_refuses_what_does_not_fit_and_writes_nothing(run, tmp_path):
    output = tmp_path / "net.safetensors"
    source = pickled(tmp_path, Trained(width=4).state_dict())
    code, _, err = run("weights", "convert", source, "-o", output, "--component", "trained")
    assert code == 2 and "differ in shape" in err
    huge = pickled(tmp_path, {"a": torch.tensor([1e6])}, "huge.pth")
    code, _, err = run("weights", "convert", huge, "-o", output, "--half")
    assert code == 2 and "beyond 16 bits" in err
    code, _, err = run("weights", "convert", huge, "-o", tmp_path / "net.pth")
    assert code == 2 and "does not end in .safetensors" in err
    assert not output.exists()
    save_file({"a": torch.zeros(1)}, output)
    code, _, err = run("weights", "convert", huge, "-o", output)
    assert (
        code == 2 and "exists" in err and run("weights", "convert", huge, "-o", output, "--overwrite")[0] == 0
    )


def test_convert_never_runs_what_a_pickle_brings(run, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code ran')",))

    torch.save({"params": Evil()}, tmp_path / "evil.pth")
    code, _, err = run("weights", "convert", tmp_path / "evil.pth", "-o", tmp_path / "x.safetensors")
    assert code == 2 and "cannot be read as weights" in err and not (tmp_path / "x.safetensors").exists()


def test_doctor_names_weights_that_were_changed_and_is_quiet_about_remote_ones(run, published):
    item, _ = published(), published("remote", served="remote.pth")
    run("weights", "download", item.name)
    assert run("doctor", "--json")[0] == 0
    item.path.write_bytes(b"other")
    code, out, _ = run("doctor", "--json")
    assert code == 1 and [problem.split(":")[0] for problem in json.loads(out)["problems"]] == [
        "weights trained/plain"
    ]
