"""Metrics that are networks themselves, from libraries, and finding any metric by its name.

Their weights come from the libraries' own sources, once, and are looked for on this machine first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from restorekit.cache import is_offline
from restorekit.errors import ConfigError, OfflineError
from restorekit.evaluation.protocols import Metric
from restorekit.registry import metrics

log = logging.getLogger(__name__)

Pixels = NDArray[np.generic]
_PYIQA = "pyiqa:"
# What torchvision calls the files in torch's hub folder.
_FILES = {"lpips": "alexnet-owt-7be5be79.pth", "dists": "vgg16-397923af.pth"}


def lpips(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
    """Return the learned distance of Zhang et al., CVPR 2018 (AlexNet, 0.1), by torchmetrics: 0 is best.

    Raises:
        ConfigError: torchmetrics or torchvision is not installed.
        OfflineError: the weights are not on this machine, and downloads are forbidden.
    """
    return _distance("lpips", clean, restored, peak)


def dists(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
    """Return the distance of structure and texture of Ding et al., PAMI 2020, by torchmetrics: 0 is best.

    Raises:
        ConfigError: torchmetrics or torchvision is not installed.
        OfflineError: the weights are not on this machine, and downloads are forbidden.
    """
    return _distance("dists", clean, restored, peak)


def find_metrics(names: list[str]) -> dict[str, Metric]:
    """Return metrics by name: those of the group ``restorekit.metrics``, and ``pyiqa:NAME``.

    Raises:
        UnknownComponentError: no installed distribution offers one.
        ConfigError: it needs a library that is not installed.
    """
    return {
        name: _of_pyiqa(name.removeprefix(_PYIQA)) if name.startswith(_PYIQA) else metrics[name].load()
        for name in names
    }


def _distance(name: str, clean: Pixels, restored: Pixels, peak: float) -> float:
    network = _network(name)
    with torch.no_grad():
        return float(network(_tensor(restored, peak), _tensor(clean, peak)))


@cache
def _network(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    try:
        from torchmetrics.image.dists import DeepImageStructureAndTextureSimilarity
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise ConfigError(
            f"metric {name}", f"needs torchmetrics: {error}", "pip install 'restorekit[metrics]'"
        ) from error
    expected = Path(torch.hub.get_dir()) / "checkpoints" / _FILES[name]
    if not expected.exists() and is_offline():
        raise OfflineError(
            f"metric {name} needs {expected}, and downloads are forbidden",
            "put torchvision's file there, or allow the download",
        )
    try:
        made: Any = (
            LearnedPerceptualImagePatchSimilarity("alex", normalize=True)
            if name == "lpips"
            else DeepImageStructureAndTextureSimilarity()
        )
    except (ImportError, OSError, RuntimeError) as error:
        raise ConfigError(
            f"metric {name}",
            f"its weights cannot be had: {' '.join(str(error).split())}",
            f"put torchvision's file at {expected}",
        ) from error
    network: Callable[[Tensor, Tensor], Tensor] = made.eval()
    return network


def _of_pyiqa(name: str) -> Metric:
    try:
        import pyiqa
    except ImportError as error:
        raise ConfigError(
            f"metric {_PYIQA}{name}", f"needs pyiqa: {error}", "pip install 'restorekit[iqa]'"
        ) from error
    log.warning("pyiqa and several of its metrics are for non-commercial use only; mind their licences")
    if name not in pyiqa.list_models():
        raise ConfigError(f"metric {_PYIQA}{name}", f"pyiqa has no {name!r}", "see pyiqa.list_models()")
    network = pyiqa.create_metric(name)
    compares = network.metric_mode == "FR"

    def metric(clean: Pixels, restored: Pixels, peak: float = 255.0) -> float:
        images = (_tensor(restored, peak), _tensor(clean, peak))
        return float(network(*images) if compares else network(images[0]))

    return metric


def _tensor(image: Pixels, peak: float) -> Tensor:
    """(H, W, C) -> (1, 3, H, W) in [0, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(np.asarray(image, np.float32).transpose(2, 0, 1)))
    return (planes[None] / peak).expand(-1, 3, -1, -1).clamp(0, 1)
