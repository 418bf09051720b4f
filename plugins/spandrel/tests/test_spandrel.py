from __future__ import annotations

import subprocess
import sys
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from restorekit import load_pipeline, restore
from restorekit.building import built_facts
from restorekit.config import PipelineSpec
from restorekit.contracts import DetectedBackbone
from restorekit.errors import ConfigError, WeightsError
from restorekit.plan import parts
from restorekit.tiling import Tiler
from restorekit_spandrel import Spandrel, recognition
from restorekit_spandrel.recognition import recognise

REAL = Path(__file__).parents[4] / "shared" / "weights" / "dncnn" / "kair_dncnn_25.pth"
needs_extra = pytest.mark.skipif(
    find_spec("spandrel_extra_arches") is None, reason="spandrel_extra_arches is not installed"
)
HERE = Path("weights.pth")


def first_of_two(module, image):
    """FBCNN returns the image and the JPEG quality that it estimates."""
    return module(image)[0]


def told_noise_of_15(module, image):
    return module(torch.cat([image, torch.full_like(image[:, :1], 15 / 255)], 1))


@dataclass
class Case:
    """A small network of spandrel's, and what a bridge should make of it."""

    module: str
    name: str
    params: dict
    facts: dict = field(default_factory=dict)
    size: tuple = (45, 59)
    call: object = lambda module, image: module(image)
    # What the pipeline and the descriptor pad to, at the right and at the bottom.
    padded: tuple | None = None

    def build(self):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"torch\.meshgrid", UserWarning)
            module = getattr(import_module(self.module), self.name)(**self.params)
        # Branches that start at zero would hide whether their weights arrived.
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return module.eval().requires_grad_(False)

    def image(self, channels=None):
        shape = (*self.size, channels or self.facts.get("channels", 3))
        return np.random.default_rng(0).random(shape, dtype=np.float32)

    def expected(self, module, image):
        height, width = image.shape[:2]
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None]
        down, right = (want - have for want, have in zip(self.padded or self.size, self.size, strict=True))
        with torch.no_grad():
            output = self.call(module, pad(tensor, (0, right, 0, down), "reflect")).clamp(0, 1)
        scale = self.facts.get("scale", 1)
        return output[0, :, : height * scale, : width * scale].permute(1, 2, 0).numpy()


def ours(name, class_name=None, /, **rest):
    return Case(f"spandrel.architectures.{name}", class_name or name, **rest)


SWINIR = dict(window_size=8, embed_dim=12, depths=[2, 2], num_heads=[2, 2], mlp_ratio=2.0)
CASES = {
    "DRUNet": ours(
        "DRUNet",
        params=dict(in_nc=4, out_nc=3, nc=[8, 12, 16, 20], nb=2),
        facts=dict(size_multiple=8, precisions={torch.float32, torch.bfloat16}),
        call=told_noise_of_15,
        padded=(48, 64),
    ),
    "SwinIR": ours(
        "SwinIR",
        params=dict(**SWINIR, upsampler=""),
        facts=dict(tiling="discouraged", precisions={torch.float32, torch.bfloat16}),
    ),
    "Uformer": ours(
        "Uformer",
        params=dict(embed_dim=8, depths=[2] * 9, num_heads=[1, 2, 2, 2, 2, 2, 2, 2, 1], modulator=True),
        facts=dict(size_multiple=128),
        size=(75, 91),
        padded=(128, 128),
    ),
    "GRL": ours(
        "GRL",
        params=dict(
            embed_dim=16,
            depths=[2, 2],
            num_heads_window=[2, 2],
            num_heads_stripe=[2, 2],
            mlp_ratio=2.0,
            stripe_shift=True,
            anchor_window_down_factor=4,
        ),
    ),
    "SCUNet": ours(
        "SCUNet",
        params=dict(in_nc=3, config=[1] * 7, dim=64),
        facts=dict(tiling="discouraged", precisions={torch.float32, torch.bfloat16, torch.float16}),
    ),
    "DnCNN": ours(
        "DnCNN",
        params=dict(in_nc=1, out_nc=1, nc=12, nb=8, act_mode="R"),
        facts=dict(channels=1),
    ),
    "FBCNN": ours(
        "FBCNN",
        params=dict(nc=[8, 12, 16, 512], nb=2),
        facts=dict(tiling="discouraged"),
        call=first_of_two,
    ),
    "NAFNet": ours(
        "NAFNet",
        params=dict(width=8, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1]),
        facts=dict(tiling="discouraged"),
    ),
    "FFTformer": ours(
        "FFTformer",
        params=dict(dim=16, num_blocks=[1, 1, 1], num_refinement_blocks=1),
        facts=dict(size_multiple=32),
        padded=(64, 64),
    ),
    "Compact": ours(
        "Compact",
        "Compact",
        params=dict(num_feat=8, num_conv=2, upscale=2),
        facts=dict(architecture="RealESRGAN Compact", scale=2),
    ),
    "SwinIR x2": ours(
        "SwinIR",
        params=dict(**SWINIR, upscale=2, upsampler="pixelshuffledirect"),
        facts=dict(scale=2, tiling="discouraged"),
    ),
}


