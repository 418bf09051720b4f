import json
import shutil
from functools import partial

import pytest
import torch
from huggingface_hub import try_to_load_from_cache
from safetensors.torch import load_file, save_file

from restorekit import cache as places
from restorekit.download import UnreachableHubError
from restorekit.errors import ConfigError, OfflineError, WeightsError
from restorekit.references import Source
from restorekit.testing import check_prior, check_weights
from restorekit_diffusion.prior import Diffusion
from restorekit_diffusion.published import WEIGHTS

diffusers = pytest.importorskip("diffusers", exc_type=(ImportError, RuntimeError))
transformers = pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "prompts-cache"))


def stirred(model):
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model.eval()


# By name: the UNet's heads; Stable Diffusion 2 and SD-turbo have more of them at each depth, and linear ends.
HEADS = {
    "sd1": dict(attention_head_dim=4),
    "turbo": dict(attention_head_dim=(1, 2, 4, 4), use_linear_projection=True),
}


@pytest.fixture(scope="module", params=HEADS)
def parts(request):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 12, 16, 16),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        cross_attention_dim=16,
        norm_num_groups=4,
        **HEADS[request.param],
    )
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=7,
            bos_token_id=18,
            eos_token_id=19,
        )
    )
    return {"vae": stirred(vae), "unet": stirred(unet), "text_encoder": stirred(text)}


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    """Save a small model as pipelines of diffusers are."""
    folder = tmp_path_factory.mktemp("sd")
    for name, model in parts.items():
        model.save_pretrained(folder / name)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": {"content": "!"}}')
    diffusers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    ).save_pretrained(folder / "scheduler")
    return folder


@pytest.mark.parametrize("layer", ["mid", "vae"])
def test_contract_is_kept_by_every_layer(folder, layer):
    check_prior(Diffusion, reference=str(folder), layer=layer, size=64, differentiable=True)


def test_contract_is_kept_at_every_size(folder):
    check_prior(Diffusion, reference=str(folder), layer="down1", mode="dynamic", size=128)


def test_contract_is_kept_in_half_precision(folder):
    check_prior(Diffusion, reference=str(folder), layer="latent", size=32, dtype="bf16")


def text_of(parts, padding):
    ids = torch.tensor([[18, 19, *[padding] * 5]])
    with torch.no_grad():
        return parts["text_encoder"](input_ids=ids).last_hidden_state


@pytest.mark.parametrize("timestep", [0, 50])
def test_the_walk_equals_the_whole_unet(folder, parts, timestep):
    image = torch.rand(2, 3, 64, 128)
    caught = {}
    unet = parts["unet"]
    handles = [
        unet.mid_block.register_forward_hook(lambda m, i, o: caught.update(mid=o)),
        *(
            block.register_forward_hook(lambda m, i, o, n=n: caught.update({f"down{n}": o[0]}))
            for n, block in enumerate(unet.down_blocks)
        ),
    ]
    with torch.no_grad():
        latents = parts["vae"].encode(2 * image - 1).latent_dist.mode() * 0.18215
        unet(latents, timestep, encoder_hidden_states=text_of(parts, 0).expand(2, -1, -1))
    for handle in handles:
        handle.remove()
    layers = caught if timestep == 0 else {"mid": caught["mid"]}
    for layer, expected in layers.items():
        prior = Diffusion(str(folder), layer=layer, timestep=timestep, mode="dynamic")
        features = prior(image)
        torch.testing.assert_close(features.dense, expected)
        mean = torch.nn.functional.normalize(expected.mean((2, 3)), dim=1)
        torch.testing.assert_close(features.glob, mean)
    torch.testing.assert_close(Diffusion(str(folder), layer="latent", mode="dynamic")(image).dense, latents)


def test_only_what_is_run_is_in_memory(folder, parts):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    early, whole = (count(Diffusion(str(folder), layer=layer)) for layer in ("down0", "mid"))
    assert early < whole < count(parts["unet"]) + count(parts["vae"]) - count(parts["vae"].decoder)
    assert "text" not in " ".join(name for name, _ in Diffusion(str(folder)).named_modules())


def test_noise_repeats_by_its_seed_and_is_shared_by_a_batch(folder):
    image = torch.rand(1, 3, 64, 64)
    clean, one, other = (
        Diffusion(str(folder), timestep=261, noise=noise)(image).dense for noise in (None, 1, 2)
    )
    assert not torch.allclose(clean, one) and not torch.allclose(one, other)
    noisy = Diffusion(str(folder), timestep=261, noise=1)
    both = noisy(torch.cat([image, torch.rand(1, 3, 64, 64)]))
    torch.testing.assert_close(both.dense[:1], one)
    assert torch.equal(noisy(image).dense, one)


