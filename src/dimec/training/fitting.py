"""Fit a multi-exit encoder and leave a run folder behind.

All exits are trained together, L = sum of their cross-entropies (paper 1 eq. 3, paper 2 eq. 1 and 2), or in DeeBERT's
two stages: the backbone learns with the last exit alone, then stays as it is while the exits before it learn. Every
epoch runs; the weights of the epoch that scores best on validation are kept, the dynamics are over all epochs of the
last stage. Only when these are chosen are the exit tables made, the test split's last of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from dimec.core.errors import OptionError
from dimec.core.files import write_atomically, write_json
from dimec.core.outputs import check_output_folder, holding, others_in, remove_written
from dimec.core.progress import SILENT, Progress
from dimec.data.likeness import Likeness
from dimec.policies import Calibration, fit_policies, save_policies
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.exit_zero import EXIT_ZERO_FILE, ExitZero
from dimec.runs.run import (
    CHECKPOINT_FILES,
    MODEL_FILES,
    RUN_FILES,
    SPLIT_FILE,
    FitOptions,
    Run,
    RunConfig,
    Training,
    differing,
    read_config,
)
from dimec.training.batching import Inputs, Rows
from dimec.training.dense_part import soft_targets, token_vectors
from dimec.training.epochs import (
    LAST,
    OTHERS,
    Stage,
    Trainer,
    adamw,
    sum_of_exit_losses,
    write_config,
)
from dimec.training.exit_zero import fit_exit_zero
from dimec.training.model import MultiExitEncoder, save_model
from dimec.training.prepare import Prepared, prepare
from dimec.training.processes import Processes
from dimec.training.state import Recorder
from dimec.training.tabulate import tabulate
from dimec.training.trackers import tracking, wanted_trackers

WEIGHT_DECAY = 0.01


def fit(
    options: FitOptions,
    *,
    out: str | Path,
    restart: bool = False,
    known: dict[str, Likeness] | None = None,
    report_to: str | Sequence[str] = (),
    progress: Progress = SILENT,
) -> Run:
    """Fit a run, or go on where a killed fit of the same options stopped.

    Of several processes that a launcher started, all train, and the first alone reads and writes the folder.

    Args:
        restart: Delete what an earlier fit wrote there; other files stay.
        known: Keeps what `prepare` finds out about the rows, for other fits of the same data.
        report_to: Trackers that are told of every epoch.

    Raises:
        DataError: If the data cannot be used.
        OptionError: If options do not fit, the folder holds something else, another process is fitting it, or the
            processes of this fit have other data.
        OutputError: If the folder cannot be written to.
        RunError: If the folder's checkpoint or configuration is damaged.
    """
    folder = Path(out)
    processes = Processes.join()
    if options.batch_size < processes.count:
        raise OptionError(
            f"--batch-size {options.batch_size} leaves some of {processes.count} processes without rows: it counts the "
            f"rows of a step in all of them together; give {processes.count} or more, or start fewer processes"
        )
    if processes.writes:
        trackers = wanted_trackers(report_to)
        check_output_folder(folder, inputs=inputs_of(options))
    else:
        trackers, progress = (), SILENT

    def fitted() -> bytes:
        return b"yes" if _already_fitted(folder, options, restart=restart) else b""

    with holding(folder, doing="fitting") if processes.writes else nullcontext():
        if processes.from_first(fitted):
            if processes.writes:
                remove_written(folder, CHECKPOINT_FILES)  # killed between its last two steps
            progress.say(f"{folder} is fitted already; --restart fits it anew")
            return _opened(folder, processes)
        prepared = processes.together(
            lambda: prepare(options, known=known, progress=progress), alike=_inputs_in_words
        )
        if processes.writes:
            prepared = _begin(prepared, folder, processes.count, restart=restart)
        trainer = _FitTrainer(prepared, folder, processes)
        with tracking(trackers, folder=folder, options=options) as tracks:
            trainer.train(progress=progress, trackers=tracks)
        _finish(prepared, folder, trainer.recorders, processes, progress=progress)
        return _opened(folder, processes)


def _begin(prepared: Prepared, folder: Path, n_processes: int, *, restart: bool) -> Prepared:
    """Write the configuration, which says how many processes began the fit, and remove what is to be replaced."""
    if n_processes > 1:
        config = prepared.config
        device = f"{n_processes} processes, the first on {config.device}"
        prepared = replace(prepared, config=config.model_copy(update={"device": device}))
    if restart:
        remove_written(folder, ("exits/test.safetensors",))  # half removed is not finished
        remove_written(folder, RUN_FILES, except_for=("config.json",))
    write_config(
        folder,
        prepared.config,
        None if restart else read_config(folder),
        fixed=("data_fingerprint", "backbone_fingerprint"),
        what="the data or the backbone",
    )
    return prepared


def _inputs_in_words(prepared: Prepared) -> str:
    """Return what every process of a fit must have alike."""
    config = prepared.config
    versions = ", ".join(f"{name} {config.versions[name]}" for name in ("dimec", "torch", "numpy"))
    return (
        f"data {config.data_fingerprint[:12]}, backbone {config.backbone_fingerprint[:12]}, {config.precision}, "
        f"{versions}"
    )


def _opened(folder: Path, processes: Processes) -> Run:
    """Return the finished run; a process that does not see its folder has the configuration from the first."""
    if processes.count == 1:
        return Run.open(folder)
    sent = processes.from_first(lambda: Run.open(folder).config.model_dump_json().encode())
    return Run(folder, RunConfig.model_validate_json(sent))


def inputs_of(options: FitOptions) -> dict[str, str | None]:
    """Return what a fit reads, by the options that name it: none of it may lie in the folder that it writes."""
    names = ("data", "validation", "test", "backbone")
    return {f"--{name}": getattr(options, name) for name in names}


def _already_fitted(folder: Path, options: FitOptions, *, restart: bool) -> bool:
    """Make sure that the folder is free, holds this very fit, or may be replaced; nothing is touched yet."""
    present = (folder / "config.json").exists()
    if not present and any(path.suffix != ".partial" for path in folder.iterdir()):
        raise OptionError(f"--out {folder} holds other files: give an empty or a new folder")
    # The model's folder is replaced as a whole at the end.
    if strange := others_in(folder / "model", MODEL_FILES):
        raise OptionError(
            f"{folder / 'model' / strange[0]} was not written by a fit, which replaces that folder: move it away"
        )
    if not present or restart:
        return False
    config = read_config(folder)
    if config is not None and config.options != options:
        raise OptionError(
            f"--out {folder} holds a fit with other options: {differing(config.options, options)}; "
            "give the same ones to resume it, --restart to replace it, or another folder"
        )
    return (folder / "exits" / "test.safetensors").exists()


@dataclass(frozen=True, kw_only=True)
class FitStage(Stage):
    """A stage of a fit; the exits learn from the sum of their cross-entropies.

    Attributes:
        backbone: Whether the backbone learns; where not, no gradient goes through it.
    """

    backbone: bool

    def freeze(self, model: MultiExitEncoder) -> None:
        """Ask for gradients of what learns in this stage, and of nothing else."""
        model.requires_grad_(False)
        if self.backbone:
            model.adapter.requires_grad_(True)
        for layer in model.exits[self.exits]:
            model.heads[str(layer)].requires_grad_(True)


STAGES: dict[Training, tuple[FitStage, ...]] = {
    "joint": (FitStage(name="joint", backbone=True),),
    "two-stage": (
        FitStage(name="backbone", backbone=True, exits=LAST),
        FitStage(name="exits", backbone=False, exits=OTHERS, judges=OTHERS),
    ),
}
"""The stages of each kind of training; every exit of a tier before the cloud learns in the last."""


def build_optimizers(
    model: MultiExitEncoder, options: FitOptions
) -> tuple[torch.optim.Optimizer, ...]:
    """Return optimisers of the parameters that ask for gradients; heads have their own rate.

    The word embeddings are half of a small encoder's parameters, and a batch touches one in a hundred of them. They get
    sparse gradients and, where they learn, an Adam that moves only the rows of the batch; everything else gets AdamW.
    On a CPU that saves a third of a training step (docs/explanation/speed.md).
    """
    words = model.word_embeddings
    words.sparse = True
    rate = options.learning_rate
    trunk = [each for each in model.adapter.parameters() if each is not words.weight]
    adam = adamw(
        ([each for each in trunk if each.ndim > 1], rate, WEIGHT_DECAY),
        ([each for each in trunk if each.ndim <= 1], rate, 0.0),
        (model.heads.parameters(), options.head_learning_rate, 0.0),
    )
    if not words.weight.requires_grad:
        return (adam,)
    return adam, torch.optim.SparseAdam([{"params": [words.weight], "lr": rate, "peak": rate}])


def sum_of_exit_divergences(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum over exits of the mean divergence of two readings of the same rows: R-Drop.

    The mean of KL(p || q) and KL(q || p), p and q being what an exit says under two draws of dropout (Liang et al.,
    *R-Drop: Regularized Dropout for Neural Networks*, NeurIPS 2021, which gives it half this weight).
    """
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    both_ways = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
    return both_ways.mean(0).sum()


