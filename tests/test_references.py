import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from strangers import WEIGHTS

from restorekit.api import load_pipeline
from restorekit.cache import downloads, is_offline
from restorekit.catalog import Need, Pretrained, by_name
from restorekit.config import PipelineSpec
from restorekit.errors import LicenceError, OfflineError, UnknownComponentError, WeightsError
from restorekit.licences import check_licences
from restorekit.plan import parts
from restorekit.ready import ready_backbone
from restorekit.references import Source, declared_as, fetch, sha256, source, state
from restorekit.testing import check_weights

CONFIG = Need(("config.json",))
TENSORS = Need(("model.safetensors", "model.safetensors.index.json"), ("vision.",))
COMMIT = "0123456789" * 4


@pytest.fixture
def folder(tmp_path):
    """Lay out a model in two shards, of which the second holds words alone."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    places = {"vision.a": "one.safetensors", "words.a": "two.safetensors", "vision.b": "one.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "one.safetensors").write_bytes(b"one")
    (folder / "two.safetensors").write_bytes(b"two")
    return folder


class Hub(ThreadingHTTPServer):
    """Serves the files of one repository as a model hub does, and notes what it is asked for."""

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.sent = folder, []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(whole=False)

    def do_GET(self):
        self.answer(whole=True)

    def answer(self, whole):
        _, repository, name = self.path.partition("/acme/model/resolve/main/")
        file = self.server.folder / name
        found = bool(repository) and file.is_file()
        body = file.read_bytes() if found else b""
        self.send_response(200 if found else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(body)))
        self.send_header(
            *(("ETag", f'"{name.replace("/", "-")}"') if found else ("X-Error-Code", "EntryNotFound"))
        )
        self.end_headers()
        if whole and found:
            self.server.sent.append(name)
            self.wfile.write(body)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    for name in ("RESTOREKIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def hub(folder, hub_cache, monkeypatch):
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def model(**facts):
    stated = dict(licence="MIT", source="a page", task="prior", reference="hub:acme/model")
    return Pretrained(
        **({"component": "brightness", "tag": "small", "needs": (CONFIG, TENSORS)} | stated | facts)
    )


@pytest.fixture
def declared(strangers):
    WEIGHTS.append(model(default=True))
    yield WEIGHTS
    WEIGHTS.clear()


def test_only_the_shards_that_are_needed_are_taken(folder):
    place = Source(f"dir:{folder}")
    assert [path.name for path in place.take(TENSORS)] == ["one.safetensors"]
    assert place.take(CONFIG) == [folder / "config.json"]
    assert set(place.hashes()) == {"config.json", "model.safetensors.index.json", "one.safetensors"}


def test_what_is_missing_is_named(folder):
    with pytest.raises(WeightsError, match=r"has no model.bin or model.pt"):
        Source(f"dir:{folder}").take(Need(("model.bin", "model.pt")))
    (folder / "one.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no one.safetensors"):
        Source(f"dir:{folder}").take(TENSORS)
    (folder / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(WeightsError, match="is no index of shards"):
        Source(f"dir:{folder}").take(TENSORS)


def test_all_that_is_missing_from_a_folder_is_named_at_once(folder):
    place = Source(f"dir:{folder}")
    other = Need(("other.bin", "other.pt"), ())
    place.expect((CONFIG, TENSORS, other, Need(("more.json",))))
    assert place.take(CONFIG)
    with pytest.raises(WeightsError, match=r"has no \(other.bin or other.pt\) and more.json\n") as caught:
        place.take(other)
    assert caught.value.hint == "copy them there from the model's repository"
    (folder / "config.json").unlink()
    (folder / "one.safetensors").unlink()
    with pytest.raises(
        WeightsError, match=r"has no config.json, one.safetensors, \(other.bin or .* more.json\n"
    ):
        place.take(CONFIG)
    with pytest.raises(WeightsError, match=r"has no config.json, one.safetensors, "):
        place.take(TENSORS)
    place.expect(())
    with pytest.raises(WeightsError, match=r"has no config.json\n") as caught:
        place.take(CONFIG)
    assert caught.value.hint == "copy it there from the model's repository"


def test_every_shard_that_is_missing_is_named(folder):
    (folder / "one.safetensors").unlink()
    (folder / "two.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no one.safetensors and two.safetensors\n"):
        Source(f"dir:{folder}").take(Need(TENSORS.names))


def test_one_file_has_nothing_beside_it(folder):
    place = Source(f"file:{folder / 'one.safetensors'}")
    assert place.file == folder / "one.safetensors"
    with pytest.raises(WeightsError, match=r"is one file, and config.json is needed beside it"):
        place.take(CONFIG)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("hub:acme", "no place on the hub"),
        ("dir:nowhere", "there is no folder nowhere"),
        ("file:nowhere.pth", r"there is no file nowhere.pth"),
        ("ftp:acme/model", "is no reference to a pretrained model"),
        ("package:json", "names no file of a package"),
        ("package:acme_missing/net.pth", "acme_missing is not installed"),
        ("package:json/net.pth", r"has no file net.pth"),
        ("acme/model", "is no folder or file here, and no tag; tags: small"),
        ("smal", "is no folder or file here"),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(reference, message):
    with pytest.raises(WeightsError, match=message):
        source(reference, [model()])


def test_hints_say_how_to_write_it():
    with pytest.raises(WeightsError) as caught:
        source("acme/model", [model()])
    assert caught.value.hint == "for the model hub write hub:acme/model"
    with pytest.raises(WeightsError) as caught:
        source("smal", [model()])
    assert "small" in caught.value.hint


def test_plain_paths_tags_and_packages_are_found(folder):
    assert source(str(folder)).take(CONFIG)
    assert source(str(folder / "one.safetensors")).file
    assert source("package:json/__init__.py").file.name == "__init__.py"
    assert source("small", [model()]).reference == "hub:acme/model"


def test_the_hub_is_asked_for_what_is_needed_and_only_once(hub, hub_cache):
    assert state(model()) == "remote"
    files = fetch(model())
    assert [file.name for file in files] == ["config.json", "one.safetensors"]
    assert files[0].is_relative_to(hub_cache)
    assert hub.sent == ["config.json", "model.safetensors.index.json", "one.safetensors"]
    assert state(model()) == "here"
    fetch(model(), offline=True)
    assert len(hub.sent) == 3


def test_a_file_that_the_hub_does_not_have_is_named(hub):
    with pytest.raises(WeightsError, match=r"hub:acme/model has no model.bin or model.pt") as caught:
        Source("hub:acme/model").take(Need(("model.bin", "model.pt")))
    assert not isinstance(caught.value, OfflineError)


def test_offline_nothing_is_asked_for(hub, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    with pytest.raises(OfflineError, match=r"has no config.json on this machine") as caught:
        Source("hub:acme/model").take(CONFIG)
    assert "dir:FOLDER" in caught.value.hint
    assert hub.sent == []


def test_offline_every_file_of_a_tag_that_is_not_here_is_named(declared, hub, run):
    expected = "config.json and (model.safetensors or model.safetensors.index.json) on this machine"
    with pytest.raises(OfflineError) as caught:
        fetch(model(), offline=True)
    assert f"hub:acme/model has no {expected}" in caught.value.message
    code, _, err = run("weights", "download", "prior:brightness", "--offline")
    assert code != 0 and expected in err and hub.sent == []
    Source("hub:acme/model").take(CONFIG)
    with pytest.raises(
        OfflineError, match=r"has no model.safetensors or model.safetensors.index.json on this"
    ):
        fetch(model(), offline=True)


def test_online_only_what_the_hub_does_not_have_is_named(hub):
    (hub.folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"has no config.json\n"):
        fetch(model())


@pytest.fixture
def dead(hub_cache, monkeypatch):
    """Point to a hub that nobody serves, and let its client try again at once."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(sleep=lambda seconds: None))


