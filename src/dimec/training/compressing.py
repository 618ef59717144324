"""Learn a bottleneck for a finished run and leave it in ``RUN/compressed/NAME``.

A few thousand of the run's training rows suffice, so that it takes minutes. The device's layers stay the run's own; the
stages of each kind are in `dimec.training.bottleneck_stages`. After every epoch the state is kept, so that a killed
training goes on and ends with the same weights. Of each stage the epoch that is best on validation is kept; only then
are the exit tables made, the test split's last of all.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from dimec.core.errors import DimecError, OptionError
from dimec.core.files import write_atomically, write_json
from dimec.core.outputs import check_output_folder, holding, remove_written
from dimec.core.progress import SILENT, Progress
from dimec.core.version import __version__
from dimec.data import TextDataset, TokenizedTexts, bucketed_batches, tokenize
from dimec.runs.compressed import (
    FOLDER,
    FORMAT,
    Compressed,
    CompressedConfig,
    CompressOptions,
    Scores,
    SplitScores,
    read_compressed_config,
)
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import CHECKPOINT_FILES, COMPRESSED_FILES, Run, differing
from dimec.training.batching import tensors
from dimec.training.bottleneck_stages import (
    BOTTLENECK_STAGES,
    BottleneckStage,
    build_stage_optimizer,
    stage_loss,
)
from dimec.training.fitting import exit_scores
from dimec.training.hardware import Hardware
from dimec.training.model import load_model
from dimec.training.model.bottleneck import build_bottleneck
from dimec.training.model.dropout import use_byte_dropout
from dimec.training.model.reading import fingerprint
from dimec.training.model.split import SplitEncoder
from dimec.training.optimizer import schedule
from dimec.training.run_texts import RunTexts
from dimec.training.state import (
    EpochLog,
    load_best_weights,
    load_checkpoint,
    read_history,
    save_checkpoint,
    write_metrics,
)
from dimec.training.tabulate_bottleneck import WEIGHTS, changed_weights, tabulate_through

JUDGING_ROWS = 2000
"""How many validation rows say after an epoch how good it is; the table at the end has all of them."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Texts of a split with their tokens."""

    dataset: TextDataset
    tokens: TokenizedTexts


@dataclass(frozen=True, eq=False)
class _Job:
    """The ingredients of a training."""

    run: Run
    folder: Path
    config: CompressedConfig
    hardware: Hardware
    split: SplitEncoder
    pad_id: int
    rows: dict[str, _Rows]

    @property
    def options(self) -> CompressOptions:
        return self.config.options


def compress(
    run: Run, options: CompressOptions, *, restart: bool = False, progress: Progress = SILENT
) -> Compressed:
    """Learn a bottleneck, or go on where a killed training of the same options stopped.

    Args:
        run: A finished run with an exit at the split and three tiers.
        options: What to learn.
        restart: Throw away what an earlier training of this name left; what others put there stays.
        progress: Is told what happens.

    Returns:
        The finished bottleneck; at once if the run holds it already.

    Raises:
        OptionError: If options do not fit the run or what its folder holds, its texts are not there any more, or
            another process is training it.
        OutputError: If the folder cannot be written to.
        RunError: If the run or a checkpoint is damaged.
    """
    options = options.resolved()
    _check_fit(run, options)
    folder = run.folder / FOLDER / options.name
    check_output_folder(folder)
    with holding(folder, doing="training"):
        if not restart and _already_there(folder, options):
            remove_written(folder, CHECKPOINT_FILES)
            progress.say(f"{folder} is there already; --restart trains it anew")
            return Compressed.open(folder)
        job = _prepare(run, folder, options, progress=progress)
        if restart:
            remove_written(folder, ("exits/test.safetensors",))  # half removed is not finished
            remove_written(folder, COMPRESSED_FILES)
        _begin(job)
        _train(job, progress=progress)
        _finish(job, progress=progress)
        return Compressed.open(folder)


def _check_fit(run: Run, options: CompressOptions) -> None:
    """Refuse a split that this run cannot have."""
    inner = [layer for layer in run.config.exits if layer < run.config.n_layers]
    if options.layer not in inner or not run.config.depths:
        raise OptionError(
            f"--layer {options.layer}: this run has exits before its last after layers {inner}, of "
            f"{run.config.n_layers}; a split stands after one of them, in a run of three layers or more"
        )


