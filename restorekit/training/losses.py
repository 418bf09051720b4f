"""Losses between restored and clean images, by name. Each maps two (B, C, H, W) to a scalar.

All are means over the images of a batch, so that a batch may be cut into parts without changing its loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import conv2d, cross_entropy, pad

from restorekit.contracts import Prior, PriorFeatures
from restorekit.errors import TrainingError

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


def fft_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean absolute error of the spectrum, real and imaginary parts (MIMO-UNet, ICCV 2021, eq. 7).

    The transform is orthonormal: its scale is that of pixels and does not grow with the patch.
    """
    spectrum = torch.fft.rfft2(restored - clean, norm="ortho")
    return torch.view_as_real(spectrum).abs().mean()


def edge_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the Charbonnier distance of the Laplacians (MPRNet, arXiv 2102.02808, eq. 3)."""
    kernel = restored.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    # The Laplacian is linear, so that of the difference is the difference of the Laplacians.
    difference = pad(restored - clean, (1, 1, 1, 1), mode="replicate")
    channels = difference.shape[1]
    edges = conv2d(difference, kernel.expand(channels, 1, 3, 3), groups=channels)
    return (edges.square() + 1e-6).sqrt().mean()


def ssim_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Return 1 minus the mean SSIM of images in [0, 1] (Wang et al., TIP 2004), Gaussian window of 11, 1.5.

    Patches smaller than the window get a smaller one.
    """
    size = min(11, *restored.shape[-2:])
    place = torch.arange(size, device=restored.device, dtype=restored.dtype) - (size - 1) / 2
    bell = (-place.square() / (2 * 1.5**2)).exp()
    channels = restored.shape[1]
    row = (bell / bell.sum()).expand(channels, 1, 1, size)

    def blur(image: Tensor) -> Tensor:
        return conv2d(conv2d(image, row, groups=channels), row.transpose(2, 3), groups=channels)

    mean, clean_mean = blur(restored), blur(clean)
    product = mean * clean_mean
    variance, clean_variance = (
        blur(restored.square()) - mean.square(),
        blur(clean.square()) - clean_mean.square(),
    )
    luminance = (2 * product + 0.01**2) / (mean.square() + clean_mean.square() + 0.01**2)
    structure = (2 * (blur(restored * clean) - product) + 0.03**2) / (variance + clean_variance + 0.03**2)
    return 1 - (luminance * structure).mean()


def perceptual_loss(prior: Prior) -> Loss:
    """Return the loss that compares what a prior says of both images: its dense features, or its global ones.

    The loss raises TrainingError where the prior passes no gradient on.
    """

    def describe(features: PriorFeatures) -> Tensor:
        return features.glob if features.dense is None else features.dense

    def loss(restored: Tensor, clean: Tensor) -> Tensor:
        with torch.no_grad():
            expected = describe(prior(clean.expand(-1, 3, -1, -1)))
        found = describe(prior(restored.clamp(0, 1).expand(-1, 3, -1, -1)))
        distance = (found - expected).abs().mean()
        if restored.requires_grad and not distance.requires_grad:
            raise TrainingError(
                f"prior {type(prior).__name__} passes no gradient on, so that no loss can use it",
                "name another prior under perceptual",
            )
        return distance

    return loss


def kind_loss(logits: Tensor, kinds: Tensor) -> Tensor:
    """Return the cross entropy of logits (B, K) and of shares of kinds (B, K), smoothed by 0.05."""
    return cross_entropy(logits.float(), kinds.float(), label_smoothing=0.05)


LOSSES: dict[str, Loss] = {
    "psnr": psnr_loss,
    "charbonnier": charbonnier,
    "l1": l1,
    "fft": fft_loss,
    "edge": edge_loss,
    "ssim": ssim_loss,
}


def weighted(weights: Mapping[str, float], prior: Prior | None = None) -> Loss:
    """Return the weighted sum of losses by name, of images; ``perceptual`` compares with ``prior``."""
    terms = [
        (perceptual_loss(prior) if name == "perceptual" and prior else LOSSES[name], weight)
        for name, weight in weights.items()
    ]
    if len(terms) == 1 and terms[0][1] == 1:
        return terms[0][0]
    return lambda restored, clean: torch.stack(
        [weight * loss(restored, clean) for loss, weight in terms]
    ).sum()