def test_a_hub_that_does_not_answer_is_told_with_every_file_and_the_way_by_hand(dead, declared, run):
    expected = "config.json and (model.safetensors or model.safetensors.index.json) on this machine"
    with pytest.raises(WeightsError, match=r"the hub does not answer: .*refused") as caught:
        fetch(model())
    assert f"hub:acme/model has no {expected}" in caught.value.message
    assert "dir:FOLDER" in caught.value.hint and not isinstance(caught.value, OfflineError)
    code, _, err = run("weights", "download", "prior:brightness")
    assert code != 0 and expected in err and "dir:FOLDER" in err
    with pytest.raises(WeightsError, match=r"has no two\.bin on this machine, and the hub does not answer"):
        Source("hub:acme/model").has(Need(("two.bin",)))


def referring(tmp_path):
    prior = {"name": "referred", "params": {"reference": "hub:acme/model"}}
    pipeline = {"steps": [{"refine": {"name": "blend", "prior": prior}}]}
    (tmp_path / "p.yaml").write_text(json.dumps(pipeline))
    return pipeline


def test_a_pipeline_that_is_to_be_built_offline_asks_for_no_files_of_its_prior(strangers, hub, tmp_path):
    pipeline = referring(tmp_path)
    with pytest.raises(OfflineError, match=r"hub:acme/model has no config.json on this machine"):
        load_pipeline(pipeline, offline=True)
    assert hub.sent == [] and not is_offline()
    load_pipeline(pipeline)
    assert hub.sent == ["config.json"]
    load_pipeline(pipeline, offline=True)


