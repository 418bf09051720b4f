"""Train nothing but chosen filters of the baseline: do their places suffice for a degradation?

Of FAIG's experiments the one that keeps the places and forgets the values. Everything else stays bit by bit.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from restorekit.analysis.pairs import Terms
from restorekit.analysis.protocols.substitution import Model, places
from restorekit.errors import TrainingError
from restorekit.filters import FilterTable
from restorekit.tiling import pad_to_multiple
from restorekit.training.losses import Loss, l1
from restorekit.training.schedule import learning_rate
from restorekit.training.spec import OptimizerSpec

# Step (from 0) -> degraded and clean patches (B, C, H, W).
Batch = Callable[[int], tuple[Tensor, Tensor]]


def retrain(
    base: Model,
    table: FilterTable,
    filters: Tensor,
    batch: Batch,
    *,
    steps: int,
    lr: float = 2e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    loss: Loss = l1,
    progress: Callable[[int, float], None] = lambda step, value: None,
) -> Model:
    """Return a copy of the baseline, its chosen filters trained, all else bit by bit as it was.

    Only the values of these filters are parameters of the optimizer, so that its moments too have their size.
    Adam, half a cosine down to zero; the final output is compared, in eval mode. Biases stay, as in FAIG.

    Args:
        base: where it lies is where it is trained.
        table: the filters of the network.
        filters: numbers of those that are trained (K,).
        batch: gives the patches of a step; the same for every step it is asked for again.
        steps: how many.
        lr: first learning rate.
        betas: of Adam.
        loss: of restored and clean patches; the mean absolute error, as FAIG trains, when not given.
        progress: called after every step with its number and loss.

    Raises:
        TrainingError: the loss or a gradient is not finite any more; ``base`` is untouched.
    """
    network, terms = copy.deepcopy(base).requires_grad_(False).eval(), Terms.of(base)
    frozen = dict(network.named_parameters())
    where = {name: indices.to(frozen[name].device) for name, indices in places(table, filters).items()}
    values = {name: nn.Parameter(frozen[name].flatten()[indices]) for name, indices in where.items()}
    if not values:
        return network
    homes = {name: _homes(network, frozen[name]) for name in values}
    optimizer = torch.optim.Adam(values.values(), lr, betas=betas)
    settings = OptimizerSpec(lr=lr, min_lr=0.0, warmup=0)
    like = next(iter(values.values()))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings, step, steps)
        degraded, clean = (images.to(like) for images in batch(step))
        padded = pad_to_multiple(degraded, terms.size_multiple, terms.padding)
        written = _written(frozen, where, values)
        everywhere = {name: written[first] for first, names in homes.items() for name in names}
        # torch ties names by itself too, and then does not put back what a module has that is used twice.
        output = functional_call(network, everywhere, (padded,), tie_weights=False)
        value = loss(output[..., : clean.shape[-2], : clean.shape[-1]], clean)
        reached = float(value.detach())
        if not math.isfinite(reached):
            raise TrainingError(f"the loss is {reached} at step {step}", "lower the learning rate")
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        _check_gradients(values, step)
        optimizer.step()
        progress(step + 1, reached)
    with torch.no_grad():
        for name, weight in _written(frozen, where, values).items():
            frozen[name].copy_(weight)
    return network


def _check_gradients(values: dict[str, nn.Parameter], step: int) -> None:
    for name, value in values.items():
        if value.grad is not None and not bool(torch.isfinite(value.grad).all()):
            raise TrainingError(
                f"the gradient of {name} is not finite at step {step}",
                "leave the images of this step out, or look for a root or a division at zero in the network",
            )


def _homes(network: nn.Module, weights: nn.Parameter) -> list[str]:
    """Return the names of weights in every module that has them, each module once."""
    return [
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in network.named_modules()
        for name, own in module._parameters.items()
        if own is weights
    ]


def _written(
    frozen: dict[str, nn.Parameter], where: dict[str, Tensor], values: dict[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Return the weights with the trained values in their places; gradients reach the values alone."""
    return {
        name: frozen[name].detach().flatten().index_copy(0, where[name], value).view(frozen[name].shape)
        for name, value in values.items()
    }
