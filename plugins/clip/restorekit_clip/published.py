"""The published models that have a tag. Data only: no torch, because listing imports this."""

from __future__ import annotations

from restorekit.catalog import Need, Pretrained

CONFIG = Need(("open_clip_config.json",))
TENSORS = Need(
    ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors"), ("visual.",)
)


def _model(tag: str, repository: str, licence: str, training: str, size: int, **params: object) -> Pretrained:
    return Pretrained(
        component="clip",
        tag=tag,
        licence=licence,
        source=f"model hub, {repository}",
        task="prior: what an image shows",
        training=training,
        params=params,
        reference=f"hub:{repository}",
        needs=(CONFIG, TENSORS),
        size=size,
        default=tag == "openai-vit-b-32",
    )


# Sizes are those of the whole checkpoint, text tower included: it is one file.
WEIGHTS = (
    _model(
        "openai-vit-b-32",
        "timm/vit_base_patch32_clip_224.openai",
        "MIT",
        "400 M image-text pairs of OpenAI",
        605_000_000,
        quick_gelu=True,
    ),
    _model(
        "openai-vit-l-14",
        "timm/vit_large_patch14_clip_224.openai",
        "MIT",
        "400 M image-text pairs of OpenAI",
        1_710_000_000,
        quick_gelu=True,
    ),
    _model(
        "laion2b-vit-b-32",
        "laion/CLIP-ViT-B-32-laion2B-s34B-b79K",
        "MIT",
        "LAION-2B",
        605_000_000,
        quick_gelu=False,
    ),
)
