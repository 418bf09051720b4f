"""Encoders of tiny autoencoders (TAESD and its relatives) in their author's own files.

Bohan, https://github.com/madebyollin/taesd (MIT): distilled encoders and decoders of diffusion models'
latents. The files hold numbered layers and no config, and diffusers has no word for some of their blocks. The
layers are read off the names and shapes, which are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from restorekit.errors import WeightsError


class TinyEncoder(nn.Sequential):
    """RGB in [0, 1] to latents: convolutions, residual blocks, halvings in between.

    Args:
        tensors: of the file; names and shapes alone are looked at.
        origin: where they are from, for the message.

    Attributes:
        stride: side of the image divided by that of its latents.
        features: channels of the latents.

    Raises:
        WeightsError: they are not those of such an encoder.
    """

    def __init__(self, tensors: Mapping[str, Tensor], origin: str) -> None:
        numbers = {name.partition(".")[0] for name in tensors}
        if not all(map(str.isdecimal, numbers)) or "0.weight" not in tensors:
            raise WeightsError(
                f"{origin} is no encoder of a tiny autoencoder: first tensor {next(iter(tensors), 'none')!r}",
                "give taesd_encoder.pth or one of its relatives",
            )
        count = 1 + max(map(int, numbers))
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        layers: list[nn.Module] = []
        stride = 1
        for place in range(count):
            weight = shapes.get(f"{place}.weight")
            if f"{place}.conv.0.weight" in shapes:
                channels = shapes[f"{place}.conv.0.weight"][0]
                layers.append(_Block(channels, pooled=f"{place}.pool.0.weight" in shapes))
            elif weight is None:
                layers.append(nn.ReLU())
            else:
                biased = f"{place}.bias" in shapes
                # Halvings have no bias; those of the stem, which an activation follows, have one.
                halves = not biased or (place + 1 < count and str(place + 1) not in numbers)
                stride *= 2 if halves else 1
                layers.append(nn.Conv2d(weight[1], weight[0], 3, 2 if halves else 1, 1, bias=biased))
        super().__init__(*layers)
        self.stride, self.features = stride, shapes[f"{count - 1}.weight"][0]


class _Block(nn.Module):
    """Three convolutions beside an identity; before them, where ``pooled``, statistics of the whole image."""

    def __init__(self, channels: int, *, pooled: bool) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        # Group normalisation sees the whole image, which is what the branch is for.
        self.pool = (
            nn.Sequential(
                nn.Conv2d(channels, 4 * channels, 1, bias=False),
                nn.GroupNorm(4, 4 * channels),
                nn.ReLU(),
                nn.Conv2d(4 * channels, channels, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        if self.pool is not None:
            x = x + self.pool(x)
        changed: Tensor = self.conv(x) + x
        return changed.relu()
