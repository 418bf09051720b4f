"""Bundled weights, trained in the restorekit repository, with their model cards.

Data only: nothing heavy is imported, because listing weights imports this module. Each file has a card of the
same name beside it.
"""

from __future__ import annotations

from pathlib import Path

from restorekit.catalog import Pretrained

FILES = Path(__file__).parent / "files"

_SMALL = {
    "width": 16,
    "encoder_blocks": (1, 1, 2),
    "middle_blocks": 4,
    "decoder_blocks": (1, 1, 1),
    "padding": "reflect",
}

WEIGHTS = (
    Pretrained(
        component="nafnet",
        tag="denoise",
        file=FILES / "nafnet-denoise.safetensors",
        sha256="b4918a0317292ba0e7e4e7fac0bae3b7da27d33568b60ee1c653633cb9524796",
        licence="Apache-2.0",
        source="trained by nafnet-denoise.yaml, then nafnet-denoise-gray.yaml of configs/train, on 48 CC0 "
        "and public-domain photographs",
        task="blind denoising, colour and gray, sigma 0 to 55, with moderate JPEG compression",
        memory_per_pixel=552,
        params=_SMALL,
    ),
    Pretrained(
        component="nafnet",
        tag="all-in-one",
        file=FILES / "nafnet-all-in-one.safetensors",
        sha256="261435f5d031c77fc8637716a3dccd83e6a1f37a4a76e5ece33e4883c8f79b99",
        licence="Apache-2.0",
        source="trained by configs/adapt/all-in-one.yaml from nafnet/denoise, on 48 CC0 and public-domain "
        "photographs",
        task="noise, motion blur, rain, haze, darkness and JPEG compression, one at a time; the base of "
        "adms/all-in-one",
        memory_per_pixel=552,
        params=_SMALL,
    ),
    Pretrained(
        component="adms",
        tag="all-in-one",
        file=FILES / "adms-all-in-one.safetensors",
        sha256="20a7fc5b15b27150fa91d42c6748d3239c8c766f66a6f29c58eaf2fd7b6c476f",
        licence="Apache-2.0",
        source="trained by configs/adapt/all-in-one.yaml on nafnet/all-in-one, on 48 CC0 and public-domain "
        "photographs",
        task="finds out which of six degradations an image suffers from, and adapts nafnet/all-in-one to it",
        params={
            "degradations": ("noise", "blur", "rain", "haze", "darkness", "jpeg"),
            "none": "clean",
            "widths": (16, 24, 32, 48, 64),
        },
    ),
)
