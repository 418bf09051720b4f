"""The published models that have a tag. Data only: no torch, because listing imports this."""

from __future__ import annotations

from restorekit.catalog import Need, Pretrained

# Of a file or a repository: what else there is, as the heads that name classes, can be ten times as large.
TENSORS = Need(("model.safetensors", "pytorch_model.bin"), ("net.", "features.", "scaling_layer."))

_PACKAGE = "stlpips_pytorch"


def _model(tag: str, file: str, size: int, parameters: int) -> Pretrained:
    return Pretrained(
        component="perceptual",
        tag=tag,
        licence="BSD-2-Clause",
        source="PyPI, stlpips-pytorch 0.0.2",
        task="prior: what an image looks like",
        training="ImageNet-1k",
        reference=f"package:{_PACKAGE}/weights/vST0.0/{file}",
        size=size,
        parameters=parameters,
        default=tag == "vgg16",
    )


WEIGHTS = (
    _model("vgg16", "vgg_shift_tolerant.pth", 58_907_298, 14_714_688),
    _model("alexnet", "alex_shift_tolerant.pth", 9_899_296, 2_469_696),
)
