"""The training loop: seeded, resumable, with averaged weights and a curve.

A run folder holds ``curve.csv``, ``curve.png``, ``last.pt`` (everything that resuming needs) and, once done,
``weights.safetensors``. Files are written beside their place and moved, so that a killed run loses nothing.
"""

from __future__ import annotations

import copy
import csv
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from restorekit.contracts import Backbone
from restorekit.degradations import add_gaussian_noise, compress_jpeg
from restorekit.errors import TrainingError
from restorekit.files import replacing
from restorekit.runtime import channels_last
from restorekit.training.curve import draw_curve
from restorekit.training.data import Photographs, training_batch, validation_patches
from restorekit.training.losses import LOSSES
from restorekit.training.spec import OptimizerSpec, StageSpec, TrainSpec

Row = dict[str, float]
Report = Callable[[int, Row], None]


class Run:
    """One training run: the network, its average, the optimizer and the step they have reached.

    Args:
        spec: what to train, on what, for how long.
        backbone: the network to train, freshly built.
        folder: where the run keeps its files; made when missing.
        device: where to train.
    """

    def __init__(self, spec: TrainSpec, backbone: Backbone, folder: Path, device: torch.device) -> None:
        self.spec, self.folder, self.device = spec, folder, device
        # Depthwise convolutions are several times faster with channels innermost, on CPU and GPU alike.
        self.network = backbone.to(device).train()
        channels_last(self.network)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        settings = spec.optimizer
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )
        self.step = 0
        self.rows: list[Row] = []

    @property
    def checkpoint(self) -> Path:
        """The file that the run resumes from."""
        return self.folder / "last.pt"

    def resume(self) -> None:
        """Continue from the last checkpoint.

        Raises:
            TrainingError: there is none, or it belongs to another network.
        """
        if not self.checkpoint.exists():
            raise TrainingError(
                f"{self.checkpoint} does not exist, nothing to resume", "start without --resume"
            )
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
            self.average.load_state_dict(state["average"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise TrainingError(
                f"{self.checkpoint} belongs to another network than the config",
                "train into another folder with -o",
            ) from error
        self.step, self.rows = state["step"], state["rows"]

    def train(self, photographs: Photographs, report: Report) -> Path:
        """Train to the last step and return the file of the better of raw and averaged weights.

        Args:
            photographs: what to train on.
            report: called after every step with the step and its figures.

        Raises:
            TrainingError: the loss is not finite any more.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        loss_of = LOSSES[self.spec.loss]
        clean_patches = validation_patches(photographs)
        running: list[float] = []
        started = time.perf_counter() - (self.rows[-1]["seconds"] if self.rows else 0)
        while self.step < self.spec.steps:
            stage = stage_at(self.spec.stages, self.step)
            degraded, clean = training_batch(
                photographs,
                self.spec.degradation,
                patch=stage.patch,
                batch=stage.batch,
                seed=self.spec.seed,
                step=self.step,
            )
            running.append(self._update(degraded, clean, loss_of))
            self.step += 1
            row: Row = {"step": self.step, "loss": running[-1], "lr": self.optimizer.param_groups[0]["lr"]}
            last = self.step == self.spec.steps
            if last or self.step % self.spec.validate_every == 0:
                row |= {"loss": sum(running) / len(running), "seconds": time.perf_counter() - started}
                row |= {f"val_{name}": value for name, value in validate(self.network, clean_patches).items()}
                row |= {f"ema_{name}": value for name, value in validate(self.average, clean_patches).items()}
                running = []
                self.rows.append(row)
                self._write_curve()
            if last or self.step % self.spec.save_every == 0:
                self._save()
            report(self.step, row)
        return self._export()

    def _update(self, degraded: Tensor, clean: Tensor, loss_of: Callable[[Tensor, Tensor], Tensor]) -> float:
        """Take one optimizer step and return its loss."""
        settings = self.spec.optimizer
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(settings, self.step, self.spec.steps)
        degraded = degraded.to(self.device, memory_format=torch.channels_last)
        clean = clean.to(self.device, memory_format=torch.channels_last)
        outputs = self.network.training_outputs(degraded)
        loss = torch.stack([loss_of(output, clean) for output in outputs]).sum()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step}",
                "lower optimizer.lr; the last checkpoint is intact",
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip)
        self.optimizer.step()
        # Early weights are forgotten fast and late ones slowly: a fixed decay would drag in the random start.
        decay = min(self.spec.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.network.parameters()), 1 - decay)
        return value

    def _save(self) -> None:
        state = {
            "step": self.step,
            "rows": self.rows,
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def _write_curve(self) -> None:
        with replacing(self.folder / "curve.csv") as temporary, temporary.open("w", newline="") as file:
            table = csv.DictWriter(file, list(self.rows[0]), lineterminator="\n")
            table.writeheader()
            table.writerows({name: round(value, 6) for name, value in row.items()} for row in self.rows)
        draw_curve(self.rows, self.folder / "curve.png")

    def _export(self) -> Path:
        """Write the weights that validated better, in half precision: half the size, and no figure moves."""
        final = self.rows[-1]
        raw, averaged = (_mean(final, prefix) for prefix in ("val_", "ema_"))
        chosen = self.average if averaged >= raw else self.network
        tensors = {name: value.half().contiguous() for name, value in chosen.state_dict().items()}
        path = self.folder / "weights.safetensors"
        with replacing(path) as temporary:
            save_file(
                tensors, temporary, {"restorekit_arch": self.spec.backbone.name, "steps": str(self.step)}
            )
        return path


def stage_at(stages: tuple[StageSpec, ...], step: int) -> StageSpec:
    """Return the stage that a step (from 0) belongs to."""
    for stage in stages:
        if step < stage.steps:
            return stage
        step -= stage.steps
    return stages[-1]


def learning_rate(settings: OptimizerSpec, step: int, steps: int) -> float:
    """Return the rate of a step (from 0): linear warm-up, then half a cosine down to ``min_lr``."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, steps - settings.warmup)
    return settings.min_lr + (settings.lr - settings.min_lr) * (1 + math.cos(math.pi * progress)) / 2


def validate(network: Backbone, clean: Tensor) -> Row:
    """Return mean PSNR in dB on patches (N, 3, H, W): noisy at sigma 15, 25, 50, compressed, and clean."""
    inputs = {
        f"sigma{sigma}": add_gaussian_noise(clean, sigma, torch.Generator().manual_seed(sigma))
        for sigma in (15, 25, 50)
    }
    inputs["jpeg50"] = torch.stack([compress_jpeg(patch, 50) for patch in clean])
    inputs["clean"] = clean
    device = next(network.parameters()).device
    was_training = network.training
    network.eval()
    figures = {}
    with torch.inference_mode():
        for name, degraded in inputs.items():
            batches = zip(torch.split(degraded, 8), torch.split(clean, 8), strict=True)
            errors = [
                (network(noisy.to(device)).clamp(0, 1).cpu() - target).square().mean((1, 2, 3))
                for noisy, target in batches
            ]
            # An unchanged image would be infinitely good; 1e-10 is 100 dB.
            figures[name] = float((-10 * (torch.cat(errors) + 1e-10).log10()).mean())
    network.train(was_training)
    return figures


def _mean(row: Row, prefix: str) -> float:
    values = [value for name, value in row.items() if name.startswith(prefix + "sigma")]
    return sum(values) / len(values)
