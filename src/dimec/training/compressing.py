"""Learn a bottleneck for a finished run and leave it in ``RUN/compressed/NAME``.

A few thousand of the run's training rows suffice, so that it takes minutes. The device's layers stay the run's own. Of
each stage the epoch that is best on validation is kept; only then are the exit tables made, the test split's last of
all. The stages of each kind:

- BottleNet trains all behind the device at once, from labels.
- BottleNet++ trains encoder and decoder first, with the network as it is, then all: phases 2 and 3 of the authors'
  code, whose phase 1 is the fit of the network itself.
- BottleFit trains encoder and decoder to the teacher's hidden states, at the split and at each exit behind it, then
  freezes the encoder and distils the teacher's logits into decoder and tail: the authors' configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, softmax

from dimec.core.errors import OptionError
from dimec.core.files import write_atomically, write_json
from dimec.core.outputs import check_output_folder, holding, remove_written
from dimec.core.progress import SILENT, Progress
from dimec.runs.codes import Kind
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
from dimec.training.batching import Hardware, Inputs, Rows, library_versions
from dimec.training.epochs import (
    Stage,
    Trainer,
    adamw,
    exit_scores,
    sum_of_exit_losses,
    write_config,
)
from dimec.training.model import load_model
from dimec.training.model.bottleneck import build_bottleneck
from dimec.training.model.dropout import use_byte_dropout
from dimec.training.model.reading import fingerprint
from dimec.training.model.split import Part, SplitEncoder, TailOutput
from dimec.training.tabulate import WEIGHTS, changed_weights, tabulate_through
from dimec.training.texts import RunTexts

JUDGING_ROWS = 2000
"""How many validation rows judge an epoch; the table at the end has all of them."""


@dataclass(frozen=True, kw_only=True)
class BottleneckStage(Stage):
    """A stage of a bottleneck's training; all exits behind the split learn.

    Attributes:
        learns_from: Labels; the teacher's hidden states; or the teacher's logits, and labels.
    """

    learns: tuple[Part, ...]
    learns_from: Literal["labels", "states", "logits"]


_MODULE: tuple[Part, ...] = ("encoder", "decoder")
_WHOLE: tuple[Part, ...] = ("encoder", "decoder", "tail")

BOTTLENECK_STAGES: dict[Kind, tuple[BottleneckStage, ...]] = {
    "bottlenet": (BottleneckStage(name="whole", learns=_WHOLE, learns_from="labels"),),
    "bottlenet-pp": (
        BottleneckStage(name="module", learns=_MODULE, learns_from="labels"),
        BottleneckStage(name="whole", learns=_WHOLE, learns_from="labels"),
    ),
    "bottlefit": (
        BottleneckStage(name="states", learns=_MODULE, learns_from="states"),
        BottleneckStage(name="distillation", learns=("decoder", "tail"), learns_from="logits"),
    ),
}
"""The stages of each kind, in order."""


def stage_loss(
    stage: BottleneckStage,
    split: SplitEncoder,
    hidden: Tensor,
    mask: Tensor,
    truth: Tensor,
    *,
    options: CompressOptions,
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return loss and logits of a batch of hidden states [b, t, d] with mask [b, t] and classes [b].

    ``weights`` [classes] are those of the rows in a loss from labels.
    """
    restored = split.through(hidden, mask)
    output = split.cloud(restored, mask)
    if stage.learns_from == "labels":
        return sum_of_exit_losses(output.logits, truth, weights), output.logits
    teacher = split.teacher(hidden, mask)
    if stage.learns_from == "states":
        pairs = [(restored, hidden), *zip(output.states, teacher.states, strict=True)]
        distances = [squared_distance(ours, theirs, mask) for ours, theirs in pairs]
        return torch.stack(distances).sum(), output.logits
    assert options.temperature is not None and options.label_share is not None  # resolved
    distilled = distillation_loss(output, teacher, temperature=options.temperature)
    share = options.label_share
    labelled = sum_of_exit_losses(output.logits, truth, weights)
    return share * labelled + (1 - share) * distilled, output.logits


