"""How prior and position reach the network: T and P of the paper, and the convolution that reads both.

Shapes as in the package's docstring; rows is the height of a strip with its halo.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, grid_sample, interpolate, leaky_relu

from restorekit_ptgrm.strips import Strip, exact

SLOPE = 0.1


@dataclass(frozen=True)
class Guide:
    """What guides the features of a batch.

    Attributes:
        prior: of the images (B, F), scaled.
        dense: its map of the images, where that is used.
        places: where the features lie in the images, (B, 4): top, left, bottom, right as shares of height and
            width; None where they are the whole of them.
    """

    prior: Tensor
    dense: Tensor | None = None
    places: Tensor | None = None

    def cut(self, dense: Tensor, height: int, width: int) -> Tensor:
        """(B, D, h', w') of the images -> (B, D, height, width), what it says at the features' pixels."""
        if self.places is None:
            return interpolate(dense, (height, width), mode="bilinear", align_corners=False)
        down, across = (
            2 * _centres(self.places[:, side], self.places[:, side + 2], count) - 1
            for side, count in enumerate((height, width))
        )
        shape = (len(dense), height, width)
        grid = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], -1)
        # Half precision cannot tell neighbouring pixels of a large image apart.
        kind = exact(dense)
        grid = grid.to(dense.device, kind)
        return grid_sample(dense.to(kind), grid, padding_mode="border", align_corners=False).to(dense.dtype)


def activated(x: Tensor) -> Tensor:
    """Return the leaky ReLU, in place where no gradient is recorded: ``x`` is not to be used again."""
    return leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())


def pointwise(x: Tensor, weight: Tensor) -> Tensor:
    """(B, D, H, W), (D', D, 1, 1) -> (B, D', H, W)."""
    # In one thread torch sends convolutions of a single tap to a kernel that takes twice as long, unless they
    # are dilated, which changes nothing for a single tap.
    slow = x.device.type == "cpu" and x.dtype == torch.float32
    # torch declares no types for this call.
    dilated = slow and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call,unused-ignore]
    return conv2d(x, weight, dilation=2 if dilated else 1)


class PriorEmbedding(nn.Module):
    """Two linear layers, T(g) of eq. 2 and 4.

    Args:
        prior_features: F.
        hidden: between the layers.
        features: E.
    """

    def __init__(self, prior_features: int, hidden: int, features: int) -> None:
        super().__init__()
        self.first = nn.Linear(prior_features, hidden, bias=False)
        self.second = nn.Linear(hidden, features, bias=False)

    def forward(self, prior: Tensor) -> Tensor:
        """(B, F) -> (B, E)."""
        embedded: Tensor = self.second(leaky_relu(self.first(prior), SLOPE))
        return embedded


