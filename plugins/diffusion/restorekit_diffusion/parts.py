"""Parts of latent diffusion models that describe an image: encoder, and the UNet down to its middle.

Each turns a normalised image into one map. What is not run is neither read nor kept. diffusers is given as
an argument, so that nothing is imported here. Shapes: ``c`` latent channels, ``T`` words, ``E`` their width.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from restorekit.errors import ConfigError, WeightsError

# Autoencoders of Stable Diffusion 1 and 2 are older than the names that diffusers has for their attention.
_RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD_NAME = re.compile(rf"(?<=\.)({'|'.join(_RENAMED)})(?=\.(?:weight|bias)$)")


class Encoder(nn.Module):
    """The encoder of an autoencoder: its latents, or the map in its middle.

    Args:
        diffusers: the library.
        config: of the autoencoder.
        layer: ``latent`` or ``vae``.
    """

    def __init__(self, diffusers: Any, config: Mapping[str, Any], layer: str) -> None:
        super().__init__()
        kind = str(config.get("_class_name", "AutoencoderKL"))
        self.tiny = kind == "AutoencoderTiny"
        if kind not in ("AutoencoderKL", "AutoencoderTiny"):
            raise WeightsError(
                f"an autoencoder of class {kind} is not known here",
                "give an AutoencoderKL or AutoencoderTiny",
            )
        if self.tiny and layer != "latent":
            raise ConfigError("params.layer", f"is {layer!r}, a tiny autoencoder has none", "write latent")
        whole = getattr(diffusers, kind).from_config(dict(config))
        settings = whole.config
        self.encoder, self.middle = whole.encoder, layer == "vae"
        if not self.tiny and whole.quant_conv is not None and not self.middle:
            self.quant_conv = whole.quant_conv
        self.scale = float(getattr(settings, "scaling_factor", None) or 1)
        self.shift = float(getattr(settings, "shift_factor", None) or 0)
        widths = settings.encoder_block_out_channels if self.tiny else settings.block_out_channels
        self.stride = 2 ** (len(widths) - 1)
        self.features = int(widths[-1] if self.middle else settings.latent_channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H', W') in [-1, 1] -> (B, c, h, w), the mean of the latents; or the encoder's middle."""
        if self.middle:
            x = self.encoder.conv_in(image)
            for block in self.encoder.down_blocks:
                x = block(x)
            return self.encoder.mid_block(x)  # type: ignore[no-any-return]
        moments: Tensor = self.encoder(image)
        if hasattr(self, "quant_conv"):
            moments = self.quant_conv(moments)
        mean = moments if self.tiny else moments.chunk(2, dim=1)[0]
        return (mean - self.shift) * self.scale


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an autoencoder's tensors by the names that diffusers has for them now."""
    return {
        _OLD_NAME.sub(lambda found: _RENAMED[found[0]], name) if ".attentions." in name else name: value
        for name, value in tensors.items()
    }


class Unet(nn.Module):
    """An encoder, and the UNet behind it down to a layer.

    Args:
        diffusers: the library.
        config: of the UNet.
        encoder: makes its input.
        layer: ``mid``, or ``down0`` and so on.
        timestep: that the UNet is told, 0 to 999.
        kept: share of the latents in its input, the square root of alpha-bar; 1 without noise.
        seed: of the noise.

    Raises:
        ConfigError: the UNet has no such layer.
        WeightsError: the UNet asks for more than latents, time and text.
    """

    def __init__(
        self,
        diffusers: Any,
        config: Mapping[str, Any],
        encoder: Encoder,
        layer: str,
        timestep: int,
        kept: float,
        seed: int,
    ) -> None:
        super().__init__()
        asked = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
        more = [key for key in asked if config.get(key) is not None]
        if more:
            raise WeightsError(
                f"this UNet asks for more than latents, time and text: {', '.join(more)}",
                "give a model of the kind of Stable Diffusion 1 or 2",
            )
        whole = diffusers.UNet2DConditionModel.from_config(dict(config))
        depth = len(whole.down_blocks)
        places = [*(f"down{index}" for index in range(depth)), "mid"]
        if layer not in places:
            raise ConfigError("params.layer", f"is {layer!r}", f"use {', '.join(places)}, vae or latent")
        self.encoder = encoder
        index = places.index(layer)
        widths = whole.config.block_out_channels
        whole.up_blocks, whole.conv_norm_out, whole.conv_out = nn.ModuleList(), None, nn.Identity()
        if layer != "mid":
            whole.mid_block = None
            whole.down_blocks = whole.down_blocks[: index + 1]
        self.unet = whole
        self.timestep, self.kept, self.seed = timestep, kept, seed
        self.words = int(whole.config.cross_attention_dim)
        self.features = int(widths[min(index, depth - 1)])
        self.stride = encoder.stride * 2 ** (depth - 1)
        self.native = int(whole.config.sample_size or 64) * encoder.stride

    def forward(self, image: Tensor, prompt: Tensor) -> Tensor:
        """(B, 3, H', W') in [-1, 1] and (1, T, E) -> (B, F, h, w)."""
        latents = self.encoder(image)
        if self.kept < 1:
            # Drawn by the shape alone: repeated, and the same for every item of a batch.
            generator = torch.Generator().manual_seed(self.seed)
            noise = torch.randn((1, *latents.shape[1:]), generator=generator).to(latents)
            latents = self.kept * latents + (1 - self.kept**2) ** 0.5 * noise
        unet, text = self.unet, prompt.to(latents).expand(len(latents), -1, -1)
        steps = torch.full((len(latents),), self.timestep, device=latents.device)
        time = unet.time_embedding(unet.get_time_embed(sample=latents, timestep=steps))
        x = unet.conv_in(latents)
        for block in unet.down_blocks:
            attends = getattr(block, "has_cross_attention", False)
            words = {"encoder_hidden_states": text} if attends else {}
            x, _ = block(hidden_states=x, temb=time, **words)
        if unet.mid_block is not None:
            x = unet.mid_block(x, time, encoder_hidden_states=text)
        return x  # type: ignore[no-any-return]
