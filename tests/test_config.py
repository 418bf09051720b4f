import json
from typing import Literal

import pytest

from restorekit.config import (
    PipelineSpec,
    RefineSpec,
    RestoreSpec,
    Spec,
    check,
    find_pipeline,
    presets,
    with_settings,
)
from restorekit.errors import ConfigError


def refused(document, settings=()):
    with pytest.raises(ConfigError) as caught:
        PipelineSpec.parse(document, "p.yaml", settings)
    return caught.value


def test_short_and_long_form_mean_the_same():
    short = PipelineSpec.parse({"steps": [{"restore": "median"}]})
    long = PipelineSpec.parse({"steps": [{"restore": {"name": "median", "params": {}}}]})
    assert short == long


def test_slots_take_short_and_long_form():
    refine = {"name": "ptgrm", "prior": {"name": "clip", "params": {"model": "ViT-B-32"}}}
    spec = PipelineSpec.parse(
        {"steps": [{"restore": {"name": "nafnet", "adapter": "adms"}}, {"refine": refine}]}
    )
    first, second = spec.steps
    assert isinstance(first, RestoreSpec) and first.restore.adapter.name == "adms"
    assert isinstance(second, RefineSpec) and second.refine.prior.params == {"model": "ViT-B-32"}


def test_unknown_key_is_named_with_its_path_and_a_near_name():
    error = refused(
        {"steps": [{"restore": "median"}, {"refine": {"name": "p", "priors": 1, "prior": "clip"}}]}
    )
    assert error.message == "p.yaml: steps[1].refine: unknown key 'priors'"
    assert error.hint == "did you mean 'prior'?"


def test_unknown_key_far_from_all_lists_what_is_allowed():
    assert refused({"steps": [{"restore": "median"}], "zzz": 1}).hint == "allowed: description, steps, tile"


@pytest.mark.parametrize(
    ("document", "where", "says"),
    [
        ([], "p.yaml", "expected a mapping"),
        ({}, "p.yaml: steps", "is missing"),
        ({"steps": []}, "p.yaml: steps", "at least 1"),
        ({"steps": ["median"]}, "p.yaml: steps[0]", "exactly one verb"),
        ({"steps": [{"restor": "median"}]}, "p.yaml: steps[0]", "exactly one verb"),
        ({"steps": [{"restore": "a", "refine": "b"}]}, "p.yaml: steps[0]", "exactly one verb"),
        ({"steps": [3]}, "p.yaml: steps[0]", ""),
        ({"steps": [{"restore": {"params": {}}}]}, "p.yaml: steps[0].restore.name", "is missing"),
        ({"steps": [{"restore": {"name": "a", "params": 3}}]}, "p.yaml: steps[0].restore.params", "found 3"),
        ({"steps": [{"refine": {"name": "a"}}]}, "p.yaml: steps[0].refine.prior", "is missing"),
        ({"steps": [{"refine": "a"}]}, "p.yaml: steps[0].refine.prior", "is missing"),
        ({"steps": [{"restore": "a"}], "tile": "big"}, "p.yaml: tile.size", "expected auto or a number"),
        (
            {"steps": [{"restore": "a"}], "tile": {"size": -4}},
            "p.yaml: tile.size",
            "expected auto or a number",
        ),
        ({"steps": [{"restore": "a"}], "tile": True}, "p.yaml: tile.size", "expected auto or a number"),
    ],
)
def test_wrong_documents_are_refused_with_the_path_of_what_is_wrong(document, where, says):
    error = refused(document)
    assert error.where == where
    assert says in error.message


def test_what_is_missing_is_shown_as_it_is_written():
    assert refused({"steps": [{"refine": "a"}]}).hint == "write it there, as prior: ..."


def test_tile_has_a_short_form():
    spec = PipelineSpec.parse({"steps": [{"restore": "a"}], "tile": 256})
    assert (spec.tile.size, spec.tile.overlap) == (256, "auto")


