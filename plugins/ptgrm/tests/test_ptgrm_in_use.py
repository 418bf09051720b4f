"""PTG-RM in pipelines and inside a backbone."""

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from guides import SEEN, Blurring, Deep, Joining, Statistics, install
from ptgrm_cases import IMAGE, chain, inside, network_of, run_command, saved
from safetensors.torch import save_file

from restorekit import Pipeline, PipelineSpec, restore
from restorekit.building import memory_of
from restorekit.contracts import PriorFeatures
from restorekit.errors import ConfigError, ContractError
from restorekit.image import Image
from restorekit.registry import backbones
from restorekit.testing import check_backbone
from restorekit_ptgrm.inside import RefinedBackbone
from restorekit_ptgrm.network import PTGRM


@pytest.fixture(autouse=True)
def guides(tmp_path_factory, monkeypatch):
    monkeypatch.syspath_prepend(str(install(tmp_path_factory.mktemp("site"))))
    SEEN.clear()


@pytest.fixture
def weights(tmp_path):
    """Return what writes a stirred network to a file; the pipeline's ``refine`` of it."""

    def write(prior="statistics", **params):
        torch.manual_seed(0)
        network = PTGRM(**{"prior_features": 16, "start": "random", **params})
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(network.state_dict(), path)
        given = {"prior_features": 16, "start": "random", **params}
        return {"refine": {"name": "ptgrm", "weights": str(path), "params": given, "prior": prior}}

    return write


@pytest.mark.parametrize("steps", [["blurring"], ["blurring", "blurring"]])
def test_refined_image_is_that_of_the_network_behind_any_chain(weights, steps):
    step = weights()
    refined = restore(IMAGE, chain(*({"restore": name} for name in steps), step))
    degraded = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    restored = degraded
    for _ in steps:
        restored = Blurring()(restored)
    with torch.no_grad():
        expected = network_of(step)(degraded, restored, Statistics()(degraded))
    np.testing.assert_allclose(refined, expected[0].permute(1, 2, 0), atol=1e-5)


def test_an_adapted_backbone_is_refined_as_any_other(weights, tmp_path):
    step = weights()
    refined = restore(IMAGE, chain({"restore": {"name": "blurring", "adapter": "lighter"}}, step))
    assert SEEN == [(1, 3, 45, 62)]
    degraded = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    with torch.no_grad():
        expected = network_of(step)(degraded, Blurring()(degraded) + 0.125, Statistics()(degraded))
    np.testing.assert_allclose(refined, expected[0].permute(1, 2, 0), atol=1e-5)
    (deep, refine), _, _ = inside(tmp_path)
    adapted = {"restore": {**deep["restore"], "adapter": "lighter"}}
    with pytest.raises(ContractError, match="Adapted offers no deepest features"):
        Pipeline.build(PipelineSpec.parse(chain(adapted, refine)))


def test_refiner_behind_a_backbone_that_enlarges_is_refused_before_any_image(weights):
    message = r"steps\[2\].refine: ptgrm compares .* and steps\[0\].restore, doubling, enlarges it"
    with pytest.raises(ConfigError, match=message):
        Pipeline.build(PipelineSpec.parse(chain({"restore": "doubling"}, {"restore": "blurring"}, weights())))
    assert restore(IMAGE, chain(weights(), {"restore": "doubling"})).shape == (90, 124, 3)


@pytest.mark.parametrize("tile", [16, 32, 64])
def test_tiles_do_not_change_the_image_and_the_prior_is_asked_once(weights, tile):
    pipeline = Pipeline.build(PipelineSpec.parse(chain({"restore": "blurring"}, weights())))
    whole = restore(IMAGE, pipeline, tile=0)
    SEEN.clear()
    result = restore(IMAGE, pipeline, tile=tile, return_result=True)
    np.testing.assert_allclose(result.to_numpy(), whole, atol=1e-5)
    assert SEEN == [(1, 3, 45, 62)]
    assert result.steps[1].tile == (tile if tile < 64 else 0) and result.steps[1].overlap == 0