def _already_there(folder: Path, options: CompressOptions) -> bool:
    """Make sure that the folder is free, or holds this very bottleneck; say whether that is finished."""
    config = read_compressed_config(folder)
    if config is None:
        return False
    if config.options != options:
        raise OptionError(
            f"{folder} holds one with other options: {differing(config.options, options)}; give the same ones to go "
            "on, or --restart to replace it"
        )
    return Compressed(folder, config).finished


def _prepare(run: Run, folder: Path, options: CompressOptions, *, progress: Progress) -> _Job:
    texts = RunTexts(run, progress=progress)
    loaded = load_model(run.model_folder)
    width = loaded.model.adapter.width
    if options.width > width:
        raise OptionError(
            f"--width {options.width} is no reduction: a hidden state of this run is {width} wide"
        )
    datasets = {
        "train": texts.of("train", max_rows=options.max_rows, seed=options.seed),
        "validation": texts.of("validation"),
        "test": texts.of("test"),
    }
    max_length = run.config.options.max_length
    with progress.stage("Tokenising", sum(map(len, datasets.values()))) as advance:
        rows = {}
        for name, dataset in datasets.items():
            rows[name] = _Rows(dataset, tokenize(dataset, loaded.tokenizer, max_length=max_length))
            advance(len(dataset))
    torch.manual_seed(options.seed)
    hardware = Hardware.find(options.precision)
    use_byte_dropout(loaded.model)
    split = SplitEncoder(loaded.model, build_bottleneck(options, width), after=options.layer)
    config = CompressedConfig(
        format=FORMAT,
        options=options,
        name=options.name,
        hidden_width=width,
        bytes_per_token=options.width / (options.pool or 1),
        n_train=len(datasets["train"]),
        model_fingerprint=fingerprint(run.model_folder),
        versions={
            "python": platform.python_version(),
            "dimec": __version__,
            **{name: version(name) for name in ("torch", "transformers", "numpy")},
        },
    )
    pad_id = loaded.tokenizer.pad_token_id or 0
    return _Job(run, folder, config, hardware, split.to(hardware.device), pad_id, rows)


def _begin(job: _Job) -> None:
    """Write the configuration, unless an earlier part of this training did; the run must not have changed since."""
    earlier = read_compressed_config(job.folder)
    if earlier is None:
        write_json(job.folder / "config.json", job.config.model_dump(mode="json"))
    elif (earlier.model_fingerprint, earlier.n_train) != (
        job.config.model_fingerprint,
        job.config.n_train,
    ):
        raise OptionError(
            f"the run changed since the training of {job.folder} began: --restart trains it anew"
        )