def squared_distance(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of states [b, t, d], summed over d and averaged over the tokens that are there."""
    weights = mask.float()
    distances = (ours.float() - theirs.float()).square().sum(-1)
    return (distances * weights).sum() / weights.sum()


def distillation_loss(output: TailOutput, teacher: TailOutput, *, temperature: float) -> Tensor:
    """Return T² KL(teacher || student), a mean over the batch and a sum over exits, each from the teacher's own."""
    ours = log_softmax(output.logits.float() / temperature, dim=-1)
    theirs = softmax(teacher.logits.float() / temperature, dim=-1)
    return temperature**2 * kl_div(ours, theirs, reduction="sum") / len(ours)


def build_stage_optimizer(
    stage: BottleneckStage, split: SplitEncoder, options: CompressOptions
) -> torch.optim.Optimizer:
    """Ask for gradients of what learns in a stage and return AdamW on it; the bottleneck has a rate of its own."""
    split.learn(stage.learns)
    return adamw(
        (split.bottleneck.parameters(), options.bottleneck_learning_rate, 0.0),
        (split.tail.parameters(), options.learning_rate, 0.01),
    )


class _BottleneckTrainer(Trainer[BottleneckStage]):
    """Trains a bottleneck, and the tail behind it."""

    rates = ("learning_rate", "bottleneck_learning_rate")

    def __init__(
        self,
        run: Run,
        folder: Path,
        config: CompressedConfig,
        *,
        hardware: Hardware,
        split: SplitEncoder,
        rows: dict[str, Rows],
    ) -> None:
        self.run, self.folder, self.config, self.hardware = run, folder, config, hardware
        self.options: CompressOptions = config.options
        self.metric = run.config.task.metric
        self.class_weights = run.config.class_weights
        self.stages = BOTTLENECK_STAGES[config.options.kind]
        self.all_rows, self.rows = rows, rows["train"]
        self.model = self.split = split
        self.learnt, self.exits = split.learnt, split.exits
        self.recorders = {}
        n = len(rows["validation"])
        spread = np.linspace(0, n - 1, min(n, JUDGING_ROWS)).round().astype(np.int64)
        self.judging = rows["validation"].take(np.unique(spread))

    def begin(self, stage: BottleneckStage) -> tuple[torch.optim.Optimizer, ...]:
        return (build_stage_optimizer(stage, self.split, self.options),)

    def loss(self, stage: BottleneckStage, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        with self.hardware.autocast():
            hidden, _ = self.split.device(*inputs)
            return stage_loss(
                stage,
                self.split,
                hidden,
                inputs[1],
                truth,
                options=self.options,
                weights=self.weights,
            )

    def validate(self, *, progress: Progress, what: str) -> ExitTable:
        seed = self.options.seed
        return tabulate_through(self.split, self.judging, seed=seed, progress=progress, what=what)[
            0
        ]


def compress(
    run: Run, options: CompressOptions, *, restart: bool = False, progress: Progress = SILENT
) -> Compressed:
    """Learn a bottleneck, or go on where a killed training of the same options stopped.

    Args:
        run: A finished run with an exit at the split and three tiers.
        restart: Delete what an earlier training of this name wrote; other files stay.

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
        trainer = _prepare(run, folder, options, progress=progress)
        if restart:
            remove_written(folder, ("exits/test.safetensors",))  # half removed is not finished
            remove_written(folder, COMPRESSED_FILES)
        write_config(
            folder,
            trainer.config,
            read_compressed_config(folder),
            fixed=("model_fingerprint", "n_train"),
            what="the run",
        )
        trainer.train(progress=progress)
        _finish(trainer, progress=progress)
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


def _prepare(
    run: Run, folder: Path, options: CompressOptions, *, progress: Progress
) -> _BottleneckTrainer:
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
    rows = {
        name: Rows.as_in(run, dataset, loaded.tokenizer, progress=progress)
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
    split.to(hardware.device)
    return _BottleneckTrainer(run, folder, config, hardware=hardware, split=split, rows=rows)


def _finish(trained: _BottleneckTrainer, *, progress: Progress) -> None:
    """Write the weights, the tables and the scores, the test table last, then drop the checkpoint."""
    folder, run = trained.folder, trained.run
    weights = changed_weights(trained.split)
    write_atomically(folder / WEIGHTS, lambda path: save_file(weights, path))
    tables: dict[str, ExitTable] = {}
    scores: dict[str, SplitScores] = {}
    for name, own in (("validation", run.validation), ("test", run.test)):
        drawn = tabulate_through(
            trained.split,
            trained.all_rows[name],
            seed=trained.options.seed,
            draws=trained.options.draws or 1,
            progress=progress,
            what=f"Tabulating {name}",
        )
        tables[name] = drawn[0]
        scores[name] = _scores(trained, own, drawn)
    write_json(folder / "scores.json", Scores(**scores).model_dump(mode="json"))
    for name, table in tables.items():
        table.save(folder / "exits" / f"{name}.safetensors")
    remove_written(folder, CHECKPOINT_FILES)


def _scores(trained: _BottleneckTrainer, own: ExitTable, drawn: Sequence[ExitTable]) -> SplitScores:
    """Set what came through the bottleneck beside the run's own exits."""
    table = drawn[0]
    places = [own.exit(layer) for layer in table.layers]
    draws = [float(each.right[:, -1].mean()) for each in drawn]
    return SplitScores(
        n=len(table),
        layers=table.layers,
        accuracy=tuple(table.right.mean(axis=0).tolist()),
        uncompressed=tuple(own.right[:, places].mean(axis=0).tolist()),
        score=exit_scores(table, trained.metric)[-1],
        uncompressed_score=exit_scores(own, trained.metric)[-1],
        draws=tuple(draws) if trained.options.draws else (),
        bytes_compressed=float(table.payload_bytes.mean()),
        bytes_hidden=float(2 * trained.config.hidden_width * table.n_tokens.mean()),
        bytes_tokens=float(own.payload_bytes.mean()),
    )
