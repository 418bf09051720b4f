"""Clean image to degraded image: seeded, documented, on tensors. Used by training, evaluation and tests.

Every degradation is a function ``name(clean, generator, *, parameters)``: its signature is its schema, its
docstring its formula and source. Images are RGB or gray float tensors (C, H, W) or batches (B, C, H, W),
clean in [0, 1]; device, dtype and shape are kept, but for the size where it says so. ``sigma`` is always the
standard deviation of noise in 8-bit levels (0 to 255).

Random numbers come from a generator on the CPU and are then moved, so that a seed gives the same picture on
every device. A batch takes its images one after the other from that generator: it equals the stack of its
images degraded alone, in order.

Names are imported on first use, because ``spec`` and ``catalogue`` are read by commands that need no torch.
Nothing here reads files or knows of training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from restorekit.lazy import on_first_use

if TYPE_CHECKING:
    from restorekit.degradations.air import depth_field, haze
    from restorekit.degradations.blurring import anisotropic_blur, defocus_blur, gaussian_blur, motion_blur
    from restorekit.degradations.catalogue import COMPOSITIONS, KINDS, STRENGTHS
    from restorekit.degradations.light import low_light
    from restorekit.degradations.noise import add_gaussian_noise, gaussian, poisson_gaussian
    from restorekit.degradations.pane import raindrops
    from restorekit.degradations.rainfall import rain
    from restorekit.degradations.recipe import FUNCTIONS, Drawn, apply, draw, draw_kind, streams
    from restorekit.degradations.sizes import downscale
    from restorekit.degradations.snowfall import snow
    from restorekit.degradations.spec import RecipeSpec
    from restorekit.degradations.storage import compress_jpeg, jpeg, quantisation, quantise

_HOMES = {
    "COMPOSITIONS": "catalogue",
    "Drawn": "recipe",
    "FUNCTIONS": "recipe",
    "KINDS": "catalogue",
    "RecipeSpec": "spec",
    "STRENGTHS": "catalogue",
    "add_gaussian_noise": "noise",
    "anisotropic_blur": "blurring",
    "apply": "recipe",
    "compress_jpeg": "storage",
    "defocus_blur": "blurring",
    "depth_field": "air",
    "downscale": "sizes",
    "draw": "recipe",
    "draw_kind": "recipe",
    "gaussian": "noise",
    "gaussian_blur": "blurring",
    "haze": "air",
    "jpeg": "storage",
    "low_light": "light",
    "motion_blur": "blurring",
    "poisson_gaussian": "noise",
    "quantisation": "storage",
    "quantise": "storage",
    "rain": "rainfall",
    "raindrops": "pane",
    "snow": "snowfall",
    "streams": "recipe",
}

__all__ = [
    "COMPOSITIONS",
    "FUNCTIONS",
    "KINDS",
    "STRENGTHS",
    "Drawn",
    "RecipeSpec",
    "add_gaussian_noise",
    "anisotropic_blur",
    "apply",
    "compress_jpeg",
    "defocus_blur",
    "depth_field",
    "downscale",
    "draw",
    "draw_kind",
    "gaussian",
    "gaussian_blur",
    "haze",
    "jpeg",
    "low_light",
    "motion_blur",
    "poisson_gaussian",
    "quantisation",
    "quantise",
    "rain",
    "raindrops",
    "snow",
    "streams",
]

__getattr__, __dir__ = on_first_use(__name__, _HOMES)
