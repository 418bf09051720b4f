"""One optimizer step: the network, its average, the optimizer and the loss. Knows no files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from restorekit.errors import TrainingError
from restorekit.runtime import channels_last
from restorekit.training.average import Average
from restorekit.training.build import Networks
from restorekit.training.checkpoint import load_optimizer_state, optimizer_state
from restorekit.training.clock import Clock
from restorekit.training.data import Batch
from restorekit.training.losses import kind_loss, weighted
from restorekit.training.processes import Processes
from restorekit.training.schedule import learning_rate
from restorekit.training.spec import TrainSpec
from restorekit.training.trainee import Outputs


class Learner:
    """What learns, on the device of its process.

    Args:
        spec: loss, optimizer, precision.
        networks: freshly built.
        processes: those that learn together.
        clock: counts where the time goes.
    """

    def __init__(self, spec: TrainSpec, networks: Networks, processes: Processes, clock: Clock) -> None:
        self.spec, self.processes, self.clock = spec, processes, clock
        device = processes.device
        self.trainee = networks.trainee.to(device).train()
        # Depthwise convolutions are several times faster with channels innermost, on CPU and GPU alike.
        for network in self.trainee.children():
            channels_last(network)
        self._network = processes.prepare(self.trainee)
        of_images = {name: weight for name, weight in spec.loss.items() if name != "kind"}
        self._loss = weighted(of_images, networks.perceptual.to(device) if networks.perceptual else None)
        self.parameters = self.trainee.trained_parameters()
        self.average = Average(self.parameters, spec.ema) if spec.ema else None
        settings = spec.optimizer
        groups = [
            {
                "params": [value for name, value in self.parameters.items() if name.startswith(f"{part}.")],
                "factor": settings.factors.get(part, 1.0),
            }
            for part in spec.trained_parts
        ]
        self._optimizer = torch.optim.AdamW(
            groups, settings.lr, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
        )

    def learn(self, batch: Batch, step: int) -> tuple[float, float]:
        """Take one step, counted from 0, on a batch that all processes share.

        Returns:
            its loss, and the norm of its gradient; where they are not finite, nor are the weights any more.

        Raises:
            TrainingError: no gradient reaches what is trained.
        """
        rate = learning_rate(self.spec.optimizer, step, self.spec.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with self.clock.counting("forward+backward"):
            loss = self._backward(batch, step)
        with self.clock.counting("optimizer"):
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), self.spec.optimizer.clip)
            self._optimizer.step()
            if self.average:
                self.average.update(step)
            # The only wait for the device in a step, but for those of a refiner's prior.
            value, size = torch.stack((self.processes.mean(loss), norm)).tolist()
        return value, size

    def _backward(self, batch: Batch, step: int) -> Tensor:
        """Set the gradients of a batch, part by part; return its loss in this process."""
        # Networks that draw numbers, as for dropout, draw the same ones in a resumed run.
        words = np.random.SeedSequence((self.spec.seed, step, self.processes.rank)).generate_state(1)
        torch.manual_seed(int(words[0]))
        parts = self.spec.accumulate
        sent = batch.of(lambda tensor: self._sent(self.processes.share(tensor)))
        self._optimizer.zero_grad(set_to_none=True)
        losses = []
        for index, part in enumerate(sent.parts(parts)):
            with self.processes.gathering(self._network, last=index == parts - 1):
                loss = self._loss_of(part) / parts
                self.processes.backward(loss)
            losses.append(loss.detach())
        if all(parameter.grad is None for parameter in self.parameters.values()):
            raise _unreached(self.spec)
        return torch.stack(losses).sum()

    def _loss_of(self, batch: Batch) -> Tensor:
        half = self.spec.precision == "bf16"
        with torch.autocast(self.processes.device.type, torch.bfloat16, enabled=half):
            outputs: Outputs = self._network(batch.degraded, batch.kinds, batch.scenes, batch.places)
        terms = [self._loss(image.float(), batch.clean) for image in outputs.images]
        if outputs.logits is not None and "kind" in self.spec.loss:
            terms.append(self.spec.loss["kind"] * kind_loss(outputs.logits, batch.kinds))
        loss = torch.stack(terms).sum()
        if not loss.requires_grad:
            raise _unreached(self.spec)
        return loss

    def _sent(self, tensor: Tensor) -> Tensor:
        order = torch.channels_last if tensor.dim() == 4 else torch.preserve_format
        return tensor.to(self.processes.device, memory_format=order, non_blocking=True)

    @contextmanager
    def evaluating(self, averaged: bool) -> Iterator[None]:
        """Put the trainee into eval mode for a while, with averaged or raw weights, without gradients."""
        self.trainee.eval()
        try:
            with torch.no_grad():
                if averaged and self.average:
                    with self.average.applied():
                        yield
                else:
                    yield
        finally:
            self.trainee.train()

    def restore(self, degraded: Tensor, kinds: Tensor) -> Tensor:
        """(B, C, H, W) and kinds (B, K) on any device -> (B, C, H, W) on the learner's."""
        return self.trainee.restore(self._sent(degraded), kinds.to(self.processes.device))

    def tell(self, degraded: Tensor) -> Tensor | None:
        """(B, C, H, W) on any device -> logits of the kinds (B, K), where the trainee tells them."""
        return self.trainee.tell(self._sent(degraded))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return all that learning goes on from: weights, average, optimizer."""
        return {
            "weights": self.trainee.state(),
            "average": self.average.values if self.average else {},
            "optimizer": optimizer_state(self._optimizer, self.parameters),
        }

    def load_state(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Put back what ``state`` returned.

        Raises:
            RuntimeError, ValueError, KeyError: it is of another network.
        """
        self.trainee.load_state(state["weights"])
        for name, value in (self.average.values if self.average else {}).items():
            value.copy_(state["average"][name])
        load_optimizer_state(self._optimizer, self.parameters, state["optimizer"])


def _unreached(spec: TrainSpec) -> TrainingError:
    named = " and ".join(f"{part} {getattr(spec, part).name}" for part in spec.trained_parts)
    return TrainingError(
        f"no gradient reaches the parameters of {named}",
        "an adapter's attach() must use its own parameters, not copies of them",
    )
