"""How prior and position reach the network: T and P of the paper, and the convolution that reads both.

Shapes as in the package's docstring; rows is the height of a strip with its halo.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, leaky_relu

from restorekit_ptgrm.strips import Strip

SLOPE = 0.1


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

    def forward(self, strip: Strip, width: int, halo: int) -> Tensor:
        """Return the rows of a strip (1, D, rows, w), with their halo."""
        weight = self.first.weight
        # Half precision cannot tell neighbouring rows of a large image apart.
        down, across = (
            torch.linspace(
                -1, 1, side, device=weight.device, dtype=torch.promote_types(weight.dtype, torch.float32)
            )
            for side in (strip.height, width)
        )
        down = down[strip.rows(halo + 1)]
        grid = torch.stack(torch.meshgrid(down, across, indexing="ij"))[None].to(weight.dtype)
        grid = grid.contiguous(memory_format=torch.channels_last)
        return pointwise(activated(strip.trim(self.first(grid), halo + 1, halo)), self.second.weight)


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


def _joined(x: Tensor, position: Tensor | None) -> Tensor:
    return x if position is None else torch.cat([x, position.expand(len(x), -1, -1, -1)], 1)


def _nearest_of_three(start: int, stop: int, length: int, device: torch.device) -> Tensor:
    """Return 0 for the first of ``length`` places, the last of three for the last, 1 for all between."""
    place = torch.arange(start, stop, device=device)
    return (place > 0).long() + ((place == length - 1) & (place > 0) & (length > 2)).long()
