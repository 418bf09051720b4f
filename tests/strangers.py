"""Components of an imaginary third party; the fixture `strangers` installs them with a real dist-info."""

import torch
from torch import nn

from restorekit.catalog import Need
from restorekit.contracts import (
    Adapter,
    Backbone,
    DetectedBackbone,
    Judged,
    Prior,
    PriorFeatures,
    Refiner,
    Verdict,
)
from restorekit.errors import WeightsError
from restorekit.references import source

# Declared weights; tests fill the list.
WEIGHTS = []


class Gain(Backbone):
    """Multiply by a constant."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        if gain <= 0:
            raise ValueError("gain must be positive")
        self.gain = gain

    def forward(self, degraded):
        return degraded * self.gain


class Gray(Backbone):
    """Halve the one channel it takes."""

    channels = 1

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        assert degraded.shape[1] == 1
        return degraded / 2


class Double(Backbone):
    """Repeat every pixel twice in both directions."""

    scale = 2

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        return degraded.repeat_interleave(2, 2).repeat_interleave(2, 3)


class Fragile(Backbone):
    """Return NaN in half precision, as networks whose activations are large do; always, when broken."""

    def __init__(self, broken: bool = False):
        super().__init__()
        self.broken = broken

    def forward(self, degraded):
        return degraded * float("nan") if self.broken or degraded.dtype != torch.float32 else degraded


class Misshapen(Backbone):
    """Return a smaller image than promised."""

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        return degraded[..., 1:, 1:]


class Random(Backbone):
    """Draw random numbers."""

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        return torch.rand_like(degraded)


class Level(Backbone):
    """Subtract the mean of the image: global, so tiles must be told it."""

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        return degraded - degraded.mean((2, 3), keepdim=True)

    def for_image(self, degraded, tile):
        mean = degraded.mean((2, 3), keepdim=True)
        return lambda window: window - mean


class Trained(Backbone):
    """One convolution: has parameters, so it needs weights."""

    def __init__(self, width: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)

    def forward(self, degraded):
        return self.conv(degraded)


def brightness(clean, restored, peak):
    """How bright the restored image is, as a share of the peak."""
    return float(restored.mean()) / peak


def acme_net(arguments):
    """Build `Trained` from the arguments of the class that its authors published."""
    return Trained(width=arguments["n_feat"])


class Detected(DetectedBackbone):
    """As many 1x1 convolutions as the file holds: the file decides the architecture."""

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers
        self.architecture = f"{len(layers)} layers"

    @classmethod
    def from_tensors(cls, tensors, path, gain: float = 1.0):
        if any(value.ndim != 4 for value in tensors.values()):
            raise WeightsError(f"{path} is not recognised", "give convolutions")
        layers = nn.Sequential(*(nn.Conv2d(3, 3, 1, bias=False, device="cpu") for _ in tensors))
        for layer, value in zip(layers, tensors.values(), strict=True):
            layer.weight.data = value * gain
        return cls(layers)

    def forward(self, degraded):
        return self.layers(degraded)


class Careful(Backbone):
    """Return its input, and only in float32."""

    precisions = frozenset({torch.float32})

    def __init__(self):
        super().__init__()

    def forward(self, degraded):
        assert degraded.dtype == torch.float32
        return degraded


class Volume(Backbone):
    """Multiply by a weight of five dimensions."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.full((1, 1, 1, 1, 1), 0.5))

    def forward(self, degraded):
        return degraded * self.factor[0]


class Louder(Adapter):
    """Add a constant to what the backbone returns."""

    def __init__(self, by: float = 0.25):
        super().__init__()
        self.by = by

    def attach(self, backbone):
        by = self.by

        class Adapted(Backbone):
            def __init__(self):
                super().__init__()

            def forward(self, degraded):
                return backbone(degraded) + by

        return Adapted()


class Judge(Backbone):
    """Say how dark an image is; counts how often it looks."""

    judges = True
    looks = 0

    def __init__(self, channels: int = 3):
        super().__init__()
        self.channels = channels

    def forward(self, degraded):
        return degraded

    def for_image(self, degraded, tile):
        Judge.looks += 1
        bright = float(degraded.mean())
        return Judged(self, Verdict({"dark": 1 - bright, "bright": bright}, "a look"))


class Entries(Adapter):
    """Add the sum of as many numbers as its file holds."""

    def __init__(self, note: str = ""):
        super().__init__()
        self.numbers = torch.nn.ParameterList()

    def make_room(self, tensors):
        self.numbers.extend(torch.nn.Parameter(torch.zeros(())) for _ in tensors)

    def attach(self, backbone):
        return Louder(float(sum(self.numbers))).attach(backbone)


class Brightness(Prior):
    """The mean colour of the image."""

    features = 3

    def __init__(self):
        super().__init__()

    def forward(self, image):
        return PriorFeatures(image.mean((2, 3)))


class Referred(Brightness):
    """The same, of a model that has a config somewhere."""

    def __init__(self, reference: str):
        super().__init__()
        self.place = source(reference)
        self.place.take(Need(("config.json",)))


class Blend(Refiner):
    """Mean of degraded and restored, plus the brightness that the prior saw."""

    def __init__(self, prior_features: int = 3):
        super().__init__()

    def forward(self, degraded, restored, prior):
        return (degraded + restored) / 2 + prior.glob[..., None, None]
