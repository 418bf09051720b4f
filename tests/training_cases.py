"""What the tests of training share: components that learn within seconds, photographs, a config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from restorekit.config import check
from restorekit.contracts import Adapter, Backbone, Prior, PriorFeatures, Refiner
from restorekit.training.data import Batches, load_source
from restorekit.training.spec import DataSpec, StageSpec, TrainSpec

ENTRY_POINTS = """
[restorekit.backbones]
learner = training_cases:Learner
double = training_cases:Double
steps = training_cases:Steps
strict = training_cases:Strict
[restorekit.adapters]
shift = training_cases:Shift
copying = training_cases:Copying
[restorekit.priors]
edges = training_cases:Edges
deaf = training_cases:Deaf
[restorekit.refiners]
touch = training_cases:Touch
"""


class Learner(Backbone):
    """A convolution around a skip; dropout makes it draw random numbers."""

    def __init__(self, channels: int = 3, dropout: float = 0.0):
        super().__init__()
        self.channels = channels
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, degraded):
        return degraded + self.conv(self.dropout(degraded))


class Double(Backbone):
    """Doubles the sides and learns what to add."""

    scale = 2

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, degraded):
        large = degraded.repeat_interleave(2, 2).repeat_interleave(2, 3)
        return large + self.conv(large)


class Steps(Backbone):
    """Two stages, both of which are compared with the clean image."""

    size_multiple = 8

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, degraded):
        return self.training_outputs(degraded)[0]

    def training_outputs(self, degraded):
        first = degraded + self.first(degraded)
        return first + self.second(first), first


class Strict(Learner):
    """Works in float32 alone."""

    precisions = frozenset({torch.float32})

    def __init__(self):
        super().__init__()


class Shifted(Backbone):
    def __init__(self, backbone, shift):
        super().__init__()
        self.backbone, self.shift = backbone, shift

    def forward(self, degraded):
        return self.backbone(degraded) + self.shift


class Shift(Adapter):
    """Adds a colour that is learned."""

    def __init__(self):
        super().__init__()
        self.colour = nn.Parameter(torch.zeros(3, 1, 1))

    def attach(self, backbone):
        return Shifted(backbone, self.colour)


class Copying(Shift):
    """Gives the network a copy of what is learned, so that nothing is."""

    def attach(self, backbone):
        return Shifted(backbone, nn.Parameter(self.colour.detach().clone()))


class Edges(Prior):
    """Mean colour, and differences of neighbours as dense features."""

    features = 3

    def __init__(self):
        super().__init__()

    def forward(self, image):
        return PriorFeatures(image.mean((2, 3)), image[..., 1:] - image[..., :-1], 1)


class Seeing(Prior):
    """A convolution, and its mean."""

    features = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, image):
        return PriorFeatures(self.conv(image).mean((2, 3)))


class Deaf(Edges):
    """Passes no gradient on."""

    @torch.no_grad()
    def forward(self, image):
        return super().forward(image)


class Touch(Refiner):
    """A convolution of the restored image, and what the prior adds to it."""

    dense_features = 0

    def __init__(self, prior_features: int):
        super().__init__()
        self.conv, self.tint = nn.Conv2d(3, 3, 1), nn.Linear(prior_features, 3)

    def forward(self, degraded, restored, prior):
        return self.conv(restored) + self.tint(prior.glob)[..., None, None]


def install(site):
    """Write the dist-info of the components above, as pip would; return the folder."""
    info = site / "acme_learners-1.0.dist-info"
    info.mkdir()
    lines = ("Metadata-Version: 2.4", "Name: acme-learners", "Version: 1.0", "License-Expression: MIT", "")
    (info / "METADATA").write_text("\n".join(lines))
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site


def photograph(seed, width=192, height=160):
    """Return a smooth image that differs for every seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def need_photographs(*folders):
    """Skip the test where photographs of a config are not here."""
    missing = [str(folder) for folder in folders if not Path(folder).is_dir()]
    if missing:
        pytest.skip(f"the photographs of the config are not here: {missing[0]}")


def write_photographs(folder, count=4):
    for index in range(count):
        photograph(index).save(folder / f"{index}.png")
    return folder


def write_pairs(folder, count=4, scale=1):
    """Write pairs whose degraded half is darker, and smaller by a factor."""
    for name in ("input", "target"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        clean = photograph(index)
        clean.save(folder / "target" / f"{index}.png")
        small = clean.reduce(scale) if scale > 1 else clean
        small.point(lambda level: level // 2).save(folder / "input" / f"{index}.png")
    return folder


def document(folder, **changes):
    """Return a config as YAML gives it: ten steps of two stages."""
    facts = {
        "backbone": "learner",
        "data": {"folder": str(folder), "hold_out": 1, "scales": [1.0, 0.5]},
        "stages": [{"steps": 6, "patch": 16, "batch": 2}, {"steps": 4, "patch": 32, "batch": 2}],
        "validate_every": 10,
        "save_every": 1,
        "pictures": 1,
        "optimizer": {"warmup": 2},
    }
    return {**facts, **changes}


def spec_for(folder, **changes):
    return TrainSpec.model_validate(document(folder, **changes))


def source_of(folder, **facts):
    return load_source(DataSpec(folder=str(folder), **{"hold_out": 1, **facts}))


def pairs_of(folder, scale=1, **facts):
    return load_source(
        check(
            DataSpec,
            {"pairs": folder if isinstance(folder, list) else str(folder), "hold_out": 1, **facts},
            "test",
        ),
        scale,
    )


# Fixtures, which a file of tests takes by assigning them: folder, pairs, cache_folder = FIXTURES.


@pytest.fixture(scope="module")
def a_folder(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def some_pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RESTOREKIT_CACHE_DIR", str(folder))
    return folder / "training"


FIXTURES = a_folder, some_pairs, own_cache


def batch(source, patch=24, count=3, step=0, degradation=None, **facts):
    made = Batches(source, degradation, **facts).batch(step, StageSpec(steps=1, patch=patch, batch=count))
    return made.degraded, made.clean
