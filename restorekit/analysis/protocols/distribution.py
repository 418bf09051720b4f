"""Where the discovered filters lie in the network: layer by layer, as figures and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
from torch import Tensor

from restorekit.filters import FilterTable

_HEIGHT, _MARGIN, _LABEL = 320, 10, 24
# Width of all columns together is about this; a column is never narrower than a pixel.
_WIDTH = 480
_INK, _FAINT, _PAPER, _EMPTY = (32, 32, 32), (110, 110, 110), (255, 255, 255), (238, 240, 244)
_MARK = np.array((24, 60, 140))


@dataclass(frozen=True)
class Distribution:
    """Where a list of filters lies.

    Attributes:
        counts: how many of each tensor, in the order of the network.
        shares: the same as shares of the tensor's filters.
        depth: mean place of the filters' layers, 0 the first and 1 the last; 0.5 when spread evenly.
    """

    counts: Mapping[str, int]
    shares: Mapping[str, float]
    depth: float


def distributions(table: FilterTable, filters: Mapping[str, Tensor]) -> dict[str, Distribution]:
    """Return the distribution of each list of filters (K,) by its label."""
    found = {}
    last = max(1, len(table.tensors) - 1)
    for label, own in filters.items():
        chosen = table.chosen(own)
        counts = {tensor.name: len(chosen.get(tensor.name, ())) for tensor in table}
        shares = {tensor.name: counts[tensor.name] / tensor.count for tensor in table}
        total = sum(counts.values())
        depth = sum(index * count for index, count in enumerate(counts.values())) / (last * max(1, total))
        found[label] = Distribution(counts, shares, depth)
    return found


def distribution_map(table: FilterTable, filters: Mapping[str, Tensor]) -> PIL.Image.Image:
    """Return a picture with a panel for each list: a column for each layer, its filters from top to bottom.

    Layers with few filters are stretched to the common height. A pixel is marked where any of the filters
    under it was chosen, the darker the more.

    Args:
        table: the filters of the network.
        filters: numbers of the chosen ones (K,), by what they are for.
    """
    column = max(1, _WIDTH // len(table.tensors))
    width = column * len(table.tensors)
    size = (len(filters) * (width + _MARGIN) + _MARGIN, _HEIGHT + 2 * _LABEL + _MARGIN)
    picture = PIL.Image.new("RGB", size, _PAPER)
    pen = PIL.ImageDraw.Draw(picture)
    font, thin = PIL.ImageFont.load_default(15), PIL.ImageFont.load_default(12)
    for panel, (label, own) in enumerate(filters.items()):
        left = _MARGIN + panel * (width + _MARGIN)
        pen.text((left, 3), f"{label}: {len(own)} filters", _INK, font)
        chosen = table.chosen(own)
        pixels = np.empty((_HEIGHT, width, 3), np.uint8)
        pixels[:] = _EMPTY
        for index, tensor in enumerate(table):
            places = chosen[tensor.name].numpy() if tensor.name in chosen else np.empty(0, np.int64)
            density = _density(places, tensor.count)
            # The root keeps single filters visible beside crowds.
            shade = np.where(density > 0, 0.35 + 0.65 * density**0.5, 0)[:, None, None]
            cell = pixels[:, index * column : (index + 1) * column]
            cell[:] = (shade * _MARK + (1 - shade) * np.array(_EMPTY)).round()
        picture.paste(PIL.Image.fromarray(pixels), (left, _LABEL))
        pen.text((left, _LABEL + _HEIGHT + 4), "first layer", _FAINT, thin)
        pen.text((left + width, _LABEL + _HEIGHT + 4), "last", _FAINT, thin, anchor="ra")
    return picture


def _density(places: np.ndarray, count: int) -> np.ndarray:
    """Return the share of chosen filters under each row of pixels."""
    marked = np.zeros(count)
    marked[places] = 1
    rows = np.arange(_HEIGHT)
    first = rows * count // _HEIGHT
    # Every filter shows: a row covers at least the one it begins in.
    last = np.maximum(first + 1, (rows + 1) * count // _HEIGHT)
    sums = np.concatenate(([0.0], marked.cumsum()))
    return (sums[last] - sums[first]) / (last - first)
