"""The network: what it computes, beside the paper written down plainly, and in every variant."""

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from ptgrm_cases import ABLATIONS, built, doubled, every_variant, given
from torch.nn.functional import mse_loss, pad

from restorekit.contracts import PriorFeatures
from restorekit.errors import ContractError
from restorekit.memory import _meta_twin, _peak_bytes, memory_per_pixel
from restorekit.testing import check_refiner
from restorekit_ptgrm.guidance import Guide
from restorekit_ptgrm.network import PTGRM
from restorekit_ptgrm.release import turn_gate
from restorekit_ptgrm.strips import Strip, Work
from restorekit_ptgrm.transformer import TransformerBlock

ROOT = Path(__file__).parents[3]


def count(**params):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in PTGRM(**params).parameters())


def test_sizes_are_those_of_the_paper():
    assert count(head="release") == 671_735
    assert count(mask_channels=1) == 671_880
    assert count() == 672_170
    assert count(kernel=5) == 2_146_730 and count(width=32) == 1_821_714


@pytest.mark.parametrize("latent", [None, 384, 1024])
@pytest.mark.parametrize("features", [32, 512, 1024, 1025, 1280, 1408, 2432, 2560, 4096, 5120, 12288])
def test_less_than_a_million_parameters_for_every_prior(features, latent):
    inside = {"level": "feature", "latent_features": latent} if latent else {}
    assert count(prior_features=features, **inside) < 1e6


def test_large_network_of_the_ablation_is_four_times_as_wide():
    plain = {"width": 64, "range_map": "sum", "channel_attention": "features"}
    assert count(**plain, spatial_attention="features") == 4_037_594
    assert count(**plain, spatial_attention="none") == 719_258


@every_variant
def test_contract_is_kept(params):
    if "dense_features" in params:
        params = {**params, "dense_features": 16}
    check_refiner(PTGRM, prior_features=16, **params)


def test_contract_is_kept_for_gray_images():
    check_refiner(PTGRM, prior_features=16, channels=1)


@pytest.mark.parametrize("params", [{}, {"head": "release"}, {"range_map": "snr"}, {"mask_channels": 1}])
def test_contract_is_kept_for_the_two_views_of_dual_pixels(params):
    check_refiner(PTGRM, prior_features=16, channels=6, **params)


def test_two_views_are_both_compared_and_their_mean_is_where_equation_1_starts():
    assert count(channels=6) == 672_170 + 3 * 16 * 9
    views, prior = given(30, 45, channels=6)[::2]
    restored = given(30, 45)[1]
    network = built(channels=6)
    with torch.no_grad():
        refined = network(views, restored, prior)
        swapped = network(torch.cat([views[:, 3:], views[:, :3]], 1), restored, prior)
        assert (refined - swapped).abs().max() > 1e-4
        network.decoder.last.weight.zero_()
        network.decoder.last.bias.copy_(torch.tensor([-40.0] * 3 + [0.0] * 3))
        torch.testing.assert_close(network(views, restored, prior), (views[:, :3] + views[:, 3:]) / 2)
    with pytest.raises(ContractError, match="two images of 6 and 3 channels"):
        network(restored, restored, prior)


@every_variant
def test_parts_equal_the_whole(params):
    network, images = built(**params), given(30, 45)
    with torch.no_grad():
        whole = network(*images)
    exact = copy.deepcopy(network).double()
    precise = exact(*doubled(images))
    for tile in (4, 24):
        assert (network.refine_in_parts(*images, tile) - whole).abs().max() < 1e-5
        assert (exact.refine_in_parts(*doubled(images), tile) - precise).abs().max() < 1e-10
    assert (whole - precise).abs().max() < 1e-4 * precise.abs().max()


@every_variant
def test_inference_equals_what_is_trained(params):
    network, images = built(**params).double(), doubled(given(40, 52, batch=2))
    trained = network.train()(*images)
    with torch.inference_mode():
        assert (network.eval()(*images) - trained).abs().max() < 1e-10


def test_parts_take_less_memory_than_the_whole():
    network = _meta_twin(built())

    def example(side):
        images = torch.empty(2, 1, 3, side, side, device="meta")
        return *images, PriorFeatures(torch.empty(1, 16, device="meta"))

    class Parts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, *images):
            return self.network.refine_in_parts(*images, 192)

    whole, parts = (_peak_bytes(one, example, 512) for one in (network, Parts()))
    assert parts < 0.5 * whole