class _FitTrainer(Trainer[FitStage]):
    """Trains backbone and exits."""

    rates = ("learning_rate", "head_learning_rate")

    def __init__(self, prepared: Prepared, folder: Path, processes: Processes) -> None:
        config = prepared.config
        self.prepared, self.folder, self.processes = prepared, folder, processes
        self.options: FitOptions = config.options
        self.hardware, self.metric = prepared.hardware, config.task.metric
        self.class_weights = config.class_weights
        self.stages = STAGES[config.options.training]
        self.rows = prepared.rows["train"]
        self.model = self.learnt = self.encoder = prepared.model
        self.exits = config.exits
        self.recorders = {
            name: Recorder(
                len(prepared.rows[name]), epochs=config.options.epochs, layers=config.exits
            )
            for name in ("train", "validation")
        }

    def begin(self, stage: FitStage) -> tuple[torch.optim.Optimizer, ...]:
        stage.freeze(self.encoder)
        return build_optimizers(self.encoder, self.options)

    def loss(self, stage: FitStage, inputs: Inputs, truth: Tensor) -> tuple[Tensor, Tensor]:
        with self.hardware.autocast():
            logits = self.encoder(*inputs).logits
        deep = self._exit_weights(stage, logits)
        loss = sum_of_exit_losses(logits[:, stage.exits], truth, self.weights, exit_weights=deep)
        if self.options.r_drop:
            with self.hardware.autocast():
                again = self.encoder(*inputs).logits
            both = logits[:, stage.exits], again[:, stage.exits]
            other = sum_of_exit_losses(both[1], truth, self.weights, exit_weights=deep)
            loss = (loss + other) / 2
            loss = loss + self.options.r_drop * sum_of_exit_divergences(*both)
        return loss, logits

    def _exit_weights(self, stage: FitStage, logits: Tensor) -> Tensor | None:
        """Return what each exit of a stage weighs, 1 in the mean; None where all weigh the same."""
        if self.options.exit_weights == "equal":
            return None
        layers = torch.tensor(self.exits[stage.exits], dtype=torch.float32, device=logits.device)
        return layers / layers.mean()

    def validate(self, *, progress: Progress, what: str) -> ExitTable:
        rows = self.prepared.rows["validation"]
        return tabulate(self.encoder, rows, progress=progress, what=what, processes=self.processes)


