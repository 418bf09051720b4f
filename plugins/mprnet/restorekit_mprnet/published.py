"""The published checkpoints of MPRNet. Data only: no torch, because listing imports this.

Figures are recalled from the paper; later work quotes the same for deraining, GoPro, HIDE and DND.
"""

from __future__ import annotations

from collections.abc import Mapping

from restorekit.catalog import Figure, Pretrained

_PAGE = "https://github.com/swz30/MPRNet"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_PAPER, _QUOTED = "paper, recalled", "paper, recalled and quoted by later work"


def _published(
    task: str,
    about: str,
    training: str,
    key: str,
    params: Mapping[str, object],
    figures: tuple[Figure, ...],
    *,
    parameters: int,
    memory: int,
) -> Pretrained:
    return Pretrained(
        component="mprnet",
        tag=task,
        licence="LicenseRef-Academic-Public-License",
        source=f"Zamir et al., CVPR 2021, {_PAGE}",
        task=about,
        training=training,
        params=params,
        urls=(f"{_DRIVE}{key}",),
        filename=f"model_{task}.pth",
        size=4 * parameters,
        parameters=parameters,
        memory_per_pixel=memory,
        figures=figures,
    )


WEIGHTS = (
    _published(
        "deraining",
        "rain removal",
        "Rain13k",
        "1O3WEJbcat7eTY6doXWeorAbQ1l_WmMnM",
        {"width": 40, "width_step": 20, "third_step": 16},
        (
            Figure("Test100", "rain13k-y", 30.27, 0.897, _QUOTED),
            Figure("Rain100H", "rain13k-y", 30.41, 0.890, _QUOTED),
            Figure("Rain100L", "rain13k-y", 36.40, 0.965, _QUOTED),
            Figure("Test2800", "rain13k-y", 33.64, 0.938, _QUOTED),
            Figure("Test1200", "rain13k-y", 32.91, 0.916, _QUOTED),
        ),
        parameters=3_637_249,
        memory=1820,
    ),
    _published(
        "deblurring",
        "motion deblurring",
        "GoPro training set",
        "1QwQUVbk6YVOJViCsOKYNykCsdJSVGRtb",
        {"width": 96, "width_step": 48, "third_step": 32},
        (
            Figure("GoPro", "gopro-rgb, ssim_3d", 32.66, 0.959, _QUOTED),
            Figure("HIDE", "gopro-rgb, ssim_3d", 30.96, 0.939, _QUOTED),
            Figure("RealBlur-R", "realblur-aligned", 35.99, 0.952, _PAPER),
            Figure("RealBlur-J", "realblur-aligned", 28.70, 0.873, _PAPER),
        ),
        parameters=20_127_073,
        memory=4156,
    ),
    _published(
        "denoising",
        "denoising of smartphone photographs",
        "SIDD training set",
        "1LODPt9kYmxwU98g96UrRA0_Eh5HYcsRw",
        {"width": 80, "width_step": 48, "third_step": 32},
        (
            Figure("SIDD", "sidd-rgb, ssim_3d", 39.71, 0.958, _PAPER),
            Figure("DND", "dnd-server", 39.80, 0.954, _QUOTED),
        ),
        parameters=15_741_025,
        memory=3604,
    ),
)
