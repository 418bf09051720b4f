"""How fast our networks are beside the published code, with the same weights, in one process, in turns.

The published code is the copy that spandrel ships. Machines are noisy, so that runs of both alternate and the
ratio is that of neighbours.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from restorekit.bench.parity import build_official
from restorekit.contracts import Backbone
from restorekit.errors import ConfigError
from restorekit.runtime import channels_last

# The published sizes that are timed: one of each network, by the arguments of the published constructors.
PUBLISHED: Mapping[str, Mapping[str, Any]] = {
    "NAFNet": {
        "width": 32,
        "enc_blk_nums": [2, 2, 4, 8],
        "middle_blk_num": 12,
        "dec_blk_nums": [2, 2, 2, 2],
    },
    "MPRNet": {"n_feat": 40, "scale_unetfeats": 20, "scale_orsnetfeats": 16},
    "Restormer": {"dim": 48, "num_blocks": [4, 6, 6, 8], "LayerNorm_type": "WithBias"},
}


@dataclass(frozen=True)
class Race:
    """Seconds of both for one network.

    Attributes:
        published: class of the published network.
        theirs: median seconds of the published code.
        ours: median seconds of our network, with channels innermost as pipelines run it.
        ratio: median of the ratios of neighbouring runs; above 1 where ours is faster.
        error: largest absolute difference of the outputs.
    """

    published: str
    theirs: float
    ours: float
    ratio: float
    error: float


@torch.inference_mode()
def race(published: str, side: int = 256, runs: int = 5, progress: Callable[[], None] | None = None) -> Race:
    """Time one network of ours beside the published code on the same random weights and image.

    Args:
        published: a key of ``PUBLISHED``.
        side: of the image (1, 3, side, side).
        runs: of each, after one that is not counted.
        progress: called after each run of both.

    Raises:
        ConfigError: spandrel is not installed, or does not know the network.
    """
    torch.manual_seed(0)
    network = _stirred(build_official(published, PUBLISHED[published]))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    other = _spandrel(state, published)
    channels_last(network)
    image = torch.rand(1, 3, side, side)

    def ours() -> Tensor:
        return network(image.to(memory_format=torch.channels_last))  # type: ignore[no-any-return]

    def theirs() -> Tensor:
        result = other(image)
        final: Tensor = result[0] if isinstance(result, list | tuple) else result
        return final

    error = float((ours() - theirs()).abs().max())
    seconds: list[tuple[float, float]] = []
    for _ in range(runs):
        seconds.append((_timed(theirs), _timed(ours)))
        if progress:
            progress()
    return Race(
        published,
        statistics.median(their for their, _ in seconds),
        statistics.median(our for _, our in seconds),
        statistics.median(their / our for their, our in seconds),
        error,
    )


def _timed(run: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _stirred(network: Backbone) -> Backbone:
    """Move every parameter off its first value: a scale that begins at zero would hide what it scales."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return network.eval()


def _spandrel(state: dict[str, Tensor], published: str) -> Callable[[Tensor], Any]:
    try:
        with warnings.catch_warnings():
            # One of the networks compiles a function on import, by a way that torch deprecates.
            warnings.filterwarnings("ignore", r"`torch\.jit\.script", FutureWarning)
            warnings.filterwarnings("ignore", r"`torch\.jit\.script", DeprecationWarning)
            import spandrel
            import spandrel_extra_arches
    except ImportError as error:
        raise ConfigError(
            "bench parity --speed",
            f"the published code is not here: {error}",
            "pip install spandrel spandrel_extra_arches",
        ) from error
    spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        descriptor = spandrel.ModelLoader("cpu").load_from_state_dict(state)
    except spandrel.UnsupportedModelError as error:
        raise ConfigError("bench parity --speed", f"spandrel does not know {published}") from error
    return descriptor.model.eval()  # type: ignore[no-any-return]