def test_the_empty_prompt_is_made_once_and_then_needs_no_text_encoder(folder, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("text_encoder", "tokenizer"))
    with pytest.raises(WeightsError, match=r"has no text_encoder/config.json, .*: needed once") as caught:
        Diffusion(str(bare))
    assert "prompt: zeros" in caught.value.hint
    made = Diffusion(str(folder))
    torch.testing.assert_close(made.prompt, text_of(parts, 0))
    kept = Diffusion(str(bare))
    assert torch.equal(kept.prompt, made.prompt)
    assert kept.fingerprint == made.fingerprint
    zeros = Diffusion(str(bare), prompt="zeros")
    assert zeros.fingerprint != kept.fingerprint and not zeros.prompt.any()


def test_the_padding_of_the_tokenizer_counts(folder, parts, tmp_path, monkeypatch):
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))
    first = tmp_path / "first"
    shutil.copytree(folder, first)
    (first / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "<|endoftext|>"}')
    prior = Diffusion(str(first))
    torch.testing.assert_close(prior.prompt, text_of(parts, 19))
    assert not torch.allclose(prior.prompt, text_of(parts, 0))
    assert len(list((places.root() / "prompts").iterdir())) == 1


def test_half_precision_files_are_taken_by_name(folder, tmp_path):
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    for part in ("vae", "unet"):
        file = half / part / "diffusion_pytorch_model.safetensors"
        tensors = {name: value.half() for name, value in load_file(file).items()}
        save_file(tensors, file.with_suffix(".fp16.safetensors"))
        file.unlink()
    image = torch.rand(1, 3, 64, 64)
    prior = Diffusion(str(half))
    assert {parameter.dtype for parameter in prior.parameters()} == {torch.float32}
    torch.testing.assert_close(prior(image).glob, Diffusion(str(folder))(image).glob, rtol=0, atol=5e-3)
    with pytest.raises(ConfigError, match="variant"):
        Diffusion(str(half), variant="ema")


@pytest.mark.parametrize("reference", ["sd-1.5", "hub:stable-diffusion-v1-5/stable-diffusion-v1-5@main"])
def test_a_repository_that_has_a_tag_is_read_as_the_tag_is(folder, tmp_path, monkeypatch, reference):
    """The files are those of the small model, as if the hub's cache held them under this name."""
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    both = tmp_path / "both"
    shutil.copytree(folder, both)
    for file in both.glob("*/diffusion_pytorch_model.safetensors"):
        shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    monkeypatch.setattr(Source, "_local", lambda _, name: both / name if (both / name).is_file() else None)

    def read(**arguments):
        files = Diffusion(reference, layer="vae", **arguments).facts["files"]
        return {name for name in files if name.endswith("safetensors")}

    assert read() == read(variant="fp16") == {"vae/diffusion_pytorch_model.fp16.safetensors"}
    assert read(variant="fp32") == {"vae/diffusion_pytorch_model.safetensors"}


OLD_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def rewritten(file, change):
    """Write the tensors of a file anew, each under the name that ``change`` gives it."""
    save_file({change(name): value for name, value in load_file(file).items()}, file, {"format": "pt"})


def old_name(name):
    for new, old in OLD_NAMES.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


@pytest.mark.parametrize("layer", ["mid", "vae", "latent"])
def test_autoencoders_are_read_by_the_names_that_their_attention_had_when_published(
    folder, parts, tmp_path, layer
):
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    file = old / "vae" / "diffusion_pytorch_model.safetensors"
    rewritten(file, old_name)
    assert "encoder.mid_block.attentions.0.proj_attn.weight" in load_file(file)
    image = torch.rand(1, 3, 64, 64)
    prior = Diffusion(str(old), layer=layer)
    torch.testing.assert_close(prior(image).dense, Diffusion(str(folder), layer=layer)(image).dense)
    if layer == "latent":
        model = diffusers.AutoencoderKL.from_pretrained(old / "vae").eval()
        with torch.no_grad():
            latents = model.encode(2 * image - 1).latent_dist.mode() * 0.18215
        torch.testing.assert_close(prior(image).dense, latents)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoder_in_half_precision_alone_is_read_in_both_layouts(
    folder, parts, tmp_path, monkeypatch, prefix
):
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(tmp_path / "cache"))
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    file = half / "text_encoder" / "model.safetensors"
    tensors = {f"{prefix}{name.removeprefix('text_model.')}": t.half() for name, t in load_file(file).items()}
    # Published files bring it; the library no longer has it.
    tensors[f"{prefix}embeddings.position_ids"] = torch.arange(7)[None]
    save_file(tensors, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
    file.unlink()
    prior = Diffusion(str(half), variant="fp16")
    torch.testing.assert_close(prior.prompt, text_of(parts, 0), rtol=0, atol=5e-3)


def test_wrong_arguments_are_refused_with_what_there_is(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"'down4'") as caught:
        Diffusion(str(folder), layer="down4")
    assert "down0, down1, down2, down3, mid, vae or latent" in caught.value.hint
    with pytest.raises(ConfigError, match="timestep"):
        Diffusion(str(folder), timestep=1000)
    with pytest.raises(ConfigError, match="prompt"):
        Diffusion(str(folder), prompt="none")
    document = json.loads((folder / "unet" / "config.json").read_text())
    larger = tmp_path / "xl"
    shutil.copytree(folder, larger)
    (larger / "unet" / "config.json").write_text(json.dumps({**document, "addition_embed_type": "text_time"}))
    with pytest.raises(WeightsError, match="addition_embed_type"):
        Diffusion(str(larger))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"has no unet/config.json"):
        Diffusion(str(tmp_path), layer="mid")


