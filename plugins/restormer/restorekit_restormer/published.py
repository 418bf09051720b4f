"""The published checkpoints of Restormer. Data only: no torch, because listing imports this.

"Recalled" figures were not read from the paper here; those of MMagic are its own re-evaluation of the same
files, read from its documentation.
"""

from __future__ import annotations

from collections.abc import Mapping

from restorekit.catalog import Figure, Pretrained

_PAGE = "https://github.com/swz30/Restormer"
_RELEASE = "https://github.com/swz30/Restormer/releases/download/v1.0/"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_FOLDER = "https://drive.google.com/drive/folders/1bRBG8DG_72AGA6-eRePvChlT5ZO4cwJ4"

_GAUSSIAN = "DFWB (DIV2K, Flickr2K, WaterlooED, BSD500)"
_LEVELS = (15, 25, 50)
_PAPER, _MMAGIC = "paper, recalled", "MMagic's re-evaluation"

# What distinguishes the variants: arguments, number of parameters, bytes of working memory a pixel.
_WITH_BIAS = ({"norm": "with-bias"}, 26_126_644, 2180)
_BIAS_FREE = ({"norm": "bias-free"}, 26_111_668, 2180)
_GRAY = ({"norm": "bias-free", "channels": 1}, 26_109_076, 2180)
_DUAL_PIXEL = (
    {"norm": "with-bias", "channels": 6, "out_channels": 3, "dual_pixel": True},
    26_132_548,
    2190,
)
_Variant = tuple[Mapping[str, object], int, int]


def _published(
    tag: str,
    file: str,
    task: str,
    training: str,
    variant: _Variant,
    figures: tuple[Figure, ...],
    *,
    urls: tuple[str, ...] | None = None,
    page: str = _PAGE,
) -> Pretrained:
    params, parameters, memory = variant
    return Pretrained(
        component="restormer",
        tag=tag,
        licence="LicenseRef-Academic-Public-License",
        source=f"Zamir et al., CVPR 2022, {page}",
        task=task,
        training=training,
        params=params,
        urls=(f"{_RELEASE}{file}",) if urls is None else urls,
        filename=file,
        size=4 * parameters,
        parameters=parameters,
        memory_per_pixel=memory,
        figures=figures,
    )


def _figures(protocol: str, source: str, **values: tuple[float, float | None]) -> tuple[Figure, ...]:
    """Return a figure for each dataset; an underscore stands for what a keyword cannot hold."""
    return tuple(
        Figure(dataset.replace("_", "-"), protocol, psnr, ssim, source)
        for dataset, (psnr, ssim) in values.items()
    )


def _per_level(
    protocol: str, source: str, levels: tuple[int, ...], **rows: tuple[float, ...]
) -> tuple[Figure, ...]:
    """Return a figure for each dataset and noise level."""
    return tuple(
        Figure(f"{dataset}, sigma {level}", protocol, psnr, None, source)
        for dataset, values in rows.items()
        for level, psnr in zip(levels, values, strict=True)
    )


_COLOUR, _GRAY_SCALE = "restormer-gaussian-color", "restormer-gaussian-gray"
# PSNR at sigma 15, 25 and 50 of the three networks that were each trained on one level.
_COLOUR_PAPER = {
    "CBSD68": (34.40, 31.79, 28.60),
    "Kodak24": (35.47, 33.04, 30.01),
    "McMaster": (35.61, 33.34, 30.30),
    "Urban100": (35.13, 32.96, 30.02),
}
_COLOUR_MMAGIC = {
    "CBSD68": (34.3506, 31.7457, 28.5569),
    "Kodak24": (35.4900, 33.0489, 30.0122),
    "McMaster": (35.6072, 33.3260, 30.2608),
    "Urban100": (35.1522, 32.9670, 30.0230),
}
_GRAY_PAPER = {
    "Set12": (33.42, 31.08, 28.00),
    "BSD68": (31.96, 29.52, 26.62),
    "Urban100": (33.79, 31.46, 28.29),
}


