"""What degradations there are: parameters with their ranges, three strengths, source. Holds no torch.

The functions' signatures are the schema; this is what can be said of them without importing them, and a test
holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Names of the strengths, from the weakest on.
STRENGTHS = ("mild", "medium", "severe")

Value = float | int | bool | str


@dataclass(frozen=True)
class Parameter:
    """One parameter of a degradation.

    Attributes:
        default: decides the type too: float, int, bool or str.
        about: unit and meaning.
        low: smallest number.
        high: largest number.
        words: that a str may be.
    """

    default: Value
    about: str
    low: float = 0
    high: float = 0
    words: tuple[str, ...] = ()

    @property
    def is_number(self) -> bool:
        """Whether a pair of values is a range to draw from; otherwise a list is a choice."""
        return not isinstance(self.default, (bool, str))

    @property
    def expected(self) -> str:
        """What a value may be, in words."""
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return f"one of {', '.join(self.words)}"
        kind = "whole number" if isinstance(self.default, int) else "number"
        return f"a {kind} from {self.low:g} to {self.high:g}"


@dataclass(frozen=True)
class Kind:
    """One degradation.

    Attributes:
        summary: one line.
        source: paper or standard it is made by.
        parameters: by name.
        strengths: values of parameters for mild, medium and severe, as a recipe has them.
    """

    summary: str
    source: str
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    strengths: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Composition:
    """Several degradations under one name: a recipe for each strength."""

    summary: str
    source: str
    strengths: Mapping[str, Mapping[str, Any]]


def _strengths(**series: tuple[Any, Any, Any]) -> dict[str, dict[str, Any]]:
    """Return the values of each strength for parameters given as (mild, medium, severe)."""
    return {
        strength: {name: values[index] for name, values in series.items()}
        for index, strength in enumerate(STRENGTHS)
    }


_LINEAR = Parameter(True, "work on light, sRGB decoded, instead of values")
_MIST = Parameter(0.15, "share of air at the horizon", 0, 1)

KINDS: Mapping[str, Kind] = {
    "clean": Kind("nothing: the image as it is", "", {}, _strengths()),
    "gaussian": Kind(
        "white Gaussian noise",
        "Dabov et al., BM3D, TIP 2007; Zhang et al., DnCNN, TIP 2017",
        {"sigma": Parameter(25.0, "standard deviation in 8-bit levels", 0, 255)},
        _strengths(sigma=(15, 25, 50)),
    ),
    "poisson_gaussian": Kind(
        "camera noise: photons that arrive at random, and the sensor's reading",
        "Foi et al., Practical Poissonian-Gaussian noise modeling, TIP 2008, eq. 1-3",
        {
            "photons": Parameter(150.0, "counted at white", 1, 1e9),
            "sigma": Parameter(3.0, "standard deviation of the reading, 8-bit levels", 0, 255),
            "linear": _LINEAR,
        },
        _strengths(photons=(400, 150, 40), sigma=(1.5, 3, 6)),
    ),
    "jpeg": Kind(
        "JPEG compression by libjpeg",
        "ITU-T T.81",
        {
            "quality": Parameter(20, "libjpeg's scale", 1, 95),
            "subsample": Parameter(True, "store colour at half resolution (4:2:0)"),
        },
        _strengths(quality=(40, 20, 8)),
    ),
    "quantisation": Kind(
        "clipped and rounded to few levels, 8 bits as in a file",
        "uniform quantiser",
        {"bits": Parameter(8, "of a sample", 1, 16)},
        _strengths(bits=(5, 4, 3)),
    ),
    "gaussian_blur": Kind(
        "Gaussian blur",
        "Gaussian kernel",
        {"std": Parameter(2.0, "standard deviation of the kernel, pixels", 0, 100)},
        _strengths(std=(1, 2, 4)),
    ),
    "anisotropic_blur": Kind(
        "Gaussian blur, longer in one direction",
        "Zhang et al., BSRGAN, ICCV 2021, section 3.1",
        {
            "std": Parameter(4.0, "standard deviation along the direction, pixels", 0, 100),
            "across": Parameter(1.0, "standard deviation across it, pixels", 0, 100),
            "angle": Parameter(45.0, "degrees counter-clockwise from the right", -360, 360),
        },
        _strengths(std=(2, 4, 7), across=(0.7, 1.0, 1.5), angle=([0, 180], [0, 180], [0, 180])),
    ),
    "motion_blur": Kind(
        "blur along the random path of a hand-held camera",
        "Boracchi and Foi, TIP 2012; Kupyn et al., DeblurGAN, CVPR 2018, algorithm 1",
        {
            "length": Parameter(20.0, "of the path, pixels", 0, 500),
            "shake": Parameter(0.5, "0 a straight line, 1 turns and jerks a lot", 0, 1),
            "linear": _LINEAR,
        },
        _strengths(length=(10, 20, 45), shake=(0.3, 0.5, 0.6)),
    ),
    "defocus_blur": Kind(
        "blur by the disc of a lens out of focus",
        "circle of confusion, geometric optics",
        {"radius": Parameter(4.0, "of the disc, pixels", 0, 200), "linear": _LINEAR},
        _strengths(radius=(2, 4, 8)),
    ),
    "rain": Kind(
        "rain streaks at several distances, and mist",
        "Yang et al., CVPR 2017 (heavy rain model); Li et al., RESCAN, ECCV 2018; Garg and Nayar, IJCV 2007",
        {
            "streaks": Parameter(10000.0, "a megapixel", 0, 1e5),
            "length": Parameter(25.0, "of the sharp streaks, pixels", 1, 500),
            "width": Parameter(1.3, "of the sharp streaks, pixels", 0.1, 50),
            "slant": Parameter(12.0, "degrees from the vertical, positive falls to the left", -90, 90),
            "opacity": Parameter(0.75, "of the strongest streaks", 0, 1),
            "mist": _MIST,
            "brightness": Parameter(0.85, "value of streaks and mist", 0, 1),
        },
        _strengths(
            streaks=(6000, 10000, 16000),
            length=([14, 20], [20, 30], [30, 45]),
            slant=([-20, 20], [-25, 25], [-30, 30]),
            opacity=(0.6, 0.75, 0.9),
            mist=(0.05, 0.15, 0.35),
        ),
    ),
    "raindrops": Kind(
        "drops on a pane before the lens, each showing the scene upside down",
        "Qian et al., CVPR 2018, eq. 1; You et al., TPAMI 2016",
        {
            "drops": Parameter(600.0, "a megapixel", 0, 1e5),
            "size": Parameter(7.0, "typical radius, pixels", 1, 500),
            "refraction": Parameter(4.0, "radius of the scene that a drop shows, in its own radii", 0, 50),
            "softness": Parameter(2.0, "width of a drop's edge, pixels", 0, 50),
        },
        _strengths(drops=(300, 600, 900), size=(5.0, 7.0, 10.0), softness=(1.5, 2.0, 3.0)),
    ),
    "snow": Kind(
        "snow flakes of several sizes, and mist",
        "Liu et al., DesnowNet, TIP 2018, eq. 1; Chen et al., JSTASR, ECCV 2020",
        {
            "flakes": Parameter(5000.0, "a megapixel", 0, 1e5),
            "size": Parameter(2.2, "radius of the flakes in focus, pixels", 0.1, 200),
            "fall": Parameter(3.0, "pixels that they move during the exposure", 0, 200),
            "slant": Parameter(20.0, "degrees from the vertical, positive falls to the left", -90, 90),
            "opacity": Parameter(0.9, "of the strongest flakes", 0, 1),
            "mist": Parameter(0.2, "share of air at the horizon", 0, 1),
            "brightness": Parameter(0.96, "value of flakes and mist", 0, 1),
        },
        _strengths(
            flakes=(3000, 6000, 11000),
            size=(1.7, 2.2, 2.8),
            slant=([-35, 35], [-35, 35], [-35, 35]),
            mist=(0.05, 0.2, 0.45),
        ),
    ),
    "haze": Kind(
        "haze that grows with depth",
        "Koschmieder's law; Narasimhan and Nayar, IJCV 2002",
        {
            "beta": Parameter(1.5, "scattering coefficient, for depths from 0 to 1", 0, 20),
            "airlight": Parameter(0.88, "value of the air at infinite depth", 0, 1),
        },
        _strengths(beta=(0.7, 1.5, 3.0)),
    ),
    "low_light": Kind(
        "too little light, with the sensor's noise",
        "Lv et al., MBLLEN, BMVC 2018; noise as poisson_gaussian",
        {
            "gamma": Parameter(2.0, "above 1 darkens shadows the most", 0.1, 10),
            "gain": Parameter(0.55, "value that white is left with", 0, 1),
            "photons": Parameter(400.0, "counted at white", 1, 1e9),
            "sigma": Parameter(0.2, "standard deviation of the reading, 8-bit levels of light", 0, 255),
        },
        _strengths(
            gamma=(1.5, 2.0, 2.6), gain=(0.75, 0.55, 0.4), photons=(1000, 400, 150), sigma=(0.1, 0.2, 0.4)
        ),
    ),
    "downscale": Kind(
        "fewer pixels; the image gets smaller",
        "antialiased bicubic as MATLAB's imresize (a = -0.5)",
        {
            "factor": Parameter(3.0, "that sides are divided by", 1, 64),
            "method": Parameter("bicubic", "of averaging", words=("bicubic", "bilinear", "area", "nearest")),
            "keep_size": Parameter(False, "enlarge again, bicubically"),
        },
        _strengths(factor=(2, 3, 4)),
    ),
}

_RESIZED = ["bicubic", "bilinear", "area"]


def _real_world(blur: float, sigma: float, photons: float, factor: float, quality: int) -> dict[str, Any]:
    """Return blur, noise, resizing and JPEG in random order, and a last JPEG, as files travel."""
    blurs = [
        {"name": "gaussian_blur", "std": [0.2, blur]},
        {"name": "anisotropic_blur", "std": [0.5, 1.5 * blur], "across": [0.2, blur], "angle": [0, 180]},
        {"name": "defocus_blur", "radius": [0.5, 1.5 * blur]},
    ]
    noises = [
        {"name": "gaussian", "sigma": [1, sigma]},
        {"name": "poisson_gaussian", "photons": {"log": [photons, 10 * photons]}, "sigma": [0.5, 3]},
    ]
    resized = {"name": "downscale", "factor": [1, factor], "method": _RESIZED, "keep_size": True}
    early = {"name": "jpeg", "quality": [quality + 20, 95], "probability": 0.5}
    return {
        "chain": [
            {"chain": [{"one_of": blurs}, {"one_of": noises}, resized, early], "shuffle": True},
            {"name": "jpeg", "quality": [quality, 90], "subsample": [True, False]},
        ]
    }


def _bad_weather(strength: str, beta: float) -> dict[str, Any]:
    """Return rain, snow or drops on the lens, perhaps in haze, seen by a camera."""
    return {
        "chain": [
            {"name": "haze", "beta": beta, "probability": 0.5},
            {
                "one_of": [
                    {"name": "rain", "strength": strength, "weight": 2},
                    {"name": "snow", "strength": strength, "weight": 2},
                    {"name": "raindrops", "strength": strength},
                ]
            },
            {"name": "poisson_gaussian", "strength": "mild"},
            {"name": "jpeg", "quality": [60, 95], "probability": 0.5},
        ]
    }


COMPOSITIONS: Mapping[str, Composition] = {
    "blind_gaussian": Composition(
        "white Gaussian noise of a level that is drawn for each image",
        "Zhang et al., DnCNN, TIP 2017 (0 to 55)",
        {
            strength: {"name": "gaussian", "sigma": [0, top]}
            for strength, top in zip(STRENGTHS, (25, 55, 75), strict=True)
        },
    ),
    "real_world": Composition(
        "blur, noise, resizing and JPEG in random order, then JPEG",
        "Zhang et al., BSRGAN, ICCV 2021; Wang et al., Real-ESRGAN, ICCVW 2021",
        {
            "mild": _real_world(1.0, 8, 1000, 1.5, 60),
            "medium": _real_world(2.0, 15, 300, 2.5, 40),
            "severe": _real_world(3.5, 30, 80, 4.0, 20),
        },
    ),
    "bad_weather": Composition(
        "rain, snow or drops on the lens, perhaps in haze, with camera noise",
        "the sources of its parts",
        {
            strength: _bad_weather(strength, beta)
            for strength, beta in zip(STRENGTHS, (0.4, 0.7, 1.0), strict=True)
        },
    ),
}
