"""PTG-RM in pipelines, in training and inside a backbone."""

import hashlib
import json
import sys

import numpy as np
import PIL.Image
import pytest
import torch
import yaml
from guides import SEEN, Blurring, Deep, Joining, Statistics, install
from safetensors.torch import save_file
from torch.nn.functional import l1_loss

from restorekit import Pipeline, PipelineSpec, restore
from restorekit.building import memory_of
from restorekit.catalog import PARAMS_KEY, PRIOR_KEY
from restorekit.cli import app
from restorekit.contracts import PriorFeatures
from restorekit.errors import ConfigError, ContractError, TrainingError
from restorekit.image import Image
from restorekit.testing import check_backbone
from restorekit.training.build import build_networks
from restorekit.training.loop import prepare
from restorekit.training.spec import TrainSpec
from restorekit_ptgrm.network import PTGRM, RefinedBackbone

IMAGE = np.random.default_rng(0).random((45, 62, 3), dtype=np.float32)


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


def network_of(step):
    return Pipeline.build(PipelineSpec.parse({"steps": [step]})).steps[0].network


def chain(*steps, **more):
    return {"steps": list(steps), **more}


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


@pytest.mark.parametrize("level", ["image", "feature"])
def test_prior_that_is_not_finite_is_named_wherever_it_guides(weights, tmp_path, level):
    steps = [weights(prior="broken")] if level == "image" else list(inside(tmp_path)[0])
    if level == "feature":
        steps[1] = {"refine": {**steps[1]["refine"], "prior": "broken"}}
    with pytest.raises(ContractError, match="prior Broken"):
        restore(IMAGE, chain(*steps))


