"""A run's training rows as an exit table: read again, tabulated by its model, with the dynamics that it recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import RunError
from dimec.core.extras import needs_training
from dimec.core.files import check_readable
from dimec.core.progress import SILENT, Progress
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.run import Run


def training_table(run: Run, *, progress: Progress = SILENT) -> ExitTable:
    """Return what a run's exits say about its training rows.

    Raises:
        OptionError: If the run keeps no texts, and its data are not there any more or are others.
        RunError: If the run's texts, split or dynamics cannot be read, or are about other rows.
    """
    with needs_training():
        from dimec.training import tabulate_dataset
        from dimec.training.run_texts import RunTexts
    rows = RunTexts(run, progress=progress).of("train")
    table = tabulate_dataset(run, rows, progress=progress)
    return replace(table, dynamics=training_dynamics(run, table.row_ids))


def training_dynamics(run: Run, row_ids: NDArray[np.int64]) -> Dynamics:
    """Return the dynamics of training rows, by their ids and in their order.

    Raises:
        RunError: If ``dynamics.parquet`` cannot be read or does not hold them.
    """
    with needs_training():
        import pyarrow as pa
        import pyarrow.parquet as pq
    path = run.folder / "dynamics.parquet"
    exits = run.config.exits
    check_readable(path, fault=RunError)
    try:
        found = pq.read_table(path, filters=[("split", "=", "train")])
        columns = {name: found[name].to_numpy() for name in found.column_names if name != "split"}
        order = np.lexsort((columns["epoch"], columns["row_id"]))
        epochs = len(np.unique(columns["epoch"]))
        ids = columns["row_id"][order][::epochs]
        probability, correct = (
            np.stack([columns[f"{name}_{layer}"][order] for layer in exits], axis=1).reshape(
                len(ids), epochs, len(exits)
            )
            for name in ("true_probability", "correct")
        )
        position = np.minimum(np.searchsorted(ids, row_ids), len(ids) - 1)
        whole = bool((ids[position] == row_ids).all())
    except (OSError, pa.ArrowException, KeyError, ValueError) as exc:
        raise RunError(f"{path} cannot be read: fit the run again") from exc
    if not whole:
        raise RunError(f"{path} does not hold all training rows: fit the run again")
    return Dynamics(probability[position].astype(np.float32), correct[position].astype(np.bool_))
