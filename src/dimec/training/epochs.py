"""The epoch loop: stages of epochs, a checkpoint after each epoch, and the best epoch of each stage kept.

A killed training goes on after its last whole epoch and ends with the same weights as one that was never stopped.
"""

from __future__ import annotations

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Generic, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dimec.core.errors import DimecError, OptionError
from dimec.core.files import write_json
from dimec.core.metrics import Metric, metric_words
from dimec.core.progress import Progress
from dimec.data import bucketed_batches
from dimec.runs.compressed import CompressOptions
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import FitOptions
from dimec.training.batching import Hardware, Inputs, Rows, reusing_memory
from dimec.training.processes import ALONE, Processes
from dimec.training.state import (
    EpochLog,
    Recorder,
    load_best_weights,
    load_checkpoint,
    read_history,
    save_checkpoint,
    write_metrics,
)
from dimec.training.trackers import Track

WARM_UP = 0.06
ALL, LAST, OTHERS = slice(None), slice(-1, None), slice(None, -1)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A number of epochs with a learning-rate schedule of their own.

    Attributes:
        name: What the epochs' logs call it.
        exits: The exits that learn.
        judges: The exits whose mean validation score picks the epoch that is kept.
    """

    name: str
    exits: slice = field(default_factory=lambda: ALL)
    judges: slice = field(default_factory=lambda: LAST)

    @property
    def criterion(self) -> str:
        """Where on validation the kept epoch is the best."""
        return "at the last exit" if self.judges == LAST else "in the mean of the other exits"

    def best(self, history: Sequence[EpochLog]) -> EpochLog:
        """Return this stage's best epoch in a history: of equal scores the one of least loss, then the first."""
        return max(
            (log for log in history if log.stage == self.name),
            key=lambda log: (
                fmean(log.validation_scores[self.judges]),
                -fmean(log.validation_losses[self.judges]),
            ),
        )


OfStage = TypeVar("OfStage", bound=Stage)