WITHOUT = {"range_map": "sum", "channel_attention": "none", "spatial_attention": "none"}
TABLE_3 = {
    "large": {**WITHOUT, "width": 64},
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


def saved(tmp_path, network, name):
    save_file(network.state_dict(), tmp_path / f"{name}.safetensors")
    return str(tmp_path / f"{name}.safetensors")


def inside(tmp_path, start="identity"):
    """Return the steps of a backbone with its features refined, and both networks."""
    torch.manual_seed(0)
    params = {"prior_features": 16, "level": "feature", "latent_features": 8, "start": start}
    deep, refiner = Deep().eval(), PTGRM(**params).eval()
    refine = {"name": "ptgrm", "weights": saved(tmp_path, refiner, "r"), "params": params}
    steps = (
        {"restore": {"name": "deep", "weights": saved(tmp_path, deep, "d")}},
        {"refine": {**refine, "prior": "statistics"}},
    )
    return steps, deep, refiner


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


def photographs(folder):
    random = np.random.default_rng(0)
    for index in range(4):
        coarse = random.integers(0, 256, (12, 14, 3), dtype=np.uint8)
        PIL.Image.fromarray(coarse).resize((96, 80), PIL.Image.Resampling.BICUBIC).save(
            folder / f"{index}.png"
        )
    return folder


def training(tmp_path, backbone=None, **changes):
    if not (tmp_path / "photos").exists():
        photographs((tmp_path / "photos").mkdir() or tmp_path / "photos")
        torch.manual_seed(0)
    document = {
        "backbone": backbone or {"name": "deep", "weights": saved(tmp_path, Deep(), "deep")},
        "refiner": "ptgrm",
        "prior": "statistics",
        "data": {"folder": str(tmp_path / "photos"), "hold_out": 1, "cache": str(tmp_path / "cache")},
        "stages": [{"steps": 3, "patch": 32, "batch": 2}],
        "loss": "l1",
        "optimizer": {"warmup": 0},
        "pictures": 0,
        "validate_every": 3,
        **changes,
    }
    return TrainSpec.model_validate(document)


MODES = {
    "joint": {"trained": ["refiner", "backbone"], "backbone": "deep"},
    "warm joint": {"trained": ["refiner", "backbone"], "optimizer": {"factors": {"backbone": 0.1}}},
    "frozen": {},
    "frozen features": {"refiner": {"name": "ptgrm", "params": {"level": "feature"}}},
    "joint features": {
        "refiner": {"name": "ptgrm", "params": {"level": "feature"}},
        "trained": ["refiner", "backbone"],
    },
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_trains_what_it_says_by_equation_8(tmp_path, mode):
    networks = build_networks(training(tmp_path, **MODES[mode]))
    trainee, joint = networks.trainee, "joint" in mode
    torch.manual_seed(1)
    for name, parameter in trainee.refiner.named_parameters():
        # Away from the identity, where the last layer lets no gradient through.
        parameter.data += 0.05 * torch.randn_like(parameter) * ("norm" not in name)
    degraded, clean = torch.rand(2, 2, 3, 32, 32)
    outputs = trainee(degraded).images
    assert len(outputs) == (2 if joint else 1)
    assert networks.parts["refiner"].params["prior_features"] == 16
    if joint:
        # The engine adds the loss of each output: lambda is 1.
        assert torch.equal(outputs[1], trainee.backbone(degraded))
    sum(l1_loss(output, clean) for output in outputs).backward()
    silent = [name for name, p in trainee.refiner.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    reached = [p.grad is not None and bool(p.grad.any()) for p in trainee.backbone.parameters()]
    assert all(reached) if joint else not any(reached)
    assert all(p.grad is None for p in trainee.prior.parameters())


def test_refined_loss_trains_the_backbone_too_unless_detached(tmp_path):
    def gradient(**params):
        refiner = {"name": "ptgrm", "params": {"start": "random", **params}}
        spec = training(tmp_path, trained=["refiner", "backbone"], refiner=refiner)
        trainee = build_networks(spec).trainee
        trainee(torch.rand(1, 3, 32, 32)).images[0].sum().backward()
        return [p.grad for p in trainee.backbone.parameters()]

    assert all(one is not None and one.any() for one in gradient())
    assert all(one is None for one in gradient(detach=True))


@pytest.mark.parametrize("mode", MODES)
def test_prior_is_asked_once_of_a_validation_patch(tmp_path, mode):
    (tmp_path / "mark").write_text("one")
    prior = {"name": "filed", "params": {"file": str(tmp_path / "mark")}}
    changes = {**MODES[mode], "prior": prior, "stages": [{"steps": 2, "patch": 32, "batch": 2}]}
    asked = []
    for often in (2, 1):
        run = prepare(training(tmp_path, **changes, validate_every=often), tmp_path / f"run-{often}")
        SEEN.clear()
        run.train()
        asked.append(len(SEEN))
    # Two batches, and each way in which the validation degrades its patches.
    assert asked[0] == asked[1] > 2


@pytest.mark.parametrize("mode", MODES)
def test_trained_refiner_is_used_by_a_pipeline_as_it_was_validated(tmp_path, mode):
    run = prepare(training(tmp_path, **MODES[mode], half=False, ema=0), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train()), "prior": "statistics"}
    folder = tmp_path / "run" if "joint" in mode else tmp_path
    file = folder / ("weights-backbone.safetensors" if "joint" in mode else "deep.safetensors")
    steps = {"restore": {"name": "deep", "weights": str(file)}}, {"refine": refine}
    image = IMAGE[:44, :60]
    degraded = torch.from_numpy(image).permute(2, 0, 1)[None]
    with run.learner.evaluating(averaged=False):
        validated = run.learner.restore(degraded, torch.zeros(1, 0))[0].permute(1, 2, 0)
    np.testing.assert_allclose(restore(image, chain(*steps)), validated, atol=1e-5)


def test_prior_that_a_refiner_was_not_trained_with_is_refused(tmp_path):
    run = prepare(training(tmp_path), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train()), "prior": "broken"}
    with pytest.raises(ConfigError, match="was trained with statistics, this is broken"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))
    refine["prior"] = {"name": "statistics", "params": {"features": 16}}
    with pytest.raises(ConfigError, match=r"trained with statistics, this is statistics \(features 16\)"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))


