import pytest

from restorekit import datasets
from restorekit.errors import ImageError


@pytest.fixture
def lay(tmp_path):
    """Make empty files; only names count."""

    def lay(*names):
        for name in names:
            path = tmp_path / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "set"

    return lay


def pairs(found):
    return [(sample.degraded.name, sample.clean.name) for sample in found.samples]


def test_a_folder_of_images_holds_clean_ones(lay):
    found = datasets.find(lay("b.png", "a.JPG", "notes.txt"))
    assert not found.paired and [sample.name for sample in found.samples] == ["a.JPG", "b.png"]
    assert str(found).startswith("2 clean images of")


@pytest.mark.parametrize(
    ("degraded", "clean"),
    [
        ("input", "target"),
        ("LQ", "GT"),
        ("lr", "hr"),
        ("rain", "norain"),
        ("low", "high"),
        ("hazy", "gt"),
        ("blur", "sharp"),
        ("noisy", "clean"),
        ("source", "target"),
        ("synthetic", "gt"),
    ],
)
def test_two_folders_with_usual_names_hold_pairs(lay, degraded, clean):
    found = datasets.find(lay(f"{degraded}/a.png", f"{degraded}/b.png", f"{clean}/a.jpg", f"{clean}/b.png"))
    assert found.paired and found.layout == f"{degraded} -> {clean}" and not found.unpaired
    assert pairs(found) == [("a.png", "a.jpg"), ("b.png", "b.png")]
    assert "2 pairs" in str(found) and "a.png -> a.jpg" in str(found)


@pytest.mark.parametrize(
    ("degraded", "clean"),
    [
        ("rain/rain-001.png", "norain/norain-001.png"),
        ("input/01_noise.png", "target/01_gt.png"),
        ("input/Canon_5_real.JPG", "target/Canon_5_mean.JPG"),
        ("hazy/1400_0.8_0.2.png", "gt/1400.png"),
        ("lr/baby_x4.png", "hr/baby.png"),
        ("LR/babyx4.png", "HR/baby.png"),
        ("low/1.png", "high/1.png"),
    ],
)
def test_names_of_partners_may_differ_by_what_they_are(lay, degraded, clean):
    found = datasets.find(lay(degraded, clean))
    assert pairs(found) == [(degraded.split("/")[1], clean.split("/")[1])]


def test_one_clean_image_may_have_several_degraded_ones(lay):
    found = datasets.find(
        lay("hazy/1_1_0.9.png", "hazy/1_2_0.8.png", "hazy/1_10.png", "gt/1.png", "gt/1_10.png")
    )
    assert pairs(found) == [("1_10.png", "1_10.png"), ("1_1_0.9.png", "1.png"), ("1_2_0.8.png", "1.png")]


def test_scenes_are_looked_into(lay):
    found = datasets.find(lay("A/blur/1.png", "A/sharp/1.png", "B/blur/1.png", "B/sharp/1.png"))
    assert [sample.name for sample in found.samples] == ["A/1.png", "B/1.png"]
    assert [sample.clean.parts[-3:] for sample in found.samples] == [
        ("A", "sharp", "1.png"),
        ("B", "sharp", "1.png"),
    ]


def test_pairs_may_lie_side_by_side(lay):
    found = datasets.find(
        lay("Flower_blur1.png", "Flower_sharp1.png", "Sea_blur1.png", "Sea_sharp1.png", "x.png")
    )
    assert pairs(found) == [("Flower_blur1.png", "Flower_sharp1.png"), ("Sea_blur1.png", "Sea_sharp1.png")]
    assert [path.name for path in found.unpaired] == ["x.png"]


def test_missing_partners_are_named(lay):
    found = datasets.find(lay("input/a.png", "input/b.png", "target/a.png", "target/c.png"))
    assert pairs(found) == [("a.png", "a.png")]
    assert [path.name for path in found.unpaired] == ["b.png", "c.png"]


def test_folders_without_any_partner_are_refused(lay):
    with pytest.raises(ImageError, match="no file has a partner"):
        datasets.find(lay("input/a.png", "target/b.png"))


def test_several_layouts_are_refused_and_a_given_one_decides(lay):
    folder = lay("input/a.png", "noisy/a.png", "target/a.png", "other/a.png")
    with pytest.raises(ImageError, match="several folders that could be pairs: input, noisy, target"):
        datasets.find(folder)
    assert datasets.find(folder, "noisy:other").layout == "noisy -> other"
    assert len(datasets.find(folder, "clean").samples) == 4


@pytest.mark.parametrize("layout", ["input", "input:nothing", "nothing:target"])
def test_a_layout_has_to_name_two_folders(lay, layout):
    with pytest.raises(ImageError, match="does not name two folders"):
        datasets.find(lay("input/a.png", "target/a.png"), layout)


def test_a_folder_without_images_is_refused(tmp_path):
    with pytest.raises(ImageError, match="holds no images"):
        datasets.find(tmp_path)
    with pytest.raises(ImageError, match="is no folder"):
        datasets.find(tmp_path / "missing")


def test_named_sets_are_found_by_name_whatever_its_case(tmp_path, monkeypatch):
    (tmp_path / "LOL_v1").mkdir()
    assert datasets.find_named("lol-v1", tmp_path).name == "LOL_v1"
    monkeypatch.setenv("RESTOREKIT_DATA_DIR", str(tmp_path))
    assert datasets.find_named("LOLv1").name == "LOL_v1"


def test_a_named_set_that_is_missing_says_where_it_was_looked_for(tmp_path):
    with pytest.raises(ImageError, match="set5 is not in") as caught:
        datasets.find_named("set5", tmp_path)
    assert "RESTOREKIT_DATA_DIR" in caught.value.hint


def test_an_unknown_name_has_a_near_one():
    with pytest.raises(ImageError, match="no dataset called 'cbsd86'") as caught:
        datasets.find_named("cbsd86")
    assert "cbsd68" in caught.value.hint


def test_every_named_set_has_a_protocol_that_exists():
    from restorekit.evaluation.protocols import PROTOCOLS

    assert {facts.protocol for facts in datasets.NAMED.values()} <= set(PROTOCOLS)
