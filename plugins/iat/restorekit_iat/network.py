"""The network: what the local branch says of each pixel, then what the global one says of the image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from einops import einsum, rearrange
from torch import Tensor

from restorekit.contracts import Backbone
from restorekit_iat.global_branch import GlobalBranch, Light
from restorekit_iat.local_branch import LocalBranch

# No smaller base is raised to gamma.
_DARKEST = 1e-8


class IAT(Backbone):
    """Illumination adaptive transformer (Cui et al., BMVC 2022, arXiv 2205.14871, equations 2 and 3).

    ``restored = max(colour @ (degraded * M + A), 1e-8) ** gamma``: maps M and A are those of the local
    branch, gamma and the colour matrix those of the global one. What it restores lies in [0, 1].

    Tiles of one image share what the global branch says of it.

    Args:
        width: features of the local branch.
        blocks: modules in each of its two rows.
        features: of the global branch.
        heads: of its attention; ``features`` is a multiple of them.
        centred: whether both branches work on images from -1 to 1, as the published network of LOL-v2 does,
            instead of 0 to 1; what is restored lies in [0, 1] all the same.

    Raises:
        ValueError: a number is below 1, or features cannot be shared out.
    """

    def __init__(
        self, width: int = 16, blocks: int = 3, features: int = 64, heads: int = 4, centred: bool = False
    ) -> None:
        super().__init__()
        for name, number in (("width", width), ("blocks", blocks), ("features", features), ("heads", heads)):
            if number < 1:
                raise ValueError(f"{name} is {number}, not 1 or more")
        if features % heads or features % 2:
            raise ValueError(f"{features} features are not shared out among 2 halves and {heads} heads")
        self.centred = centred
        # A block reaches one pixel for the position and two for attention, the convolutions around one each.
        # What lies within a quarter of the overlap of a cut is never used.
        self.overlap = 4 * (3 * blocks + 2)
        self.local_net = LocalBranch(width, blocks)
        self.global_net = GlobalBranch(features, heads)

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), in [0, 1]."""
        return self._under(degraded, self.global_net(self._seen(degraded)))

    def for_image(self, degraded: Tensor, tile: int) -> Callable[[Tensor], Tensor]:
        """Return the network with gamma and colours of this image (1, 3, H, W), for tiles of it."""
        rows = tile * tile // degraded.shape[3]
        return partial(self._under, light=self.global_net.in_strips(self._seen(degraded), rows))

    def maps(self, degraded: Tensor) -> Mapping[str, Tensor]:
        """Return what pixels are multiplied by, what is added to them, and the gamma of the image."""
        seen = self._seen(degraded)
        factors, summands = self.local_net(seen)
        return {"factors": factors, "summands": summands, "gamma": self.global_net(seen).gamma}

    def _seen(self, degraded: Tensor) -> Tensor:
        return 2 * degraded - 1 if self.centred else degraded

    def _under(self, degraded: Tensor, light: Light) -> Tensor:
        seen = self._seen(degraded)
        factors, summands = self.local_net(seen)
        mixed: Tensor = einsum(seen * factors + summands, light.colour, "b c h w, b e c -> b e h w")
        return mixed.clamp(_DARKEST, 1) ** rearrange(light.gamma, "b 1 -> b 1 1 1")
