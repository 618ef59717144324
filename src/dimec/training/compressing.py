"""Learn a bottleneck for a finished run and leave it in ``RUN/compressed/NAME``.

A few thousand of the run's training rows suffice, so that it takes minutes. The device's layers stay the run's own; the
stages of each kind are in `dimec.training.bottleneck_stages`. Of each stage the epoch that is best on validation is
kept; only then are the exit tables made, the test split's last of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from dimec.core.errors import OptionError
from dimec.core.files import write_atomically, write_json
from dimec.core.outputs import check_output_folder, holding, remove_written
from dimec.core.progress import SILENT, Progress
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
from dimec.training.batching import Inputs, Rows
from dimec.training.bottleneck_stages import (
    BOTTLENECK_STAGES,
    BottleneckStage,
    build_stage_optimizer,
    stage_loss,
)
from dimec.training.epochs import Trainer, exit_scores, write_config
from dimec.training.hardware import Hardware, library_versions
from dimec.training.model import load_model
from dimec.training.model.bottleneck import build_bottleneck
from dimec.training.model.dropout import use_byte_dropout
from dimec.training.model.reading import fingerprint
from dimec.training.model.split import SplitEncoder
from dimec.training.tabulate_bottleneck import WEIGHTS, changed_weights, tabulate_through
from dimec.training.texts import RunTexts

JUDGING_ROWS = 2000
"""How many validation rows judge an epoch; the table at the end has all of them."""


@dataclass(frozen=True, eq=False)
class _Job:
    """The ingredients of a training."""

    run: Run
    folder: Path
    config: CompressedConfig
    hardware: Hardware
    split: SplitEncoder
    rows: dict[str, Rows]

    @property
    def options(self) -> CompressOptions:
        return self.config.options

    def tabulate(
        self, rows: Rows, *, draws: int = 1, progress: Progress, what: str
    ) -> list[ExitTable]:
        """Read rows through the bottleneck, once for each draw of its channel."""
        return tabulate_through(
            self.split, rows, seed=self.options.seed, draws=draws, progress=progress, what=what
        )


class _BottleneckTrainer(Trainer[BottleneckStage]):
    """Trains a bottleneck, and the tail behind it."""

    rates = ("learning_rate", "bottleneck_learning_rate")

    def __init__(self, job: _Job) -> None:
        self.job, self.folder, self.hardware = job, job.folder, job.hardware
        self.options: CompressOptions = job.options
        self.metric = job.run.config.task.metric
        self.stages = BOTTLENECK_STAGES[job.options.kind]
        self.rows = job.rows["train"]
        self.model = self.split = job.split
        self.learnt, self.exits = job.split.learnt, job.split.exits
        self.recorders = {}
        validation = job.rows["validation"]
        self.judging = validation.take(_spread(len(validation), JUDGING_ROWS))

    def begin(self, stage: BottleneckStage) -> tuple[torch.optim.Optimizer, ...]:
        return (build_stage_optimizer(stage, self.split, self.options),)

    def loss(self, stage: BottleneckStage, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        with self.hardware.autocast():
            hidden, _ = self.split.device(*inputs)
            return stage_loss(stage, self.split, hidden, inputs[1], truth, options=self.options)

    def validate(self, *, progress: Progress, what: str) -> ExitTable:
        return self.job.tabulate(self.judging, progress=progress, what=what)[0]


def compress(
    run: Run, options: CompressOptions, *, restart: bool = False, progress: Progress = SILENT
) -> Compressed:
    """Learn a bottleneck, or go on where a killed training of the same options stopped.

    Args:
        run: A finished run with an exit at the split and three tiers.
        options: What to learn.
        restart: Delete what an earlier training of this name wrote; other files stay.
        progress: Progress reporter.

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
        write_config(
            folder,
            job.config,
            read_compressed_config(folder),
            fixed=("model_fingerprint", "n_train"),
            what="the run",
        )
        _BottleneckTrainer(job).train(progress=progress)
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
    rows = {
        name: Rows.tokenized(dataset, loaded.tokenizer, max_length=max_length, progress=progress)
        for name, dataset in datasets.items()
    }
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
        versions=library_versions(),
    )
    return _Job(run, folder, config, hardware, split.to(hardware.device), rows)


def _finish(job: _Job, *, progress: Progress) -> None:
    """Write the weights, the tables and the scores, the test table last, then drop the checkpoint."""
    weights = changed_weights(job.split)
    write_atomically(job.folder / WEIGHTS, lambda path: save_file(weights, path))
    tables: dict[str, ExitTable] = {}
    scores: dict[str, SplitScores] = {}
    for name, own in (("validation", job.run.validation), ("test", job.run.test)):
        drawn = job.tabulate(
            job.rows[name],
            draws=job.options.draws or 1,
            progress=progress,
            what=f"Tabulating {name}",
        )
        tables[name] = drawn[0]
        scores[name] = _scores(job, own, drawn)
    write_json(job.folder / "scores.json", Scores(**scores).model_dump(mode="json"))
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
        score=exit_scores(table, job.run.config.task.metric)[-1],
        uncompressed_score=exit_scores(own, job.run.config.task.metric)[-1],
        draws=tuple(float(each.right[:, -1].mean()) for each in drawn) if job.options.draws else (),
        bytes_compressed=float(table.payload_bytes.mean()),
        bytes_hidden=float(2 * job.config.hidden_width * table.n_tokens.mean()),
        bytes_tokens=float(own.payload_bytes.mean()),
    )


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Return at most so many of n places, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(np.int64))
