"""Training dynamics: the probability that each exit gives the true label, epoch by epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dimec.core.files import write_atomically
from dimec.runs.exit_table import Dynamics


class Recorder:
    """Fills the dynamics of a fixed set of samples from logits that training has computed anyway."""

    def __init__(self, n: int, *, epochs: int, layers: tuple[int, ...]) -> None:
        """Make room for ``n`` samples."""
        self.layers = layers
        self.dynamics = Dynamics(
            np.full((n, epochs, len(layers)), np.nan, dtype=np.float32),
            np.zeros((n, epochs, len(layers)), dtype=np.bool_),
        )

    def record(
        self,
        epoch: int,
        samples: NDArray[np.integer],
        *,
        logits: NDArray[np.float32],
        labels: NDArray[np.integer],
    ) -> None:
        """Take logits [b, exits, classes] of some samples [b] with labels [b] in an epoch, counted from 0."""
        shifted = logits - logits.max(axis=2, keepdims=True)
        true = np.take_along_axis(shifted, labels[:, None, None], axis=2)[:, :, 0]
        self.dynamics.true_probability[samples, epoch] = np.exp(true) / np.exp(shifted).sum(axis=2)
        self.dynamics.correct[samples, epoch] = logits.argmax(axis=2) == labels[:, None]


def write_dynamics(path: Path, splits: dict[str, tuple[NDArray[np.int64], Recorder]]) -> None:
    """Write dynamics as parquet: a line per sample and epoch, two columns per exit.

    Columns: ``row_id``, ``split``, ``epoch`` from 1, then ``true_probability_L`` and ``correct_L`` of each exit L.
    ``splits`` holds row ids [n] and recorder of each split.
    """
    tables = []
    for name, (row_ids, recorder) in splits.items():
        n, epochs, _ = recorder.dynamics.correct.shape
        columns = {
            "row_id": pa.array(np.repeat(row_ids, epochs)),
            "split": pa.array([name] * (n * epochs)).dictionary_encode(),
            "epoch": pa.array(np.tile(np.arange(1, epochs + 1, dtype=np.int16), n)),
        }
        for position, layer in enumerate(recorder.layers):
            probability = recorder.dynamics.true_probability[:, :, position]
            columns[f"true_probability_{layer}"] = pa.array(probability.ravel())
            columns[f"correct_{layer}"] = pa.array(
                recorder.dynamics.correct[:, :, position].ravel()
            )
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    write_atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