def test_memory_decides_between_the_whole_image_and_parts(weights, monkeypatch):
    pipeline = Pipeline.build(PipelineSpec.parse(chain(weights())))
    large = np.random.default_rng(1).random((200, 220, 3), dtype=np.float32)
    whole = restore(large, pipeline, return_result=True)
    assert whole.steps[0].tile == 0
    assert 20 < memory_of(pipeline.steps[0].network) < 300
    monkeypatch.setattr("restorekit.runtime.available_memory", lambda device: 3_000_000)
    parts = restore(large, pipeline, return_result=True)
    assert parts.steps[0].tile == 128 and parts.warnings == ()
    np.testing.assert_allclose(parts.to_numpy(), whole.to_numpy(), atol=1e-5)


def test_out_of_memory_leads_to_parts_with_the_same_result(weights, monkeypatch):
    pipeline = Pipeline.build(PipelineSpec.parse(chain(weights())))
    large = np.random.default_rng(1).random((200, 220, 3), dtype=np.float32)
    whole = restore(large, pipeline)

    def full(self, degraded, restored, prior):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(PTGRM, "forward", full)
    result = restore(large, pipeline, return_result=True)
    np.testing.assert_allclose(result.to_numpy(), whole, atol=1e-5)
    assert "out of memory at the whole image, retried at 128" in result.warnings[0]


def test_colour_gray_and_alpha_are_each_right(weights):
    step, levels = weights(), (IMAGE * 255).astype(np.uint8)
    alpha = np.dstack([levels, levels[..., 0]])
    refined = restore(alpha, chain(step))
    assert np.array_equal(refined[..., 3], levels[..., 0])
    assert np.array_equal(refined[..., :3], restore(levels, chain(step)))
    gray = restore(IMAGE[..., 0], chain(step))
    colour = restore(np.repeat(IMAGE[..., :1], 3, 2), chain(step))
    np.testing.assert_allclose(gray, colour.mean(2), atol=1e-5)


def test_gray_network_refines_colour_by_colour(weights):
    step = weights(channels=1)
    refined = restore(IMAGE, chain(step))
    network, degraded = network_of(step), torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    with torch.no_grad():
        prior = Statistics()(degraded)
        planes = [network(degraded[:, c : c + 1], degraded[:, c : c + 1], prior) for c in range(3)]
    np.testing.assert_allclose(refined, torch.cat(planes, 1)[0].permute(1, 2, 0), atol=1e-5)
    assert restore(IMAGE[..., 0], chain({"restore": "gray-blurring"}, step)).shape == (45, 62)


@pytest.mark.parametrize("tile", [0, 16])
def test_two_views_of_dual_pixels_are_refined_to_one_image(weights, tile):
    views = np.random.default_rng(0).random((45, 62, 6), dtype=np.float32)
    step = weights(channels=6)
    pipeline = Pipeline.build(PipelineSpec.parse(chain({"restore": "joining"}, step)))
    refined = restore(views, pipeline, tile=tile)
    assert SEEN == [(1, 3, 45, 62)]
    degraded = torch.from_numpy(views).permute(2, 0, 1)[None]
    with torch.no_grad():
        prior = Statistics()((degraded[:, :3] + degraded[:, 3:]) / 2)
        expected = pipeline.steps[1].network(degraded, Joining()(degraded), prior)
    np.testing.assert_allclose(refined, expected[0].permute(1, 2, 0), atol=1e-5)
    assert pipeline.look(Image.of(views))[1]["2 ptgrm+statistics"]["I_m"].shape[1] == 3
    with pytest.raises(ContractError, match="takes 6 channels, the image has 3"):
        restore(IMAGE, chain({"restore": "blurring"}, step))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (3, 50)])
def test_images_smaller_than_the_multiple_are_refined(weights, size):
    refined = restore(IMAGE[: size[0], : size[1]], chain({"restore": "blurring"}, weights()))
    assert refined.shape == (*size, 3) and np.isfinite(refined).all()


