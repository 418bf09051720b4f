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
        sha256="b505400798d548acdb8b83cbb24256934dc40b1b00a1b6df480bb485e46a059c",
        licence="Apache-2.0",
        source="trained by configs/train/nafnet-denoise.yaml on 48 CC0 and public-domain photographs",
        task="blind colour denoising, sigma 0 to 55, with moderate JPEG compression",
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
