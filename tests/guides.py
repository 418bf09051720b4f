"""What tests of refiners install beside them: priors that need no weights, backbones that need little."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d

from restorekit.contracts import Adapter, Backbone, Prior, PriorFeatures
from restorekit.errors import WeightsError
from restorekit.references import sha256

ENTRY_POINTS = """
[restorekit.priors]
statistics = guides:Statistics
broken = guides:Broken
filed = guides:Filed
joined = guides:Joined
learned = guides:Learned
[restorekit.adapters]
lighter = guides:Lighter
[restorekit.backbones]
blurring = guides:Blurring
gray-blurring = guides:GrayBlurring
joining = guides:Joining
doubling = guides:Doubling
deep = guides:Deep
"""

# The shapes of images that Statistics has seen.
SEEN = []


class Statistics(Prior):
    """Fixed mixtures of the mean colours of 4 x 4 regions; the same mixtures of cells are dense."""

    def __init__(self, features: int = 16):
        super().__init__()
        self.features = features
        self.register_buffer("mix", torch.sin(1.7 * torch.arange(features * 48).square()).view(-1, 48))

    def forward(self, image):
        SEEN.append(tuple(image.shape))
        regions = adaptive_avg_pool2d(image, 4).flatten(1) - 0.5
        cells = adaptive_avg_pool2d(image, 8)
        return PriorFeatures(
            regions @ self.mix.mT.to(image),
            torch.einsum("fc,bchw->bfhw", self.mix[:, :3].to(image), cells),
            8,
        )


class Broken(Statistics):
    """Returns NaN."""

    def __init__(self):
        super().__init__()

    def forward(self, image):
        return PriorFeatures(super().forward(image).glob * float("nan"))


class Joined(Statistics):
    """Describes the halves of an image as if they were two."""

    def __init__(self):
        super().__init__()

    def forward(self, image):
        return PriorFeatures(super().forward(image).glob.repeat(2, 1))


class Learned(Statistics):
    """Has weights that would take gradients, as a model of a library has."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(0.5, 1.5, 16))

    def forward(self, image):
        return PriorFeatures(super().forward(image).glob * self.weights)


class Filed(Statistics):
    """Has a file, which its fingerprint is made of."""

    library = "acme 1.0"

    def __init__(self, file: str):
        super().__init__()
        self.file = Path(file)
        if not self.file.is_file():
            raise WeightsError(f"no file {file}", "check the path")

    @property
    def fingerprint(self):
        return sha256(self.file)[:32]


class Blurring(Backbone):
    """A box blur: looks one pixel far."""

    overlap = 8

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        return avg_pool2d(degraded, 3, 1, 1, count_include_pad=False)


class GrayBlurring(Blurring):
    """The same for one channel."""

    channels = 1


class Joining(Blurring):
    """The same of the mean of two views."""

    channels, out_channels = 6, 3

    def forward(self, degraded):
        return super().forward((degraded[:, :3] + degraded[:, 3:]) / 2)


class Doubling(Backbone):
    """Repeats pixels, to twice the size."""

    scale = 2

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        return degraded.repeat_interleave(2, -1).repeat_interleave(2, -2)


class Lighter(Adapter):
    """Makes what a backbone returns lighter."""

    def __init__(self):
        super().__init__()

    def attach(self, backbone):
        class Adapted(Backbone):
            def __init__(self):
                super().__init__()

            def forward(self, degraded):
                return backbone(degraded) + 0.125

        return Adapted()


class Deep(Backbone):
    """Two convolutions to a quarter of the size, and back."""

    size_multiple = 4
    latent_features = 8

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 8, 4, 4), nn.ConvTranspose2d(8, 3, 4, 4)

    def forward(self, degraded):
        return self.decode(*self.encode(degraded))

    def encode(self, degraded):
        return self.down(degraded), degraded

    def decode(self, latent, rest):
        return rest + self.up(latent.tanh())


def install(site):
    """Write the dist-info of the components above, as pip would; return the folder."""
    info = site / "acme_guides-1.0.dist-info"
    info.mkdir()
    lines = ("Metadata-Version: 2.4", "Name: acme-guides", "Version: 1.0", "License-Expression: MIT", "")
    (info / "METADATA").write_text("\n".join(lines))
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    return site
