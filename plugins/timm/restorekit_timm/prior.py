"""A vision tower of timm: one vector for the image, maps of its layers, at any size.

timm is imported when a prior is built, never before. Shapes as in restorekit.contracts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from restorekit.arguments import chosen_layers
from restorekit.errors import ConfigError, WeightsError, near
from restorekit.frozen import FrozenPrior, library, on_meta, version
from restorekit.references import Source, declared_as, source
from restorekit.weights import read_tensors
from restorekit_timm.published import CONFIG, TENSORS, WEIGHTS

_PLUGIN = "restorekit-timm"


class Timm(FrozenPrior):
    """Any image model of timm that returns maps of its layers: ViTs, ConvNeXt, EfficientNet and others.

    ``glob`` is what the model pools from its last layer, or means of chosen ones, as a unit vector.
    ``dense`` are the maps of the chosen layers, normalised as the model's last one is where it has tokens.

    Args:
        reference: a tag (``restorekit weights list timm``), ``hub:owner/repository``, the path of a folder
            with config.json and weights, or of a file of weights in any layout that timm reads for the
            model. When None, the place that timm knows for ``model``.
        model: architecture, with timm's tag if need be; needed for a file, which cannot tell. CLIP of OpenAI
            is ``vit_..._clip_quickgelu_...``: the plain ones compute GELU.
        projected: return what the model's head makes of the pooled vector, as CLIP's embedding.
        layers: of timm's list of layers, or blocks; joined over channels, so of one size; -1 is the last.
            One that is named twice counts once.
        vector: the ``head``'s, or means over the image of the chosen ``layers``: early ones still know of an
            image's noise, blur and light, which the head was trained to overlook.
        in_order: tensors of the file have other names, and the model's order.
        arguments: of the architecture, as timm takes them.
        mode: squash, long or dynamic, see ``restorekit.frozen.FrozenPrior``.
        size: in pixels; the model's when None.
        dtype: fp32, bf16 or fp16.
        differentiable: let gradients through to the image.
        shuffled: seed; the weights in a random order, as a control.

    Raises:
        ConfigError: an argument is none of those, or timm has no such model.
        WeightsError: a file is missing, or does not fit.
    """

    def __init__(
        self,
        reference: str | None = None,
        model: str | None = None,
        projected: bool | None = None,
        layers: Sequence[int] = (-1,),
        vector: Literal["head", "layers"] = "head",
        in_order: bool | None = None,
        arguments: Mapping[str, Any] | None = None,
        mode: str = "squash",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        if reference is None and model is None:
            reference = next(item.tag for item in WEIGHTS if item.default)
        declared = declared_as(reference, WEIGHTS) if reference is not None else None
        stated = declared.params if declared else {}
        model = model or _text(stated.get("model"))
        projected = bool(stated.get("projected", False)) if projected is None else projected
        in_order = bool(stated.get("in_order", False)) if in_order is None else in_order
        timm = library("timm", _PLUGIN)
        self.library = version("timm")
        place = source(reference, WEIGHTS) if reference is not None else _timms_own(model, timm)
        model, config, settings = _description(place, model, timm)
        settings |= dict(arguments or {})
        network = _network(timm, model, place, config, settings, in_order=in_order)
        if not projected and hasattr(network, "reset_classifier"):
            network.reset_classifier(0)
        facts = {"model": model, "arguments": settings, "projected": projected, "in_order": in_order}
        self._projected = projected
        if vector not in ("head", "layers"):
            raise ConfigError("params.vector", f"{vector!r} is neither head nor layers", "leave it out: head")
        self._of_layers = vector == "layers"
        self._layers = _layers(network, layers)
        preprocessing = timm.data.resolve_model_data_config(network)
        embedding: Any = getattr(network, "patch_embed", None)
        sides = getattr(embedding, "img_size", None)
        self.adopt(
            network,
            features=self._channels(network) if self._of_layers else _width(network, projected),
            native=int(sides[0] if sides else preprocessing["input_size"][-1]),
            multiple=int(embedding.patch_size[0]) if hasattr(embedding, "patch_size") else 1,
            # A smaller one would leave the deepest layers nothing to look at.
            least=max((int(info["reduction"]) for info in network.feature_info), default=1),
            mean=preprocessing["mean"],
            std=preprocessing["std"],
            # What was not to be chosen yet when refiners were trained is no part of what they name.
            facts={**facts, "layers": self._layers, **({"vector": vector} if self._of_layers else {})},
            source=place,
        )

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W') -> (B, F), (B, F', h, w)."""
        last, maps = self.network.forward_intermediates(image, indices=self._layers, norm=True)
        dense = torch.cat(maps, 1)
        if self._of_layers:
            return dense.mean((2, 3)), dense
        return self.network.forward_head(last, pre_logits=not self._projected), dense

    def _channels(self, network: Any) -> int:
        """Return the channels of the chosen layers, together."""
        return sum(int(network.feature_info[layer]["num_chs"]) for layer in self._layers)


