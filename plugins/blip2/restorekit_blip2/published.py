"""The published models that have a tag. Data only: no torch, because listing imports this."""

from __future__ import annotations

from restorekit.catalog import Need, Pretrained

CONFIG = Need(("config.json",))
# The language model is in other tensors: shards that hold nothing else are not downloaded.
TENSORS = Need(
    (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ),
    ("vision_model.", "qformer.", "query_tokens", "vision_projection."),
)


def _model(tag: str, repository: str, size: int, **params: object) -> Pretrained:
    return Pretrained(
        component="blip2",
        tag=tag,
        licence="MIT",
        source=f"Li et al., ICML 2023; model hub, {repository}",
        task="prior: what an image shows",
        training="129 M images with captions",
        params=params,
        reference=f"hub:{repository}",
        needs=(CONFIG, TENSORS),
        size=size,
        default=tag == "itm-vit-g",
    )


# A guide: in float32, text branch of the Q-Former included; the shards that are needed of the second.
WEIGHTS = (
    _model("itm-vit-g", "Salesforce/blip2-itm-vit-g", 4_700_000_000, tokens="projection"),
    _model("opt-2.7b", "Salesforce/blip2-opt-2.7b", 10_000_000_000, tokens="qformer"),
)
