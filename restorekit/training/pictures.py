"""Pictures of validation: strips of degraded, restored and clean patches."""

from __future__ import annotations

from collections.abc import Iterable

import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

# White between patches, in pixels.
_GAP = 4


def strips(examples: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Return one picture (3, H, W) in [0, 1]: a row for each degraded, restored and clean patch (C, H, W)."""
    rows = []
    for degraded, restored, clean in examples:
        size = clean.shape[-2:]
        shown = [
            interpolate(image[None], size, mode="nearest")[0] if image.shape[-2:] != size else image
            for image in (degraded, restored, clean)
        ]
        spaced = [pad(image.expand(3, -1, -1).float(), (0, _GAP, 0, _GAP), value=1.0) for image in shown]
        rows.append(torch.cat(spaced, dim=2))
    return torch.cat(rows, dim=1).clamp(0, 1)[:, :-_GAP, :-_GAP]


def to_pil(picture: Tensor) -> PIL.Image.Image:
    """Return a picture (3, H, W) in [0, 1] as 8-bit levels."""
    levels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return PIL.Image.fromarray(levels)