def test_prior_of_another_width_is_refused_before_any_image(weights):
    step = weights(prior={"name": "statistics", "params": {"features": 24}})
    with pytest.raises(ConfigError, match="ptgrm was built for a prior of 16 features, statistics has 24"):
        Pipeline.build(PipelineSpec.parse(chain(step)))


def test_prior_that_is_not_finite_is_named(weights):
    with pytest.raises(ContractError, match="prior Broken returned values that are not finite"):
        restore(IMAGE, chain(weights(prior="broken")))


def test_prior_that_does_not_describe_image_by_image_is_named(weights):
    with pytest.raises(ContractError, match=r"Joined returned global features \(2, 16\), where \(1, 16\)"):
        restore(IMAGE, chain(weights(prior="joined")))


@pytest.mark.parametrize("level", ["image", "feature"])
def test_prior_that_is_not_finite_is_named_wherever_it_guides(weights, tmp_path, level):
    steps = [weights(prior="broken")] if level == "image" else list(inside(tmp_path)[0])
    if level == "feature":
        steps[1] = {"refine": {**steps[1]["refine"], "prior": "broken"}}
    with pytest.raises(ContractError, match="prior Broken"):
        restore(IMAGE, chain(*steps))


WITHOUT = {"range_map": "sum", "channel_attention": "none", "spatial_attention": "none"}
TABLE_3 = {
    "without SP": {"range_map": "sum"},
    "without CA": {"channel_attention": "features"},
    "without SA": {"spatial_attention": "features"},
    "large": {
        "range_map": "sum",
        "channel_attention": "features",
        "spatial_attention": "features",
        "width": 64,
    },
    "without position": {"positions": False},
    "SNR as mask": {"range_map": "snr"},
    "1D prior": {**WITHOUT, "concatenation": "vector"},
    "2D prior": {**WITHOUT, "concatenation": "map", "dense_features": 16},
}


@pytest.mark.parametrize("row", TABLE_3)
def test_every_row_of_table_3_is_run_by_a_pipeline(weights, row):
    step = weights(**TABLE_3[row])
    expected = restore(IMAGE, chain(step, tile={"size": 0}))
    np.testing.assert_allclose(restore(IMAGE, chain(step)), expected, atol=1e-5)
    memory = Pipeline.build(PipelineSpec.parse(chain(step))).steps[0].memory
    assert memory is not None and memory > 0


def test_steps_of_one_prior_share_it_and_it_is_asked_once(weights):
    pipeline = Pipeline.build(PipelineSpec.parse(chain(weights(), {"restore": "blurring"}, weights())))
    assert pipeline.steps[0].prior is pipeline.steps[2].prior
    restore(IMAGE, pipeline)
    restore(IMAGE[:20], pipeline)
    assert SEEN == [(1, 3, 45, 62), (1, 3, 20, 62)]


def test_half_precision_is_run(weights):
    result = restore(IMAGE, chain(weights()), dtype="bf16", return_result=True)
    assert result.steps[0].dtype == "bfloat16" and np.isfinite(result.to_numpy()).all()


def test_fresh_refiner_of_features_leaves_the_backbone_as_it_is(tmp_path):
    steps, _, _ = inside(tmp_path)
    image = IMAGE[:44, :60]
    assert np.array_equal(restore(image, chain(*steps)), restore(image, chain(steps[0])))


def test_features_are_refined_inside_the_backbone_of_the_step_before(tmp_path):
    steps, deep, refiner = inside(tmp_path, "random")
    result = restore(IMAGE[:44, :60], chain(*steps), return_result=True)
    degraded = torch.from_numpy(IMAGE[:44, :60]).permute(2, 0, 1)[None]
    with torch.no_grad():
        latent, rest = deep.encode(degraded)
        refined, maps = refiner.refine_latent(latent, Statistics()(degraded))
        expected = deep.decode(refined, rest)
    np.testing.assert_allclose(result.to_numpy(), expected[0].permute(1, 2, 0), atol=1e-5)
    assert (refined - latent).abs().max() > 1e-3
    assert set(maps) == {"M", "M_c", "M_s", "m", "r"}
    assert [step.component for step in result.steps] == ["deep", "ptgrm+statistics"]
    half = restore(IMAGE[:44, :60], chain(*steps), dtype="bf16")
    np.testing.assert_allclose(half, result.to_numpy(), atol=0.05)


