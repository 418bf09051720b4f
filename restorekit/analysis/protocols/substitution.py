"""Put the baseline's filters into the target at chosen places, and look at how much its output changes.

The masking test of FAIG (Xie et al., NeurIPS 2021): filters matter for a degradation if without them the
network no longer removes it, and still does everything else. It tells what attribution alone does not.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from restorekit.analysis.pairs import restored
from restorekit.analysis.walk import Network, check_same, state_of, steady
from restorekit.errors import ImageError, RestoreKitError
from restorekit.filters import FilterTable
from restorekit.layers import luma

Metric = Literal["luma", "release"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Key = TypeVar("Key", bound=Hashable)
Model = TypeVar("Model", bound=nn.Module)

# Figures are of the order of thousandths; published tables give them so.
_PER_MILLE = 1000.0


@dataclass(frozen=True)
class Drop:
    """How much outputs changed when filters were taken out.

    Attributes:
        per_image: mean squared difference of the maps of gradients, in thousandths.
    """

    per_image: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over images."""
        return statistics.fmean(self.per_image)


def blended(target: Model, base: Network, table: FilterTable, filters: Tensor, share: float = 0.0) -> Model:
    """Return a copy of the target whose chosen filters are ``share`` target and the rest baseline.

    Args:
        target: left untouched.
        base: the baseline, a network or its state.
        table: the filters of the network.
        filters: numbers of those that change (K,).
        share: 1 is the target bit by bit, 0 puts in the baseline's; above 1 goes beyond the target.

    Raises:
        WeightsError: base and target are not of one architecture.
    """
    check_same(state_of(base), state_of(target), target)
    network = copy.deepcopy(target)
    place(network, places(table, filters), state_of(base), state_of(target), share)
    return network


def places(table: FilterTable, filters: Tensor) -> dict[str, Tensor]:
    """Return where the chosen filters lie in each flattened tensor that has any: int64."""
    tensors = {tensor.name: tensor for tensor in table}
    chosen = table.chosen(filters.cpu())
    return {name: tensors[name].elements()[own].flatten() for name, own in chosen.items()}


def place(
    network: nn.Module,
    where: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    target: Mapping[str, Tensor],
    share: float,
) -> None:
    """Write the blend of two states into a network, at some places of some tensors."""
    parameters = dict(network.named_parameters())
    with torch.no_grad():
        for name, indices in where.items():
            weight = parameters[name]
            indices = indices.to(weight.device)
            values = [state[name].detach().to(weight).flatten()[indices] for state in (base, target)]
            # Not a view: weights may be laid out channels last.
            flat = weight.detach().flatten().index_copy(0, indices, torch.lerp(values[0], values[1], share))
            weight.copy_(flat.view(weight.shape))


def mask_drop(
    target: nn.Module,
    base: Network,
    table: FilterTable,
    filters: Tensor,
    images: Iterable[Tensor],
    metric: Metric = "luma",
) -> Drop:
    """Take filters out of the target and measure how much its outputs change: the masking test.

    Biases and norms stay the target's. Larger means that the filters matter more for what the images suffer
    from; on images with another degradation it should be small.

    Args:
        target: runs where it lies.
        base: the baseline, whose filters are put in.
        table: the filters of the network.
        filters: numbers of those that are taken out (K,).
        images: degraded, (C, H, W) or (1, C, H, W).
        metric: ``luma`` compares maps of luma on float outputs. ``release`` rounds outputs to 8 bits and
            takes the blue channel, which is what FAIG's released script reads where it means gray.

    Raises:
        ImageError: there are no images.
        WeightsError: base and target are not of one architecture.
    """
    return mask_drops(target, base, table, {0: filters}, images, (metric,))[0][metric]


def mask_drops(
    target: nn.Module,
    base: Network,
    table: FilterTable,
    choices: Mapping[Key, Tensor],
    images: Iterable[Tensor],
    metrics: Sequence[Metric] = ("luma",),
    progress: Callable[[], None] = lambda: None,
) -> dict[Key, dict[Metric, Drop]]:
    """Do the masking test for several lists of filters at once: the target restores each image only once.

    Args:
        target: runs where it lies.
        base: the baseline, whose filters are put in.
        table: the filters of the network.
        choices: lists of filters (K,), by any key.
        images: degraded, (C, H, W) or (1, C, H, W).
        metrics: see ``mask_drop``.
        progress: called after every image.

    Raises:
        ImageError: there are no images.
        WeightsError: base and target are not of one architecture.
    """
    for metric in metrics:
        if metric not in METRICS:
            raise RestoreKitError(f"no metric called {metric!r}; metrics: {', '.join(METRICS)}", "use luma")
    states = state_of(base), state_of(target)
    check_same(*states, target)
    network = copy.deepcopy(target).eval()
    where = {key: places(table, filters) for key, filters in choices.items()}
    like = next(network.parameters())
    drops: dict[Key, dict[Metric, list[float]]] = {key: {metric: [] for metric in metrics} for key in choices}
    with torch.no_grad(), steady(like.device):
        for image in images:
            degraded = (image[None] if image.dim() == 3 else image).to(like)
            output = restored(network, degraded)
            whole = {metric: gradient_map(output, metric) for metric in metrics}
            for key, own in where.items():
                place(network, own, *states, 0.0)
                output = restored(network, degraded)
                place(network, own, *states, 1.0)
                for metric in metrics:
                    change = (gradient_map(output, metric) - whole[metric]).square().mean()
                    drops[key][metric].append(float(change) * _PER_MILLE)
            progress()
    if not all(found for row in drops.values() for found in row.values()):
        raise ImageError("there are no images to restore", "give at least one")
    return {key: {metric: Drop(tuple(found)) for metric, found in row.items()} for key, row in drops.items()}


def gradient_map(image: Tensor, metric: Metric = "luma") -> Tensor:
    """(1, C, H, W) -> (1, 1, H, W): size of the gradient, by central differences with zeros outside.

    sqrt(dx^2 + dy^2 + 1e-6), dx and dy by [-1, 0, 1], of luma or as FAIG's released script has it.
    """
    if metric == "release":
        # OpenCV reads blue first; asked wrongly for gray it gives that channel.
        gray = (image[:, -1:].clamp(0, 1) * 255).round() / 255
    elif image.shape[1] == 3:
        gray = luma(image)
    else:
        gray = image.mean(1, keepdim=True)
    kernel = image.new_tensor([-1.0, 0.0, 1.0])
    across = conv2d(gray, kernel.view(1, 1, 1, 3), padding=(0, 1))
    down = conv2d(gray, kernel.view(1, 1, 3, 1), padding=(1, 0))
    return (across.square() + down.square() + 1e-6).sqrt()
