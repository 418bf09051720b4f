"""A run from its first step to its weights: batches in, checkpoints, curve and pictures out.

A killed run goes on from its last checkpoint and ends with the weights it would have had: batches and random
numbers depend on seed and step alone.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from torch import Tensor

from restorekit.errors import TrainingError
from restorekit.runtime import resolve_device
from restorekit.training import checkpoint
from restorekit.training.board import Board
from restorekit.training.build import Networks, build_networks
from restorekit.training.checkpoint import Progress, writing
from restorekit.training.clock import Clock
from restorekit.training.curve import AVERAGED, RAW, Row
from restorekit.training.data import Batch, Batches, load_source
from restorekit.training.environment import environment
from restorekit.training.export import export
from restorekit.training.folder import RunFolder, part_files
from restorekit.training.learner import Learner
from restorekit.training.pictures import strips, to_pil
from restorekit.training.prefetch import ahead
from restorekit.training.processes import Processes, processes
from restorekit.training.schedule import learning_rate, stage_at
from restorekit.training.sources import Source
from restorekit.training.spec import TrainSpec
from restorekit.training.validation import ValidationSet, validation_set

# Called after every step with the step and its figures.
Report = Callable[[int, Row], None]


def prepare(spec: TrainSpec, folder: Path, device: str = "auto", *, resume: bool = False) -> Run:
    """Build the networks, decode the photographs, and put back the last checkpoint where that is asked for.

    Args:
        spec: what to train, on what, for how long.
        folder: where the run keeps its files.
        device: auto, cpu, cuda, cuda:N or mps; several processes choose theirs by their number.
        resume: go on from the last checkpoint.

    Raises:
        RestoreKitError: the config, the data, or the folder does not allow it; the message says why.
    """
    together = processes(resolve_device(device))
    together.check(spec)
    networks = build_networks(spec)
    with together.first_alone():
        source = load_source(spec.data, networks.trainee.scale)
    run = Run(spec, networks, source, folder, together)
    run.batches.check(spec.stages)
    if resume:
        run.resume()
    return run


class Run:
    """One training run.

    Args:
        spec: what to train, on what, for how long.
        networks: freshly built.
        source: what patches are cut from.
        folder: where the run keeps its files; made when missing.
        together: the processes that train.

    Attributes:
        batches: what it sees.
        progress: the step that is reached, and the figures so far.
        clock: where the time went.
    """

    def __init__(
        self, spec: TrainSpec, networks: Networks, source: Source, folder: Path, together: Processes
    ) -> None:
        self.spec, self.networks, self.source, self.processes = spec, networks, source, together
        self.folder, self.clock, self.progress = RunFolder(folder), Clock(), Progress()
        self.learner = Learner(spec, networks, together, self.clock)
        trainee = networks.trainee
        self.batches = Batches(
            source,
            spec.noise,
            spec.seed,
            spec.augment,
            trainee.channels,
            trainee.scale,
            spec.kinds,
            spec.balanced,
            trainee.scenes,
        )

    def resume(self) -> None:
        """Continue from the last checkpoint.

        Raises:
            TrainingError: there is none, or config, photographs or networks are not those of the run.
        """
        state, progress = checkpoint.load(self.folder.last)
        self.folder.check_same(self.spec, self.source)
        try:
            self.learner.load_state(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise TrainingError(
                f"{self.folder.last} belongs to another network than the config",
                "train into another folder with -o",
            ) from error
        self.progress = progress

    def train(self, report: Report = lambda step, row: None) -> Path:
        """Train to the last step and return the file of the weights.

        Args:
            report: called after every step with the step and its figures.

        Raises:
            TrainingError: the loss is not finite any more, or a file cannot be written.
        """
        first = self.processes.rank == 0
        if first:
            facts = environment(self.processes.device, self.networks.parts.values(), self.processes.count)
            self.folder.begin(self.spec, facts, self.source)
            if self.progress.step == 0:
                self._save()
        multiple = self.networks.trainee.size_multiple
        validation = validation_set(self.batches, multiple, self.spec.validation) if first else None
        if validation and not self.networks.trainee.restores:
            validation = validation.of_kinds()
        board = (
            Board(self.folder.path / "board", self.progress.step) if first and self.spec.tensorboard else None
        )
        rows = self.progress.rows
        started = time.perf_counter() - (rows[-1]["seconds"] if rows else 0)
        for row in self._steps():
            last = self.progress.step == self.spec.steps
            if last or self.progress.step % self.spec.validate_every == 0:
                self._close_row(row, time.perf_counter() - started)
                if validation:
                    self._validate(row, validation, board)
            if first and (last or self.progress.step % self.spec.save_every == 0):
                self._save()
            report(self.progress.step, row)
        if board:
            board.close()
        if validation:
            self._export(validation)
        self.processes.finish()
        return self.folder.weights

    def _steps(self) -> Iterator[Row]:
        """Yield a row after every step, with nothing but its loss and learning rate."""
        spec, progress = self.spec, self.progress

        def make(step: int) -> Batch:
            batch = self.batches.batch(step, stage_at(spec.stages, step))
            # Pinned memory is copied to a GPU while that computes.
            on_gpu = self.processes.device.type == "cuda"
            return batch.of(Tensor.pin_memory) if on_gpu else batch

        batches = ahead(make, progress.step, spec.steps, spec.data.workers)
        with closing(batches):
            while progress.step < spec.steps:
                with self.clock.counting("data"):
                    batch = next(batches)
                loss, norm = self.learner.learn(batch, progress.step)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    raise self._diverged(loss, norm, batch)
                rate = learning_rate(spec.optimizer, progress.step, spec.steps)
                progress.step += 1
                progress.loss_sum += loss
                progress.loss_count += 1
                yield {"step": progress.step, "loss": loss, "lr": rate}

    def _diverged(self, loss: float, norm: float, batch: Batch) -> TrainingError:
        """Keep the batch, and return the error that names it."""
        step = self.progress.step
        path = self.folder.path / f"bad-batch-{step}.safetensors"
        if self.processes.rank == 0:
            checkpoint.save_tensors(path, vars(batch), {"step": str(step)})
        what = f"the gradient is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        return TrainingError(
            f"{what} at step {step}, its batch is in {path}",
            "lower optimizer.lr; the last checkpoint is intact",
        )

    def _close_row(self, row: Row, seconds: float) -> None:
        """Make the row of a validation of that of a step: with the mean loss since the last one."""
        progress = self.progress
        row |= {"loss": progress.loss_sum / progress.loss_count, "seconds": seconds}
        progress.loss_sum, progress.loss_count = 0.0, 0
        progress.rows.append(row)

    def _validate(self, row: Row, validation: ValidationSet, board: Board | None) -> None:
        """Measure raw and averaged weights; keep the better ones if they are the best so far."""
        with self.clock.counting("validation"):
            for prefix in (RAW, AVERAGED) if self.learner.average else (RAW,):
                with self.learner.evaluating(averaged=prefix == AVERAGED):
                    figures = validation.measure(self.learner.restore, self.learner.tell)
                row |= {prefix + name: value for name, value in figures.items()}
            averaged = self._averaged_is_better(row, validation)
            with self.learner.evaluating(averaged):
                picture = self._draw(validation)
            figure = _mean(row, AVERAGED if averaged else RAW, validation)
            if self.progress.best is None or figure > self.progress.best:
                self.progress.best, self.progress.best_step = figure, self.progress.step
                self._write_weights(self.folder.best, averaged)
            self.folder.write_curve(self.progress.rows)
            if board:
                board.write(row, picture)

    def _draw(self, validation: ValidationSet) -> Tensor | None:
        if self.spec.pictures == 0 or not self.networks.trainee.restores:
            return None
        picture = strips(validation.examples(self.learner.restore, self.spec.pictures))
        folder = self.folder.path / "pictures"
        folder.mkdir(exist_ok=True)
        with writing(folder / f"step-{self.progress.step:07d}.png") as temporary:
            to_pil(picture).save(temporary)
        return picture

    def _averaged_is_better(self, row: Row, validation: ValidationSet) -> bool:
        if self.learner.average is None:
            return False
        return _mean(row, AVERAGED, validation) >= _mean(row, RAW, validation)

    def _save(self) -> None:
        checkpoint.save(self.folder.last, self.learner.state(), self.progress)

    def _write_weights(self, path: Path, averaged: bool) -> None:
        parts, step = self.networks.parts, self.progress.step
        with self.learner.evaluating(averaged):
            export(self.learner.trainee, parts, path, step=step, half=self.spec.half)

    def _export(self, validation: ValidationSet) -> None:
        """Write the result: of the last step, or of the best validation."""
        if self.spec.export == "last":
            averaged = self._averaged_is_better(self.progress.rows[-1], validation)
            self._write_weights(self.folder.weights, averaged)
            return
        best, result = (
            part_files(path, self.learner.trainee.parts) for path in (self.folder.best, self.folder.weights)
        )
        for part, file in reversed(result.items()):
            with writing(file) as temporary:
                shutil.copyfile(best[part], temporary)


def _mean(row: Row, prefix: str, validation: ValidationSet) -> float:
    return sum(row[prefix + name] for name in validation.decisive) / len(validation.decisive)