@pytest.fixture
def saved(tmp_path):
    def save(state, suffix=".pth"):
        path = tmp_path / f"net{suffix}"
        state = {name: value.clone() for name, value in state.items()}
        if suffix == ".pth":
            torch.save({"params": state, "epoch": 3}, path)
        else:
            save_file(state, path)
        return path

    return save


def chain(path, **more):
    return {"steps": [{"restore": {"name": "spandrel", "weights": str(path)}}], **more}


def network_of(path):
    backbone = load_pipeline(chain(path)).steps[0].network
    assert isinstance(backbone, Spandrel)
    return backbone


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", CASES)
def test_checkpoint_is_recognised_and_restores_as_its_network_does(name, suffix, saved):
    case = CASES[name]
    module = case.build()
    path, image = saved(module.state_dict(), suffix), case.image()
    pipeline = load_pipeline(chain(path))
    restored = restore(image, pipeline, tile=0)
    expected = case.expected(module, image)
    assert expected.std() > 0.01 and ((expected > 0) & (expected < 1)).mean() > 0.2
    np.testing.assert_allclose(restored.reshape(expected.shape), expected, atol=1e-5)
    network = pipeline.steps[0].network
    facts = dict(architecture=name.split()[0], channels=3, scale=1, size_multiple=1, tiling="supported")
    for key, value in {**facts, **case.facts}.items():
        assert getattr(network, key) == value, key
    assert network.out_channels is None
    assert not network.training and not any(value.requires_grad for value in network.parameters())


@pytest.mark.parametrize("name", ["DnCNN", "SwinIR", "GRL", "FFTformer"])
def test_bfloat16_is_near_float32_where_spandrel_promises_it(name, saved):
    case = CASES[name]
    path, image = saved(case.build().state_dict()), case.image()
    full = restore(image, chain(path))
    half = restore(image, chain(path), dtype="bf16", return_result=True)
    assert half.steps[0].dtype == "bfloat16" and not half.warnings
    np.testing.assert_allclose(half.to_numpy(), full, atol=0.03)


@pytest.mark.parametrize("name", ["DRUNet", "Compact"])
def test_tiles_are_those_of_the_network_itself(name, saved):
    case = CASES[name]
    module, image = case.build(), np.random.default_rng(1).random((75, 91, 3), dtype=np.float32)
    path = saved(module.state_dict())
    result = restore(image, chain(path, tile={"size": 64, "overlap": 16}), return_result=True)
    with torch.inference_mode():
        expected = Tiler(64, 16)(
            lambda window: case.call(module, window).clamp(0, 1),
            torch.from_numpy(image).permute(2, 0, 1)[None],
            multiple=case.facts.get("size_multiple", 1),
            scale=case.facts.get("scale", 1),
        )
    assert result.steps[0].tile == 64
    np.testing.assert_allclose(result.to_numpy(), expected[0].permute(1, 2, 0), atol=1e-5)


def test_gray_network_restores_each_colour_whole_and_in_tiles(saved):
    case = CASES["DnCNN"]
    module, image = case.build(), np.random.default_rng(1).random((75, 91, 3), dtype=np.float32)
    path = saved(module.state_dict())
    whole = restore(image, chain(path), tile=0)
    colours = [case.expected(module, image[..., index : index + 1]) for index in range(3)]
    np.testing.assert_allclose(whole, np.concatenate(colours, axis=-1), atol=1e-5)
    # Eight convolutions see eight pixels far, a quarter of the overlap: tiles are exact.
    tiled = restore(image, chain(path, tile={"size": 64, "overlap": 32}), return_result=True)
    assert tiled.steps[0].tile == 64 and not tiled.warnings
    np.testing.assert_allclose(tiled.to_numpy(), whole, atol=1e-5)


def test_discouraged_tiles_are_reported(saved):
    path = saved(CASES["SwinIR"].build().state_dict())
    image = np.random.default_rng(1).random((75, 91, 3), dtype=np.float32)
    result = restore(image, chain(path, tile={"size": 64, "overlap": 16}), return_result=True)
    assert result.steps[0].tile == 64
    assert any("tiles of 64, which change its result" in warning for warning in result.warnings)


def test_network_that_tiles_inside_is_run_whole():
    import spandrel

    descriptor = recognise(CASES["DnCNN"].build().state_dict(), HERE)
    descriptor.tiling = spandrel.ModelTiling.INTERNAL
    assert Spandrel(descriptor).tiling == "never"