def test_the_flag_offline_reaches_priors_and_online_overrides_the_environment(
    strangers, hub, tmp_path, photo, run, monkeypatch
):
    referring(tmp_path)
    words = ("restore", photo, "-p", tmp_path / "p.yaml", "-o", tmp_path / "o.png")
    code, _, err = run(*words, "--offline")
    assert code == 2 and "has no config.json on this machine" in err and hub.sent == []
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    assert run(*words)[0] == 2 and hub.sent == []
    assert run(*words, "--online")[0] == 0 and hub.sent == ["config.json"]


def test_what_builds_on_a_network_is_built_offline_too(published):
    published()
    with downloads(offline=True), pytest.raises(OfflineError, match="weights trained/plain are not on this"):
        ready_backbone("trained", {}, "plain")
    with downloads(offline=True), downloads(offline=None):
        assert is_offline()
    with downloads(offline=True), downloads(offline=False):
        ready_backbone("trained", {}, "plain")


def test_a_cache_that_was_filled_elsewhere_is_enough(folder, hub_cache, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("reached for the network"))
    repository = hub_cache / "models--acme--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "snapshots").mkdir()
    (repository / "snapshots" / COMMIT).symlink_to(folder)
    assert len(fetch(model())) == 2
    assert Source(f"hub:acme/model@{COMMIT}").take(CONFIG)
    with pytest.raises(OfflineError):
        Source("hub:acme/model@other").take(CONFIG)


def test_hashes_follow_a_file_that_changes(tmp_path):
    file = tmp_path / "net"
    file.write_bytes(b"one")
    first = sha256(file)
    file.write_bytes(b"other")
    assert sha256(file) != first


def test_weights_of_a_prior_are_downloaded_by_its_name(declared, hub, run):
    code, out, _ = run("weights", "download", "prior:brightness")
    assert code == 0 and out.startswith("brightness/small") and "2 files" in out
    assert "two.safetensors" not in hub.sent
    code, out, _ = run("weights", "list", "brightness")
    assert code == 0 and "here" in out
    code, out, _ = run("info", "brightness/small")
    assert code == 0 and "model.safetensors or model.safetensors.index.json" in out
    code, _, err = run("weights", "remove", "brightness/small")
    assert code == 2 and "kept elsewhere" in err
    code, _, err = run("weights", "verify", "brightness/small")
    assert code == 2 and "hub:acme/model" in err
    code, _, err = run("weights", "download", "brightness/small", "--from", __file__)
    assert code == 2 and "is no file" in err


def test_a_prior_without_defaults_says_what_there_is(strangers):
    with pytest.raises(WeightsError, match="'brightness' has no weights") as none:
        by_name("prior:brightness")
    assert "`restorekit info brightness` prints its arguments" in none.value.hint
    WEIGHTS.append(model())
    with pytest.raises(WeightsError, match="'brightness' has no weights that it uses by default") as caught:
        by_name("prior:brightness")
    WEIGHTS.clear()
    assert "brightness/small" in caught.value.hint
    with pytest.raises(UnknownComponentError, match="no prior called 'brightnes'") as unknown:
        by_name("prior:brightnes")
    assert unknown.value.hint == "did you mean 'brightness'?"


