"""Fit a multi-exit encoder and leave a run folder behind.

All exits are trained together, L = sum of their cross-entropies (paper 1 eq. 3, paper 2 eq. 1 and 2), or in DeeBERT's
two stages (`dimec.training.stages`). Every epoch runs; the weights of the epoch that scores best on validation are
kept, the dynamics are over all epochs of the last stage. Only when these are chosen are the exit tables made, the test
split's last of all.
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

from dimec.core.errors import DimecError, OptionError
from dimec.core.files import write_atomically, write_json
from dimec.core.metrics import confusion, score
from dimec.core.outputs import check_output_folder, holding, others_in, remove_written
from dimec.core.progress import SILENT, Progress
from dimec.data import bucketed_batches
from dimec.policies import Calibration, fit_policies, save_policies
from dimec.runs.exit_table import ExitTable
from dimec.runs.exit_zero import EXIT_ZERO_FILE, ExitZero
from dimec.runs.run import (
    CHECKPOINT_FILES,
    MODEL_FILES,
    RUN_FILES,
    FitOptions,
    Run,
    RunConfig,
    differing,
    read_config,
)
from dimec.training.batching import tensors
from dimec.training.exit_zero import fit_exit_zero
from dimec.training.model import save_model
from dimec.training.optimizer import build_optimizers, schedule
from dimec.training.prepare import Prepared, prepare
from dimec.training.recorder import Recorder, write_dynamics
from dimec.training.stages import STAGES, Stage
from dimec.training.state import (
    EpochLog,
    load_best_weights,
    load_checkpoint,
    read_history,
    save_checkpoint,
    write_metrics,
)
from dimec.training.tabulate import tabulate


def fit(
    options: FitOptions, *, out: str | Path, restart: bool = False, progress: Progress = SILENT
) -> Run:
    """Fit a run, or go on where a killed fit of the same options stopped.

    Args:
        options: What to fit.
        out: The run's folder; made where it is missing.
        restart: Throw away what the folder holds of an earlier fit; what others put there stays.
        progress: Is told what happens.

    Returns:
        The finished run; at once if the folder holds it already.

    Raises:
        DataError: If the data cannot be used.
        OptionError: If options do not fit, the folder holds something else, or another process is fitting it.
        OutputError: If the folder cannot be written to.
        RunError: If the folder's checkpoint or configuration is damaged.
    """
    folder = Path(out)
    check_output_folder(folder, inputs={"--data": options.data, "--backbone": options.backbone})
    with holding(folder, doing="fitting"):
        if _already_fitted(folder, options, restart=restart):
            _drop_checkpoint(folder)  # in case the fit was killed on its last stroke
            progress.say(f"{folder} is fitted already; --restart fits it anew")
            return Run.open(folder)
        prepared = prepare(options, progress=progress)
        _begin(folder, prepared.config, restart=restart)
        recorders = _train(prepared, folder, progress=progress)
        _finish(prepared, folder, recorders, progress=progress)
        return Run.open(folder)


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


def _begin(folder: Path, config: RunConfig, *, restart: bool) -> None:
    """Write the configuration, unless an earlier part of this fit did; the data must not have changed since."""
    if restart:
        remove_written(
            folder, ("exits/test.safetensors",)
        )  # what is half removed is no finished run
        remove_written(folder, RUN_FILES, except_for=("config.json",))
    earlier = None if restart else read_config(folder)
    if earlier is None:
        write_json(folder / "config.json", config.model_dump(mode="json"))
    elif (earlier.data_fingerprint, earlier.backbone_fingerprint) != (
        config.data_fingerprint,
        config.backbone_fingerprint,
    ):
        raise OptionError(
            f"the data or the backbone of {folder} changed since its fit began: --restart fits it anew"
        )


def _train(prepared: Prepared, folder: Path, *, progress: Progress) -> dict[str, Recorder]:
    """Run the epochs that are left; return the dynamics by split, with the weights that are kept in the model."""
    options, model, split = prepared.config.options, prepared.model, prepared.split
    stages = STAGES[options.training]
    recorders = {
        name: Recorder(len(rows), epochs=options.epochs, layers=model.exits)
        for name, rows in (("train", split.train), ("validation", split.validation))
    }
    checkpoints = folder / "checkpoint"
    history = read_history(checkpoints)
    resumed = stages[max(0, len(history) - 1) // options.epochs]  # a full stage may lack its end
    if history:
        progress.say(f"resuming after epoch {history[-1].epoch} of {options.epochs}{resumed.place}")
    for stage in stages[stages.index(resumed) :]:
        stage.freeze(model)
        optimizers = build_optimizers(model, options)
        if stage is resumed:
            load_checkpoint(checkpoints, model=model, optimizers=optimizers, recorders=recorders)
        begun = sum(log.stage == stage.name for log in history)
        for epoch in range(begun, options.epochs):
            log = _run_epoch(
                prepared,
                stage,
                optimizers,
                recorders if stage is stages[-1] else {},
                epoch=epoch,
                progress=progress,
            )
            history.append(log)
            # Before the checkpoint: a fit killed between the two repeats the epoch and writes its line again.
            write_metrics(folder / "metrics.jsonl", history)
            save_checkpoint(
                checkpoints,
                history=history,
                best_epoch=history.index(stage.best(history)) + 1,
                model=model,
                optimizers=optimizers,
                recorders=recorders,
            )
            _say_epoch(prepared, stage, log, progress=progress)
        best = stage.best(history)
        load_best_weights(checkpoints, history.index(best) + 1, model=model)
        progress.say(
            f"keeping epoch {best.epoch}{stage.place}, the best on validation {stage.criterion}"
        )
    return recorders


def _run_epoch(
    prepared: Prepared,
    stage: Stage,
    optimizers: tuple[torch.optim.Optimizer, ...],
    recorders: dict[str, Recorder],
    *,
    epoch: int,
    progress: Progress,
) -> EpochLog:
    """Train on every row once, then see what every exit says on validation; fills the recorders that it is given."""
    split = prepared.split
    started = time.monotonic()
    loss = _train_epoch(
        prepared, stage, optimizers, recorders.get("train"), epoch=epoch, progress=progress
    )
    seconds = time.monotonic() - started
    table = _table(
        prepared,
        split.validation,
        progress=progress,
        what=f"Validating {epoch + 1}/{prepared.config.options.epochs}{stage.place}",
    )
    if "validation" in recorders:
        recorders["validation"].record(
            epoch, np.arange(len(table)), logits=table.logits, labels=table.labels
        )
    scores = exit_scores(table, prepared.config)
    return EpochLog(epoch + 1, loss, scores, seconds, len(split.train) / seconds, stage.name)


def _say_epoch(prepared: Prepared, stage: Stage, log: EpochLog, *, progress: Progress) -> None:
    """Say what an epoch came to at the exits that learn."""
    config = prepared.config
    learning = zip(config.exits[stage.exits], log.validation_scores[stage.exits], strict=True)
    listed = "  ".join(f"{layer}: {reached:.3f}" for layer, reached in learning)
    progress.say(
        f"epoch {log.epoch}/{config.options.epochs}{stage.place}  loss {log.loss:.3f}  "
        f"{log.samples_per_second:.0f} samples/s  validation {config.task.metric} by exit  {listed}"
    )


def _train_epoch(
    prepared: Prepared,
    stage: Stage,
    optimizers: tuple[torch.optim.Optimizer, ...],
    recorder: Recorder | None,
    *,
    epoch: int,
    progress: Progress,
) -> float:
    """Train on every row once and return the mean loss; the rows' dynamics come from the same forward passes."""
    options, model, hardware = prepared.config.options, prepared.model, prepared.hardware
    rows = prepared.split.train
    labels = prepared.labels(rows)
    pad_id = prepared.backbone.tokenizer.pad_token_id
    batches = bucketed_batches(
        prepared.tokens.lengths[rows], batch_size=options.batch_size, seed=options.seed, epoch=epoch
    )
    total = len(batches) * options.epochs
    losses = 0.0
    model.train()
    what = f"Training epoch {epoch + 1}/{options.epochs}{stage.place}"
    with progress.stage(what, len(rows)) as advance:
        for index, batch in enumerate(batches):
            schedule(optimizers, step=epoch * len(batches) + index, total=total)
            inputs = tensors(prepared.tokens.pad(rows[batch], pad_id), hardware.device)
            truth = torch.from_numpy(labels[batch]).to(hardware.device)
            with hardware.autocast():
                logits = model(*inputs).logits
            loss = sum_of_exit_losses(logits[:, stage.exits], truth)
            if options.r_drop:
                with hardware.autocast():
                    again = model(*inputs).logits
                both = logits[:, stage.exits], again[:, stage.exits]
                loss = (loss + sum_of_exit_losses(both[1], truth)) / 2
                loss = loss + options.r_drop * sum_of_exit_divergences(*both)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            losses += float(loss.detach()) * len(batch)
            if not math.isfinite(losses):
                raise DimecError(
                    f"training diverged in epoch {epoch + 1}{stage.place} (the loss is not finite): lower "
                    f"--learning-rate {options.learning_rate} or --head-learning-rate {options.head_learning_rate}"
                )
            if recorder is not None:
                recorder.record(
                    epoch, batch, logits=logits.detach().float().cpu().numpy(), labels=labels[batch]
                )
            advance(len(batch))
    return losses / len(rows)