def cached(tmp_path, monkeypatch, repository, files):
    """Put files into a hub's cache, and cut it off."""
    hub = tmp_path / "hub"
    model = hub / f"models--{repository.replace('/', '--')}"
    commit = "0" * 40
    for name, text in files.items():
        file = model / "snapshots" / commit / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    monkeypatch.setattr("restorekit.references.try_to_load_from_cache", partial(looked_up, hub))


def looked_up(hub, repository, name, revision=None):
    return try_to_load_from_cache(repository, name, cache_dir=hub, revision=revision)


@pytest.mark.parametrize("reference", ["sd-1.5", "hub:someone/diffusion"])
@pytest.mark.parametrize("part", [None, "vae/config.json"])
def test_a_model_whose_unet_is_not_here_is_no_autoencoder(folder, tmp_path, monkeypatch, reference, part):
    repository = "someone/diffusion" if "hub" in reference else "stable-diffusion-v1-5/stable-diffusion-v1-5"
    files = {part: (folder / part).read_text()} if part else {}
    cached(tmp_path, monkeypatch, repository, files)
    with pytest.raises(OfflineError, match=r"has no unet/config\.json, .* on this machine"):
        Diffusion(reference)
    with pytest.raises(WeightsError, match=r"has no unet/config\.json"):
        Diffusion(str(tmp_path))


UNET_FILES = ["unet/config.json", "(unet/{0}.fp16.safetensors or unet/{0}.safetensors)"]
VAE_FILES = ["vae/config.json", "(vae/{0}.fp16.safetensors or vae/{0}.safetensors)"]
SCHEDULER_FILES = ["scheduler/scheduler_config.json"]
TEXT_FILES = [
    "text_encoder/config.json",
    "(text_encoder/model.fp16.safetensors or text_encoder/model.safetensors)",
    "(tokenizer/special_tokens_map.json or tokenizer/tokenizer_config.json)",
]


@pytest.mark.parametrize(
    ("arguments", "files"),
    [
        ({}, UNET_FILES + VAE_FILES + TEXT_FILES),
        ({"noise": 0}, UNET_FILES + VAE_FILES + SCHEDULER_FILES + TEXT_FILES),
        ({"prompt": "zeros"}, UNET_FILES + VAE_FILES),
        ({"layer": "vae"}, VAE_FILES),
    ],
)
def test_offline_every_file_that_the_arguments_need_is_named_at_once(tmp_path, monkeypatch, arguments, files):
    cached(tmp_path, monkeypatch, "stabilityai/sd-turbo", {})
    *others, last = (file.format("diffusion_pytorch_model") for file in files)
    with pytest.raises(OfflineError) as caught:
        Diffusion("sd-turbo", **arguments)
    assert f"has no {', '.join(others)} and {last} on this machine" in caught.value.message


def test_a_hub_that_does_not_answer_is_told_with_every_file_of_a_tag(monkeypatch):
    def cut_off(*args, **kwargs):
        raise UnreachableHubError("hf://x", "no route", "go online")

    for name in ("RESTOREKIT_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("restorekit.references.try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr("restorekit.references.hub_file", cut_off)
    with pytest.raises(WeightsError, match=r"does not answer: no route\n.*dir:FOLDER") as caught:
        Diffusion("sd-turbo")
    for file in ("unet/config.json", "vae/config.json", "text_encoder/config.json"):
        assert file in caught.value.message


def test_a_folder_that_lacks_several_files_is_told_all(folder, tmp_path):
    partly = tmp_path / "partly"
    shutil.copytree(folder, partly)
    (partly / "vae" / "config.json").unlink()
    (partly / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no \(unet/diffusion_.*\) and vae/config\.json\n"):
        Diffusion(str(partly))


def test_an_autoencoder_that_is_not_here_lacks_its_own_config(tmp_path, monkeypatch):
    cached(tmp_path, monkeypatch, "madebyollin/taesd", {})
    with pytest.raises(OfflineError, match=r"taesd has no config\.json"):
        Diffusion("taesd")


def test_missing_tensors_are_an_error(folder, tmp_path):
    torn = tmp_path / "torn"
    shutil.copytree(folder, torn)
    file = torn / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    del tensors["mid_block.resnets.0.conv1.weight"]
    save_file(tensors, file)
    with pytest.raises(WeightsError, match=r"mid_block\.resnets\.0\.conv1\.weight"):
        Diffusion(str(torn))
    assert Diffusion(str(torn), layer="down2").features == 16


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_declared_models_are_sound(item):
    check_weights(item)
