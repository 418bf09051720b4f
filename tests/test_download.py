import hashlib
import io
import json
import os
import threading
import zipfile

import pytest

from restorekit import cache as caches
from restorekit import download
from restorekit.cache import Pins
from restorekit.catalog import Checkpoint, find
from restorekit.download import adopt, ensure
from restorekit.errors import OfflineError, WeightsError

CHUNK = 1 << 15


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def checkpoint(item):
    return find(item.component, item.tag)


def files_in(cache):
    """Return what lies in the cache, locks aside."""
    return sorted(
        path.name for path in cache.rglob("*") if path.is_file() and not path.name.endswith(".lock")
    )


def archive(size=200_000):
    """Return a zip archive, as torch writes them, that cannot be packed any smaller."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", os.urandom(size))
    return buffer.getvalue()


def test_weights_are_downloaded_once(published, shop, cache):
    item = published()
    assert not checkpoint(item).is_here
    there = ensure(checkpoint(item))
    assert there.path.read_bytes() == shop.files["file.pth"]
    assert ensure(checkpoint(item)).path == there.path
    assert len(shop.requests) == 1
    assert files_in(cache) == ["file.pth", "weights.lock.json"]


def test_progress_counts_bytes(published, shop):
    item = published(contents=archive(600_000))
    seen = []
    ensure(checkpoint(item), progress=lambda *facts: seen.append(facts))
    size = len(shop.files["file.pth"])
    assert len(seen) > 1 and seen[-1] == (item.name, size, size)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_a_cut_download_goes_on_where_it_stopped(published, shop):
    item = published(contents=archive())
    size = len(shop.files["file.pth"])
    shop.faults["file.pth"] = ["cut", "cut"]
    there = ensure(checkpoint(item))
    assert there.path.read_bytes() == shop.files["file.pth"]
    starts = [int(asked.removeprefix("bytes=").removesuffix("-")) for _, asked in shop.requests[1:]]
    assert size // 2 - CHUNK < starts[0] <= size // 2 < starts[1] <= size * 3 // 4


def test_a_later_process_goes_on_where_an_earlier_one_stopped(published, shop, cache):
    item = published(contents=archive())
    shop.faults["file.pth"] = ["cut", "stuck", "stuck", "stuck", "stuck", 404]
    with pytest.raises(WeightsError, match="stopped answering"):
        ensure(checkpoint(item))
    assert not item.path.exists() and ".file.pth.part" in files_in(cache)
    shop.faults.clear()
    shop.requests.clear()
    ensure(checkpoint(item))
    (asked,) = (asked for _, asked in shop.requests)
    have = int(asked.removeprefix("bytes=").removesuffix("-"))
    assert 0 <= len(shop.files["file.pth"]) // 2 - have < CHUNK
    assert files_in(cache) == ["file.pth", "weights.lock.json"]


def test_a_file_that_changed_meanwhile_is_fetched_from_its_start(published, shop):
    item = published(contents=archive())
    shop.faults["file.pth"] = ["cut", "stuck", "stuck", "stuck", "stuck"]
    with pytest.raises(WeightsError):
        ensure(checkpoint(item))
    shop.files["file.pth"] = archive(150_000)
    assert ensure(checkpoint(item)).path.read_bytes() == shop.files["file.pth"]


@pytest.mark.parametrize("fault", ["whole", "elsewhere", 416])
def test_servers_that_cannot_go_on_send_the_file_from_its_start(fault, published, shop):
    item = published(contents=archive())
    shop.faults["file.pth"] = ["cut", fault]
    assert ensure(checkpoint(item)).path.read_bytes() == shop.files["file.pth"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again(status, published, shop):
    item = published()
    shop.faults["file.pth"] = [status, status]
    assert ensure(checkpoint(item)).is_here
    assert len(shop.requests) == 3


def test_a_missing_file_names_the_address_and_the_way_by_hand(published, shop, cache):
    item = published()
    del shop.files["file.pth"]
    with pytest.raises(WeightsError, match=r"file\.pth answered 404") as caught:
        ensure(checkpoint(item))
    assert f"weights download {item.name} --from FILE" in caught.value.hint
    assert files_in(cache) == [] and len(shop.requests) == 1


def test_the_next_mirror_is_asked_where_one_fails(published, shop):
    item = published(mirrors=(shop.url("gone.pth"), "http://127.0.0.1:9/closed.pth"))
    assert ensure(checkpoint(item)).path.read_bytes() == shop.files["file.pth"]
    assert Pins().get(item.name).url == shop.url("file.pth")


def test_wrong_bytes_are_refused_and_the_next_mirror_is_asked(published, shop, cache):
    good = archive()
    item = published(contents=good, mirrors=(shop.url("copy.pth"),), sha256=sha256(good))
    shop.files["copy.pth"] = archive()
    assert ensure(checkpoint(item)).path.read_bytes() == good
    item.path.unlink()
    shop.faults["file.pth"] = ["wrong"]
    with pytest.raises(WeightsError, match=f"expected is {sha256(good)[:16]}"):
        ensure(checkpoint(item))
    assert not item.path.exists() and not [name for name in files_in(cache) if "part" in name]


def test_a_web_page_is_no_file(published, shop, cache):
    item = published()
    shop.faults["file.pth"] = ["page"]
    with pytest.raises(WeightsError, match="sent a web page"):
        ensure(checkpoint(item))
    assert files_in(cache) == []


@pytest.mark.parametrize("served", ["file.pth", "file.safetensors"])
def test_a_torn_file_is_never_pinned(served, published, cache):
    item = published(served=served, contents=b"\x10\0\0\0\0\0\0\0{}" + bytes(100))
    with pytest.raises(WeightsError, match="sent no whole"):
        ensure(checkpoint(item))
    assert Pins().get(item.name) is None and files_in(cache) == []


def test_the_first_hash_is_pinned_and_another_one_refused(published, shop, cache):
    item = published()
    first = ensure(checkpoint(item))
    pin = Pins().get(item.name)
    assert pin.sha256 == sha256(shop.files["file.pth"]) == first.sha256
    assert pin.size == len(shop.files["file.pth"]) and pin.url == shop.url("file.pth")
    first.path.unlink()
    shop.files["file.pth"] = archive()
    with pytest.raises(WeightsError, match="the first download had"):
        ensure(checkpoint(item))
    assert not item.path.exists()
    assert Pins().forget(item.name)
    assert ensure(checkpoint(item)).sha256 == sha256(shop.files["file.pth"])


def test_a_file_that_was_changed_in_the_cache_is_refused(published):
    item = published()
    ensure(checkpoint(item)).path.write_bytes(archive())
    with pytest.raises(WeightsError, match="expected is") as caught:
        _ = checkpoint(item).sha256
    assert f"weights remove {item.name}" in caught.value.hint


def test_a_damaged_lock_file_is_named(published, cache):
    item = published()
    cache.mkdir()
    (cache / "weights.lock.json").write_text('{"pins": {"a": 3}}')
    with pytest.raises(WeightsError, match=r"weights\.lock\.json is no lock file"):
        ensure(checkpoint(item))


@pytest.mark.parametrize("variable", ["RESTOREKIT_OFFLINE", "HF_HUB_OFFLINE"])
def test_offline_nothing_is_asked_for(variable, published, shop, monkeypatch):
    item = published()
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match="not on this machine and downloads are off") as caught:
        ensure(checkpoint(item))
    assert shop.url("file.pth") in caught.value.hint and shop.requests == []
    assert ensure(checkpoint(item), offline=False).is_here
    assert ensure(checkpoint(item)).is_here


@pytest.mark.parametrize("wish", ["", "0", "false", "No", "off"])
def test_offline_can_be_said_not_to_be(wish, monkeypatch, cache):
    monkeypatch.setenv("RESTOREKIT_OFFLINE", wish)
    assert not caches.is_offline()


def test_weights_without_an_address_tell_the_page(published):
    item = published("shy", urls=(), filename="shy.pth")
    with pytest.raises(WeightsError, match="no address that a program can download from") as caught:
        ensure(checkpoint(item))
    assert "a page" in caught.value.hint and "shy.pth" in caught.value.hint


def test_a_file_downloaded_by_hand_is_checked_and_kept(published, tmp_path, cache):
    good = archive()
    item = published(urls=(), sha256=sha256(good), filename="net.pth")
    (tmp_path / "wrong.pth").write_bytes(archive())
    with pytest.raises(WeightsError, match="expected is"):
        adopt(item, tmp_path / "wrong.pth")
    (tmp_path / "right.pth").write_bytes(good)
    assert adopt(item, tmp_path / "right.pth") == item.path
    assert checkpoint(item).sha256 == sha256(good)
    assert (tmp_path / "right.pth").exists() and files_in(cache) == ["net.pth"]


def test_a_full_disk_is_seen_before_anything_is_asked_for(published, shop):
    item = published(size=10**18)
    with pytest.raises(WeightsError, match="MB left"):
        ensure(checkpoint(item))
    assert shop.requests == []


def test_a_cache_that_cannot_be_written_is_named(published, monkeypatch, tmp_path):
    item = published()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="cannot be made"):
        ensure(checkpoint(item))


def test_two_downloads_of_the_same_file_at_once_fetch_it_once(published, shop):
    item = published(contents=archive())
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(ensure(checkpoint(item)).sha256)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [sha256(shop.files["file.pth"])] * 4
    assert len(shop.requests) == 1


def test_the_cache_follows_its_variables(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("RESTOREKIT_CACHE_DIR", raising=False)
    assert caches.root() == tmp_path / "xdg" / "restorekit"
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "own"))
    assert caches.root() == tmp_path / "own"
    monkeypatch.delenv("RESTOREKIT_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert caches.root().name == "restorekit" and caches.root().is_absolute()
    assert not (tmp_path / "own").exists() and not (tmp_path / "xdg").exists()


def hub_cache(folder, repository, revision, filename, contents):
    """Lay a file out as the hub's client keeps it."""
    base = folder / f"models--{repository.replace('/', '--')}"
    commit = hashlib.sha1(revision.encode()).hexdigest()
    (base / "refs").mkdir(parents=True)
    (base / "refs" / revision).write_text(commit)
    path = base / "snapshots" / commit / filename
    path.parent.mkdir(parents=True)
    path.write_bytes(contents)
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    # The client reads its variables when it is imported, so its constants are what can still be set.
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