def _train(job: _Job, *, progress: Progress) -> None:
    """Run the epochs that are left; the split ends with the weights that are kept."""
    stages, epochs = BOTTLENECK_STAGES[job.options.kind], job.options.epochs
    checkpoints, learnt = job.folder / "checkpoint", job.split.learnt
    history = read_history(checkpoints)
    resumed = stages[max(0, len(history) - 1) // epochs]  # a full stage may lack its end
    if history:
        progress.say(f"resuming after epoch {history[-1].epoch} of {epochs}{resumed.place}")
    for stage in stages[stages.index(resumed) :]:
        optimizer = build_stage_optimizer(stage, job.split, job.options)
        if stage is resumed:
            load_checkpoint(checkpoints, model=learnt, optimizers=[optimizer], recorders={})
        for epoch in range(sum(log.stage == stage.name for log in history), epochs):
            history.append(_run_epoch(job, stage, optimizer, epoch=epoch, progress=progress))
            write_metrics(job.folder / "metrics.jsonl", history)
            save_checkpoint(
                checkpoints,
                history=history,
                best_epoch=history.index(stage.best(history)) + 1,
                model=learnt,
                optimizers=[optimizer],
                recorders={},
            )
            log = history[-1]
            progress.say(
                f"epoch {log.epoch}/{epochs}{stage.place}  loss {log.loss:.3f}  "
                f"{log.samples_per_second:.0f} samples/s  validation {job.run.config.task.metric} at the last exit "
                f"{log.validation_scores[-1]:.3f}"
            )
        best = stage.best(history)
        load_best_weights(checkpoints, history.index(best) + 1, model=learnt)
        progress.say(f"keeping epoch {best.epoch}{stage.place}, the best on validation")


def _run_epoch(
    job: _Job,
    stage: BottleneckStage,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: int,
    progress: Progress,
) -> EpochLog:
    """Train on every row once, then see what the exits behind the split say on some validation rows."""
    started = time.monotonic()
    loss = _train_epoch(job, stage, optimizer, epoch=epoch, progress=progress)
    seconds = time.monotonic() - started
    rows = job.rows["validation"]
    judging = _spread(len(rows.dataset), JUDGING_ROWS)
    table = tabulate_through(
        job.split,
        rows.dataset.take(judging),
        rows.tokens.take(judging),
        pad_id=job.pad_id,
        seed=job.options.seed,
        progress=progress,
        what=f"Validating {epoch + 1}/{job.options.epochs}{stage.place}",
    )[0]
    scores = exit_scores(table, job.run.config)
    n = len(job.rows["train"].dataset)
    return EpochLog(epoch + 1, loss, scores, seconds, n / seconds, stage.name)


def _train_epoch(
    job: _Job,
    stage: BottleneckStage,
    optimizer: torch.optim.Optimizer,
    *,
    epoch: int,
    progress: Progress,
) -> float:
    """Train on every row once and return the mean loss."""
    options, split, device = job.options, job.split, job.hardware.device
    rows = job.rows["train"]
    batches = bucketed_batches(
        rows.tokens.lengths, batch_size=options.batch_size, seed=options.seed, epoch=epoch
    )
    losses = 0.0
    split.train()
    what = f"Training epoch {epoch + 1}/{options.epochs}{stage.place}"
    with progress.stage(what, len(rows.dataset)) as advance:
        for index, batch in enumerate(batches):
            step, total = epoch * len(batches) + index, len(batches) * options.epochs
            schedule((optimizer,), step=step, total=total)
            inputs = tensors(rows.tokens.pad(batch, job.pad_id), device)
            truth = torch.from_numpy(rows.dataset.labels[batch]).to(device)
            with job.hardware.autocast():
                hidden, _ = split.device(*inputs)
                loss = stage_loss(stage, split, hidden, inputs[1], truth, options=options)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses += float(loss.detach()) * len(batch)
            if not math.isfinite(losses):
                raise DimecError(
                    f"training diverged in epoch {epoch + 1}{stage.place} (the loss is not finite): lower "
                    f"--learning-rate {options.learning_rate} or --bottleneck-learning-rate "
                    f"{options.bottleneck_learning_rate}"
                )
            advance(len(batch))
    return losses / len(rows.dataset)


def _finish(job: _Job, *, progress: Progress) -> None:
    """Write the weights, the tables and the scores, the test table last, then drop the checkpoint."""
    weights = changed_weights(job.split)
    write_atomically(job.folder / WEIGHTS, lambda path: save_file(weights, path))
    tables: dict[str, ExitTable] = {}
    scores: dict[str, SplitScores] = {}
    for name, own in (("validation", job.run.validation), ("test", job.run.test)):
        rows = job.rows[name]
        drawn = tabulate_through(
            job.split,
            rows.dataset,
            rows.tokens,
            pad_id=job.pad_id,
            seed=job.options.seed,
            draws=job.options.draws or 1,
            progress=progress,
            what=f"Tabulating {name}",
        )
        tables[name] = drawn[0]
        scores[name] = _scores(job, own, drawn)
    write_json(
        job.folder / "scores.json",
        Scores(validation=scores["validation"], test=scores["test"]).model_dump(mode="json"),
    )
    for name, table in tables.items():
        table.save(job.folder / "exits" / f"{name}.safetensors")
    remove_written(job.folder, CHECKPOINT_FILES)


def _scores(job: _Job, own: ExitTable, drawn: Sequence[ExitTable]) -> SplitScores:
    """Set what came through the bottleneck beside the run's own exits."""
    table = drawn[0]
    places = [own.exit(layer) for layer in table.layers]
    return SplitScores(
        n=len(table),
        layers=table.layers,
        accuracy=tuple(table.right.mean(axis=0).tolist()),
        uncompressed=tuple(own.right[:, places].mean(axis=0).tolist()),
        score=exit_scores(table, job.run.config)[-1],
        uncompressed_score=exit_scores(own, job.run.config)[-1],
        draws=tuple(float(each.right[:, -1].mean()) for each in drawn) if job.options.draws else (),
        bytes_compressed=float(table.payload_bytes.mean()),
        bytes_hidden=float(2 * job.config.hidden_width * table.n_tokens.mean()),
        bytes_tokens=float(own.payload_bytes.mean()),
    )


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of n places, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