def test_memory_grows_with_the_image_and_not_faster():
    def example(side):
        images = torch.empty(2, 1, 3, side, side, device="meta")
        return *images, PriorFeatures(torch.empty(1, 16, device="meta"))

    network = _meta_twin(built())
    small, large = (_peak_bytes(network, example, side) for side in (256, 512))
    assert 3.5 < large / small < 4.1
    assert 20 < memory_per_pixel(network, example) < 250


def test_straightforward_implementation_agrees():
    path = ROOT / "benchmarks" / "ptgrm_speed.py"
    if not path.is_file():
        pytest.skip("the benchmark is not here: only in the repository")
    spec = importlib.util.spec_from_file_location("ptgrm_speed", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    network, images = built(prior_features=512).double(), doubled(given(48, 68, batch=2, features=512))
    plain = benchmark.straightforward(network.state_dict(), *images[:2], images[2].glob)
    for refined in (network(*images), network.refine_in_parts(*images, 16)):
        assert (refined - plain).abs().max() < 1e-10


@pytest.mark.parametrize("size", [(63, 97), (64, 96), (5, 8), (4, 4), (3, 2), (1, 1), (1, 40)])
def test_any_size_comes_back_in_its_size(size):
    network = built().double()
    images = doubled(given(*size))
    refined = network(*images)
    assert refined.shape == (1, 3, *size) and refined.isfinite().all()
    assert (network.refine_in_parts(*images, 4) - refined).abs().max() < 1e-10


def test_maps_have_the_shapes_of_the_paper():
    maps = built().maps(*given(63, 97, batch=2))
    shapes = {name: tuple(value.shape) for name, value in maps.items()}
    assert shapes == {
        "M": (2, 1, 16, 25),
        "M_c": (2, 16),
        "M_s": (2, 1, 16, 25),
        "I_m": (2, 3, 63, 97),
        "I_r": (2, 3, 63, 97),
    }
    for name in ("M", "M_c", "M_s", "I_m"):
        assert 0 < maps[name].min() < maps[name].max() < 1
    assert "I_m" not in built(head="release").maps(*given())
    assert "M" not in built(range_map="sum").maps(*given())


def test_maps_explain_the_refined_image():
    network, (degraded, restored, prior) = built(), given()
    maps = network.maps(degraded, restored, prior)
    explained = degraded + (restored - degraded) * maps["I_m"] + maps["I_r"]
    torch.testing.assert_close(explained, network(degraded, restored, prior), atol=1e-5, rtol=0)


def test_images_of_a_batch_do_not_depend_on_each_other():
    network, (degraded, restored, prior) = built(), given(batch=2)
    both = network(degraded, restored, prior)
    for index in range(2):
        one = slice(index, index + 1)
        alone = network(degraded[one], restored[one], PriorFeatures(prior.glob[one]))
        torch.testing.assert_close(alone, both[one], atol=1e-5, rtol=0)


def always(value):
    return lambda module, inputs, output: torch.full_like(output, value)


@pytest.mark.parametrize(("gate", "high"), [("paper", "near"), ("release", "far")])
def test_range_map_chooses_the_branch(gate, high):
    network, work = built(gate=gate), Work()
    f = torch.rand(1, 16, 8, 12)
    far = f
    for block in network.enhancement.long:
        far = block(far, work)
    branches = {"near": network.enhancement.short(f, Strip(0, 8, 8)), "far": far}
    low = ({"near", "far"} - {high}).pop()
    for value, branch in ((40.0, high), (-40.0, low)):
        hook = network.enhancement.score.last.register_forward_hook(always(value))
        mixed, _ = network.enhancement(f, Guide(torch.rand(1, 16)), None, work)
        hook.remove()
        torch.testing.assert_close(mixed, branches[branch])


def test_turned_gate_is_the_same_function():
    published, ours = built(gate="release"), built(gate="paper", seed=5)
    ours.load_state_dict(turn_gate(published.state_dict()))
    images = given()
    torch.testing.assert_close(ours(*images), published(*images), atol=1e-6, rtol=0)
    turned_twice = turn_gate(turn_gate(published.state_dict()))
    assert all(torch.equal(value, turned_twice[name]) for name, value in published.state_dict().items())


def test_mask_of_one_keeps_the_restored_image_and_of_zero_the_degraded():
    network, (degraded, restored, prior) = PTGRM(prior_features=16), given()
    network.decoder.last.bias.data[:3] = 40
    assert torch.equal(network(degraded, restored, prior), restored)
    network.decoder.last.bias.data[:3] = -40
    assert torch.equal(network(degraded, restored, prior), degraded)


@pytest.mark.parametrize(("params", "share"), [({}, 0.982014), ({"trust": 2}, 0.880797), ({"trust": 0}, 0.5)])
def test_fresh_network_trusts_the_restored_image(params, share):
    degraded, restored, prior = given()
    refined = PTGRM(prior_features=16, **params)(degraded, restored, prior)
    torch.testing.assert_close(refined, torch.lerp(degraded, restored, share), atol=1e-5, rtol=0)


def test_release_head_has_no_mask_and_begins_with_the_clamped_restored_image():
    degraded, restored, prior = given()
    kept = PTGRM(prior_features=16, head="release")(degraded, restored * 2 - 0.5, prior)
    assert torch.equal(kept, (restored * 2 - 0.5).clamp(0, 1))


GUIDED = {
    "M": {"channel_attention": "features", "spatial_attention": "features"},
    "M_c": {"range_map": "sum", "spatial_attention": "features"},
    "M_s": {"range_map": "sum", "channel_attention": "features"},
}


@pytest.mark.parametrize("name", GUIDED)
def test_prior_changes_what_it_guides_and_nothing_where_it_does_not(name):
    degraded, restored, prior = given()
    other = PriorFeatures(given(seed=7)[2].glob)

    def differs(network):
        maps = [network.maps(degraded, restored, guide)[name] for guide in (prior, other)]
        return (maps[0] - maps[1]).abs().max()

    assert differs(built(**GUIDED[name])) > 1e-3
    unguided = {"range_map": "snr", "channel_attention": "features", "spatial_attention": "features"}
    assert differs(built(**unguided)) == 0


def test_dense_map_and_vector_change_the_image_when_joined():
    degraded, restored, prior = given()
    for name in ("1D prior", "2D prior"):
        network, other = built(**ABLATIONS[name]), given(seed=7)[2]
        assert (network(degraded, restored, prior) - network(degraded, restored, other)).abs().max() > 1e-4


def test_scale_of_the_prior_does_not_matter_but_for_prior_scale():
    degraded, restored, prior = given()
    louder = PriorFeatures(prior.glob * 9)
    network = built()
    torch.testing.assert_close(network(degraded, restored, louder), network(degraded, restored, prior))
    scaled = built(prior_scale=4.0)
    assert not torch.allclose(scaled(degraded, restored, prior), network(degraded, restored, prior))


def test_prior_of_unit_scale_has_values_of_one_whatever_its_width():
    for features in (16, 64):
        network = built(prior_features=features, prior_scale="unit")
        assert network.prior_scale == features**0.5
        guide = network._guide(given(features=features)[2], None, 1).prior
        assert guide.square().mean().sqrt() == pytest.approx(1)


def test_joined_prior_begins_beside_the_features_as_they_are():
    torch.manual_seed(0)
    weight = PTGRM(prior_features=1280, concatenation="vector").concatenated.weight.detach()[..., 0, 0]
    assert torch.equal(weight[:, :16], torch.eye(16))
    assert weight[:, 16:].std() == pytest.approx(1280**-0.5 / 3**0.5, rel=0.02)
    with torch.device("meta"):
        assert PTGRM(prior_features=1280, concatenation="vector").concatenated.weight.is_meta


def test_noisy_pixels_have_a_low_signal_to_noise_ratio():
    degraded, restored, prior = given(64, 64)
    degraded[..., :32] = 0.5
    score = built(range_map="snr").maps(degraded, restored, prior)["M"]
    assert score.shape == (1, 1, 16, 16)
    assert score[..., :6].min() > 0.9 and score[..., 10:].median() < 0.05


def test_signal_to_noise_ratio_is_that_of_the_formula():
    degraded, restored, prior = given(16, 24)
    gray = (degraded * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    blurred = pad(gray, (2, 2, 2, 2), mode="reflect").unfold(1, 5, 1).unfold(2, 5, 1).mean((3, 4))
    ratio = blurred / ((gray - blurred).abs() + 1e-4)
    ratio = (ratio / (ratio.max() + 1e-4)).clamp(0, 1)
    score = built(range_map="snr").maps(degraded, restored, prior)["M"]
    torch.testing.assert_close(score[0], ratio[:, ::4, ::4], atol=1e-4, rtol=1e-3)


def test_attention_over_channels_does_not_see_where_pixels_are():
    torch.manual_seed(0)
    block = TransformerBlock(8).double()
    x, order = torch.rand(1, 8, 6, 6, dtype=torch.float64), torch.randperm(36)
    shuffled = x.flatten(2)[..., order].view_as(x)

    def apart():
        after, before = block(shuffled, Work()).flatten(2), block(x, Work()).flatten(2)[..., order]
        return (after - before).abs().max()

    assert apart() > 1e-3
    for layer in (block.attention.depthwise, block.feed_forward.depthwise):
        layer.weight.data.zero_()
        layer.weight.data[:, :, 1, 1] = 1
    assert apart() < 1e-12


def test_gradients_reach_every_parameter():
    network, images = built(), given(32, 32)
    network(*images).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert silent == []


def test_gradient_reaches_the_backbone_unless_detached():
    degraded, restored, prior = given(32, 32)
    restored.requires_grad_()
    assert torch.autograd.grad(built()(degraded, restored, prior).sum(), restored)[0].abs().sum() > 0
    network = built(detach=True)
    (gradient,) = torch.autograd.grad(network(degraded, restored, prior).sum(), restored, allow_unused=True)
    assert gradient is None


def test_output_does_not_depend_on_memory_format():
    network, images = built(), given()
    plain = network(*images)
    network.to(memory_format=torch.channels_last)
    laid = [image.to(memory_format=torch.channels_last) for image in images[:2]]
    with torch.no_grad():
        torch.testing.assert_close(network(*laid, images[2]), plain, atol=1e-5, rtol=0)


def test_half_precision_is_close():
    network, images = built(), given()
    degraded, restored, prior = images
    half = copy.deepcopy(network).bfloat16()
    with torch.no_grad():
        refined = half(degraded.bfloat16(), restored.bfloat16(), PriorFeatures(prior.glob.bfloat16()))
        assert (refined.float() - network(*images)).abs().mean() < 0.02


@pytest.mark.slow
def test_refiner_learns_to_undo_what_a_frozen_backbone_did():
    torch.manual_seed(0)
    clean = torch.nn.functional.interpolate(torch.rand(1, 3, 16, 16), (128, 128), mode="bicubic").clamp(0, 1)
    clean = (clean + 0.3 * (torch.arange(128) % 4 < 2)).clamp(0, 1)
    degraded = clean + 0.1 * torch.randn_like(clean)
    restored = torch.nn.functional.avg_pool2d(degraded, 5, 1, 2, count_include_pad=False)
    prior, network = PriorFeatures(torch.randn(1, 16)), PTGRM(prior_features=16)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(200):
        optimizer.zero_grad()
        loss = mse_loss(network(degraded, restored, prior), clean)
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * mse_loss(restored, clean)


def test_what_does_not_fit_is_named():
    degraded, restored, prior = given()
    with pytest.raises(ContractError, match="built for a prior of 16 features, this one has 12"):
        built()(degraded, restored, PriorFeatures(prior.glob[:, :12]))
    with pytest.raises(ContractError, match="built for 5 dense features, this prior has None"):
        built(**ABLATIONS["2D prior"])(degraded, restored, PriorFeatures(prior.glob))
    with pytest.raises(ContractError, match="describes 2"):
        built()(degraded, restored, PriorFeatures(prior.glob.repeat(2, 1)))
    with pytest.raises(ContractError, match="of one size, found"):
        built()(degraded, restored[..., 4:], prior)
    with pytest.raises(ContractError, match="two images of 3 channels"):
        built()(degraded[:, :1], restored, prior)
    with pytest.raises(ContractError, match="inside a backbone"):
        built(level="feature", latent_features=8)(degraded, restored, prior)


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"kernel": 2}, "kernel is 2"),
        ({"channels": 2}, "channels is 2"),
        ({"mask_channels": 2}, "mask_channels is 2"),
        ({"trust": float("nan")}, "trust is nan"),
        ({"prior_scale": "units"}, "prior_scale is 'units'"),
        ({"head": "papr"}, "head is 'papr', not one of: paper, release"),
        ({"window": 16}, "window is 16, not 0 or at least 32"),
        ({"window": 64, "level": "feature", "latent_features": 8}, "window is for images"),
        ({"level": "feature"}, "needs latent_features"),
        ({"concatenation": "map"}, "go together"),
        ({"prior_features": 0}, "prior_features is 0, not at least 1"),
        ({"long_blocks": -1}, "long_blocks is -1, not at least 0"),
        ({"prior_hidden": -4}, "prior_hidden is -4, not at least 1"),
        ({"dense_features": -3}, "dense_features is -3, not at least 0"),
        ({"level": "feature", "latent_features": 0}, "latent_features is 0, not at least 1"),
        ({"prior_scale": float("nan")}, "prior_scale is nan, not finite"),
        ({"level": "feature", "latent_features": 8, "head": "release"}, "head 'release' is for images"),
        ({"level": "feature", "latent_features": 8, "range_map": "snr"}, "for images"),
    ],
)
def test_impossible_arguments_are_refused(params, says):
    with pytest.raises(ValueError, match=says):
        PTGRM(**params)
