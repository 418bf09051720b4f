"""Losses between restored and clean images, by name. Each maps two (B, C, H, W) to a scalar."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]


def psnr_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Return minus the mean PSNR of the images in dB, so that little and much noise weigh the same.

    Used by NAFNet (arXiv 2204.04676). The floor of 1e-5 on the squared error (50 dB) keeps images that need
    no change from dominating the gradient.
    """
    error = (restored - clean).square().mean((1, 2, 3))
    return 10 * (error + 1e-5).log10().mean()


def charbonnier(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the Charbonnier distance, a smooth L1 with epsilon 1e-3 (Lai et al., CVPR 2017)."""
    return ((restored - clean).square() + 1e-6).sqrt().mean()


def l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean absolute error."""
    return (restored - clean).abs().mean()


LOSSES: dict[str, Loss] = {"psnr": psnr_loss, "charbonnier": charbonnier, "l1": l1}