def test_settings_reach_a_step_by_name_and_by_number():
    document = {"steps": [{"restore": {"name": "median", "params": {"window": 3}}}, {"restore": "blur"}]}
    spec = PipelineSpec.parse(document, settings=["median.window=5", "2.sigmas=[1, 2]", "tile.size=64"])
    assert spec.steps[0].restore.params == {"window": 5}
    assert spec.steps[1].restore.params == {"sigmas": [1, 2]}
    assert spec.tile.size == 64


def test_setting_values_are_data_and_never_run():
    spec = PipelineSpec.parse({"steps": [{"restore": "a"}]}, settings=["a.x=__import__('os').getcwd()"])
    assert spec.steps[0].restore.params["x"] == "__import__('os').getcwd()"


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("medan.window=5", "did you mean 'median'?"),
        ("7.window=5", "STEP.PARAM=VALUE"),
        ("window", "median.window=5"),
        ("tile.siz=3", "did you mean 'size'?"),
        ("median.window=[", "quote it"),
    ],
)
def test_wrong_settings_are_refused_with_a_remedy(setting, hint):
    assert hint in refused({"steps": [{"restore": "median"}]}, [setting]).hint


class Asked(Spec):
    seeds: tuple[int, ...] = ()
    way: Literal["mixed", "decided"] = "mixed"


def test_one_value_in_place_of_a_list_and_words_with_a_slip_have_a_remedy():
    with pytest.raises(ConfigError, match="seeds") as caught:
        check(Asked, {"seeds": 3}, "a.yaml")
    assert caught.value.hint == "write a list, as [3]"
    with pytest.raises(ConfigError, match="way") as caught:
        check(Asked, {"way": "mixd"}, "a.yaml")
    assert caught.value.hint == "did you mean 'mixed'?"


def test_setting_for_a_name_that_stands_twice_asks_for_the_number():
    steps = {"steps": [{"restore": "median"}, {"restore": "median"}]}
    assert "number" in refused(steps, ["median.window=5"]).hint


def test_yaml_errors_carry_line_and_column(tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text("steps:\n  - restore: {name: median\n")
    with pytest.raises(ConfigError, match=r"broken.yaml, line \d+, column \d+: not YAML"):
        PipelineSpec.load(path)


def test_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("steps:\n  - restore: median\ntile: 3\ntile: 4\n")
    with pytest.raises(ConfigError, match="'tile' stands twice"):
        PipelineSpec.load(path)


def test_yaml_cannot_build_objects(tmp_path):
    path = tmp_path / "evil.yaml"
    path.write_text("steps: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not YAML"):
        PipelineSpec.load(path)


def test_weights_beside_the_yaml_file_are_found_from_anywhere(tmp_path):
    (tmp_path / "net.safetensors").write_bytes(b"")
    path = tmp_path / "p.yaml"
    path.write_text("steps:\n  - restore: {name: x, weights: net.safetensors}\n")
    assert PipelineSpec.load(path).steps[0].restore.weights == str(tmp_path / "net.safetensors")


def test_every_preset_parses_and_has_a_description():
    assert {"auto", "denoise"} <= set(presets())
    for name in presets():
        assert PipelineSpec.load(name).description


@pytest.mark.parametrize("name", ["denois", "nothing-like-it", "missing.yaml"])
def test_unknown_pipeline_lists_the_presets(name):
    with pytest.raises(ConfigError) as caught:
        find_pipeline(name)
    assert "denoise" in str(caught.value)


def test_schema_names_every_key_and_accepts_the_short_form():
    schema = PipelineSpec.model_json_schema()
    text = json.dumps(schema)
    assert all(
        f'"{key}"' in text for key in ("steps", "restore", "refine", "adapter", "prior", "tile", "weights")
    )
    restore = schema["$defs"]["RestoreSpec"]["properties"]["restore"]
    assert {"type": "string"} in restore["anyOf"]


def test_settings_of_plain_documents_make_the_keys_they_need():
    assert with_settings({"a": {"b": 1}}, ["a.c=2", "d.e=x"]) == {"a": {"b": 1, "c": 2}, "d": {"e": "x"}}
