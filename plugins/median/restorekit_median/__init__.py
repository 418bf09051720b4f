"""Median filter: a backbone without weights, and the plug-in to copy."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import pad

from restorekit.contracts import Backbone
from restorekit.errors import ConfigError


class Median(Backbone):
    """Replace each pixel by the median of its window.

    Args:
        window: odd side length in pixels.
    """

    def __init__(self, window: int = 3) -> None:
        super().__init__()
        if window < 1 or window % 2 == 0:
            raise ConfigError("params.window", f"{window} is not odd and positive", "give 3, 5 or 7")
        self.window = window

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        r = self.window // 2
        # A reflection needs more pixels than it adds; images smaller than that repeat their edge.
        mode = "reflect" if r < min(degraded.shape[-2:]) else "replicate"
        windows = pad(degraded, (r, r, r, r), mode=mode)
        windows = windows.unfold(2, self.window, 1).unfold(3, self.window, 1)
        return windows.flatten(-2).median(dim=-1).values
