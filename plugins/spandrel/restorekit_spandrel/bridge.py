"""A spandrel model seen as a backbone: its channels, its scale, its sizes, its tiles, its precisions.

Which architecture a file belongs to is recognition.py. Shapes as in restorekit.contracts.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from restorekit.contracts import DetectedBackbone, Tiling
from restorekit_spandrel.recognition import recognise

if TYPE_CHECKING:
    from spandrel import ImageModelDescriptor

# By the names of spandrel.ModelTiling.
_TILING: dict[str, Tiling] = {"SUPPORTED": "supported", "DISCOURAGED": "discouraged", "INTERNAL": "never"}
# They attend from channel to channel, by sums over all pixels, or to summaries of the whole image.
_ATTENDS_ACROSS = {"ATD", "DAT", "FDAT", "HVI-CIDNet", "Restormer", "RetinexFormer", "RGT"}


class Spandrel(DetectedBackbone):
    """Any image-to-image network that spandrel recognises by the tensors of its checkpoint.

    Built by ``from_tensors``; in a pipeline ``restore: {name: spandrel, weights: file.pth}``. What to know:

    - The result is clamped to [0, 1], as spandrel does, and has no gradients: this is no way to train.
    - What tensors do not tell is what spandrel assumes. DRUNet and FDnCNN are told a noise level of 15 (of
      255) whatever the image's is. SwinIR with windows of 7 is taken for a JPEG network of range 255.
    - NAFNet has no TLC here (local pooling at test time), so GoPro and REDS figures fall short of the
      paper's; the plug-in ``nafnet`` with ``local_window: 384`` has it.
    - ``tiling`` is spandrel's advice, but ``discouraged`` at least where a network pools over the whole image
      or attends across it (NAFNet, HAT, FBCNN, Restormer), which spandrel calls supported.
    - Architectures under academic or non-commercial licences (Restormer, MPRNet and others) come with
      ``pip install restorekit-spandrel[extra]``; mind their licences, which this plug-in's does not change.

    Args:
        descriptor: a model as spandrel loads it, on the CPU.
    """

    # Receptive fields are not told. Measured on a published DnCNN (17 convolutions): tiles differ from the
    # whole image by 0.43 of an 8-bit level at 32, by 0.0005 at 64.
    overlap = 64

    def __init__(self, descriptor: ImageModelDescriptor[torch.nn.Module]) -> None:
        super().__init__()
        self.model = descriptor.model
        self._descriptor = descriptor
        self.architecture = descriptor.architecture.name
        self.size_multiple = descriptor.size_requirements.multiple_of
        self.scale = descriptor.scale
        self.channels = descriptor.input_channels
        if descriptor.output_channels != descriptor.input_channels:
            self.out_channels = descriptor.output_channels
        self.tiling = _TILING[descriptor.tiling.name]
        if self.tiling == "supported" and _sees_the_whole_image(descriptor):
            self.tiling = "discouraged"
        known = {torch.float32: True}
        known |= {torch.float16: descriptor.supports_half, torch.bfloat16: descriptor.supports_bfloat16}
        self.precisions = frozenset(dtype for dtype, works in known.items() if works)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], path: Path) -> Self:
        """Return the network that the tensors of a file belong to, with their values in it.

        Args:
            tensors: as ``restorekit.weights.read_tensors`` gives them, on the CPU.
            path: the file they came from, for messages.

        Raises:
            WeightsError: no architecture is recognised, the tensors do not fit the one that is, or it needs
                more than an image.
        """
        return cls(recognise(tensors, path))

    def forward(self, degraded: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W), by ``scale`` larger; small or oblong images are padded inside."""
        # Some networks make float32 tensors inside (the masks of SwinIR, the tables of GRL), which their
        # weights in half precision refuse; autocast brings the two together. On meta there is none.
        halved = degraded.dtype in (torch.bfloat16, torch.float16) and degraded.device.type != "meta"
        mixed = torch.autocast(degraded.device.type, degraded.dtype) if halved else nullcontext()
        with mixed:
            # A descriptor takes one image at a time; it pads to the smallest size and to squares, and crops.
            restored = [self._descriptor(image[None]) for image in degraded]
        return torch.cat(restored).to(degraded.dtype)


def _sees_the_whole_image(descriptor: ImageModelDescriptor[torch.nn.Module]) -> bool:
    pools = (torch.nn.AdaptiveAvgPool2d, torch.nn.AdaptiveMaxPool2d)
    pooled = any(isinstance(module, pools) for module in descriptor.model.modules())
    return pooled or descriptor.architecture.name in _ATTENDS_ACROSS
