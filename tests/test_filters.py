"""The flat list of a network's filters, choosing among them, and the file of their scores."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations

from restorekit.analysis import contrasted
from restorekit.errors import ConfigError, OutputError, RestoreKitError, WeightsError
from restorekit.filters import FilterTable, FilterTensor, fingerprint
from restorekit.filterscores import FilterScores, least_ratio, select
from restorekit.registry import backbones


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.GroupNorm(1, 4),
        nn.Conv2d(4, 4, 5, groups=4),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    )


def scores(values: torch.Tensor, table: FilterTable, label: str = "rain") -> FilterScores:
    return FilterScores(table, values, "faig", label, base="b" * 64, details={"steps": 16})


def test_filters_are_slices_of_convolutions_in_the_order_of_the_state():
    table = FilterTable.of(small())
    rows = [(tensor.name, tensor.count, tensor.size, tensor.offset) for tensor in table]
    assert rows == [("0.weight", 12, 9, 0), ("2.weight", 4, 25, 12), ("3.weight", 12, 4, 16)]
    assert (len(table), table.parameters) == (28, 108 + 100 + 48)


def test_the_published_counts_of_filters_are_met():
    # Xie et al., release: MSRResNet x2 and the SRCNN-style network; it takes int(1 %) of them.
    for name, params, count in (("srresnet", {"scale": 2}, 151_936), ("srcnn", {"scale": 2}, 156_224)):
        with torch.device("meta"):
            table = FilterTable.of(backbones[name].load()(**params))
        assert len(table) == count
        assert len(select(table, torch.zeros(count), 0.01, budget="filters")) == count // 100


def test_an_output_filter_is_all_that_makes_one_channel():
    network = small()
    table = FilterTable.of(network, "out")
    assert [tensor.count for tensor in table] == [4, 4, 6]
    image = torch.rand(1, 4, 5, 5)
    before = network[3](image)
    tensor = table.tensors[2]
    with torch.no_grad():
        network[3].weight.view(-1)[tensor.elements()[4]] = 0
    changed = (network[3](image) - before).abs().amax((0, 2, 3))
    assert changed.nonzero().flatten().tolist() == [4]


def test_every_number_belongs_to_exactly_one_filter():
    for unit in ("kernel", "out", "weight"):
        for tensor in FilterTable.of(small(), unit):
            assert tensor.elements().flatten().sort().values.tolist() == list(range(tensor.parameters))


def test_shared_and_parametrized_weights_count_once():
    network = nn.Sequential(
        nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3), parametrizations.weight_norm(nn.Conv2d(3, 2, 3))
    )
    network[1].weight = network[0].weight
    names = [tensor.name for tensor in FilterTable.of(network)]
    assert names == ["0.weight", "2.parametrizations.weight.original1"]


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_that_a_hook_computes_are_refused_not_left_out(hook):
    network = nn.Sequential(nn.Conv2d(3, 3, 3), hook(nn.Conv2d(3, 2, 3)))
    with pytest.raises(RestoreKitError, match=r"1\.weight_(v|orig) is no weight of a layer"):
        FilterTable.of(network)
    assert [tensor.name for tensor in FilterTable.of(network, exclude=r"^1\.")] == ["0.weight"]


def test_patterns_choose_layers_and_raw_parameters():
    network = small()
    network.table = nn.Parameter(torch.zeros(5, 7))
    assert [tensor.name for tensor in FilterTable.of(network, include="^0|^2", exclude="2")] == ["0.weight"]
    assert [tensor.name for tensor in FilterTable.of(network, include="table", raw="table")] == ["table"]
    with pytest.raises(RestoreKitError, match=r"include='encoder'"):
        FilterTable.of(network, include="encoder")
    with pytest.raises(RestoreKitError, match="no convolution"):
        FilterTable.of(nn.LayerNorm(3))
    with pytest.raises(RestoreKitError, match="no regular expression"):
        FilterTable.of(network, include="(")


def test_masks_mark_the_chosen_filters():
    table = FilterTable.of(small())
    masks = table.masks(torch.tensor([12, 0]))
    assert masks["0.weight"].nonzero()[:, :2].unique(dim=0).tolist() == [[0, 0]]
    assert int(masks["0.weight"].sum()) == 9 and int(masks["2.weight"].sum()) == 25
    assert not masks["3.weight"].any()


def test_a_budget_of_parameters_is_never_exceeded():
    table = FilterTable.of(small())
    values = torch.rand(len(table), generator=torch.Generator().manual_seed(1))
    for ratio in (0.05, 0.2, 0.5, 1.0):
        chosen = select(table, values, ratio)
        assert int(table.sizes[chosen].sum()) <= ratio * table.parameters
        assert values[chosen].tolist() == sorted(values[chosen].tolist(), reverse=True)
    assert len(select(table, values, 1.0)) == len(table)


def test_ties_go_to_the_lower_number():
    table = FilterTable.of(small())
    assert select(table, torch.ones(28), 0.2, budget="filters").tolist() == [0, 1, 2, 3, 4]


def test_each_layer_can_have_its_own_share():
    table = FilterTable.of(small())
    values = torch.arange(28.0)
    chosen = table.chosen(select(table, values, 0.25, budget="filters", scope="layer"))
    assert {name: len(own) for name, own in chosen.items()} == {"0.weight": 3, "2.weight": 1, "3.weight": 3}
    guarded = table.chosen(select(table, values, 0.5, budget="filters", share=0.5))
    assert {name: len(own) for name, own in guarded.items()} == {"0.weight": 6, "2.weight": 2, "3.weight": 6}


@pytest.mark.parametrize("ratio", [0, -1, 1.5])
def test_ratios_outside_the_unit_interval_are_refused(ratio):
    table = FilterTable.of(small())
    with pytest.raises(RestoreKitError, match=r"not both in \(0, 1\]"):
        select(table, torch.zeros(28), ratio)


def test_a_choice_of_nothing_is_refused_with_the_least_ratio_that_chooses_one():
    table = FilterTable.of(small())
    values = torch.zeros(28)
    values[12] = 1.0
    for ratio, words, least in (
        (0.03, {"budget": "filters"}, 0.0358),
        (0.09, {"budget": "parameters"}, 0.0977),
        (0.08, {"budget": "filters", "scope": "layer"}, 0.0834),
        (0.01, {"budget": "filters", "share": 0.5}, 0.0358),
    ):
        message = rf"a ratio of {ratio} of 28 filters is less than one filter[\s\S]*use a ratio of {least} or"
        with pytest.raises(RestoreKitError, match=message):
            select(table, values, ratio, **words)
        assert len(select(table, values, least, **words)) >= 1
    with pytest.raises(RestoreKitError, match="less than one filter"):
        scores(values, table).overlap(scores(values, table, "snow"), 0.01)


@pytest.mark.parametrize("budget", ["filters", "parameters"])
def test_the_least_ratio_chooses_one_filter_however_many_there_are(budget):
    for count in [*range(1, 400), 1000, 3 * 5003, 151_936]:
        table = FilterTable("kernel", (FilterTensor("w", (count, 1, 3, 3), count, 9, 0),))
        values = torch.zeros(count)
        chosen = select(table, values, least_ratio(table, values, budget=budget), budget=budget)
        assert 1 <= len(chosen) <= 1 + count // 99, count


def test_scores_that_are_no_numbers_or_of_another_network_are_refused():
    table = FilterTable.of(small())
    with pytest.raises(RestoreKitError, match="1 filters have a score that is no number"):
        select(table, torch.tensor([float("nan")] + [0.0] * 27), 0.1)
    with pytest.raises(RestoreKitError, match=r"\(5,\) values for 28 filters"):
        select(table, torch.zeros(5), 0.1)


def test_scores_survive_their_file(tmp_path):
    table = FilterTable.of(small())
    made = scores(torch.rand(28), table)
    read = FilterScores.load(made.save(tmp_path / "rain.safetensors"))
    assert read.table == table and torch.equal(read.values, made.values)
    assert (read.method, read.label, read.base, read.details) == ("faig", "rain", "b" * 64, {"steps": 16})


def test_other_files_are_no_scores(tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(WeightsError, match="something else"):
        FilterScores.load(tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="cannot be read as scores"):
        FilterScores.load(tmp_path / "y.safetensors")
    with pytest.raises(WeightsError, match="restorekit faig"):
        FilterScores.load(tmp_path / "missing.safetensors")


def test_scores_of_different_bases_are_contrasted_on_purpose_only():
    table = FilterTable.of(small())
    one, other = scores(torch.ones(28), table), replace(scores(torch.zeros(28), table, "snow"), base="c" * 64)
    with pytest.raises(RestoreKitError, match=r"rain are for the base b{16}, those of snow for c{16}"):
        one.minus(other)
    with pytest.raises(RestoreKitError, match=r"snow are for the base c{16}, those of rain"):
        contrasted({"snow": other, "rain": one})
    assert torch.equal(one.minus(other, other_base=True).values, one.values)
    assert contrasted({"snow": other, "rain": one}, other_base=True)["snow"].base == "c" * 64


def test_scores_of_degradations_that_cost_differently_are_contrasted_in_shares():
    table = FilterTable.of(small())
    rain, snow = scores(torch.arange(1, 29.0), table), scores(torch.arange(28.0, 0, -1), table, "snow")
    heavy = replace(rain, values=10 * rain.values)
    shares = rain.minus(snow, shares=True, weight=2)
    torch.testing.assert_close(shares.values, (rain.values - 2 * snow.values) / 406)
    torch.testing.assert_close(heavy.minus(snow, shares=True, weight=2).values, shares.values)
    assert shares.details["minus"] == {"against": "mean", "labels": ["snow"], "shares": True, "weight": 2}
    # In differences the heavier one keeps filters that serve the other more.
    kept = [int((one.values > 0).sum()) for one in (heavy.minus(snow), heavy.minus(snow, shares=True))]
    assert kept == [26, 14]
    of = contrasted({"rain": heavy, "snow": snow}, shares=True, weight=2)
    assert torch.equal(of["rain"].values, heavy.minus(snow, shares=True, weight=2).values)
    for one, other in ((shares, snow), (snow, shares), (scores(torch.zeros(28), table), snow)):
        with pytest.raises(RestoreKitError, match="have no shares"):
            one.minus(other, shares=True)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(RestoreKitError, match="is not positive"):
            rain.minus(snow, weight=weight)


def test_scores_whose_metadata_are_damaged_are_no_scores(tmp_path):
    path = scores(torch.zeros(28), FilterTable.of(small())).save(tmp_path / "rain.safetensors")
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    damages = [{key: None} for key in ("table", "label", "base", "details")]
    damages += [{"table": "{"}, {"table": "[]"}, {"table": json.dumps({"unit": "kernel", "tensors": []})}]
    damages += [{"details": "[1]"}, {"table": json.dumps(FilterTable.of(nn.Conv2d(3, 3, 3)).to_json())}]
    for damage in damages:
        damaged = {key: value for key, value in {**facts, **damage}.items() if value is not None}
        save_file({"scores": torch.zeros(28)}, path, damaged)
        with pytest.raises(WeightsError, match=r"the metadata of .*rain\.safetensors are damaged"):
            FilterScores.load(path)


def test_scores_that_cannot_be_written_say_where(tmp_path):
    made = scores(torch.zeros(28), FilterTable.of(small()))
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "missing" / "x.safetensors", tmp_path / "file" / "x", tmp_path / "folder"):
        with pytest.raises(OutputError, match=rf"{path} cannot be written"):
            made.save(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_unknown_words_are_refused_with_the_known_ones():
    network = small()
    table = FilterTable.of(network)
    made = scores(torch.ones(28), table)
    for call, message in (
        (lambda: FilterTable.of(network, "foo"), "unit: is 'foo'"),
        (lambda: FilterTable.of(network, "kernels"), "did you mean 'kernel'"),
        (lambda: made.top(0.5, budget="filter"), "did you mean 'filters'"),
        (lambda: made.top(0.5, scope="layers"), "did you mean 'layer'"),
        (lambda: made.minus(made, against="foo"), "use one of mean, max"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def test_contrast_overlap_and_sums_of_layers():
    table = FilterTable.of(small())
    rain, snow = scores(torch.arange(28.0), table), scores(torch.arange(28.0).flip(0), table, "snow")
    assert torch.equal(rain.minus(snow).values, -snow.minus(rain).values)
    assert (rain.overlap(rain, 0.2), rain.overlap(snow, 0.2)) == (1.0, 0.0)
    assert rain.per_layer() == {"0.weight": 66.0, "2.weight": 54.0, "3.weight": 258.0}
    assert rain.mean_size().values[12] == 12 / 25
    others = FilterTable.of(small(), "out")
    with pytest.raises(RestoreKitError, match="of rain and snow are of different filters"):
        rain.overlap(scores(torch.ones(len(others)), others, "snow"), 0.2)


def test_a_fingerprint_follows_every_value_and_name():
    state = small().state_dict()
    assert fingerprint(state) == fingerprint(small().state_dict())
    assert fingerprint(state) != fingerprint({**state, "0.bias": state["0.bias"] + 1})
    assert fingerprint(state) != fingerprint({f"x{name}": value for name, value in state.items()})
    made = scores(torch.zeros(28), FilterTable.of(small()))
    with pytest.raises(WeightsError, match=r"for the base bbbbbbbbbbbbbbbb, the network is [0-9a-f]{16}"):
        made.check_base(state)
