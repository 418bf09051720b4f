"""What the tests of backbones share, the core's and the plug-ins'."""

import numpy as np
import torch
from safetensors.torch import save_file

from restorekit import restore


def noise(*shape, seed=0, dtype=torch.float32):
    """Return values in [0, 1), the same for the same seed."""
    return torch.rand(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def restored_shape(name, cls, params, size, folder):
    """Return the shape (H, W, 3) to which a pipeline restores an image of some size by a new network."""
    path = folder / f"{name}.safetensors"
    save_file(cls(**params).state_dict(), path)
    levels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    step = {"name": name, "params": params, "weights": str(path)}
    return restore(levels, {"steps": [{"restore": step}]}).shape


def parameter_count(cls):
    """Return how many parameters the network has by default, without making them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in cls().parameters())