def test_prior_whose_files_changed_is_refused_and_one_that_moved_is_not(tmp_path, capsys, monkeypatch):
    file = tmp_path / "prior.bin"
    file.write_bytes(b"then")
    prior = {"name": "filed", "params": {"file": str(file)}}
    run = prepare(training(tmp_path, prior=prior), tmp_path / "run")
    refine = {"name": "ptgrm", "weights": str(run.train()), "prior": prior}
    (tmp_path / "refine.yaml").write_text(yaml.safe_dump(chain({"refine": refine})))
    PIL.Image.fromarray((IMAGE * 255).astype(np.uint8)).save(tmp_path / "photo.png")
    words = ("restore", tmp_path / "photo.png", "-p", tmp_path / "refine.yaml", "-o", tmp_path / "o.png")
    code, out, _ = run_command(capsys, monkeypatch, *words, "--json")
    then, now = (hashlib.sha256(text).hexdigest()[:32] for text in (b"then", b"other"))
    said = json.loads(out)[0]["steps"][0]["prior"]
    assert code == 0 and said == {"name": "filed", "fingerprint": then, "library": "acme 1.0"}
    moved = tmp_path / "moved.bin"
    moved.write_bytes(b"then")
    elsewhere = {"name": "filed", "params": {"file": str(moved)}}
    Pipeline.build(PipelineSpec.parse(chain({"refine": {**refine, "prior": elsewhere}})))
    file.write_bytes(b"other")
    with pytest.raises(ConfigError, match=rf"filed .* of fingerprint {then}, here its fingerprint is {now}"):
        Pipeline.build(PipelineSpec.parse(chain({"refine": refine})))


def test_refiner_of_before_fingerprints_were_kept_is_used(tmp_path):
    (tmp_path / "prior.bin").write_bytes(b"any")
    prior = {"name": "filed", "params": {"file": str(tmp_path / "prior.bin")}}
    facts = {PARAMS_KEY: json.dumps({"prior_features": 16}), PRIOR_KEY: json.dumps(prior)}
    save_file(PTGRM(prior_features=16).state_dict(), tmp_path / "old.safetensors", facts)
    refine = {"name": "ptgrm", "weights": str(tmp_path / "old.safetensors"), "prior": prior}
    assert restore(IMAGE, chain({"refine": refine})).shape == IMAGE.shape


@pytest.mark.parametrize("mode", ["frozen", "frozen features"])
def test_mean_of_the_training_stands_in_for_the_prior(tmp_path, monkeypatch, mode):
    said, speaks = [], Statistics.forward

    def noting(self, image):
        features = speaks(self, image)
        said.append((image.shape[-1], features.glob))
        return features

    monkeypatch.setattr(Statistics, "forward", noting)
    changes = dict(half=False, ema=0, stages=[{"steps": 2, "patch": 32, "batch": 2}], validate_every=2)
    changes |= MODES[mode] | {"optimizer": {"warmup": 0, "lr": 1e-2}}
    weights = str(prepare(training(tmp_path, **changes), tmp_path / "run").train())
    # Validation looks at images that are not cut, and is no part of the mean.
    mean = torch.cat([glob for width, glob in said if width == 32]).mean(0)
    refine = {"name": "ptgrm", "weights": weights, "prior": "none"}
    steps = {"restore": {"name": "deep", "weights": str(tmp_path / "deep.safetensors")}}, {"refine": refine}
    asked = len(said)
    result = restore(IMAGE[:44, :60], chain(*steps), return_result=True)
    assert len(said) == asked
    assert result.warnings == ("ptgrm: ran without a prior: the mean of those of its training stood in",)
    assert result.steps[1].prior.name == "none" and result.steps[1].component == "ptgrm"
    monkeypatch.setattr(Statistics, "forward", lambda self, image: PriorFeatures(mean.expand(len(image), -1)))
    steps[1]["refine"]["prior"] = "statistics"
    np.testing.assert_allclose(result.to_numpy(), restore(IMAGE[:44, :60], chain(*steps)), atol=1e-5)