def sum_of_exit_losses(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return L = sum over exits of the mean cross-entropy, for logits [b, exits, classes] and classes [b]."""
    exits = logits.shape[1]
    return exits * cross_entropy(
        logits.flatten(0, 1).float(), truth[:, None].expand(-1, exits).flatten()
    )


def sum_of_exit_divergences(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Return the sum over exits of the mean divergence of two readings of the same rows: R-Drop.

    The mean of KL(p || q) and KL(q || p), p and q being what an exit says under two draws of dropout (Liang et al.,
    *R-Drop: Regularized Dropout for Neural Networks*, NeurIPS 2021; there it has half the weight that it has here).

    Args:
        first: Logits, [b, exits, classes].
        second: Those of another forward pass, likewise.
    """
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    both_ways = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
    return both_ways.mean(0).sum()


def exit_scores(table: ExitTable, config: RunConfig) -> list[float]:
    """Return each exit's score in the task's metric."""
    matrices = [
        confusion(table.labels, table.predictions[:, position], n_classes=table.n_classes)
        for position in range(len(table.layers))
    ]
    scores: list[float] = score(config.task.metric, np.stack(matrices)).tolist()
    return scores


def _finish(
    prepared: Prepared,
    folder: Path,
    recorders: dict[str, Recorder],
    *,
    progress: Progress,
) -> None:
    """Write everything that a finished run holds, the test table last, then drop the checkpoint."""
    config, split, dataset = prepared.config, prepared.split, prepared.dataset
    save_model(
        prepared.model,
        folder / "model",
        tokenizer=prepared.backbone.tokenizer,
        label_names=config.task.label_names,
    )
    exit_zero = _exit_zero(prepared, progress=progress)
    exit_zero.save(folder / EXIT_ZERO_FILE)
    validation = _table(
        prepared,
        split.validation,
        dynamics=recorders["validation"],
        exit_zero=exit_zero,
        progress=progress,
        what="Tabulating validation",
    )
    validation.save(folder / "exits" / "validation.safetensors")
    for layer in exits_at_majority(validation):
        progress.warn(
            f"the exit after layer {layer} answers every validation row with the same class: it has learnt "
            "nothing; try another --pooling, a higher --head-learning-rate or more epochs"
        )
    if config.depths:
        calibration = Calibration(validation, config.depths, seed=config.options.seed)
        save_policies(folder, fit_policies(calibration), calibration)
    row_ids = dataset.row_ids
    write_dynamics(
        folder / "dynamics.parquet",
        {
            "train": (row_ids[split.train], recorders["train"]),
            "validation": (row_ids[split.validation], recorders["validation"]),
        },
    )
    write_json(
        folder / "split.json",
        {
            "kind": split.kind,
            "seed": split.seed,
            "data_fingerprint": config.data_fingerprint,
            "duplicates": split.n_duplicates,
            "conflicts": split.n_conflicts,
            "groups": split.n_groups,
            **{name: row_ids[rows].tolist() for name, rows in _splits(prepared)},
        },
    )
    if config.options.keep_texts:
        _write_texts(folder / "texts.parquet", prepared)
    test = _table(
        prepared, split.test, exit_zero=exit_zero, progress=progress, what="Tabulating test"
    )
    test.save(folder / "exits" / "test.safetensors")
    _drop_checkpoint(folder)


def _exit_zero(prepared: Prepared, *, progress: Progress) -> ExitZero:
    """Fit the classifier before the first layer on the training rows."""
    config, rows = prepared.config, prepared.split.train
    empty = ("", "") if config.task.pairs else ("",)
    return fit_exit_zero(
        [prepared.tokens.input_ids[row] for row in rows],
        prepared.labels(rows),
        n_classes=len(config.task.label_names),
        frame=sorted(set(prepared.backbone.tokenizer(*empty)["input_ids"])),
        pairs=config.task.pairs,
        seed=config.options.seed,
        progress=progress,
    )


def _drop_checkpoint(folder: Path) -> None:
    remove_written(folder, CHECKPOINT_FILES)


def exits_at_majority(table: ExitTable) -> list[int]:
    """Return the layers whose exit answers every sample with one class."""
    return [
        layer
        for position, layer in enumerate(table.layers)
        if len(np.unique(table.predictions[:, position])) == 1
    ]


def _table(
    prepared: Prepared,
    rows: NDArray[np.int64],
    *,
    progress: Progress,
    what: str,
    dynamics: Recorder | None = None,
    exit_zero: ExitZero | None = None,
) -> ExitTable:
    return tabulate(
        prepared.model,
        prepared.tokens,
        rows,
        labels=prepared.labels(rows),
        row_ids=prepared.dataset.row_ids[rows],
        label_names=prepared.config.task.label_names,
        pad_id=prepared.backbone.tokenizer.pad_token_id,
        dynamics=dynamics.dynamics if dynamics else None,
        exit_zero=exit_zero,
        progress=progress,
        what=what,
    )


def _splits(prepared: Prepared) -> list[tuple[str, NDArray[np.int64]]]:
    split = prepared.split
    return [("train", split.train), ("validation", split.validation), ("test", split.test)]


def _write_texts(path: Path, prepared: Prepared) -> None:
    parts = []
    for name, rows in _splits(prepared):
        part = prepared.dataset.take(rows)
        columns: dict[str, Any] = {
            "row_id": part.row_ids,
            "split": [name] * len(part),
            "first": part.first,
        }
        if part.second is not None:
            columns["second"] = part.second
        names = prepared.config.task.label_names
        columns["label"] = [names[label] for label in part.labels]
        parts.append(pa.table({key: pa.array(value) for key, value in columns.items()}))
    table = pa.concat_tables(parts)
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