def chain(**params):
    prior = {"name": "brightness", "params": params}
    return PipelineSpec.parse({"steps": [{"refine": {"name": "blend", "prior": prior}}]})


def test_the_licence_of_what_a_prior_reads_is_gated(declared):
    def claims(**params):
        return parts(chain(**params))[0][1].claims

    assert claims()[1] == ("weights brightness/small", "MIT")
    assert claims(reference="small")[1] == ("weights brightness/small", "MIT")
    assert claims(reference="hub:acme/other")[1] == ("weights hub:acme/other", "unknown")
    found = [part for step in parts(chain(reference="hub:acme/other")) for part in step]
    with pytest.raises(LicenceError, match="hub:acme/other"):
        check_licences(found, "permissive")


def test_the_licences_of_the_network_that_a_prior_is_made_of_are_gated(published, shop):
    published("nc", licence="CC-BY-NC-4.0")
    spec = chain(backbone="trained", weights="nc")
    assert parts(spec)[0][1].claims[1:] == (
        ("backbone trained", "MIT"),
        ("weights trained/nc", "CC-BY-NC-4.0"),
    )
    with pytest.raises(LicenceError, match="does not allow weights trained/nc"):
        load_pipeline(spec, license_policy="permissive")
    assert shop.requests == []
    with pytest.raises(WeightsError, match="trained has no weights called 'cn'"):
        _ = parts(chain(backbone="trained", weights="cn"))[0][1].claims
    assert parts(chain(backbone="of another meaning"))[0][1].claims == (("prior brightness", "MIT"),)


def test_plan_and_dry_run_show_what_a_prior_has_to_download(
    strangers, published, hub, photo, tmp_path, run, shop
):
    WEIGHTS.append(model(size=605_000_000, parameters=88))
    published("plain", size=2_500_000)
    path = tmp_path / "p.yaml"

    def planned(**params):
        path.write_text(json.dumps(chain(**params).model_dump()))
        part = json.loads(run("plan", path, "--json")[1])["parts"][1]
        return part["weights"], part["to_download"]

    assert planned(backbone="trained", weights="plain") == ("trained/plain", 2_500_000)
    code, out, err = run("restore", photo, "-p", path, "-o", tmp_path / "o.png", "--dry-run")
    assert code == 0 and out == f"{photo} -> {tmp_path / 'o.png'}\n"
    assert err == "steps[0].refine.prior: trained/plain to be downloaded, 2.5 MB\n"
    assert planned(reference="hub:acme/other") == ("hub:acme/other", None)
    assert planned(reference=f"dir:{tmp_path}") == (f"dir:{tmp_path}", 0)
    assert planned(reference="small") == ("brightness/small", 605_000_000)
    assert "download    needed, 605.0 MB" in run("plan", path)[1] and hub.sent == shop.requests == []
    fetch(model())
    assert planned(reference="small") == ("brightness/small", 0)
    assert "download" not in run("plan", path)[1]
    assert run("restore", photo, "-p", path, "-o", tmp_path / "o.png", "--dry-run")[2] == ""


def test_declarations_of_several_files_are_checked(strangers):
    from restorekit.errors import ContractError

    check_weights(model())
    check_weights(model(licence="LicenseRef-Some-Terms"))
    with pytest.raises(ContractError, match="do not say which files"):
        check_weights(
            Pretrained(
                component="brightness",
                tag="small",
                licence="MIT",
                source="a page",
                task="prior",
                reference="hub:acme/model",
            )
        )
    with pytest.raises(ContractError, match="takes no size"):
        check_weights(model(params={"size": 3}))


def test_weights_that_a_prior_reads_by_itself_are_no_weights_of_a_pipeline(declared):
    prior = {"name": "brightness", "weights": "small"}
    spec = PipelineSpec.parse({"steps": [{"refine": {"name": "blend", "prior": prior}}]})
    with pytest.raises(WeightsError, match="which brightness reads by itself") as caught:
        parts(spec)
    assert "reference: small" in caught.value.hint


def test_declared_weights_are_known_by_tag_and_by_place():
    item = model(tag="large", reference="hub:owner/large")
    assert declared_as("large", [item]) is item
    assert declared_as("hub:owner/large", [item]) is item
    assert declared_as("hub:owner/large@v2", [item]) is item
    assert declared_as("hub:owner/small", [item]) is None