@pytest.mark.parametrize("tile", [0, 32])
def test_prior_inside_a_backbone_sees_the_image_as_it_came(tmp_path, tile):
    steps = inside(tmp_path, "random")[0]
    image = np.ascontiguousarray(IMAGE[:43, :59])
    result = restore(image, chain({"restore": "blurring"}, *steps), tile=tile)
    # Neither padded to a multiple of 4, nor blurred.
    assert SEEN == [(1, 3, 43, 59)]
    pipeline = Pipeline.build(PipelineSpec.parse(chain({"restore": "blurring"}, *steps)))
    said = Statistics()(torch.from_numpy(image).permute(2, 0, 1)[None])

    class Same(Statistics):
        def forward(self, image):
            return said

    pipeline.steps[2].prior = Same()
    np.testing.assert_array_equal(restore(image, pipeline, tile=tile), result)
    network = pipeline.steps[1].network
    assert network.under(said) is not network and network._told is None


def test_prior_inside_a_gray_backbone_is_asked_once(tmp_path):
    class GrayDeep(Deep):
        channels = 1

        def __init__(self):
            super().__init__()
            self.down, self.up = torch.nn.Conv2d(1, 8, 4, 4), torch.nn.ConvTranspose2d(8, 1, 4, 4)

    steps = inside(tmp_path, "random")[0]
    pipeline = Pipeline.build(PipelineSpec.parse(chain(*steps)))
    refiner, prior = pipeline.steps[1].network, pipeline.steps[1].prior
    pipeline.steps[0].network = refiner.attach(GrayDeep().eval(), prior)
    restore(IMAGE, pipeline)
    assert SEEN == [(1, 3, 45, 62)]


def test_prior_inside_a_backbone_says_the_same_in_every_precision(tmp_path, monkeypatch):
    said, spoken = [], Statistics.forward

    def noting(self, image):
        said.append(spoken(self, image).glob)
        return PriorFeatures(said[-1])

    monkeypatch.setattr(Statistics, "forward", noting)
    _, deep, refiner = inside(tmp_path, "random")
    network = RefinedBackbone(deep, refiner, Statistics())
    image = torch.from_numpy(IMAGE).permute(2, 0, 1)[None]
    assert network.judges, "a pipeline hands over the image before it is cast"
    for dtype in (torch.float32, torch.bfloat16):
        network.to(dtype).for_image(image, 0)
    assert len(said) == 2 and torch.equal(*said)


def test_backbone_with_refined_features_keeps_the_promises_of_one():
    class OneByOne(Statistics):
        # Sums in float32 depend on the size of the batch, by more than is allowed in float64.
        def forward(self, image):
            return PriorFeatures(torch.cat([super(OneByOne, self).forward(one[None]).glob for one in image]))

    class Refined(RefinedBackbone):
        def __init__(self):
            refiner = PTGRM(prior_features=16, level="feature", latent_features=8, start="random")
            super().__init__(Deep(), refiner, OneByOne())

    check_backbone(Refined)


def test_features_need_a_backbone_that_offers_them(tmp_path):
    _, refine = inside(tmp_path)[0]
    with pytest.raises(ConfigError, match="the step before is none"):
        Pipeline.build(PipelineSpec.parse(chain(refine)))
    with pytest.raises(ContractError, match="offers no deepest features"):
        Pipeline.build(PipelineSpec.parse(chain({"restore": "blurring"}, refine)))
    with pytest.raises(ContractError, match="refines images"):
        PTGRM(prior_features=16).attach(Deep(), Statistics())
    with pytest.raises(ContractError, match="Blurring offers no deepest features"):
        Blurring().encode(torch.rand(1, 3, 8, 8))
    wider = PTGRM(prior_features=16, level="feature", latent_features=9)
    with pytest.raises(ContractError, match="Deep has 8 deepest features, ptgrm was built for 9"):
        wider.attach(Deep(), Statistics())