class Trainer(ABC, Generic[OfStage]):
    """Trains a model in stages; subclasses say what learns, from which loss, and how validation is read.

    Attributes:
        folder: Where metrics and checkpoints go.
        stages: The stages, in order; dynamics are recorded in the last.
        class_weights: What a row of each class weighs in the loss; None for all the same.
        rows: The training rows.
        model: What is switched to training.
        learnt: The part of it whose weights are kept.
        exits: The layers with an exit that validation reads.
        recorders: The dynamics to record: "train" and "validation", or none.
        rates: The options to lower where training diverges.
        processes: Those that train together; every one ends with the same weights.
    """

    folder: Path
    stages: tuple[OfStage, ...]
    options: FitOptions | CompressOptions
    hardware: Hardware
    metric: Metric
    class_weights: tuple[float, ...] | None
    rows: Rows
    model: nn.Module
    learnt: nn.Module
    exits: tuple[int, ...]
    recorders: Mapping[str, Recorder]
    rates: tuple[str, ...]
    processes: Processes = ALONE

    @cached_property
    def weights(self) -> Tensor | None:
        """The class weights where the training is."""
        if self.class_weights is None:
            return None
        return torch.tensor(self.class_weights, device=self.hardware.device)

    @abstractmethod
    def begin(self, stage: OfStage) -> tuple[torch.optim.Optimizer, ...]:
        """Ask for gradients of what learns in a stage and return its optimisers."""

    @abstractmethod
    def loss(self, stage: OfStage, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a batch with classes [b], and the logits [b, exits, classes] for the dynamics."""

    @abstractmethod
    def validate(self, *, progress: Progress, what: str) -> ExitTable:
        """Return what the exits say about validation rows; ``what`` names the progress stage."""

    def train(self, *, progress: Progress, trackers: Sequence[Track] = ()) -> None:
        """Run the epochs that are left; the model ends with the weights that are kept.

        Trackers are told of every epoch, of those before a kill too.

        Raises:
            RunError: If the checkpoint is damaged.
            DimecError: If training diverges.
        """
        epochs, checkpoints = self.options.epochs, self.folder / "checkpoint"
        history = self._history(checkpoints)
        resumed = self.stages[max(0, len(history) - 1) // epochs]  # its last epoch may be done
        for step, log in enumerate(history, start=1):
            for track in trackers:
                track(step, self._figures(log))
        if history:
            progress.say(
                f"resuming after epoch {history[-1].epoch} of {epochs}{self._place(resumed)}"
            )
        for stage in self.stages[self.stages.index(resumed) :]:
            optimizers = self.begin(stage)
            if stage is resumed and history:
                load_checkpoint(
                    checkpoints,
                    len(history),
                    model=self.learnt,
                    optimizers=optimizers,
                    recorders=self.recorders,
                    processes=self.processes,
                )
            for epoch in range(sum(log.stage == stage.name for log in history), epochs):
                with reusing_memory():
                    log = self._run_epoch(stage, optimizers, epoch, progress=progress)
                history.append(log)
                if self.processes.writes:
                    # Before the checkpoint: a training killed between the two repeats the epoch and writes its line
                    # again.
                    write_metrics(self.folder / "metrics.jsonl", history)
                    save_checkpoint(
                        checkpoints,
                        history=history,
                        best_epoch=history.index(stage.best(history)) + 1,
                        model=self.learnt,
                        optimizers=optimizers,
                        recorders=self.recorders,
                    )
                self._say_epoch(stage, log, progress=progress)
                rate = max(group["lr"] for each in optimizers for group in each.param_groups)
                for track in trackers:
                    track(len(history), {**self._figures(log), "train/learning_rate": rate})
            best = stage.best(history)
            place = history.index(best) + 1
            load_best_weights(checkpoints, place, model=self.learnt, processes=self.processes)
            progress.say(
                f"keeping epoch {best.epoch}{self._place(stage)}, the best on validation {stage.criterion}"
            )

    def _history(self, checkpoints: Path) -> list[EpochLog]:
        """Return the epochs that an earlier training did, as the first process has them."""

        def read() -> bytes:
            return json.dumps([vars(log) for log in read_history(checkpoints)]).encode()

        return [EpochLog(**log) for log in json.loads(self.processes.from_first(read))]

    def _figures(self, log: EpochLog) -> dict[str, float]:
        """Return what trackers show of an epoch."""
        figures = {"train/loss": log.loss, "train/samples_per_second": log.samples_per_second}
        for what, values in (("score", log.validation_scores), ("loss", log.validation_losses)):
            for layer, value in zip(self.exits, values, strict=True):
                figures[f"validation/{what}/exit-{layer}"] = value
        return figures

    def _place(self, stage: OfStage) -> str:
        """Return what follows an epoch's number wherever one is shown."""
        number, n = self.stages.index(stage) + 1, len(self.stages)
        return f", stage {number}/{n} ({stage.name})" if n > 1 else ""

    def _run_epoch(
        self,
        stage: OfStage,
        optimizers: Sequence[torch.optim.Optimizer],
        epoch: int,
        *,
        progress: Progress,
    ) -> EpochLog:
        """Train on every row once, then read validation; both record dynamics in the last stage."""
        recorders = self.recorders if stage is self.stages[-1] else {}
        place = f"{epoch + 1}/{self.options.epochs}{self._place(stage)}"
        started = time.monotonic()
        loss = self._train_epoch(
            stage, optimizers, recorders.get("train"), epoch, progress=progress, place=place
        )
        seconds = time.monotonic() - started
        table = self.validate(progress=progress, what=f"Validating {place}")
        if "validation" in recorders:
            recorders["validation"].record(
                epoch, np.arange(len(table)), logits=table.logits, labels=table.labels
            )
        return EpochLog(
            epoch + 1,
            loss,
            exit_scores(table, self.metric),
            exit_losses(table, self.class_weights),
            seconds,
            len(self.rows) / seconds,
            stage.name,
        )

    def _say_epoch(self, stage: OfStage, log: EpochLog, *, progress: Progress) -> None:
        learning = zip(self.exits[stage.exits], log.validation_scores[stage.exits], strict=True)
        listed = "  ".join(f"{layer}: {reached:.3f}" for layer, reached in learning)
        metric = metric_words(self.metric, self.rows.dataset.task.label_names)
        progress.say(
            f"epoch {log.epoch}/{self.options.epochs}{self._place(stage)}  loss {log.loss:.3f}  "
            f"{log.samples_per_second:.0f} samples/s  validation {metric} by exit  {listed}"
        )

    def _train_epoch(
        self,
        stage: OfStage,
        optimizers: Sequence[torch.optim.Optimizer],
        recorder: Recorder | None,
        epoch: int,
        *,
        progress: Progress,
        place: str,
    ) -> float:
        """Return the mean loss of the rows; their dynamics come from the same forward passes."""
        options, rows, device = self.options, self.rows, self.hardware.device
        batches = bucketed_batches(
            rows.tokens.lengths, batch_size=options.batch_size, seed=options.seed, epoch=epoch
        )
        total = len(batches) * options.epochs
        losses = 0.0
        self.processes.seed(options.seed, self.stages.index(stage), epoch)
        self.model.train()
        with progress.stage(f"Training epoch {place}", len(rows)) as advance:
            for index, batch in enumerate(batches):
                schedule(optimizers, step=epoch * len(batches) + index, total=total)
                own, weight = self.processes.share(batch)
                labels = rows.dataset.labels[own]
                truth = torch.from_numpy(labels).to(device)
                loss, logits = self.loss(stage, rows.inputs(own, device), truth)
                whole = self.processes.backward(loss, weight, optimizers)
                for optimizer in optimizers:
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                losses += whole * len(batch)
                if not math.isfinite(losses):
                    lower = " or ".join(
                        f"--{rate.replace('_', '-')} {getattr(options, rate)}"
                        for rate in self.rates
                    )
                    raise DimecError(
                        f"training diverged in epoch {place} (the loss is not finite): lower {lower}"
                    )
                if recorder is not None and weight:
                    said = logits.detach().float().cpu().numpy()
                    recorder.record(epoch, own, logits=said, labels=labels)
                advance(len(batch))
        if recorder is not None and self.processes.count > 1:
            recorder.merge(epoch, self.processes.sum)
        return losses / len(rows)


def adamw(*groups: tuple[Iterable[nn.Parameter], float, float]) -> torch.optim.Optimizer:
    """Return AdamW on those of some parameters that ask for gradients; a group has a peak rate and a weight decay."""
    learning = [
        {
            "params": [each for each in parameters if each.requires_grad],
            "lr": rate,
            "peak": rate,
            "weight_decay": decay,
        }
        for parameters, rate, decay in groups
    ]
    return torch.optim.AdamW([group for group in learning if group["params"]], fused=True)


def schedule(optimizers: Sequence[torch.optim.Optimizer], *, step: int, total: int) -> None:
    """Set the rates of a step, counted from 0: a linear warm-up, then linear decay to zero."""
    warm_up = max(1, round(WARM_UP * total))
    factor = min((step + 1) / warm_up, (total - step) / max(1, total - warm_up))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor


def sum_of_exit_losses(
    logits: Tensor,
    truth: Tensor,
    weights: Tensor | None = None,
    *,
    exit_weights: Tensor | None = None,
) -> Tensor:
    """Return L = sum over exits of the mean cross-entropy, for classes [b]; with ``weights`` [classes] of w_y l.

    The mean is over rows, not over weights: a batch without rows of a heavy class has less loss, so that over all
    batches each class weighs what it should. ``exit_weights`` [exits] are what each exit's mean is multiplied by.
    """
    exits = logits.shape[1]
    said, classes = logits.flatten(0, 1).float(), truth[:, None].expand(-1, exits).flatten()
    if weights is None and exit_weights is None:
        return exits * cross_entropy(said, classes)
    each = cross_entropy(said, classes, weight=weights, reduction="none").unflatten(0, (-1, exits))
    means: Tensor = each.mean(0) if exit_weights is None else each.mean(0) * exit_weights
    return means.sum()


def exit_losses(table: ExitTable, weights: Sequence[float] | None = None) -> list[float]:
    """Return each exit's mean cross-entropy; with ``weights`` of the classes the mean of w_y l."""
    logits = table.logits.astype(np.float64)
    top = logits.max(axis=2, keepdims=True)
    spread = np.log(np.exp(logits - top).sum(axis=2)) + top[:, :, 0]
    losses = spread - np.take_along_axis(logits, table.labels[:, None, None], axis=2)[:, :, 0]
    if weights is not None:
        losses *= np.asarray(weights)[table.labels][:, None]
    means: list[float] = losses.mean(axis=0).tolist()
    return means


def exit_scores(table: ExitTable, metric: Metric) -> list[float]:
    """Return each exit's score in the task's metric."""
    return [table.score(metric, answers) for answers in table.predictions.T]


def write_config(
    folder: Path, config: BaseModel, earlier: BaseModel | None, *, fixed: Sequence[str], what: str
) -> None:
    """Write ``config.json``, unless an earlier part of the same training did.

    Raises:
        OptionError: If one of the ``fixed`` fields, which stand for ``what``, is another one than earlier.
    """
    if earlier is None:
        write_json(folder / "config.json", config.model_dump(mode="json"))
    elif any(getattr(earlier, name) != getattr(config, name) for name in fixed):
        raise OptionError(
            f"{what} changed since the training of {folder} began: --restart trains it anew"
        )
