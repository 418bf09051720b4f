"""AOD-Net: one map for what the air adds and what it takes. Shapes as in the package."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from restorekit.contracts import Backbone


class AODNet(Backbone):
    """All-in-one dehazing network (Li, Peng, Wang, Xu, Feng, ICCV 2017, section 3).

    The transmission and the light of the air are one map K: ``restored = K * degraded - K + 1``, not below 0.
    K is estimated by five convolutions of three filters each, 1,761 parameters in all.
    """

    # Convolutions of 1, 3, 5, 7 and 3 pixels see 7 pixels far.
    # What lies within a quarter of the overlap of a cut is never used.
    overlap = 28

    def __init__(self) -> None:
        super().__init__()
        self.e_conv1 = nn.Conv2d(3, 3, 1)
        self.e_conv2 = nn.Conv2d(3, 3, 3, padding=1)
        self.e_conv3 = nn.Conv2d(6, 3, 5, padding=2)
        self.e_conv4 = nn.Conv2d(6, 3, 7, padding=3)
        self.e_conv5 = nn.Conv2d(12, 3, 3, padding=1)
        # The features of all scales side by side: for whoever looks for the deepest module.
        self.deepest = nn.Identity()

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 3, H, W), not below 0."""
        k = self._k(degraded)
        return relu(k * degraded - k + 1)

    def maps(self, degraded: Tensor) -> dict[str, Tensor]:
        """Return K."""
        return {"k": self._k(degraded)}

    def _k(self, degraded: Tensor) -> Tensor:
        one = relu(self.e_conv1(degraded))
        two = relu(self.e_conv2(one))
        three = relu(self.e_conv3(torch.cat([one, two], 1)))
        four = relu(self.e_conv4(torch.cat([two, three], 1)))
        return relu(self.e_conv5(self.deepest(torch.cat([one, two, three, four], 1))))