def _finish(
    prepared: Prepared,
    folder: Path,
    recorders: Mapping[str, Recorder],
    processes: Processes,
    *,
    progress: Progress,
) -> None:
    """Write everything that a finished run holds, the test table last, then drop the checkpoint.

    Processes that do not write only read their share of the rows.
    """
    config, split, rows = prepared.config, prepared.split, prepared.rows
    if not processes.writes:
        for name in ("validation", "test"):
            tabulate(prepared.model, rows[name], processes=processes)
        return
    save_model(
        prepared.model,
        folder / "model",
        tokenizer=prepared.backbone.tokenizer,
        label_names=config.task.label_names,
    )
    dynamics = recorders["train"].dynamics
    exit_zero = _exit_zero(prepared, dynamics.true_probability[:, :, -1], progress=progress)
    exit_zero.save(folder / EXIT_ZERO_FILE)

    def tabulated(name: str, dynamics: Dynamics | None = None) -> ExitTable:
        return tabulate(
            prepared.model,
            rows[name],
            dynamics=dynamics,
            exit_zero=exit_zero,
            progress=progress,
            what=f"Tabulating {name}",
            processes=processes,
        )

    validation = tabulated("validation", recorders["validation"].dynamics)
    validation.save(folder / "exits" / "validation.safetensors")
    if stuck := exits_at_majority(validation):
        progress.warn(
            f"exits that answer every validation row with the same class, after layers {', '.join(map(str, stuck))}: "
            "they have learnt nothing; try another --pooling, a higher --head-learning-rate or more epochs"
        )
    if config.depths:
        calibration = Calibration(validation, config.depths, seed=config.options.seed)
        save_policies(folder, fit_policies(calibration), calibration)
    _write_dynamics(folder / "dynamics.parquet", rows, recorders)
    write_json(
        folder / SPLIT_FILE,
        {
            "kind": split.kind,
            "seed": split.seed,
            "data_fingerprint": config.data_fingerprint,
            "duplicates": split.n_duplicates,
            "conflicts": split.n_conflicts,
            "groups": split.n_groups,
            **{name: each.dataset.row_ids.tolist() for name, each in rows.items()},
        },
    )
    if config.options.keep_texts:
        _write_texts(folder / "texts.parquet", rows)
    tabulated("test").save(folder / "exits" / "test.safetensors")
    remove_written(folder, CHECKPOINT_FILES)


