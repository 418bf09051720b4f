"""Texts are written whole or not at all; what stands around generated ones in documents stays."""

import pytest

from restorekit.errors import OutputError
from restorekit.files import Marks, replacing, write_text

PAGE = "# Page\n<!-- figures: begin -->\nold\n<!-- figures: end -->\nrest\n"


def test_what_was_written_into_the_document_meanwhile_stays(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    place = Marks(page, "figures")
    page.write_text(PAGE.replace("rest", "changed by somebody else"))
    place.write("new")
    assert page.read_text() == PAGE.replace("rest", "changed by somebody else").replace("old", "new")


def test_who_may_read_a_file_is_not_up_to_its_writer(tmp_path):
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.touch()

    def write(text):
        with replacing(written) as temporary:
            temporary.write_text(text)
            temporary.chmod(0o600)
        assert written.read_text() == text
        return written.stat().st_mode & 0o777

    assert write("new") == plain.stat().st_mode & 0o777
    written.chmod(0o640)
    assert write("replaced") == 0o640


def test_a_document_without_the_place_is_refused_and_left_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    with pytest.raises(OutputError, match="cannot be read"):
        Marks(page, "figures")
    page.write_text(PAGE)
    with pytest.raises(OutputError, match="has no place for others"):
        Marks(page, "others")
    place = Marks(page, "figures")
    page.write_text("nothing")
    with pytest.raises(OutputError, match="has no place for figures"):
        place.write("new")
    assert page.read_text() == "nothing"


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path):
    page = tmp_path / "page.md"
    write_text(page, "é\n")
    assert page.read_text(encoding="utf-8") == "é\n"
    with pytest.raises(UnicodeEncodeError):
        write_text(page, "half \ud800")
    assert page.read_text(encoding="utf-8") == "é\n"
    assert list(tmp_path.iterdir()) == [page]