def test_hub_references_come_from_the_hubs_own_cache(hub, cache):
    path = hub_cache(hub, "acme/nets", "main", "small/net.safetensors", b"abc")
    found = ensure(find("trained", "hf://acme/nets/small/net.safetensors"), offline=True)
    assert found.path.samefile(path) and found.sha256 == sha256(b"abc")
    assert found.name == "hf://acme/nets/small/net.safetensors"


def test_hub_references_name_a_revision(hub, cache):
    hub_cache(hub, "acme/nets", "v2", "net.pth", b"two")
    assert ensure(find("x", "hf://acme/nets/net.pth@v2"), offline=True).path.read_bytes() == b"two"
    with pytest.raises(OfflineError, match=r"not in the hub's cache and cannot be downloaded \(offline\)"):
        ensure(find("x", "hf://acme/nets/net.pth@v1"), offline=True)


def test_a_hub_reference_without_a_file_is_refused(cache):
    with pytest.raises(WeightsError, match="no hub reference"):
        ensure(Checkpoint("hf://acme/nets", None))


def test_notes_that_are_damaged_cost_a_fresh_start_only(published, shop):
    item = published(contents=archive())
    shop.faults["file.pth"] = ["cut", "stuck", "stuck", "stuck", "stuck"]
    with pytest.raises(WeightsError):
        ensure(checkpoint(item))
    download._notes(download._part(item.path)).write_text(json.dumps([1])[:-1])
    assert ensure(checkpoint(item)).path.read_bytes() == shop.files["file.pth"]