def _exit_zero(
    prepared: Prepared, true_probability: NDArray[np.float32], *, progress: Progress
) -> ExitZero:
    """Fit the classifier before the first layer on the training rows.

    ``true_probability`` [n, epochs] is what the last exit said of them while it was trained.
    """
    config, rows = prepared.config, prepared.rows["train"]
    empty = ("", "") if config.task.pairs else ("",)
    n_classes = len(config.task.label_names)
    framed = prepared.backbone.tokenizer(*empty)["input_ids"]
    dense = None
    if not config.task.pairs:
        states = token_vectors(prepared.model, framed, progress=progress)
        targets = soft_targets(true_probability, rows.dataset.labels, n_classes=n_classes)
        dense = None if states is None else (states, targets)
    # Rows that are parts of one another would choose what remembers them, as they would in validation.
    groups, train = prepared.split.groups, prepared.split.train
    return fit_exit_zero(
        rows.tokens.whole,
        rows.dataset.labels,
        n_classes=n_classes,
        frame=sorted(set(framed)),
        pairs=config.task.pairs,
        seed=config.options.seed,
        class_weights=config.class_weights,
        groups=None if groups is None else groups[train],
        dense=dense,
        progress=progress,
    )


def exits_at_majority(table: ExitTable) -> list[int]:
    """Return the layers whose exit answers every sample with one class."""
    said = zip(table.layers, table.predictions.T, strict=True)
    return [layer for layer, answers in said if len(np.unique(answers)) == 1]


def _write_texts(path: Path, rows: Mapping[str, Rows]) -> None:
    parts = []
    for name, each in rows.items():
        part = each.dataset
        columns: dict[str, Any] = {
            "row_id": part.row_ids,
            "split": [name] * len(part),
            "first": part.first,
        }
        if part.second is not None:
            columns["second"] = part.second
        columns["label"] = [part.task.label_names[label] for label in part.labels]
        parts.append(pa.table(columns))
    _write_parquet(path, parts)


def _write_dynamics(
    path: Path, rows: Mapping[str, Rows], recorders: Mapping[str, Recorder]
) -> None:
    """Write dynamics as parquet: a line per sample and epoch, two columns per exit.

    Columns: ``row_id``, ``split``, ``epoch`` from 1, then ``true_probability_L`` and ``correct_L`` of each exit L.
    """
    parts = []
    for name, recorder in recorders.items():
        seen = recorder.dynamics
        n, epochs, _ = seen.correct.shape
        columns: dict[str, Any] = {
            "row_id": np.repeat(rows[name].dataset.row_ids, epochs),
            "split": pa.array([name] * (n * epochs)).dictionary_encode(),
            "epoch": np.tile(np.arange(1, epochs + 1, dtype=np.int16), n),
        }
        for position, layer in enumerate(recorder.layers):
            columns[f"true_probability_{layer}"] = seen.true_probability[:, :, position].ravel()
            columns[f"correct_{layer}"] = seen.correct[:, :, position].ravel()
        parts.append(pa.table(columns))
    _write_parquet(path, parts)


def _write_parquet(path: Path, parts: Sequence[pa.Table]) -> None:
    table = pa.concat_tables(parts)
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