def _layers(network: Any, layers: Sequence[int]) -> list[int]:
    count = len(network.feature_info)
    chosen = chosen_layers(layers, count, f"the model has {count} layers")
    strides = {network.feature_info[layer]["reduction"] for layer in chosen}
    if len(strides) > 1:
        raise ConfigError("params.layers", f"are of strides {sorted(strides)}", "choose layers of one stride")
    return chosen


def _timms_own(model: str | None, timm: Any) -> Source:
    config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    if config is None or not config.hf_hub_id:
        raise ConfigError(
            "params.model",
            f"timm knows no weights of {model!r}",
            near(str(model), timm.list_models(pretrained=True)) or "give a reference to some",
        )
    return Source(f"hub:{config.hf_hub_id}")


def _description(place: Source, model: str | None, timm: Any) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the architecture, what timm is told of its weights, and its arguments."""
    if model is not None:
        architecture = model.partition(".")[0]
        if not timm.is_model(architecture):
            raise ConfigError(
                "params.model", f"timm has no {architecture!r}", near(architecture, timm.list_models())
            )
        # Weights that timm knows by a tag it describes itself.
        if place.file is not None or "." in model or not place.has(CONFIG):
            return model, {}, {}
    if place.file is not None:
        raise ConfigError("params.model", f"{place.file} cannot tell its architecture", "write model: NAME")
    place.expect((CONFIG, TENSORS))
    (path,) = place.take(CONFIG)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found, config = document["architecture"], document.get("pretrained_cfg", document)
        settings = dict(document.get("model_args") or {})
        known = ("mean", "std", "input_size", "interpolation", "crop_pct", "crop_mode", "num_classes")
        kept = {key: config[key] for key in known if key in config}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is no config of timm: {error!r}", "fetch it again") from error
    if "num_classes" in document:
        kept["num_classes"] = document["num_classes"]
    # A model that is named decides: one file serves the variants with and without QuickGELU.
    return model or str(found), kept, settings


def _network(
    timm: Any,
    model: str,
    place: Source,
    config: dict[str, Any],
    settings: Mapping[str, Any],
    *,
    in_order: bool,
) -> Any:
    overlay = dict(config)
    if not on_meta():
        paths = [place.file] if place.file is not None else place.take(TENSORS)
        if in_order:
            overlay["state_dict"] = _renamed(timm.create_model(model, **settings), paths[0])
        else:
            overlay["file"] = str(paths[0])
    given = dict(settings)
    # Where model and file are of different numbers of classes timm drops the head, and then forgives every
    # other tensor that is missing too. They are told the same; a head that is not used is dropped afterwards.
    if "num_classes" in config:
        given.setdefault("num_classes", config["num_classes"])
    if "num_classes" in given:
        overlay["num_classes"] = given["num_classes"]
    for flexible in ({"dynamic_img_size": True}, {}):
        try:
            return timm.create_model(
                model, pretrained=not on_meta(), pretrained_cfg_overlay=overlay, **(flexible | given)
            )
        except TypeError as error:
            # Networks without a position embedding take images of any size and do not know the word.
            if not flexible or "dynamic_img_size" not in str(error):
                raise ConfigError("params.arguments", f"{model} refuses them: {error}") from error
        except (RuntimeError, ValueError, OSError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise WeightsError(
                f"{place.reference} does not fit timm's {model}: {reason}",
                "give the model and the arguments that the weights are of",
            ) from error
    raise AssertionError("the second call returns or raises")


def _renamed(network: Any, path: Path) -> dict[str, Tensor]:
    """Give the tensors of a file the names of a model whose tensors come in the same order and shapes."""
    own, tensors = network.state_dict(), read_tensors(path)
    shapes = [tuple(value.shape) for value in own.values()]
    found = [tuple(value.shape) for value in tensors.values()]
    if shapes != found:
        raise WeightsError(
            f"{path} has {len(found)} tensors that do not match the {len(shapes)} of the model in order",
            "leave in_order out, or name the model that the file is of",
        )
    return dict(zip(own, tensors.values(), strict=True))


def _width(network: Any, projected: bool) -> int:
    if not projected:
        return int(getattr(network, "head_hidden_size", None) or network.num_features)
    if not network.num_classes:
        raise ConfigError("params.projected", "the model has no head", "leave it out")
    return int(network.num_classes)


def _text(value: object) -> str | None:
    return None if value is None else str(value)
