"""Turn an ability up and down: blend the discovered filters between baseline and target, and beyond."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch
from torch import Tensor, nn

from restorekit.analysis.pairs import restored
from restorekit.analysis.protocols.substitution import place, places
from restorekit.analysis.walk import Network, check_same, state_of
from restorekit.errors import RestoreKitError
from restorekit.filters import FilterTable

# Of the paper: 0 is the baseline at the chosen filters, 1 the target; beyond 1 is more than was trained.
SHARES: tuple[float, ...] = tuple(step / 10 for step in range(16))

_GAP, _LABEL = 4, 22
_INK, _PAPER = (32, 32, 32), (255, 255, 255)


def modulate(
    target: nn.Module,
    base: Network,
    table: FilterTable,
    filters: Tensor,
    degraded: Tensor,
    shares: Sequence[float] = SHARES,
) -> list[Tensor]:
    """Restore an image once for each share of the target in its chosen filters; the other filters stay.

    Args:
        target: runs where it lies.
        base: the baseline.
        table: the filters of the network.
        filters: numbers of those that are blended (K,).
        degraded: (C, H, W) or (1, C, H, W).
        shares: 0 to 1.5 in the paper; any numbers.

    Returns:
        an image (1, C, H, W) for each share, not clipped.

    Raises:
        RestoreKitError: there are no shares, or one is not finite.
        WeightsError: base and target are not of one architecture.
    """
    if not shares:
        raise RestoreKitError("there are no shares to blend by", "give at least one, as 0.5")
    if not all(map(math.isfinite, shares)):
        raise RestoreKitError(
            f"filters cannot be blended by shares of {', '.join(f'{share:g}' for share in shares)}",
            "give finite numbers",
        )
    check_same(state_of(base), state_of(target), target)
    network = copy.deepcopy(target).eval()
    where, states = places(table, filters), (state_of(base), state_of(target))
    image = (degraded[None] if degraded.dim() == 3 else degraded).to(next(network.parameters()))
    outputs = []
    with torch.no_grad():
        for share in shares:
            place(network, where, *states, share)
            outputs.append(restored(network, image))
    return outputs


def strip(images: Sequence[Tensor], labels: Sequence[str], columns: int = 8) -> PIL.Image.Image:
    """Return images (1, C, H, W) of one size as one labelled picture, at their own pixels."""
    height, width = images[0].shape[-2:]
    rows = -(-len(images) // columns)
    across = min(columns, len(images))
    cell = (width + _GAP, height + _LABEL + _GAP)
    sheet = PIL.Image.new("RGB", (across * cell[0] - _GAP, rows * cell[1] - _GAP), _PAPER)
    pen, font = PIL.ImageDraw.Draw(sheet), PIL.ImageFont.load_default(15)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        left, top = index % columns * cell[0], index // columns * cell[1]
        pen.text((left + 2, top + 2), label, _INK, font)
        levels = (image[0].clamp(0, 1).expand(3, -1, -1) * 255).round().to(torch.uint8).cpu()
        sheet.paste(PIL.Image.fromarray(levels.permute(1, 2, 0).numpy()), (left, top + _LABEL))
    return sheet
