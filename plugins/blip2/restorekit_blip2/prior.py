"""BLIP-2's image tower and Q-Former: what a language model would be told of an image.

transformers is imported when a prior is built, never before. Shapes as in restorekit.contracts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from restorekit.arguments import chosen_layers
from restorekit.errors import ConfigError, WeightsError, near
from restorekit.frozen import FrozenPrior, fill, library, on_meta, read_tensors_of, version
from restorekit.references import Source, declared_as, source
from restorekit_blip2.published import CONFIG, TENSORS, WEIGHTS

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_TOKENS = ("projection", "qformer")
_PLUGIN = "restorekit-blip2"


class Blip2(FrozenPrior):
    """BLIP-2 without its language model (Li et al., ICML 2023), read by transformers.

    ``glob`` is the mean over the Q-Former's queries, as a unit vector: of their projections, each a unit
    vector itself (256 for ViT-g), or of the Q-Former's output (768). ``dense`` are the tokens of the image
    tower's patches, normalised as the tower's last (1408).

    Args:
        reference: a tag (``restorekit weights list blip2``), ``hub:owner/repository``, or the path of a
            folder with config.json and weights, in one file or in shards. Of a checkpoint with a language
            model only the rest is read.
        tokens: ``projection``, which checkpoints with a language model do not have, or ``qformer``; as the
            tag says when None, also of a tag's repository, else ``projection``.
        layers: blocks of the image tower whose tokens are returned, joined over channels; -1 is the last.
        mode: squash, long or dynamic, see ``restorekit.frozen.FrozenPrior``.
        size: in pixels; the model's when None.
        dtype: fp32, bf16 or fp16; the tower alone has 986 M parameters.
        differentiable: let gradients through to the image.
        shuffled: seed; the weights in a random order, as a control.

    Raises:
        ConfigError: an argument is none of those.
        WeightsError: a file or a tensor is missing.
    """

    def __init__(
        self,
        reference: str = "itm-vit-g",
        tokens: str | None = None,
        layers: Sequence[int] = (-1,),
        mode: str = "squash",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        declared = declared_as(reference, WEIGHTS)
        self.tokens = tokens or str(declared.params["tokens"] if declared else "projection")
        if self.tokens not in _TOKENS:
            raise ConfigError(
                "params.tokens", f"are {self.tokens!r}", near(self.tokens, _TOKENS) or "use projection"
            )
        place = source(reference, WEIGHTS)
        place.expect((CONFIG, TENSORS))
        (path,) = place.take(CONFIG)
        transformers = library("transformers", _PLUGIN)
        self.library = version("transformers")
        config = _config(path, transformers)
        vision = config.vision_config
        count = int(vision.num_hidden_layers)
        chosen = chosen_layers(layers, count, f"the image tower has {count} blocks")
        with torch.device("meta"):
            network = transformers.Blip2VisionModelWithProjection(config)
        if self.tokens == "qformer":
            network.vision_projection = nn.Identity()
        if not on_meta():
            _fill(network, place, self.tokens)
        self._layers = [layer % count for layer in chosen]
        self._patch = int(vision.patch_size)
        width = config.image_text_hidden_size if self.tokens == "projection" else None
        self.adopt(
            network,
            features=int(width or config.qformer_config.hidden_size),
            native=int(vision.image_size),
            multiple=self._patch,
            mean=_MEAN,
            std=_STD,
            facts={"tokens": self.tokens, "layers": self._layers},
            source=place,
        )

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W') -> (B, F), (B, F', h, w)."""
        network = self.network
        # Without the flag an image of another size is silently given the wrong positions.
        seen = network.vision_model(
            pixel_values=image, interpolate_pos_encoding=True, output_hidden_states=True
        )
        queries = network.query_tokens.expand(len(image), -1, -1)
        answers = network.qformer(query_embeds=queries, encoder_hidden_states=seen.last_hidden_state)
        each = network.vision_projection(answers.last_hidden_state).float()
        glob = normalize(each, dim=2).mean(1) if self.tokens == "projection" else each.mean(1)
        # What a block leaves is not normalised yet, the last one's neither.
        maps = [network.vision_model.post_layernorm(seen.hidden_states[layer + 1]) for layer in self._layers]
        cells = (image.shape[2] // self._patch, image.shape[3] // self._patch)
        grids = [tokens[:, 1:].transpose(1, 2).unflatten(2, cells) for tokens in maps]
        return glob, torch.cat(grids, 1)


def _fill(network: Any, place: Source, tokens: str) -> None:
    values = read_tensors_of(place, TENSORS)
    try:
        # The library's own loader takes what is missing for new, and draws it at random.
        fill(network, values, place.reference)
    except WeightsError as error:
        if tokens != "projection" or any(name.startswith("vision_projection.") for name in values):
            raise
        raise WeightsError(
            error.message, "write tokens: qformer; a checkpoint with a language model has no projection"
        ) from error


def _config(path: Path, transformers: Any) -> Any:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        # The library fills up what a config of another model lacks.
        _ = document["vision_config"], document["qformer_config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is no config of BLIP-2: {error!r}", "give a model of BLIP-2") from error
    return transformers.Blip2Config.from_dict(document)
