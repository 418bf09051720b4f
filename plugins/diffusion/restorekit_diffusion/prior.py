"""A latent diffusion model as a prior: one map of its UNet or of its autoencoder, and its mean.

diffusers is imported when a prior is built, never before. Shapes as in restorekit.contracts.
"""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from restorekit.catalog import Need
from restorekit.errors import ConfigError, WeightsError, near
from restorekit.frozen import FrozenPrior, fill, library, on_meta, read_tensors_of, version
from restorekit.references import Source, declared_as, source
from restorekit_diffusion.parts import Encoder, Unet, renamed
from restorekit_diffusion.prompt import empty_prompt, prompt_needs
from restorekit_diffusion.published import AUTOENCODER, SCHEDULER, UNET, WEIGHTS, config, tensors
from restorekit_diffusion.tiny import TinyEncoder

_PLUGIN = "restorekit-diffusion"
_PROMPTS = ("empty", "zeros")
_VARIANTS = ("fp16", "fp32")
# Of autoencoders that state none.
_NATIVE = 512


class Diffusion(FrozenPrior):
    """Stable Diffusion 1, 2 and Turbo, or an autoencoder alone, read by diffusers.

    The image is encoded to the mean of its latents, and the UNet is walked down to one layer, told the empty
    prompt. ``dense`` is that layer's map, ``glob`` its mean, as a unit vector. Nothing is drawn at random
    unless ``noise`` is given, and then by a seed.

    Args:
        reference: a tag (``restorekit weights list diffusion``), ``hub:owner/repository``, the path of a
            folder with ``unet`` and ``vae`` in it or of an autoencoder's folder, or of a file of a tiny
            autoencoder's encoder (``taesd_encoder.pth`` and relatives).
        layer: ``mid`` or ``down0`` to ``down3`` of the UNet, after its halving; ``vae``, the middle of the
            encoder; ``latent``. ``mid`` when None, ``latent`` of an autoencoder alone.
        timestep: that the UNet is told, 0 to 999.
        noise: seed of the noise that is added as of that timestep; none when None.
        prompt: ``empty``, made once by the text encoder and kept in the cache; or ``zeros``, which needs
            none and which no model was trained with.
        variant: ``fp16`` or ``fp32``, of the files that are taken where there are both; as the tag says when
            None, also of a tag's repository, else fp32.
        mode: squash, long or dynamic, see ``restorekit.frozen.FrozenPrior``.
        size: in pixels; the model's when None (512).
        dtype: fp32, bf16 or fp16; the encoder is known to overflow in fp16.
        differentiable: let gradients through to the image.
        shuffled: seed; the weights in a random order, as a control.

    Raises:
        ConfigError: an argument is none of those.
        WeightsError: a file is missing, or does not fit.
    """

    def __init__(
        self,
        reference: str,
        layer: str | None = None,
        timestep: int = 0,
        noise: int | None = None,
        prompt: str = "empty",
        variant: str | None = None,
        mode: str = "squash",
        size: int | None = None,
        dtype: str = "fp32",
        differentiable: bool = False,
        shuffled: int | None = None,
    ) -> None:
        super().__init__(mode=mode, size=size, dtype=dtype, differentiable=differentiable, shuffled=shuffled)
        if not 0 <= timestep < 1000:
            raise ConfigError("params.timestep", f"is {timestep}", "give one from 0 to 999")
        if prompt not in _PROMPTS:
            raise ConfigError(
                "params.prompt", f"is {prompt!r}", near(prompt, _PROMPTS) or "use empty or zeros"
            )
        if variant not in (None, *_VARIANTS):
            raise ConfigError("params.variant", f"is {variant!r}", "use fp16 or fp32, or leave it out")
        declared = declared_as(reference, WEIGHTS)
        if variant is None and declared and "variant" in declared.params:
            variant = str(declared.params["variant"])
        place = source(reference, WEIGHTS)
        facts: dict[str, Any] = {"layer": layer}
        if place.file is not None:
            network: Any = _tiny_file(place, layer)
            native, mean, std = _NATIVE, (0.0,) * 3, (1.0,) * 3
        else:
            diffusers = library("diffusers", _PLUGIN)
            self.library = version("diffusers")
            whole = layer not in ("vae", "latent") and _is_whole(place, reference, layer)
            folder = AUTOENCODER if whole or _has_parts(place, reference) else ""
            layer = layer or ("mid" if whole else "latent")
            needs = [config(folder), tensors(folder, variant)]
            if whole:
                needs = [config(UNET), tensors(UNET, variant), *needs]
                needs += [SCHEDULER] if noise is not None else []
                # Whether the embedding was kept is known by the UNet's weights alone, which may be missing.
                needs += prompt_needs(variant) if prompt == "empty" else ()
            place.expect(needs)
            unet_config = _read(place, config(UNET)) if whole else {}
            encoder_config = _read(place, config(folder))
            with torch.device("meta"):
                network = encoder = Encoder(diffusers, encoder_config, layer)
            native = int(encoder_config.get("sample_size") or _NATIVE)
            mean, std = (0.5,) * 3, (0.5,) * 3
            if whole:
                kept = 1.0 if noise is None else _kept(diffusers, place, timestep)
                with torch.device("meta"):
                    network = Unet(diffusers, unet_config, encoder, layer, timestep, kept, noise or 0)
                native = network.native
                facts |= {"timestep": timestep, "noise": noise, "prompt": prompt}
            if not on_meta():
                values = read_tensors_of(place, tensors(folder, variant))
                fill(encoder, renamed(values), place.reference)
            if whole:
                self._fill_unet(network, place, prompt, variant)
            facts["layer"] = layer
        self.adopt(
            network,
            features=int(network.features),
            native=native,
            multiple=int(network.stride),
            mean=mean,
            std=std,
            facts=facts,
            source=place,
        )

    def describe(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H', W') -> (B, F), (B, F, h, w)."""
        walked = isinstance(self.network, Unet)
        seen: Tensor = self.network(image, self.prompt) if walked else self.network(image)
        return seen.float().mean((2, 3)), seen

    def _fill_unet(self, network: Unet, place: Source, prompt: str, variant: str | None) -> None:
        embedding = torch.zeros(1, 1, network.words)
        if not on_meta():
            need = tensors(UNET, variant)
            fill(network.unet, read_tensors_of(place, need), place.reference)
            if prompt == "empty":
                (weights,) = place.take(need)
                embedding = empty_prompt(place.reference, weights, network.words, variant)
        self.prompt: Tensor
        self.register_buffer("prompt", embedding, persistent=False)


def _is_whole(place: Source, reference: str, layer: str | None) -> bool:
    """Tell whether a UNet is walked; also where it ought to be there and is not, which is an error then."""
    if layer is not None:
        return True
    # Nothing is asked of the hub that a tag says: one that does not answer is told of all files at once.
    if declared := declared_as(reference, WEIGHTS):
        return config(UNET) in declared.needs
    return place.has(config(UNET)) or not place.has(config(""))


def _has_parts(place: Source, reference: str) -> bool:
    """Tell whether the autoencoder is in a folder of its own, beside a UNet."""
    declared = declared_as(reference, WEIGHTS)
    return config(AUTOENCODER) in declared.needs if declared else place.has(config(AUTOENCODER))


def _tiny_file(place: Source, layer: str | None) -> TinyEncoder:
    if layer not in (None, "latent"):
        raise ConfigError("params.layer", f"is {layer!r}, a tiny autoencoder has none", "write latent")
    values = read_tensors_of(place, Need(("encoder.pth",)))
    with torch.device("meta"):
        network = TinyEncoder(values, place.reference)
    if not on_meta():
        fill(network, values, place.reference)
    return network


def _kept(diffusers: Any, place: Source, timestep: int) -> float:
    """Return the square root of alpha-bar: the share of the latents in what the UNet sees at a timestep."""
    settings = _read(place, SCHEDULER)
    with torch.device("cpu"):
        scheduler = diffusers.DDPMScheduler.from_config(settings)
    alpha_bar = float(scheduler.alphas_cumprod[timestep])
    return math.sqrt(alpha_bar)


def _read(place: Source, need: Need) -> dict[str, Any]:
    (path,) = place.take(need)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(f"{path} is no config of diffusers: {error}", "fetch it again") from error