def _at(index: int, rows: Mapping[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
    return {dataset: (values[index],) for dataset, values in rows.items()}


WEIGHTS = (
    _published(
        "deraining",
        "deraining.pth",
        "rain removal",
        "Rain13k",
        _WITH_BIAS,
        (
            *_figures(
                "rain13k-y",
                _PAPER,
                Test100=(32.00, 0.923),
                Rain100H=(31.46, 0.904),
                Rain100L=(38.99, 0.978),
                Test2800=(34.18, 0.944),
                Test1200=(33.19, 0.926),
            ),
            *_figures(
                "rain13k-y",
                _MMAGIC,
                Test100=(32.0287, 0.9239),
                Rain100H=(31.4804, 0.9056),
                Rain100L=(39.1023, 0.9787),
                Test2800=(34.2170, 0.9451),
                Test1200=(33.2251, 0.9272),
            ),
        ),
    ),
    _published(
        "motion-deblurring",
        "motion_deblurring.pth",
        "motion deblurring",
        "GoPro training set",
        _WITH_BIAS,
        (
            *_figures("gopro-rgb, ssim_3d", _PAPER, GoPro=(32.92, 0.961), HIDE=(31.22, 0.942)),
            *_figures("realblur-aligned", _PAPER, RealBlur_R=(36.19, 0.957), RealBlur_J=(28.96, 0.879)),
            *_figures("gopro-rgb", _MMAGIC, GoPro=(32.9295, 0.9496), HIDE=(31.2289, 0.9345)),
        ),
    ),
    _published(
        "defocus-deblurring",
        "single_image_defocus_deblurring.pth",
        "defocus deblurring of one image",
        "DPDD training set",
        _WITH_BIAS,
        (
            *_figures(
                "dpdd-rgb",
                _PAPER,
                DPDD_indoor=(28.87, 0.882),
                DPDD_outdoor=(23.24, 0.743),
                DPDD=(25.98, 0.811),
            ),
            *_figures(
                "dpdd-rgb",
                _MMAGIC,
                DPDD_indoor=(28.8681, 0.8859),
                DPDD_outdoor=(23.2410, 0.7509),
                DPDD=(25.9805, 0.8166),
            ),
        ),
        urls=(),
        page=_FOLDER,
    ),
    _published(
        "dual-pixel-defocus-deblurring",
        "dual_pixel_defocus_deblurring.pth",
        "defocus deblurring of the two views of dual pixels (6 channels, left and right)",
        "DPDD training set, 16 bits",
        _DUAL_PIXEL,
        (
            *_figures(
                "dpdd-rgb",
                _PAPER,
                DPDD_indoor=(29.48, 0.895),
                DPDD_outdoor=(23.97, 0.773),
                DPDD=(26.66, 0.833),
            ),
            *_figures("dpdd-rgb", _MMAGIC, DPDD=(26.6160, 0.8346)),
        ),
    ),
    _published(
        "real-denoising",
        "real_denoising.pth",
        "denoising of smartphone photographs",
        "SIDD training set",
        _BIAS_FREE,
        (
            *_figures("sidd-rgb, ssim_3d", _PAPER, SIDD=(40.02, 0.960)),
            *_figures("dnd-server", _PAPER, DND=(40.03, 0.956)),
            *_figures("sidd-rgb", _MMAGIC, SIDD=(40.0156, 0.9225)),
        ),
        urls=(f"{_DRIVE}1FF_4NTboTWQ7sHCq4xhyLZsSl0U0JfjH",),
    ),
    _published(
        "gaussian-color-blind",
        "gaussian_color_denoising_blind.pth",
        "colour denoising, sigma 0 to 50, not told",
        _GAUSSIAN,
        _BIAS_FREE,
        (
            *_per_level(
                _COLOUR,
                _PAPER,
                _LEVELS,
                CBSD68=(34.39, 31.78, 28.59),
                Kodak24=(35.44, 33.02, 30.00),
                McMaster=(35.55, 33.31, 30.29),
                Urban100=(35.06, 32.91, 30.02),
            ),
            *_per_level(
                _COLOUR,
                _MMAGIC,
                _LEVELS,
                CBSD68=(34.3422, 31.7391, 28.5582),
                Kodak24=(35.4544, 33.0380, 30.0074),
                McMaster=(35.5473, 33.3040, 30.2671),
                Urban100=(35.0754, 32.9165, 30.0172),
            ),
        ),
    ),
    *(
        _published(
            f"gaussian-color-sigma{level}",
            f"gaussian_color_denoising_sigma{level}.pth",
            f"colour denoising, sigma {level}",
            _GAUSSIAN,
            _BIAS_FREE,
            (
                *_per_level(_COLOUR, _PAPER, (level,), **_at(index, _COLOUR_PAPER)),
                *_per_level(_COLOUR, _MMAGIC, (level,), **_at(index, _COLOUR_MMAGIC)),
            ),
        )
        for index, level in enumerate(_LEVELS)
    ),
    _published(
        "gaussian-gray-blind",
        "gaussian_gray_denoising_blind.pth",
        "gray denoising, sigma 0 to 50, not told",
        _GAUSSIAN,
        _GRAY,
        _per_level(
            _GRAY_SCALE,
            _PAPER,
            _LEVELS,
            Set12=(33.35, 31.04, 28.01),
            BSD68=(31.95, 29.51, 26.62),
            Urban100=(33.67, 31.39, 28.33),
        ),
    ),
    *(
        _published(
            f"gaussian-gray-sigma{level}",
            f"gaussian_gray_denoising_sigma{level}.pth",
            f"gray denoising, sigma {level}",
            _GAUSSIAN,
            _GRAY,
            _per_level(_GRAY_SCALE, _PAPER, (level,), **_at(index, _GRAY_PAPER)),
        )
        for index, level in enumerate(_LEVELS)
    ),
)
