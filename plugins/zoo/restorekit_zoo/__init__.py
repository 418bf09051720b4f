"""Bundled weights, trained in the restorekit repository, with their model cards.

Data only: nothing heavy is imported, because listing weights imports this module. Each file has a card of the
same name beside it.
"""

from __future__ import annotations

from pathlib import Path

from restorekit.catalog import Pretrained

FILES = Path(__file__).parent / "files"

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
        params={
            "width": 16,
            "encoder_blocks": (1, 1, 2),
            "middle_blocks": 4,
            "decoder_blocks": (1, 1, 1),
            "padding": "reflect",
        },
    ),
)
