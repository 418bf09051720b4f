"""A backbone whose deepest features PTG-RM refines, variant -f of the paper.

Shapes as in the package's docstring; L features of a backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from restorekit.contracts import Backbone, GuidedBackbone, Prior, PriorFeatures
from restorekit.errors import ContractError

if TYPE_CHECKING:
    from restorekit_ptgrm.network import PTGRM


class RefinedBackbone(GuidedBackbone):
    """A backbone whose deepest features PTG-RM refines (variant -f, section 4.2).

    Args:
        backbone: offers its deepest features.
        refiner: of level ``feature``.
        prior: guides it; sees the degraded image.

    Raises:
        ContractError: the two do not fit together.
    """

    # Sums over the whole map of features.
    tiling = "discouraged"
    # The prior is shown every image as it came, not in the precision that the network runs in.
    judges = True

    def __init__(self, backbone: Backbone, refiner: PTGRM, prior: Prior) -> None:
        super().__init__()
        if refiner.level != "feature":
            raise ContractError(
                f"ptgrm of level {refiner.level!r} refines images, not a backbone's features",
                "give it params level: feature",
            )
        given, taken = backbone.latent_features, refiner.latent_features
        name = type(backbone).__name__
        if given != taken:
            offers = "offers no deepest features" if given is None else f"has {given} deepest features"
            raise ContractError(
                f"{name} {offers}, ptgrm was built for {taken}",
                "use another backbone, or refine its result with level: image",
            )
        self.backbone, self.refiner, self.prior = backbone, refiner, prior
        self.size_multiple, self.padding, self.scale = (
            backbone.size_multiple,
            backbone.padding,
            backbone.scale,
        )
        self.channels, self.out_channels = backbone.channels, backbone.out_channels
        self.overlap, self.precisions = backbone.overlap, backbone.precisions
        self._told: PriorFeatures | None = None
        self._places: Tensor | None = None

    def under(self, features: PriorFeatures, places: Tensor | None = None) -> RefinedBackbone:
        """Return this network told what the prior says of images, of which it will be given windows.

        Args:
            features: of one image, or of each in a batch.
            places: where the windows lie, as in ``PTGRM.forward``; by default they are the whole images.
        """
        told = copy.copy(self)
        told._told, told._places = features, places
        return told

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return self._act(degraded, self._described(degraded))

    def for_image(self, degraded: Tensor, tile: int) -> Callable[[Tensor], Tensor]:
        """Return the network with the prior of this image (1, C, H, W), for tiles of it."""
        described = self._described(degraded)
        return lambda window: self._act(window, described)

    def training_outputs(self, degraded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image of the refined features, and that of the backbone's own (eq. 8)."""
        latent, rest = self.backbone.encode(degraded)
        refined, _ = self.refiner.refine_latent(latent, self._described(degraded), self._places)
        return self.backbone.decode(refined, rest), self.backbone.decode(latent, rest)

    def maps(self, degraded: Tensor) -> dict[str, Tensor]:
        """Return M, M_c, M_s as ``PTGRM.maps`` does, mask m (B, 1, h, w) and residual r (B, L, h, w)."""
        with torch.no_grad():
            latent, _ = self.backbone.encode(degraded)
            return self.refiner.refine_latent(latent, self._described(degraded), self._places)[1]

    def _act(self, degraded: Tensor, described: PriorFeatures) -> Tensor:
        latent, rest = self.backbone.encode(degraded)
        refined, _ = self.refiner.refine_latent(latent, described, self._places)
        return self.backbone.decode(refined, rest)

    def _described(self, degraded: Tensor) -> PriorFeatures:
        if self._told is not None:
            return self._told
        with torch.no_grad():
            return self.prior.guidance(degraded.to(next(self.refiner.parameters()).device))
