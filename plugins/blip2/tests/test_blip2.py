import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from restorekit.errors import ConfigError, OfflineError, WeightsError
from restorekit.references import Source
from restorekit.testing import check_prior, check_weights
from restorekit_blip2.prior import Blip2
from restorekit_blip2.published import TENSORS, WEIGHTS

transformers = pytest.importorskip("transformers", exc_type=(ImportError, RuntimeError))


def config():
    text = transformers.OPTConfig(
        vocab_size=64,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    small = dict(num_attention_heads=2)
    return transformers.Blip2Config(
        vision_config=dict(
            small,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            image_size=28,
            patch_size=14,
            # By default the tower is so small at random that nothing depends on the image.
            initializer_range=0.02,
        ),
        qformer_config=dict(
            small,
            hidden_size=24,
            num_hidden_layers=2,
            intermediate_size=48,
            vocab_size=64,
            max_position_embeddings=16,
            encoder_hidden_size=32,
        ),
        text_config=text.to_dict(),
        num_query_tokens=4,
        image_text_hidden_size=8,
    )


def stirred(model):
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    # Zero by default: all queries would be one.
    model.query_tokens.data.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def matching():
    """Return a small model that matches images and texts, as Salesforce/blip2-itm-vit-g."""
    torch.manual_seed(0)
    return stirred(transformers.Blip2ForImageTextRetrieval(config()))


@pytest.fixture(scope="module")
def folder(matching, tmp_path_factory):
    folder = tmp_path_factory.mktemp("itm")
    matching.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def speaking():
    """Return a small model with a language model, as Salesforce/blip2-opt-2.7b."""
    torch.manual_seed(1)
    return stirred(transformers.Blip2ForConditionalGeneration(config()))


@pytest.fixture(scope="module")
def shards(speaking, tmp_path_factory):
    folder = tmp_path_factory.mktemp("opt")
    speaking.save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.mark.parametrize("mode", ["squash", "dynamic"])
def test_contract_is_kept_at_every_size(folder, mode):
    check_prior(Blip2, reference=str(folder), mode=mode, differentiable=True)


def test_contract_is_kept_in_half_precision(folder):
    check_prior(Blip2, reference=str(folder), dtype="bf16", layers=(0, -1))


def normed(image):
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in CLIP)
    return (image - mean) / std


CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


def test_features_are_those_of_the_library(folder):
    model = transformers.Blip2VisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()
    image = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        output = model(normed(image))
    assert (output.image_embeds[:, 0] - output.image_embeds[:, 1]).abs().max() > 0.01
    features = Blip2(str(folder))(image)
    expected = torch.nn.functional.normalize(output.image_embeds.mean(1), dim=1)
    torch.testing.assert_close(features.glob, expected)
    tokens = output.last_hidden_state[:, 1:].transpose(1, 2).reshape(2, 32, 2, 2)
    torch.testing.assert_close(features.dense, tokens)
    assert features.stride == 14


def test_features_are_those_of_the_library_where_the_queries_read_text_too(tmp_path):
    whole = config()
    # As in Salesforce/blip2-itm-vit-g, whose Q-Former has layers for words beside those for queries.
    whole.qformer_config.use_qformer_text_input = True
    torch.manual_seed(0)
    stirred(transformers.Blip2ForImageTextRetrieval(whole)).save_pretrained(tmp_path)
    model = transformers.Blip2VisionModelWithProjection.from_pretrained(tmp_path, dtype=torch.float32).eval()
    image = torch.rand(2, 3, 28, 28)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model(normed(image)).image_embeds.mean(1), dim=1)
    torch.testing.assert_close(Blip2(str(tmp_path))(image).glob, expected)


def test_a_checkpoint_with_a_language_model_gives_the_rest(shards, speaking):
    names = json.loads((shards / "model.safetensors.index.json").read_text())["weight_map"]
    needed = {shard.name for shard in Source(f"dir:{shards}").take(TENSORS)}
    assert needed < set(names.values())
    image = torch.rand(1, 3, 28, 28)
    prior = Blip2(str(shards), tokens="qformer")
    with torch.no_grad():
        seen = speaking.vision_model(normed(image)).last_hidden_state
        answers = speaking.qformer(query_embeds=speaking.query_tokens, encoder_hidden_states=seen)
    expected = torch.nn.functional.normalize(answers.last_hidden_state.mean(1), dim=1)
    torch.testing.assert_close(prior(image).glob, expected)
    assert prior.features == 24
    assert set(prior.facts["files"]) == {*needed, "config.json", "model.safetensors.index.json"}


def test_missing_tensors_are_an_error(shards, folder, tmp_path):
    with pytest.raises(WeightsError, match=r"2 tensors are missing .* 'vision_projection.weight'") as caught:
        Blip2(str(shards))
    assert caught.value.hint.startswith("write tokens: qformer;")
    tensors = load_file(folder / "model.safetensors")
    del tensors["qformer.layernorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(WeightsError, match=r"1 tensors are missing .* 'qformer.layernorm.weight'") as caught:
        Blip2(str(tmp_path))
    assert "tokens" not in caught.value.hint


@pytest.mark.parametrize(
    "reference", ["opt-2.7b", "hub:Salesforce/blip2-opt-2.7b", "hub:Salesforce/blip2-opt-2.7b@main"]
)
def test_a_model_that_has_a_tag_says_its_tokens_wherever_it_is_from(shards, monkeypatch, reference):
    """The files are those of the small model, as if the hub's cache held them under this name."""
    monkeypatch.setenv("RESTOREKIT_OFFLINE", "1")
    monkeypatch.setattr(
        Source, "_local", lambda _, name: shards / name if (shards / name).is_file() else None
    )
    assert Blip2(reference).tokens == "qformer"
    assert Blip2(reference, tokens="qformer").features == 24


def test_a_missing_shard_is_named(shards, tmp_path):
    for file in shards.iterdir():
        (tmp_path / file.name).symlink_to(file)
    needed = Source(f"dir:{shards}").take(TENSORS)
    (tmp_path / needed[0].name).unlink()
    with pytest.raises(WeightsError, match=f"has no {needed[0].name}"):
        Blip2(str(tmp_path), tokens="qformer")


def test_the_last_block_is_the_same_however_it_is_named(folder):
    default, *others = (Blip2(str(folder), layers=layers) for layers in ([-1], [2], [2, -1]))
    assert default.facts["layers"] == [2]
    image = torch.rand(1, 3, 28, 28)
    for other in others:
        assert other.fingerprint == default.fingerprint
        torch.testing.assert_close(other(image).dense, default(image).dense)


def test_wrong_arguments_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="tokens"):
        Blip2(str(folder), tokens="qforme")
    with pytest.raises(ConfigError, match="has 3 blocks"):
        Blip2(str(folder), layers=(5,))
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(WeightsError, match="no config of BLIP-2"):
        Blip2(str(tmp_path))


def test_offline_without_files_says_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineError, match=r"vit-g has no config.json and \(model.safetensors or "):
        Blip2()
    assert sum(item.default for item in WEIGHTS) == 1


@pytest.mark.parametrize("item", WEIGHTS, ids=lambda item: item.tag)
def test_declared_models_are_sound(item):
    check_weights(item)
