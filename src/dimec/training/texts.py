"""The texts that a run keeps, read back in the order of its exit tables."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dimec.core.errors import RunError
from dimec.core.untrusted import open_regular, read_json, trusting_nothing
from dimec.data import TextDataset
from dimec.data.tasks import Task
from dimec.runs.run import Run

TEXTS_FILE = "texts.parquet"
_MAX_SPLIT_BYTES = 2**30


def split_texts(run: Run, split: Literal["validation", "test"]) -> TextDataset:
    """Return a split's texts, labels and row ids, in the order of its exit table.

    Raises:
        RunError: If the run's ``texts.parquet`` cannot be read, or does not hold the rows and labels of the table.
    """
    table = run.validation if split == "validation" else run.test
    path, found = run.folder / TEXTS_FILE, _kept(run, split)
    order = np.argsort(found.row_ids, kind="stable")
    if not np.array_equal(found.row_ids[order], np.sort(table.row_ids)):
        raise RunError(f"{path} does not hold the rows of the {split} table: fit the run again")
    positions = order[np.searchsorted(found.row_ids[order], table.row_ids)]
    if not np.array_equal(found.labels[positions], table.labels):
        raise RunError(
            f"{path} has other labels than the {split} table: it was altered, fit the run again"
        )
    return found.take(positions)


def train_texts(run: Run) -> TextDataset:
    """Return the training split's texts, labels and row ids, as they are kept.

    Raises:
        RunError: If the run's ``texts.parquet`` cannot be read, or does not hold the rows of ``split.json``.
    """
    found = _kept(run, "train")
    if not np.array_equal(np.sort(found.row_ids), np.sort(splits_of(run)["train"])):
        raise RunError(
            f"{run.folder / TEXTS_FILE} does not hold the training rows of split.json: fit the run again"
        )
    return found


def _kept(run: Run, split: str) -> TextDataset:
    """Return what a run keeps of a split, in the order of its file."""
    path = run.folder / TEXTS_FILE
    task = run.config.task
    names = ("first", "second") if task.pairs else ("first",)
    with trusting_nothing(path, RunError, remedy="fit the run again"), open_regular(path) as file:
        columns = pq.read_table(file, filters=[("split", "=", split)]).to_pydict()
        texts = [columns[name] for name in names]
        row_ids = np.asarray(columns["row_id"], dtype=np.int64)
        labels = np.asarray([task.label_names.index(label) for label in columns["label"]])
    return TextDataset(
        task=Task(task.name, task.label_names, metric=task.metric, text_columns=names),
        first=tuple(texts[0]),
        second=tuple(texts[1]) if task.pairs else None,
        labels=labels.astype(np.int64),
        row_ids=row_ids,
        source=f"{split} split of {run.folder}",
    )


def splits_of(run: Run) -> dict[str, NDArray[np.int64]]:
    """Return the row ids of each split, from the run's ``split.json``.

    Raises:
        RunError: If it cannot be read.
    """
    path = run.folder / "split.json"
    with trusting_nothing(path, RunError, remedy="fit the run again"):
        document = read_json(path, limit=_MAX_SPLIT_BYTES)
        names = ("train", "validation", "test")
        return {name: np.asarray(document[name], dtype=np.int64) for name in names}