def test_image_below_the_smallest_size_is_padded_and_cropped(saved):
    module = CASES["SCUNet"].build()
    image = np.random.default_rng(1).random((25, 31, 3), dtype=np.float32)
    restored = restore(image, chain(saved(module.state_dict())))
    tensor = pad(torch.from_numpy(image).permute(2, 0, 1)[None], (0, 9, 0, 15), "reflect")
    expected = module(tensor).clamp(0, 1)[0, :, :25, :31].permute(1, 2, 0)
    np.testing.assert_allclose(restored, expected, atol=1e-5)
    assert restore(image[:1, :1], chain(saved(module.state_dict()))).shape == (1, 1, 3)


def test_oblong_image_is_padded_to_a_square(saved):
    module = CASES["Uformer"].build()
    image = np.random.default_rng(1).random((75, 140, 3), dtype=np.float32)
    restored = restore(image, chain(saved(module.state_dict())), tile=0)
    tensor = pad(torch.from_numpy(image).permute(2, 0, 1)[None], (0, 116, 0, 53), "reflect")
    # A reflection has one pixel less than the image; the last row is repeated.
    square = pad(pad(tensor, (0, 0, 0, 127), "reflect"), (0, 0, 0, 1), "replicate")
    assert square.shape[2:] == (256, 256)
    expected = module(square).clamp(0, 1)[0, :, :75, :140].permute(1, 2, 0)
    np.testing.assert_allclose(restored, expected, atol=1e-5)


def test_items_of_a_batch_are_restored_one_by_one():
    # DRUNet's map of the noise level is made for one image.
    backbone = Spandrel(recognise(CASES["DRUNet"].build().state_dict(), HERE)).eval()
    images = torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    together = backbone(images)
    assert together.shape == images.shape
    for image, restored in zip(images, together, strict=True):
        torch.testing.assert_close(backbone(image[None])[0], restored, atol=1e-6, rtol=0)


def test_drunet_is_told_a_noise_level_of_15():
    module = CASES["DRUNet"].build()
    backbone = Spandrel(recognise(module.state_dict(), HERE)).eval()
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        backbone(image), told_noise_of_15(module, image).clamp(0, 1), atol=1e-6, rtol=0
    )
    other = module(torch.cat([image, torch.full_like(image[:, :1], 50 / 255)], 1)).clamp(0, 1)
    assert (backbone(image) - other).abs().max() > 1e-4


@needs_extra
def test_two_views_become_one_image(saved):
    case = Case(
        "spandrel_extra_arches.architectures.Restormer",
        "Restormer",
        dict(
            inp_channels=6,
            dim=8,
            num_blocks=[1, 1, 1, 1],
            num_refinement_blocks=1,
            dual_pixel_task=True,
        ),
        padded=(48, 64),
    )
    module, image = case.build(), case.image(6)
    path = saved(module.state_dict())
    backbone = network_of(path)
    assert (backbone.architecture, backbone.channels, backbone.out_channels) == ("Restormer", 6, 3)
    np.testing.assert_allclose(restore(image, chain(path)), case.expected(module, image), atol=1e-5)


def test_plan_with_build_names_the_architecture_and_counts_its_parameters(saved):
    module = CASES["SwinIR"].build()
    path = saved(module.state_dict())
    part = parts(PipelineSpec.parse(chain(path)))[0][0]
    assert part.facts()["parameters"] is None
    facts = built_facts(part)
    assert facts["architecture"] == "SwinIR"
    assert facts["parameters"] == sum(value.numel() for value in module.parameters())
    assert facts["memory_per_pixel"] > 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params_ema": state, "params": {name: 0 * value for name, value in state.items()}},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 1},
        lambda state: {
            "model_state_dict": {f"netG.{name}": value for name, value in state.items()},
            "iter": 1,
        },
        lambda state: {"generator": state},
    ],
)
def test_containers_of_published_checkpoints_do_not_matter(wrap, tmp_path):
    state = CASES["DnCNN"].build().state_dict()
    torch.save(wrap(state), tmp_path / "net.pth")
    backbone = network_of(tmp_path / "net.pth")
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())


def test_generator_inside_a_training_checkpoint_is_found(tmp_path):
    # As in bsr_grl_base.ckpt: a discriminator beside the network, under other names.
    state = CASES["GRL"].build().state_dict()
    document = {f"model_g.{name}": value for name, value in state.items()}
    torch.save(
        {"state_dict": {**document, "model_d.weight": torch.zeros(3)}, "epoch": 1}, tmp_path / "x.ckpt"
    )
    backbone = network_of(tmp_path / "x.ckpt")
    assert backbone.architecture == "GRL"
    assert torch.equal(backbone.model.conv_first.weight, state["conv_first.weight"])