def test_mean_goes_on_when_a_run_is_resumed(tmp_path):
    networks = [build_networks(training(tmp_path)).trainee for _ in range(2)]
    images = torch.rand(3, 2, 3, 32, 32)
    for batch in images[:2]:
        networks[0](batch)
    networks[1].load_state(networks[0].state())
    networks[1](images[2])
    # What it says of images that are not trained on does not count.
    networks[1].eval()
    expected = networks[1].prior(images.flatten(0, 1)).glob.mean(0)
    assert networks[1].seen == 6
    torch.testing.assert_close(networks[1].mean, expected)
    old = {name: value for name, value in networks[0].state().items() if not name.startswith("guidance")}
    networks[1].load_state(old)


def test_weights_without_a_mean_need_their_prior(weights):
    with pytest.raises(ConfigError, match="holds no mean of a prior's features"):
        Pipeline.build(PipelineSpec.parse(chain(weights(prior="none"))))
    with pytest.raises(ConfigError, match="none takes no params"):
        Pipeline.build(PipelineSpec.parse(chain(weights(prior={"name": "none", "params": {"size": 3}}))))


def test_width_of_a_dense_map_is_filled_in(tmp_path):
    params = {"concatenation": "map", "range_map": "sum"}
    spec = training(tmp_path, refiner={"name": "ptgrm", "params": params})
    assert build_networks(spec).trainee.refiner.dense_features == 16
    with pytest.raises(ContractError, match="Flat has none"):
        PTGRM.fitted(params, None, Flat())


class Flat(Statistics):
    """Has no dense map."""

    def forward(self, image):
        return PriorFeatures(super().forward(image).glob)


def test_gray_backbone_gets_a_gray_refiner_and_another_one_is_refused(tmp_path):
    networks = build_networks(training(tmp_path, backbone="gray-blurring"))
    assert networks.parts["refiner"].params["channels"] == 1
    with pytest.raises(TrainingError, match="refiner takes 3 channels, the backbone 1"):
        build_networks(
            training(tmp_path, backbone="gray-blurring", refiner={"name": "ptgrm", "params": {"channels": 3}})
        )


def run_command(capsys, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["restorekit", *map(str, words)])
    with pytest.raises(SystemExit) as exit:
        app()
    return exit.value.code, *capsys.readouterr()


def test_maps_are_drawn_by_the_command(weights, tmp_path, capsys, monkeypatch):
    (tmp_path / "refine.yaml").write_text(yaml.safe_dump(chain({"restore": "blurring"}, weights())))
    PIL.Image.fromarray((IMAGE * 255).astype(np.uint8)).save(tmp_path / "photo.png")
    words = ("inspect", tmp_path / "photo.png", "-p", tmp_path / "refine.yaml", "-o", tmp_path / "maps")
    code, out, err = run_command(capsys, monkeypatch, *words)
    assert code == 0 and out.strip() == str(tmp_path / "maps" / "photo.maps.png"), err
    with PIL.Image.open(tmp_path / "maps" / "photo.maps.png") as sheet:
        # Two images and five maps, four in a row.
        assert sheet.size[0] > 4 * 320 and len(sheet.getcolors(10**7)) > 50


def test_maps_of_refined_features_are_those_of_the_backbone(tmp_path):
    steps, _, _ = inside(tmp_path, "random")
    pipeline = Pipeline.build(PipelineSpec.parse(chain(*steps)))
    restored, looks = pipeline.look(Image.of(IMAGE))
    assert set(looks["1 deep"]) == {"M", "M_c", "M_s", "m", "r"} and looks["2 ptgrm+statistics"] == {}
    np.testing.assert_allclose(restored.to_array(), restore(IMAGE, pipeline), atol=1e-6)