class PositionEmbedding(nn.Module):
    """A learnable map of coordinates, S of section 3.3: row and column, each from -1 to 1 over the image.

    Args:
        features: of the map.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, features, 3, padding=1, bias=False)
        self.second = nn.Conv2d(features, features, 1, bias=False)

    def forward(self, strip: Strip, width: int, halo: int, places: Tensor | None) -> Tensor:
        """Return the rows of a strip with their halo, (1, D, rows, w), or (B, D, rows, w) for as many places.

        Beside a part of an image its neighbours' coordinates are seen, beside the image zeros.
        """
        weight, rows = self.first.weight, strip.rows(halo)
        if places is None:
            places = torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=weight.device)
        places = places.to(weight.device, exact(weight))
        down, within = _coordinates(places[:, 0], places[:, 2], strip.height)
        across, between = _coordinates(places[:, 1], places[:, 3], width)
        # With a neighbour above and below.
        down, within = (values[:, rows.start : rows.stop + 2, None] for values in (down, within))
        shape = (-1, -1, down.shape[1], across.shape[1])
        grid = torch.cat([down[:, None].expand(shape), across[:, None, None].expand(shape)], 1)
        grid = grid * (within[:, None] & between[:, None, None])
        grid = grid.to(weight.dtype).contiguous(memory_format=torch.channels_last)
        return pointwise(activated(conv2d(grid, weight)), self.second.weight)


class GuidedConvolution(nn.Module):
    """Convolution 3 x 3 over features, the embedded prior at every pixel, and positions (eq. 2 and 5).

    The repeated prior is constant, so that its part of the result takes nine values, at the corners, the
    edges and inside: it is convolved on a map of 3 x 3 and never repeated.

    Args:
        features: of the map.
        prior: E; 0 without a prior.
        position: features of the positions; 0 without.
        out_features: of the result.
    """

    def __init__(self, features: int, prior: int, position: int, out_features: int) -> None:
        super().__init__()
        self.sizes = [features, prior, position]
        self.weight = nn.Parameter(torch.empty(out_features, sum(self.sizes), 3, 3))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def prepared(
        self, height: int, width: int, prior: Tensor | None
    ) -> Callable[[Tensor, Tensor | None, slice], Tensor]:
        """Return the convolution as it acts on rows of an image.

        What is returned takes features (B, D, rows, w), positions (1, D', rows, w) and which rows they are,
        and treats its first and last row as the border of the image.

        Args:
            height: h of the whole map.
            width: w of the whole map.
            prior: embedded, (B, E).
        """
        of_map, of_prior, of_position = torch.split(self.weight, self.sizes, 1)
        weight = torch.cat([of_map, of_position], 1).contiguous(memory_format=torch.channels_last)
        if prior is None:
            return lambda x, position, rows: conv2d(_joined(x, position), weight, padding=1)
        few = prior[:, :, None, None].expand(-1, -1, min(3, height), min(3, width))
        constant = conv2d(few, of_prior, padding=1)
        across = _nearest_of_three(0, width, width, prior.device)
        at_once = len(prior) == 1 and height >= 3 and width >= 3 and not torch.is_grad_enabled()
        inside = constant[0, :, 1, 1] if at_once else None

        def act(x: Tensor, position: Tensor | None, rows: slice) -> Tensor:
            y = conv2d(_joined(x, position), weight, inside, padding=1)
            down = _nearest_of_three(rows.start, rows.stop, height, x.device)
            if inside is None:
                return y + constant[:, :, down][:, :, :, across]
            # The bias has brought what holds inside; the border lacks neighbours.
            border = constant - constant[:, :, 1:2, 1:2]
            y[..., 0] += border[:, :, down, 0]
            y[..., -1] += border[:, :, down, 2]
            for row, at in ((0, rows.start == 0), (-1, rows.stop == height)):
                if at:
                    y[:, :, row, 1:-1] += border[:, :, row, 1][:, :, None]
            return y

        return act


def _centres(start: Tensor, stop: Tensor, count: int, beyond: int = 0) -> Tensor:
    """Return centres of pixels from ``start`` to ``stop`` (B), and of some beyond: (B, count + 2 beyond)."""
    step = (stop - start) / count
    index = torch.arange(-beyond, count + beyond, device=start.device, dtype=start.dtype)
    return start[:, None] + (index + 0.5) * step[:, None]


def _coordinates(start: Tensor, stop: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return coordinates of pixels and of a neighbour at either end, and whether it is in the image.

    Both are (B, count + 2). Coordinates go from -1 at the first pixel of the image to 1 at its last.
    """
    centres = _centres(start, stop, count, 1)
    # Pixels of the whole image.
    total = (count / (stop - start))[:, None]
    coordinates = (2 * centres - 1) * total / (total - 1)
    return torch.where(total > 1.5, coordinates, -1.0), (centres > 0) & (centres < 1)


def _joined(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else torch.cat([x, position.expand(len(x), -1, -1, -1)], 1)


def _nearest_of_three(start: int, stop: int, length: int, device: torch.device) -> Tensor:
    """Return 0 for the first of ``length`` places, the last of three for the last, 1 for all between."""
    place = torch.arange(start, stop, device=device)
    return (place > 0).long() + ((place == length - 1) & (place > 0) & (length > 2)).long()
