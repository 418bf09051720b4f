"""The image tower of a CLIP model: a unit vector for the image, tokens for its patches.

open_clip is imported when a prior is built, never before. Shapes as in restorekit.contracts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import interpolate

from restorekit.arguments import chosen_layers
from restorekit.errors import ConfigError, WeightsError, near
from restorekit.frozen import FrozenPrior, fill, library, on_meta, read_tensors_of, version
from restorekit.references import Source, declared_as, source
from restorekit_clip.published import CONFIG, TENSORS, WEIGHTS

_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_POSITIONS = ("resize", "none")
_PLUGIN = "restorekit-clip"


class Clip(FrozenPrior):
    """CLIP's image tower (Radford et al., ICML 2021), read by open_clip; the text tower is never in memory.

    ``glob`` is the image embedding, a unit vector (512 for ViT-B/32). ``dense`` are the tokens of the patches
    at the chosen blocks, normalised by the last layer norm, not projected.

    Args:
        reference: a tag (``restorekit weights list clip``), ``hub:owner/repository``, or the path of a folder
            with open_clip_config.json and weights, or of a file of weights.
        model: architecture as open_clip names it; needed for a file, which cannot tell.
        quick_gelu: whether the model was trained with QuickGELU, as OpenAI's were. As the tag, the config or
            the ``model`` (``ViT-B-32-quickgelu``) say when None; needed where none of them does.
        layers: blocks whose tokens are returned, joined over channels; -1 is the last.
        positions: for images of another size than the model's: ``resize`` its position embedding, or
            ``none`` to leave that of patches out.
        mode: squash, long or dynamic, see ``restorekit.frozen.FrozenPrior``.
        size: in pixels; the model's when None.
        dtype: fp32, bf16 or fp16.
        differentiable: let gradients through to the image.
        shuffled: seed; the weights in a random order, as a control.

    Raises:
        ConfigError: an argument is none of those.
        WeightsError: a file is missing, or does not fit.
    """

    def __init__(
        self,
        reference: str = "openai-vit-b-32",
        model: str | None = None,
        quick_gelu: bool | None = None,
        layers: Sequence[int] = (-1,),
        positions: str = "resize",
        mode: str = "squash",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        if positions not in _POSITIONS:
            raise ConfigError(
                "params.positions", f"is {positions!r}", near(positions, _POSITIONS) or "use resize or none"
            )
        place = source(reference, WEIGHTS)
        declared = declared_as(reference, WEIGHTS)
        if quick_gelu is None and declared:
            quick_gelu = bool(declared.params["quick_gelu"])
        open_clip = library("open_clip", _PLUGIN)
        self.library = version("open_clip_torch")
        config, preprocessing = _config(place, model, open_clip)
        vision = config["vision_cfg"]
        if vision.get("timm_model_name"):
            raise WeightsError(
                f"{place.reference}: the image tower of this model is timm's {vision['timm_model_name']}",
                "use the prior timm",
            )
        quick = _quick_gelu(quick_gelu, config, place)
        with torch.device("meta"):
            # Private, because open_clip offers the image tower only together with the text tower.
            tower = open_clip.model._build_vision_tower(config["embed_dim"], vision, quick)
        self._patch = int(vision.get("patch_size") or 32)
        self._positions = positions
        blocks = vision["layers"]
        count = blocks if isinstance(blocks, int) else len(blocks) + 1
        self._layers = chosen_layers(layers, count, f"the model has {count} blocks")
        if not isinstance(blocks, int) and (mode != "squash" or size not in (None, vision["image_size"])):
            raise ConfigError(
                "params.mode", "a ResNet of CLIP takes images of one size", "leave mode and size out"
            )
        if not on_meta():
            fill(tower, read_tensors_of(place, TENSORS, strip="visual."), place.reference)
        self.adopt(
            _Intermediates(tower, self._layers),
            features=int(config["embed_dim"]),
            native=int(vision["image_size"]),
            multiple=self._patch,
            mean=preprocessing.get("mean", _MEAN),
            std=preprocessing.get("std", _STD),
            facts={"model": config, "quick_gelu": quick, "layers": self._layers, "positions": positions},
            source=place,
        )

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W') -> (B, F), (B, F', h, w)."""
        name = "tower.positional_embedding"
        embedding = dict(self.network.named_parameters()).get(name)
        cells = (image.shape[2] // self._patch, image.shape[3] // self._patch)
        if embedding is None or self.network.tower.grid_size == cells:
            return self.network(image)  # type: ignore[no-any-return]
        changed = {name: self._positioned(embedding, cells)}
        return functional_call(self.network, changed, (image,))  # type: ignore[no-any-return]

    def _positioned(self, embedding: Tensor, cells: tuple[int, int]) -> Tensor:
        """(1 + h w, D) for the model's grid -> (1 + h' w', D) for another."""
        image, patches = embedding[:1], embedding[1:]
        if self._positions == "none":
            return torch.cat([image, patches.new_zeros(cells[0] * cells[1], patches.shape[1])])
        height, width = self.network.tower.grid_size
        grid = patches.float().reshape(1, height, width, -1).permute(0, 3, 1, 2)
        # As open_clip and timm resize it when they load a model for another size.
        resized = interpolate(grid, cells, mode="bicubic", antialias=True, align_corners=False)
        return torch.cat([image, resized[0].flatten(1).T.to(embedding.dtype)])


class _Intermediates(nn.Module):
    """A tower whose forward returns the image's embedding and the tokens of some blocks."""

    def __init__(self, tower: Any, layers: list[int]) -> None:
        super().__init__()
        self.tower, self.layers = tower, layers

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H', W') -> (B, F), (B, F', h, w)."""
        seen = self.tower.forward_intermediates(image, indices=self.layers, normalize_intermediates=True)
        return seen["image_features"], torch.cat(seen["image_intermediates"], 1)


def _config(place: Source, model: str | None, open_clip: Any) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Return the model's config as open_clip writes it, and its preprocessing."""
    if model is not None:
        known = open_clip.get_model_config(model)
        if known is None:
            names = open_clip.list_models()
            raise ConfigError("params.model", f"open_clip has no {model!r}", near(model, names))
        return known, {}
    if place.file is not None:
        raise ConfigError(
            "params.model", f"{place.file} cannot tell its architecture", "write model: ViT-B-32"
        )
    place.expect((CONFIG, TENSORS))
    (path,) = place.take(CONFIG)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        config = document["model_cfg"]
        _ = config["embed_dim"], config["vision_cfg"]["layers"], config["vision_cfg"]["image_size"]
        return config, document.get("preprocess_cfg", {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no config of open_clip: {error!r}", "fetch it again") from error


def _quick_gelu(asked: bool | None, config: Mapping[str, Any], place: Source) -> bool:
    if asked is not None:
        return asked
    stated = config.get("quick_gelu")
    # Configs without the key are of OpenAI's models and of LAION's; open_clip takes all for GELU, and warns.
    if stated is None:
        raise ConfigError(
            "params.quick_gelu",
            f"{place.reference} cannot tell whether the model was trained with QuickGELU or with GELU",
            "write quick_gelu: true for OpenAI's own weights, false for LAION's and others', unless their "
            "publisher says otherwise",
        )
    return bool(stated)
