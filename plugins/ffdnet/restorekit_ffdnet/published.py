"""The published checkpoints of FFDNet. Data only: no torch, because listing imports this.

They are the authors' networks as KAIR offers them, in its name for the files. Figures are recalled from the
paper.
"""

from __future__ import annotations

from restorekit.catalog import Figure, Pretrained

_PAGE = "https://github.com/cszn/KAIR"
_RELEASE = f"{_PAGE}/releases/download/v1.0"
_COLOUR = ((15, 33.87), (25, 31.21), (35, 29.58), (50, 27.96), (75, 26.24))
_GRAY = ((15, 31.63), (25, 29.19), (35, 27.73), (50, 26.29), (75, 24.79))


def _published(colour: bool, clipped: bool) -> Pretrained:
    """Declare one file; its name is ``ffdnet_<color or gray>[_clip].pth``."""
    kind = ("color" if colour else "gray") + ("-clip" if clipped else "")
    filename = f"ffdnet_{kind.replace('-', '_')}.pth"
    parameters = 852_108 if colour else 485_316
    dataset, protocol = ("CBSD68", "color") if colour else ("BSD68", "gray")
    levels = () if clipped else _COLOUR if colour else _GRAY
    return Pretrained(
        component="ffdnet",
        tag=kind,
        licence="MIT",
        source=f"Zhang et al., IEEE TIP 2018, {_PAGE}",
        task=f"{'colour' if colour else 'gray'} denoising, sigma 0 to 75, told"
        + (", of noise that 8 bits have clipped" if clipped else ""),
        training="BSD400, Waterloo and images of ImageNet",
        params={} if colour else {"channels": 1, "width": 64, "layers": 15},
        urls=(f"{_RELEASE}/{filename}",),
        filename=filename,
        size=4 * parameters,
        parameters=parameters,
        memory_per_pixel=205 if colour else 133,
        figures=tuple(
            Figure(
                f"{dataset}, sigma {level}", f"restormer-gaussian-{protocol}", psnr, None, "paper, recalled"
            )
            for level, psnr in levels
        ),
    )


WEIGHTS = tuple(_published(colour, clipped) for colour in (True, False) for clipped in (False, True))
