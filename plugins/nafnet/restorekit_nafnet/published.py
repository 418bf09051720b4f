"""The published checkpoints of NAFNet and its Baseline. Data only: no torch, because listing imports this.

Figures are those of the authors' README. GoPro and REDS were measured with local pooling (TLC) over 384
pixels, which is part of the arguments here.
"""

from __future__ import annotations

from collections.abc import Mapping

from restorekit.catalog import Figure, Pretrained

_PAGE = "https://github.com/megvii-research/NAFNet"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_README = "README of the authors"

_SIDD: Mapping[str, object] = {
    "encoder_blocks": (2, 2, 4, 8),
    "middle_blocks": 12,
    "decoder_blocks": (2, 2, 2, 2),
}
_GOPRO: Mapping[str, object] = {
    "encoder_blocks": (1, 1, 1, 28),
    "middle_blocks": 1,
    "decoder_blocks": (1, 1, 1, 1),
    "local_window": 384,
}
_TASKS = {
    "SIDD": "denoising of smartphone photographs",
    "GoPro": "motion deblurring",
    "REDS": "motion deblurring with JPEG compression",
}


def _published(
    network: str,
    dataset: str,
    width: int,
    key: str,
    psnr: float,
    ssim: float,
    *,
    parameters: int,
    memory: int,
    expansion: int = 2,
) -> Pretrained:
    """Declare one file; its name is ``<network>-<dataset>-width<width>.pth``."""
    shape = _SIDD if dataset == "SIDD" else _GOPRO
    wide = {"dw_expand": expansion} if network == "Baseline" else {}
    return Pretrained(
        component="nafnet" if network == "NAFNet" else "nafnet-baseline",
        tag=f"{dataset.lower()}-width{width}",
        licence="MIT",
        source=f"Chen et al., ECCV 2022, {_PAGE}",
        task=_TASKS[dataset],
        training=f"{dataset} training set",
        params={"width": width, **shape, **wide},
        urls=(f"{_DRIVE}{key}",),
        filename=f"{network}-{dataset}-width{width}.pth",
        size=4 * parameters,
        parameters=parameters,
        memory_per_pixel=memory,
        figures=(Figure(dataset, f"{dataset.lower()}-rgb, ssim_3d", psnr, ssim, _README),),
    )


WEIGHTS = (
    _published(
        *("NAFNet", "SIDD", 32, "1lsByk21Xw-6aW7epCwOQxvm6HYCQZPHZ", 39.9672, 0.9599),
        parameters=29_159_715,
        memory=1212,
    ),
    _published(
        *("NAFNet", "SIDD", 64, "14Fht1QQJ2gMlk4N1ERCRuElg8JfjrWWR", 40.3045, 0.9614),
        parameters=115_982_915,
        memory=2412,
    ),
    _published(
        *("NAFNet", "GoPro", 32, "1Fr2QadtDCEXg6iwWX8OzeZLbHOx2t5Bj", 32.8705, 0.9606),
        parameters=17_111_907,
        memory=1212,
    ),
    _published(
        *("NAFNet", "GoPro", 64, "1S0PVRbyTakYY9a82kujgZLbMihfNBLfC", 33.7103, 0.9668),
        parameters=67_888_835,
        memory=2412,
    ),
    _published(
        *("NAFNet", "REDS", 64, "14D4V4raNYIOhETfcuuLI3bGLB-OYIv6X", 29.0903, 0.8671),
        parameters=67_888_835,
        memory=2412,
    ),
    _published(
        *("Baseline", "SIDD", 32, "1NhqVcqkDcYvYgF_P4BOOfo9tuTcKDuhW", 39.8857, 0.9596),
        parameters=29_056_227,
        memory=1340,
        expansion=1,
    ),
    _published(
        *("Baseline", "SIDD", 64, "1wQ1HHHPhSp70_ledMBZhDhIGjZQs16wO", 40.2970, 0.9617),
        parameters=194_419_779,
        memory=2924,
    ),
    _published(
        *("Baseline", "GoPro", 32, "14z7CxRzVkYEhFgsZg79GlPTEr3VFIGyl", 32.4799, 0.9575),
        parameters=17_023_875,
        memory=1340,
        expansion=1,
    ),
    _published(
        *("Baseline", "GoPro", 64, "1yy0oPNJjJxfaEmO0pfPW_TpeoCotYkuO", 33.3960, 0.9649),
        parameters=112_036_291,
        memory=3180,
    ),
)
