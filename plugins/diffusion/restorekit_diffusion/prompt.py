"""The embedding of the empty prompt: computed once by the model's text encoder, which is dropped, and kept.

Shapes: (1, T, E), T words (77) of width E.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from restorekit import cache
from restorekit.catalog import Need
from restorekit.errors import WeightsError
from restorekit.files import replacing
from restorekit.frozen import library
from restorekit.references import Source, sha256
from restorekit_diffusion.published import PADDING, TEXT, tensors

_PLUGIN = "restorekit-diffusion"
# Tokenizers of Stable Diffusion 1 fill up with the word that ends a text, those of 2 with the first of all.
_FIRST, _END = "!", "<|endoftext|>"


def empty_prompt(reference: str, unet: Path, width: int, variant: str | None) -> Tensor:
    """Return the embedding (1, T, E) of the empty prompt, from the cache if it is there.

    Args:
        reference: of the model, with its prefix.
        unet: the UNet's weights, which it is kept by.
        width: E that the UNet expects.
        variant: of the text encoder's file.

    Raises:
        OfflineError: neither is on this machine, and downloads are forbidden.
        WeightsError: the model has no text encoder, or another one than its UNet expects.
    """
    kept = cache.root() / "prompts" / f"{sha256(unet)}.safetensors"
    if kept.is_file():
        embedding = load_file(kept)["empty"]
    else:
        # A source of its own: what the features depend on is the UNet's file, whether this was kept or not.
        embedding = _computed(Source(reference), variant)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with replacing(kept) as temporary:
            save_file({"empty": embedding}, temporary)
    if embedding.shape[-1] != width:
        raise WeightsError(
            f"{reference}: words of its text encoder have width {embedding.shape[-1]}, of its UNet {width}",
            "give the text encoder that the model was trained with",
        )
    return embedding


def prompt_needs(variant: str | None) -> tuple[Need, Need, Need]:
    """Return what the embedding is made of: config, weights, what a tokenizer fills up with."""
    return TEXT, tensors("text_encoder/", variant), PADDING


def _computed(place: Source, variant: str | None) -> Tensor:
    needs = prompt_needs(variant)
    place.expect(needs)
    try:
        (config,), (weights,), (padding,) = map(place.take, needs)
    except WeightsError as error:
        raise type(error)(
            f"{error.message}: needed once, to make the embedding of the empty prompt",
            f"{error.hint}; or write prompt: zeros, which no model was trained with",
        ) from error
    transformers = library("transformers", _PLUGIN)
    half = ".fp16." in weights.name
    encoder, found = transformers.CLIPTextModel.from_pretrained(
        str(config.parent),
        dtype=torch.float32,
        variant="fp16" if half else None,
        local_files_only=True,
        output_loading_info=True,
    )
    if found["missing_keys"]:
        raise WeightsError(
            f"{weights} has no {', '.join(sorted(found['missing_keys'])[:3])}", "fetch it again, whole"
        )
    words = encoder.config.vocab_size
    # The vocabulary ends with the two words that begin and end a text.
    begin, end = words - 2, words - 1
    fill = _padding(padding, end)
    count = encoder.config.max_position_embeddings
    ids = torch.tensor([[begin, end, *[fill] * (count - 2)]])
    with torch.no_grad():
        embedding: Tensor = encoder.eval()(input_ids=ids).last_hidden_state
    return embedding.contiguous()


def _padding(path: Path, end: int) -> int:
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))["pad_token"]
        word = stated["content"] if isinstance(stated, dict) else stated
        return {_FIRST: 0, _END: end}[word]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} does not say what a tokenizer of Stable Diffusion fills up with: {error!r}",
            f"it should say pad_token: {_FIRST!r} or {_END!r}",
        ) from error