def test_maps_are_drawn_by_the_command(weights, tmp_path, capsys, monkeypatch):
    (tmp_path / "refine.yaml").write_text(yaml.safe_dump(chain({"restore": "blurring"}, weights())))
    PIL.Image.fromarray((IMAGE * 255).astype(np.uint8)).save(tmp_path / "photo.png")
    words = ("inspect", tmp_path / "photo.png", "-p", tmp_path / "refine.yaml", "-o", tmp_path / "maps")
    code, out, err = run_command(capsys, monkeypatch, *words)
    assert code == 0 and out.strip() == str(tmp_path / "maps" / "photo.maps.png"), err
    with PIL.Image.open(tmp_path / "maps" / "photo.maps.png") as sheet:
        # Two images and five maps, four in a row.
        assert sheet.size[0] > 4 * 320 and len(sheet.getcolors(10**7)) > 50


def test_maps_have_the_size_of_the_image_and_make_what_is_restored(weights):
    pipeline = Pipeline.build(PipelineSpec.parse(chain({"restore": "blurring"}, weights())))
    restored, looks = pipeline.look(Image.of(IMAGE))
    maps = looks["2 ptgrm+statistics"]
    assert maps["I_m"].shape[2:] == maps["I_r"].shape[2:] == IMAGE.shape[:2]
    before = restore(IMAGE, Pipeline.build(PipelineSpec.parse({"steps": [{"restore": "blurring"}]})))
    degraded, before = (torch.from_numpy(image).permute(2, 0, 1) for image in (IMAGE, before))
    expected = torch.lerp(degraded, before, maps["I_m"][0]) + maps["I_r"][0]
    torch.testing.assert_close(restored.pixels, expected, atol=1e-5, rtol=0)


def test_maps_of_refined_features_are_those_of_the_backbone(tmp_path):
    steps, _, _ = inside(tmp_path, "random")
    pipeline = Pipeline.build(PipelineSpec.parse(chain(*steps)))
    restored, looks = pipeline.look(Image.of(IMAGE))
    assert set(looks["1 deep"]) == {"M", "M_c", "M_s", "m", "r"} and looks["2 ptgrm+statistics"] == {}
    np.testing.assert_allclose(restored.to_array(), restore(IMAGE, pipeline), atol=1e-6)


def test_weights_without_a_mean_need_their_prior(weights):
    with pytest.raises(ConfigError, match="holds no mean of a prior's features"):
        Pipeline.build(PipelineSpec.parse(chain(weights(prior="none"))))
    with pytest.raises(ConfigError, match="none takes no params"):
        Pipeline.build(PipelineSpec.parse(chain(weights(prior={"name": "none", "params": {"size": 3}}))))


REAL = {
    "nafnet": {"width": 8, "encoder_blocks": [1, 1], "middle_blocks": 1, "decoder_blocks": [1, 1]},
    "restormer": {"dim": 8, "blocks": [1, 1, 1, 1], "heads": [1, 1, 2, 2], "refinement_blocks": 1},
}


@pytest.mark.parametrize("name", REAL)
def test_features_of_shipped_backbones_are_refined(tmp_path, name):
    torch.manual_seed(0)
    backbone = backbones[name].load()(**REAL[name]).eval()
    step = {"name": name, "params": REAL[name], "weights": saved(tmp_path, backbone, "backbone")}
    alone = restore(IMAGE, {"steps": [{"restore": step}]})
    params = {"prior_features": 16, "level": "feature", "latent_features": backbone.latent_features}
    refined = {}
    for start in ("identity", "random"):
        weights = saved(tmp_path, PTGRM(**params, start=start), start)
        refine = {"name": "ptgrm", "weights": weights, "params": params, "prior": "statistics"}
        refined[start] = restore(IMAGE, chain({"restore": step}, {"refine": refine}))
    np.testing.assert_allclose(refined["identity"], alone, atol=1e-5)
    assert np.abs(refined["random"] - alone).max() > 1e-3
