"""The published models that have a tag. Data only: no torch, because listing imports this."""

from __future__ import annotations

from restorekit.catalog import Need, Pretrained

# A whole diffusion model keeps its parts in folders; an autoencoder of its own has no folder.
UNET = "unet/"
AUTOENCODER = "vae/"
SCHEDULER = Need(("scheduler/scheduler_config.json",))
TEXT = Need(("text_encoder/config.json",))
PADDING = Need(("tokenizer/special_tokens_map.json", "tokenizer/tokenizer_config.json"))

# What runs before and in the middle of the UNet; its second half is never read.
_UNET_PARTS = ("conv_in.", "time_embedding.", "down_blocks.", "mid_block.")
_AUTOENCODER_PARTS = ("encoder.", "quant_conv.")


def config(folder: str) -> Need:
    """Return the need of a part's config."""
    return Need((f"{folder}config.json",))


def tensors(folder: str, variant: str | None = None) -> Need:
    """Return the need of a part's weights; files of a variant come first where one is wanted."""
    name = "model" if folder.startswith("text") else "diffusion_pytorch_model"
    plain, half = f"{folder}{name}.safetensors", f"{folder}{name}.fp16.safetensors"
    parts = _UNET_PARTS if folder == UNET else () if folder.startswith("text") else _AUTOENCODER_PARTS
    return Need((half, plain) if variant == "fp16" else (plain, half), parts)


def _model(tag: str, repository: str, licence: str, training: str, size: int) -> Pretrained:
    parts = (UNET, AUTOENCODER, "text_encoder/")
    return Pretrained(
        component="diffusion",
        tag=tag,
        licence=licence,
        source=f"model hub, {repository}",
        task="prior: what images are made of",
        training=training,
        params={"variant": "fp16"},
        reference=f"hub:{repository}",
        needs=(
            *(need for part in parts for need in (config(part), tensors(part, "fp16"))),
            SCHEDULER,
            PADDING,
        ),
        size=size,
    )


# Sizes are those of the files in half precision: UNet, autoencoder, text encoder.
WEIGHTS = (
    _model(
        "sd-1.5",
        "stable-diffusion-v1-5/stable-diffusion-v1-5",
        "LicenseRef-CreativeML-OpenRAIL-M",
        "LAION-5B, aesthetic subsets",
        2_130_000_000,
    ),
    _model(
        "sd-turbo",
        "stabilityai/sd-turbo",
        "LicenseRef-Stability-AI-Community",
        "distilled from Stable Diffusion 2.1",
        2_580_000_000,
    ),
    Pretrained(
        component="diffusion",
        tag="taesd",
        licence="MIT",
        source="model hub, madebyollin/taesd",
        task="prior: latents of Stable Diffusion 1 and 2, approximately",
        reference="hub:madebyollin/taesd",
        params={"layer": "latent"},
        needs=(config(""), tensors("")),
        size=9_800_000,
    ),
)
