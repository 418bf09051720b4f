"""Recipes: what may be written, what is drawn, what is recorded."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml

from restorekit.config import Spec, check
from restorekit.degradations import (
    COMPOSITIONS,
    KINDS,
    STRENGTHS,
    Drawn,
    RecipeSpec,
    apply,
    draw,
    draw_kind,
    streams,
)
from restorekit.errors import ConfigError

# What training has put on patches so far (DenoiseSpec), as a recipe.
DENOISE = """
one_of:
  - {name: clean, weight: 0.05}
  - weight: 0.15
    chain:
      - {name: gaussian, sigma: [0, 15]}
      - {name: jpeg, quality: [40, 95], subsample: [true, false]}
  - weight: 0.8
    chain:
      - {name: gaussian, sigma: [0, 55]}
      - {name: quantisation, bits: 8, probability: 0.25}
"""


def recipe(document):
    return check(RecipeSpec, yaml.safe_load(document) if isinstance(document, str) else document, "recipe")


def drawn(document, count=200, seed=0):
    random, spec = np.random.default_rng(seed), recipe(document)
    return [draw(spec, random) for _ in range(count)]


def test_a_number_is_fixed_and_what_is_not_given_is_the_default():
    assert drawn("{name: rain, streaks: 50}", 1)[0] == (
        Drawn(
            "rain", {**{key: each.default for key, each in KINDS["rain"].parameters.items()}, "streaks": 50.0}
        ),
    )


def test_a_pair_is_a_range_with_both_of_its_ends():
    sigmas = [each.params["sigma"] for (each,) in drawn("{name: gaussian, sigma: [5, 50]}", 2000)]
    assert 5 <= min(sigmas) < 6 and 49 < max(sigmas) <= 50
    assert np.mean(sigmas) == pytest.approx(27.5, abs=1)
    qualities = [each.params["quality"] for (each,) in drawn("{name: jpeg, quality: [40, 43]}")]
    assert set(qualities) == {40, 41, 42, 43} and all(type(quality) is int for quality in qualities)


def test_a_range_of_logarithms_is_uniform_in_them():
    photons = [
        each.params["photons"] for (each,) in drawn("{name: poisson_gaussian, photons: {log: [10, 1000]}}")
    ]
    assert min(photons) >= 10 and max(photons) <= 1000
    assert np.median(photons) == pytest.approx(100, rel=0.5)


def test_lists_of_words_and_switches_are_choices():
    found = drawn("{name: downscale, method: [area, nearest], keep_size: [true, false]}")
    assert {each.params["method"] for (each,) in found} == {"area", "nearest"}
    assert {each.params["keep_size"] for (each,) in found} == {True, False}


def test_a_strength_fills_in_what_is_not_given():
    (found,) = drawn("{name: rain, strength: severe, mist: 0}", 1)[0]
    assert found.params["streaks"] == KINDS["rain"].strengths["severe"]["streaks"]
    assert found.params["mist"] == 0 and 26 <= found.params["length"] <= 40


def test_probabilities_and_weights_are_kept():
    names = [tuple(each.name for each in steps) for steps in drawn(DENOISE, 4000)]
    shares = {each: names.count(each) / len(names) for each in set(names)}
    assert shares == {
        ("clean",): pytest.approx(0.05, abs=0.02),
        ("gaussian", "jpeg"): pytest.approx(0.15, abs=0.02),
        ("gaussian",): pytest.approx(0.6, abs=0.03),
        ("gaussian", "quantisation"): pytest.approx(0.2, abs=0.02),
    }
    assert drawn("{name: rain, probability: 0}", 3) == [(), (), ()]


def test_a_chain_keeps_its_order_unless_it_is_shuffled():
    chain = [{"name": "gaussian"}, "jpeg", {"chain": ["haze", "rain"]}]
    assert {tuple(each.name for each in steps) for steps in drawn({"chain": chain})} == {
        ("gaussian", "jpeg", "haze", "rain")
    }
    orders = {tuple(each.name for each in steps) for steps in drawn({"chain": chain, "shuffle": True})}
    assert len(orders) == 6 and ("haze", "rain", "jpeg", "gaussian") in orders


@pytest.mark.parametrize("name", [*KINDS, *COMPOSITIONS])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_what_was_recorded_gives_the_image_again(name, strength):
    random, seed = streams(0, name)
    steps = draw(recipe({"name": name, "strength": strength}), random)
    clean = torch.rand(3, 40, 56, generator=torch.Generator().manual_seed(1))
    image = apply(steps, clean, torch.Generator().manual_seed(seed))
    record = json.dumps([asdict(each) for each in steps])
    again = apply([Drawn(**each) for each in json.loads(record)], clean, torch.Generator().manual_seed(seed))
    assert torch.equal(image, again)


def test_drawn_values_lie_within_the_ranges_of_their_parameters():
    for name in COMPOSITIONS:
        for strength in STRENGTHS:
            for steps in drawn({"name": name, "strength": strength}, 30):
                for each in steps:
                    for key, value in each.params.items():
                        parameter = KINDS[each.name].parameters[key]
                        assert type(value) is type(parameter.default)
                        assert not parameter.is_number or parameter.low <= value <= parameter.high


def test_streams_depend_on_seed_and_name_alone():
    def first(seed, name):
        random, other = streams(seed, name)
        return random.random(), other

    assert first(0, "a.png") == first(0, "a.png")
    assert len({first(seed, name) for seed in (0, 1) for name in ("a.png", "b.png")}) == 4


def test_a_depth_map_is_for_haze_and_takes_the_size_of_the_image():
    clean, steps = torch.full((3, 10, 12), 0.2), (Drawn("haze", {"beta": 1.0, "airlight": 1.0}),)
    depth = torch.zeros(5, 6)
    depth[:, 3:] = 50
    hazy = apply(steps, clean, torch.Generator(), depth=depth)
    assert float(hazy[..., :4].max()) == pytest.approx(0.2) and float(hazy[..., 8:].min()) == pytest.approx(1)
    noise = apply((Drawn("gaussian", {"sigma": 0.0}),), clean, torch.Generator(), depth=depth)
    assert torch.equal(noise, clean)


def test_a_recipe_survives_being_written_out_and_read_again():
    for document in (
        DENOISE,
        "gaussian",
        "{name: poisson_gaussian, photons: {log: [10, 1000]}, probability: 0.5}",
        "{chain: [jpeg, {one_of: [haze, {name: rain, weight: 2}]}], shuffle: true}",
        *({"name": name} for name in COMPOSITIONS),
    ):
        document = {"name": document} if document == "gaussian" else document
        spec = recipe(document)
        assert recipe(json.loads(spec.model_dump_json())) == spec
        assert recipe(spec.model_dump()) == spec


def test_a_recipe_is_part_of_other_specs():
    class Run(Spec):
        degradation: RecipeSpec = RecipeSpec(name="clean")

    run = check(Run, {"degradation": yaml.safe_load(DENOISE)}, "run.yaml")
    assert run.degradation.names() == {"clean", "gaussian", "jpeg", "quantisation"}
    assert check(Run, {"degradation": "rain"}, "run.yaml").degradation.name == "rain"
    assert check(Run, run.model_dump(), "run.yaml") == run
    assert Run().degradation.names() == {"clean"}
    with pytest.raises(ConfigError) as caught:
        check(Run, {"degradation": {"chain": ["jpeg", {"name": "gaussian", "sigma": 300}]}}, "run.yaml")
    assert caught.value.where == "run.yaml: degradation.chain[1].sigma"


BAD = [
    ("{name: rian}", "name", "no degradation called 'rian'", "did you mean 'rain'?"),
    ("{name: [rain]}", "name", "no degradation called ['rain']", ""),
    ("{name: rain, strength: [mild]}", "strength", "no strength called ['mild']", ""),
    ("{name: gaussian, sgima: 3}", "sgima", "gaussian has no parameter 'sgima'", "did you mean 'sigma'?"),
    ("{name: gaussian, sigma: 256}", "sigma", "expected a number from 0 to 255; found 256", ""),
    (
        "{name: gaussian, sigma: loud}",
        "sigma",
        "expected a number from 0 to 255, or a range; found 'loud'",
        "",
    ),
    ("{name: gaussian, sigma: true}", "sigma", "found True", ""),
    ("{name: gaussian, sigma: .nan}", "sigma", "found nan", ""),
    ("{name: gaussian, sigma: [1, 2, 3]}", "sigma", "a range of two; found [1, 2, 3]", ""),
    ("{name: gaussian, sigma: [50, 5]}", "sigma", "runs backwards", "write sigma: [5, 50]"),
    ("{name: gaussian, sigma: {log: [0, 5]}}", "sigma", "begins above 0", ""),
    ("{name: gaussian, sigma: {log: 5}}", "sigma", "a range of two", ""),
    ("{name: gaussian, sigma: {lg: [1, 5]}}", "sigma", "expected a number", ""),
    ("{name: jpeg, quality: 30.5}", "quality", "a whole number from 1 to 95", ""),
    (
        "{name: jpeg, subsample: 1}",
        "subsample",
        "expected true or false",
        "write, for example: subsample: true",
    ),
    ("{name: downscale, method: bicubc}", "method", "expected one of bicubic", "did you mean 'bicubic'?"),
    ("{name: downscale, method: []}", "method", "expected one of bicubic", ""),
    ("{name: rain, strength: sever}", "strength", "no strength called 'sever'", "did you mean 'severe'?"),
    ("{name: real_world, sigma: 5}", "sigma", "real_world is a composition", "write its recipe out"),
    ("{name: gaussian, chain: [jpeg]}", "", "exactly one of name, chain and one_of; found name, chain", ""),
    ("{nme: gaussian}", "", "exactly one of name, chain and one_of; found nme", "did you mean 'name'?"),
    ("{}", "", "found nothing", ""),
    ("{chain: []}", "chain", "at least 1 item", ""),
    ("{chain: [jpeg, 5]}", "chain[1]", "expected the name of a degradation or a mapping, found 5", ""),
    ("{chain: [{one_of: [{name: gaussian, sigma: -1}]}]}", "chain[0].one_of[0].sigma", "found -1", ""),
    ("{chain: [{name: jpeg, weight: 2}]}", "", "weight has no meaning in a chain", "use probability"),
    ("{chain: [jpeg], shufle: true}", "", "unknown key 'shufle'", "did you mean 'shuffle'?"),
    ("{one_of: [jpeg], shuffle: true}", "", "unknown key 'shuffle'", "allowed: one_of"),
    ("{one_of: [{name: jpeg, weight: 0}]}", "", "all weights of one_of are 0", ""),
    ("{name: jpeg, probability: 2}", "probability", "less than or equal to 1, found 2", ""),
    ("{name: jpeg, weight: -1}", "weight", "greater than or equal to 0", ""),
]


@pytest.mark.parametrize(("document", "path", "message", "hint"), BAD, ids=[each[0] for each in BAD])
def test_what_is_wrong_in_a_recipe_is_said_with_its_place(document, path, message, hint):
    with pytest.raises(ConfigError) as caught:
        recipe(document)
    assert caught.value.where == (f"recipe: {path}" if path else "recipe")
    assert message in caught.value.message and hint in caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


KINDS_OF = {
    "one_of": [
        {"name": "rain", "weight": 3},
        {"chain": [{"name": "gaussian_blur"}, {"name": "gaussian"}], "label": "blur"},
        {"chain": [{"name": "gaussian"}, {"name": "jpeg"}]},
        {"name": "rain", "strength": "severe"},
        "clean",
    ]
}


def test_options_of_a_choice_are_kinds_by_label_or_by_their_names():
    assert recipe(KINDS_OF).kinds == ("rain", "blur", "gaussian+jpeg", "clean")
    assert recipe({"chain": [KINDS_OF, "jpeg"]}).kinds == recipe(KINDS_OF).kinds
    assert recipe({"name": "rain"}).kinds == ("rain",)
    assert recipe({"chain": ["rain", "jpeg"], "label": "bad"}).kinds == ("bad",)
    two = {"chain": [{"one_of": ["rain", "snow"]}, {"one_of": ["gaussian", "jpeg"]}]}
    assert recipe(two).kinds == ("rain+snow+gaussian+jpeg",)


def test_what_was_missed_is_clean():
    assert recipe({"one_of": ["rain", "snow"], "probability": 0.5}).kinds == ("rain", "snow", "clean")
    assert recipe({"one_of": [{"name": "rain", "probability": 0.5}, "snow"]}).kinds == (
        "rain",
        "snow",
        "clean",
    )
    spec, random = (
        recipe({"one_of": [{"name": "rain", "probability": 0.5}, "snow"]}),
        np.random.default_rng(0),
    )
    found = [draw_kind(spec, random) for _ in range(200)]
    for steps, kind in found:
        assert kind == (steps[0].name if steps else "clean")
    assert {kind for _, kind in found} == set(spec.kinds)


def test_kind_that_is_told_is_that_of_the_option_drawn_and_draws_are_the_same():
    spec = recipe(KINDS_OF)
    told, plain = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(100):
        steps, kind = draw_kind(spec, told)
        assert steps == draw(spec, plain)
        names = "+".join(each.name for each in steps)
        assert kind == ("blur" if names == "gaussian_blur+gaussian" else names)


def test_kind_can_be_asked_for():
    spec, random = recipe(KINDS_OF), np.random.default_rng(0)
    for kind in spec.kinds:
        assert {draw_kind(spec, random, kind)[1] for _ in range(20)} == {kind}
    never = recipe({"one_of": [{"name": "rain", "weight": 0}, "snow"]})
    assert draw_kind(never, random, "rain")[0][0].name == "rain"


def test_label_survives_being_written_down():
    spec = recipe(KINDS_OF)
    assert recipe(spec.model_dump()) == spec and spec.model_dump()["one_of"][1]["label"] == "blur"
