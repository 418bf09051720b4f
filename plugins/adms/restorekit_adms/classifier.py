"""The degradation classifier: looks at a whole image once, at its own resolution.

Shapes: B batch, C image channels, H W pixels, K kinds, D features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from restorekit.errors import WeightsError

# Widths of the five convolutions: 47,883 parameters for three kinds. ADMS's count leaves 0.28 million beside
# its filters, of which nothing is known; wider ones (24, 32, 64, 96, 128) told kinds apart no better here,
# and 16 and 24 features at the large sizes of the first two take a quarter more time.
WIDTHS = (8, 16, 32, 48, 64)
# What is taken of each feature over the image: its mean; or its largest value and standard deviation, too.
Pooling = Literal["mean", "statistics"]
_POOLED = {"mean": 1, "statistics": 3}
# Pixels that are looked at in one piece.
_PIECE = 2**22


def _hash(kinds: Sequence[str]) -> bytes:
    return hashlib.sha256("\n".join(kinds).encode()).digest()


class Classifier(nn.Module):
    """Tell the kind of degradation of an image: strided convolutions, a mean over the image, one layer.

    Resizing would destroy what noise and blur are told by, so images of any size are taken as they are.
    Beside its three colours they get its finest details, compressed: noise, compression and blur are told
    by those, and they are a hundredth as large as what else an image shows (Fridrich and Kodovsky, "Rich
    Models for Steganalysis", IEEE TIFS 2012, look at residuals for that reason).

    Args:
        kinds: K.
        widths: features of each convolution; every one halves the sides.
        pooling: what of each feature over the image the last layer sees. The mean tells what is everywhere,
            as noise is; ``statistics`` also whether anything is black, as there is where no haze is.

    Attributes:
        kinds: what its outputs are called, in their order; empty before ``name``.
    """

    order: Tensor

    def __init__(self, kinds: int, widths: Sequence[int] = WIDTHS, pooling: Pooling = "mean") -> None:
        super().__init__()
        self.pooling = pooling
        self.kinds: tuple[str, ...] = ()
        self._stride = 2 ** len(widths)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((4, *widths), widths, strict=False):
            layers += [_conv(inputs, outputs), nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(_POOLED[pooling] * widths[-1], kinds)
        # Which kind each output is: a file that is read with names in another order is noticed by it.
        self.register_buffer("order", torch.zeros(32, dtype=torch.uint8))

    @property
    def is_in_order(self) -> bool:
        """Whether the weights that it was given are of its kinds, in this order."""
        return self.order.is_meta or bytes(self.order.cpu().tolist()) == _hash(self.kinds)

    def name(self, kinds: Sequence[str]) -> None:
        """Say which kinds its outputs are."""
        self.kinds = tuple(kinds)
        self.order.copy_(torch.tensor(list(_hash(kinds)), dtype=torch.uint8))

    def check_order(self) -> None:
        """Refuse weights that were trained to tell other kinds, or these in another order.

        Raises:
            WeightsError: they were.
        """
        if not self.is_in_order:
            raise WeightsError(
                f"the classifier was not trained to tell {', '.join(self.kinds)}, in this order",
                "leave out params.degradations and params.none: the file states them",
            )

    @torch.no_grad()
    def keep(self, kinds: Sequence[str]) -> None:
        """Tell these of its kinds alone, in this order: softmax then gives each its share of what they had.

        Raises:
            WeightsError: nobody knows which output is which kind.
        """
        self.check_order()
        rows = [self.kinds.index(kind) for kind in kinds]
        for name in ("weight", "bias"):
            own = getattr(self.head, name)
            setattr(self.head, name, nn.Parameter(own[rows].clone(), requires_grad=own.requires_grad))
        self.head.out_features = len(rows)
        self.name(kinds)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) on any device -> logits (B, K); gray is repeated, of views the first counts."""
        colour = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images[:, :3]
        features = self._strip_by_strip(colour)
        statistics = [features.mean((2, 3))]
        if self.pooling == "statistics":
            statistics += [features.amax((2, 3)), features.std((2, 3), correction=0)]
        logits: Tensor = self.head(torch.cat(statistics, 1))
        return logits

    def _strip_by_strip(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> features (B, D, h, w); large images in pieces, to the same result."""
        height, width = images.shape[-2:]
        if height * width <= _PIECE or self.training:
            return self._seen(images)
        rows = max(1, _PIECE // width // self._stride) * self._stride
        strips = []
        for top in range(0, height, rows):
            # One more row of features on top stands in for the padding, and is left out.
            begin = max(0, top - self._stride)
            strips.append(self._seen(images, begin, top + rows)[:, :, (top - begin) // self._stride :])
        return torch.cat(strips, 2)

    def _seen(self, images: Tensor, top: int = 0, bottom: int | None = None) -> Tensor:
        """(B, 3, H, W) in [0, 1] -> features (B, D, h, w) of the rows from top to before bottom."""
        height = images.shape[-2]
        bottom = height if bottom is None else min(bottom, height)
        # Details at the rows' edge need the row beyond.
        above, below = max(0, top - 1), min(height, bottom + 1)
        # As an 8-bit file has it: patches of a training, photographs in 16 bits and floats look alike.
        # Rounded, it has no gradient, of which what follows in place would need copies.
        levels = images[:, :, above:below].detach().to(self.head.weight).mul(255).round_().clamp_(0, 255)
        own = slice(top - above, bottom - above)
        details = _details(levels)[:, :, own]
        # About the middle, at unit variance.
        colour = levels[:, :, own].sub_(127.5).div_(64)
        # Channels last, the first convolution takes half the time.
        rows = torch.empty(
            (len(levels), 4, bottom - top, levels.shape[-1]),
            dtype=levels.dtype,
            device=levels.device,
            memory_format=torch.channels_last,
        )
        # A channel at a time takes half the time.
        for channel in range(3):
            rows[:, channel] = colour[:, channel]
        rows[:, 3:] = details
        features: Tensor = self.features(rows)
        return features


def layers_in(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], Pooling]:
    """Return the features of each convolution of a classifier, and its pooling, by its tensors."""
    layers = {
        int(key.split(".")[1]): len(value)
        for key, value in tensors.items()
        if key.startswith("features.") and key.endswith(".weight")
    }
    widths = tuple(layers[index] for index in sorted(layers))
    return widths, "mean" if tensors["head.weight"].shape[1] == widths[-1] else "statistics"


def _details(levels: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 255] -> (B, 1, H, W), what of the gray image is no mean of 3 x 3 pixels.

    asinh is linear below one level and logarithmic above: a level counts where little happens.
    """
    total = (levels[:, :1] + levels[:, 1:2]).add_(levels[:, 2:])
    # Sums and a logarithm take a sixth of the time of avg_pool2d and asinh, half of the classifier's.
    counts = torch.outer(*(_sum_of_three(total.new_ones(side), 0) for side in total.shape[-2:]))
    mean = _sum_of_three(_sum_of_three(total, 2), 3).div_(counts)
    detail = total.sub_(mean).div_(3)
    size = detail.abs()
    return size.square().add_(1).sqrt_().add_(size).log_().copysign_(detail)


def _sum_of_three(values: Tensor, axis: int) -> Tensor:
    """Return each value with its neighbours along an axis added, as many as there are."""
    total = values.clone()
    length = values.shape[axis] - 1
    total.narrow(axis, 1, length).add_(values.narrow(axis, 0, length))
    total.narrow(axis, 0, length).add_(values.narrow(axis, 1, length))
    return total


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    """Return a convolution at half the size, drawn for what comes after a ReLU (He et al., ICCV 2015).

    Drawn as torch does, and given images as they are, five layers leave little of what images differ by.
    """
    conv = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv
