"""The straight line between two networks in the space of their weights, and the gradients along it.

Images are outside and the path is inside, because FAIG takes the absolute value of each image's sum. Beside
the two networks there are never more than one network on the way, one set of gradients and one score for each
filter: the memory does not depend on the number of steps or images.

Shape letters: ``F`` filters of the network.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from restorekit.analysis.pairs import Pair, restored
from restorekit.analysis.rules import spans
from restorekit.errors import RestoreKitError, WeightsError
from restorekit.filters import FilterTable, fingerprint
from restorekit.runtime import channels_last

# Restored and clean (1, C, H, W) -> a scalar.
Criterion = Callable[[Tensor, Tensor], Tensor]
Loss = Literal["sse", "mse"] | Criterion
# What is no Backbone keeps size and channels of its images.
Network = nn.Module | Mapping[str, Tensor]


def sse(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the sum of squared errors, the function measure of FAIG; large images weigh more."""
    return (restored - clean).square().sum()


def mse(restored: Tensor, clean: Tensor) -> Tensor:
    """Return the mean squared error: images of any size weigh alike, ranks within an image stay."""
    return (restored - clean).square().mean()


CRITERIA: Mapping[str, Criterion] = {"sse": sse, "mse": mse}


def criterion_of(loss: Loss) -> tuple[Criterion, str]:
    """Return a loss and its name.

    Raises:
        RestoreKitError: there is none of that name.
    """
    if callable(loss):
        return loss, getattr(loss, "__qualname__", type(loss).__name__)
    if loss not in CRITERIA:
        raise RestoreKitError(f"no loss called {loss!r}; losses: {', '.join(CRITERIA)}", "or give a function")
    return CRITERIA[loss], loss


@dataclass(frozen=True)
class Parts:
    """What one image says, beside the scores of its filters.

    Attributes:
        change: loss of the baseline less loss of the target.
        attributed: what all that moves accounts for, signed; equals ``change`` but for the steps.
        filters: the part of it that filters account for.
        others: of each moved tensor without filters (biases, norms): its absolute values summed.
    """

    change: float
    attributed: float
    filters: float
    others: Mapping[str, float]


class Walk:
    """Two networks of one architecture and the line between them: 0 is the target, 1 the baseline.

    All float parameters and buffers move along it. The networks given are left untouched.

    Args:
        base: the baseline, a network or its state.
        target: the target, likewise; one of the two must be a network.
        table: the filters to score.
        device: where to compute; where the network lies when not given.

    Attributes:
        network: the one on the way, in eval mode.
        moved: parameters that differ between the two, by name.

    Raises:
        WeightsError: the two are not of one architecture.
        RestoreKitError: neither is a network, or nothing differs between them.
    """

    def __init__(
        self, base: Network, target: Network, table: FilterTable, device: torch.device | None = None
    ) -> None:
        model = network_of(base, target)
        home = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.device, self.table = device or home, table
        self.network = _working_copy(model, self.device)
        own = {**dict(self.network.named_parameters()), **dict(self.network.named_buffers())}
        states = state_of(base), state_of(target)
        check_same(*states, model)
        floats = {name: value.detach() for name, value in own.items() if value.is_floating_point()}
        # A buffer that is not in the state cannot differ between two states.
        names = [name for name in floats if all(name in state for state in states)]
        self._base, self._target = (
            {name: state[name].detach().to(floats[name]) for name in names} for state in states
        )
        with torch.no_grad():
            for name, value in own.items():
                if not value.is_floating_point() and name in states[1]:
                    value.copy_(states[1][name])
        differs = [name for name in names if not torch.equal(self._base[name], self._target[name])]
        self._line = {name: floats[name] for name in differs}
        parameters = dict(self.network.named_parameters())
        self.moved = {name: parameters[name] for name in differs if name in parameters}
        self._buffers = [name for name in differs if name not in parameters]
        if not self.moved and not self._buffers:
            raise RestoreKitError(
                "base and target have the same weights: there is nothing to attribute",
                "give the network before and after it was trained on the degradation",
            )
        # What does not move needs no gradient.
        for parameter in self.moved.values():
            parameter.requires_grad_()
        self._like = next(iter(self._line.values()))
        self._place(0.0)

    def score(
        self,
        pair: Pair,
        places: Sequence[tuple[float, float]],
        criterion: Criterion,
        into: Tensor | None = None,
        step: Callable[[], None] = lambda: None,
    ) -> Parts:
        """Walk the line for one image.

        Args:
            pair: the image.
            places: on the line with their weights, ascending, as ``rules.points`` gives them.
            criterion: the loss.
            into: scores of the filters (F,) are added to it, in place; nothing is, where this fails.
            step: called after every place.

        Raises:
            RestoreKitError: a loss or a gradient is not finite, the loss is not one number, or it depends on
                nothing that moves.
        """
        # What a score that failed on its way has left would be added to this one.
        self._forget()
        with torch.inference_mode(False), torch.enable_grad(), steady(self.device):
            # What inference mode made cannot take part in a gradient; copies can.
            degraded, clean = (image.to(self._like, copy=True) for image in (pair.degraded, pair.clean))
            pair = Pair(degraded, clean, pair.name)
            target_loss, base_loss = (self._loss(pair, criterion, place) for place in (0.0, 1.0))
            buffers = 0.0
            for (place, weight), part in zip(places, spans(places), strict=True):
                self._place(place)
                loss = self._run(pair, criterion, place)
                if not loss.requires_grad and self.moved:
                    raise RestoreKitError(
                        f"{pair.name}: the loss depends on no weight that differs between base and target",
                        "check the loss, and that the network uses its weights with gradients",
                    )
                if self.moved:
                    torch.autograd.backward(loss * weight, inputs=list(self.moved.values()))
                if self._buffers:
                    buffers += self._of_buffers(pair, criterion, part)
                step()
        return self._gathered(pair, base_loss - target_loss, buffers, into)

    def _gathered(self, pair: Pair, change: float, buffers: float, into: Tensor | None) -> Parts:
        """Turn the summed gradients into scores, and drop them."""
        gradients = {name: value.grad for name, value in self.moved.items() if value.grad is not None}
        self._forget()
        scored = {tensor.name: tensor for tensor in self.table}
        others: dict[str, Tensor] = {}
        with torch.no_grad():
            # Twice the little work, so that what is not finite never enters the sums.
            totals = {name: self._parts(name, gradient).sum() for name, gradient in gradients.items()}
            parts = {name: float(total) for name, total in totals.items()}
            for name, part in parts.items():
                if not math.isfinite(part):
                    raise RestoreKitError(
                        f"{pair.name}: the gradient of {name} is not finite on the way from target to base",
                        "leave the image out, or look for a root or a division at zero in the network",
                    )
            for name in list(gradients):
                sizes = self._parts(name, gradients.pop(name)).abs_()
                if name not in scored:
                    others[name] = sizes.sum()
                elif into is not None:
                    first, count = scored[name].offset, scored[name].count
                    into[first : first + count] += scored[name].rows(sizes).sum(1).to(into)
        return Parts(
            change,
            attributed=sum(parts.values()) + buffers,
            filters=sum(part for name, part in parts.items() if name in scored),
            others={name: float(value) for name, value in others.items()},
        )

    def _forget(self) -> None:
        for parameter in self.moved.values():
            parameter.grad = None

    def _parts(self, name: str, gradient: Tensor) -> Tensor:
        return (self._base[name] - self._target[name]).mul_(gradient)

    def scores(self) -> Tensor:
        """Return zeros (F,) on the CPU, to which scores can be added."""
        return torch.zeros(len(self.table), dtype=self._like.dtype)

    def _place(self, place: float, names: Sequence[str] | None = None) -> None:
        """Move the network, or some tensors of it; both ends are met exactly."""
        with torch.no_grad():
            for name in self._line if names is None else names:
                torch.lerp(self._target[name], self._base[name], place, out=self._line[name])

    def _run(self, pair: Pair, criterion: Criterion, place: float) -> Tensor:
        # A network that draws numbers draws the same ones all along the way: one function, one integral.
        torch.manual_seed(0)
        loss = criterion(restored(self.network, pair.degraded), pair.clean)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise RestoreKitError(
                f"{pair.name}: the loss returns {found}, not a tensor of one number",
                "return a sum or a mean of the restored and the clean image, with its gradient",
            )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RestoreKitError(
                f"{pair.name}: the loss is {value} at {place:.4g} of the way from target to base",
                "leave the image out, or look for what overflows in the network or in the loss",
            )
        return loss

    def _loss(self, pair: Pair, criterion: Criterion, place: float) -> float:
        self._place(place)
        with torch.no_grad():
            return float(self._run(pair, criterion, place))

    def _of_buffers(self, pair: Pair, criterion: Criterion, part: tuple[float, float]) -> float:
        """Return what buffers (running statistics) account for in a part: no gradient reaches them."""
        losses = []
        with torch.no_grad():
            for end in part:
                self._place(end, self._buffers)
                losses.append(float(self._run(pair, criterion, end)))
        return losses[1] - losses[0]


def network_of(*candidates: Network) -> nn.Module:
    """Return the first that is a network.

    Raises:
        RestoreKitError: all are states, or one is neither a network nor a state.
    """
    for candidate in candidates:
        if not isinstance(candidate, (nn.Module, Mapping)):
            raise RestoreKitError(
                f"{type(candidate).__name__} is given instead of a network or its state",
                "give a torch.nn.Module, or what its state_dict() returns",
            )
    for candidate in candidates:
        if isinstance(candidate, nn.Module):
            return candidate
    raise RestoreKitError("base and target are both states", "give one of them as a network")


def state_of(network: Network) -> Mapping[str, Tensor]:
    """Return the state of a network, or the state itself."""
    return network.state_dict() if isinstance(network, nn.Module) else network


def mark_of(network: Network, like: nn.Module) -> str:
    """Return the fingerprint of a network; that of a state is the one it has in ``like``'s precision."""
    if isinstance(network, nn.Module):
        return fingerprint(network.state_dict())
    own = like.state_dict()
    return fingerprint({name: value.to(own[name].dtype) for name, value in network.items()})


def check_same(base: Mapping[str, Tensor], target: Mapping[str, Tensor], model: nn.Module) -> None:
    """Compare names and shapes of two states.

    Raises:
        WeightsError: they differ; the first difference is named.
    """
    kind, own = type(model).__name__, model.state_dict()
    for what, state in (("base", base), ("target", target)):
        for name in (*own, *state):
            if name not in own or name not in state:
                where = "missing from" if name in own else "unknown to the network, but in"
                raise WeightsError(
                    f"base and target are not of one architecture: {name} is {where} the {what}",
                    "give two sets of weights of the same network",
                )
            if own[name].shape != state[name].shape:
                raise WeightsError(
                    f"base and target are not of one architecture: {name} is {tuple(state[name].shape)} in"
                    f" the {what}, {tuple(own[name].shape)} in {kind}",
                    "give two sets of weights of the same network",
                )


def _working_copy(model: nn.Module, device: torch.device) -> nn.Module:
    # What inference mode makes can never have gradients.
    with torch.inference_mode(False):
        network = copy.deepcopy(model).requires_grad_(False).eval().to(device)
        for parameter in network.parameters():
            parameter.grad = None
        # Half precision breaks completeness.
        if any(value.dtype in (torch.float16, torch.bfloat16) for value in network.parameters()):
            network.float()
        channels_last(network)
    return network


@contextmanager
def steady(device: torch.device) -> Iterator[None]:
    """Compute in full float32 and the same way every time, and leave torch's generators as they were."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        if not cuda:
            yield
            return
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            yield