def test_half_precision_in_the_file_is_widened(saved):
    state = {name: value.half() for name, value in CASES["DnCNN"].build().state_dict().items()}
    backbone = network_of(saved(state))
    assert {value.dtype for value in backbone.parameters()} == {torch.float32}


def test_unknown_checkpoint_is_refused_with_its_name_and_some_of_its_tensors(saved):
    path = saved({f"layer.{index}.gain": torch.zeros(2) for index in range(5)})
    with pytest.raises(WeightsError, match="is not recognised by spandrel") as caught:
        load_pipeline(chain(path))
    assert str(path) in caught.value.message
    assert "5 tensors, the first called 'layer.0.gain', 'layer.1.gain'" in caught.value.message
    assert caught.value.hint


def test_unknown_checkpoint_mentions_the_extra_architectures_where_they_are_missing(saved, monkeypatch):
    path = saved({"gain": torch.zeros(2)})
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", None)
    recognition._architectures.cache_clear()
    try:
        with pytest.raises(WeightsError, match="is not recognised") as caught:
            load_pipeline(chain(path))
        assert "pip install restorekit-spandrel[extra]" in caught.value.hint
        assert recognise(CASES["DnCNN"].build().state_dict(), path).architecture.name == "DnCNN"
    finally:
        recognition._architectures.cache_clear()


@needs_extra
def test_extra_architectures_are_added_for_us_alone():
    # In a process of its own: a benchmark that another test imports adds them for everybody.
    code = """
import spandrel
from restorekit_spandrel import recognition
registry, complete = recognition._architectures()
assert complete and "Restormer" in registry and "Restormer" not in spandrel.MAIN_REGISTRY
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_checkpoint_that_only_looks_like_a_network_is_refused(saved):
    state = CASES["DnCNN"].build().state_dict()
    state["model.4.weight"] = torch.zeros(12, 5, 3, 3)
    with pytest.raises(WeightsError, match=r"looks like DnCNN and does not fit it: .*model\.4\.weight"):
        load_pipeline(chain(saved(state)))


def test_network_that_needs_a_mask_is_refused():
    from spandrel.architectures.LaMa import LaMa

    with pytest.raises(WeightsError, match="LaMa, an inpainting network that needs a mask"):
        recognise(LaMa(in_nc=4, out_nc=3).state_dict(), HERE)


def test_pipeline_without_weights_or_with_arguments_is_refused(saved):
    with pytest.raises(WeightsError, match="spandrel is a network, and no weights are given"):
        load_pipeline({"steps": [{"restore": "spandrel"}]})
    step = chain(saved(CASES["DnCNN"].build().state_dict()))["steps"][0]
    step["restore"]["params"] = {"sigma": 25}
    with pytest.raises(ConfigError, match="spandrel takes no 'sigma'"):
        load_pipeline({"steps": [step]})


def test_spandrel_is_imported_only_when_weights_are_loaded():
    script = "import sys\nfrom restorekit import registry\n"
    script += "print(registry.backbones['spandrel'].load())\n"
    script += "assert not {'spandrel', 'torchvision', 'spandrel_extra_arches'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_warning_of_a_library_reaches_the_user(saved):
    path = saved(CASES["SwinIR"].build().state_dict())
    # Some warnings are given once in a process, so that this one must be fresh.
    script = "import numpy, restorekit\n"
    script += f"restorekit.restore(numpy.zeros((20, 20, 3), 'float32'), {chain(path)!r})"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    said = [line for line in done.stderr.splitlines() if "licence" not in line]
    assert done.returncode == 0 and not said, done.stderr


def test_bridge_is_a_backbone_that_is_detected():
    assert issubclass(Spandrel, DetectedBackbone)


@pytest.mark.skipif(
    not REAL.exists(), reason=f"no published checkpoint here: ../{REAL.relative_to(REAL.parents[3])}"
)
def test_published_denoiser_denoises():
    rows, columns = np.mgrid[:97, :121] / 60
    clean = np.stack([0.5 + 0.4 * np.sin(4 * rows + k) * np.cos(3 * columns) for k in range(3)], axis=-1)
    clean[30:60, 40:80] = (0.8, 0.3, 0.1)
    noisy = clean + np.random.default_rng(0).normal(0, 25 / 255, clean.shape)
    restored = restore(noisy.astype(np.float32), chain(REAL), return_result=True)

    def psnr(image):
        return -10 * np.log10(np.mean((image - clean) ** 2))

    assert network_of(REAL).architecture == "DnCNN"
    assert psnr(noisy) < 21 and psnr(restored.to_numpy()) > 32
