from pathlib import Path

import pytest

from restorekit.batch import collect
from restorekit.errors import ImageError, OutputError
from restorekit.files import ensure_writable, replacing


@pytest.fixture
def photos(tmp_path):
    for name in ("a.png", "b.JPG", "notes.txt", "inner/c.png", "inner/d.gif"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "photos"


def targets(*args, **kwargs):
    return sorted(job.target.as_posix() for job in collect(*args, **kwargs))


def test_one_file_goes_to_a_file_or_into_a_folder(photos):
    assert targets([str(photos / "a.png")], Path("x/y.webp")) == ["x/y.webp"]
    assert targets([str(photos / "a.png")], Path("out")) == ["out/a.png"]


def test_folder_takes_its_images_only_and_keeps_their_place(photos):
    assert targets([str(photos)], Path("out")) == ["out/a.png", "out/b.JPG"]
    deep = ["out/a.png", "out/b.JPG", "out/inner/c.png", "out/inner/d.png"]
    assert targets([str(photos)], Path("out"), recursive=True) == deep


def test_patterns_are_expanded(photos):
    assert targets([str(photos / "*.png")], Path("out"), suffix="-clean") == ["out/a-clean.png"]


def test_format_that_cannot_be_written_becomes_png(photos):
    assert targets([str(photos / "inner" / "d.gif")], Path("out")) == ["out/d.png"]


def test_same_input_twice_is_restored_once(photos):
    name = str(photos / "a.png")
    assert targets([name, name], Path("out")) == ["out/a.png"]


def test_two_inputs_for_one_output_are_refused(photos):
    (photos / "inner" / "a.png").touch()
    with pytest.raises(OutputError, match="would both be written"):
        collect([str(photos / "a.png"), str(photos / "inner" / "a.png")], Path("out"))


def test_several_inputs_for_one_output_file_are_refused(photos):
    with pytest.raises(OutputError, match="names one file"):
        collect([str(photos)], Path("out.png"))


def test_missing_inputs_and_empty_folders_are_named(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing.png", "*.tiff"):
        with pytest.raises(ImageError, match=r"holds no images|does not exist"):
            collect([str(tmp_path / name)], Path("out"))
    with pytest.raises(ImageError, match="no input"):
        collect([], Path("out"))


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "kept.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written to"):
        ensure_writable(tmp_path / "file" / "inner")
