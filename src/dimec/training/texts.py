"""The texts of a finished run by split: those that it keeps, else read again from where its data came from."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dimec.core.errors import DataError, OptionError, RunError, UnreachableError
from dimec.core.progress import SILENT, Progress
from dimec.core.untrusted import open_regular, trusting_nothing
from dimec.data import TextDataset
from dimec.data.tasks import Task
from dimec.runs.run import Run
from dimec.training.prepare import read_dataset

TEXTS_FILE = "texts.parquet"

SplitName = Literal["train", "validation", "test"]


class RunTexts:
    """Gives the texts of a run by split."""

    def __init__(self, run: Run, *, progress: Progress = SILENT) -> None:
        """Find out where the texts are.

        Raises:
            OptionError: If the run keeps none and its data are missing, or are others.
        """
        self._run = run
        self._source: TextDataset | None = None
        if (run.folder / TEXTS_FILE).exists():
            return
        fault = f"{run.folder} keeps no texts (no texts.parquet) and"
        remedy = "put the data back, or fit the run again without --no-texts"
        try:
            self._source, _ = read_dataset(run.config.options, progress=progress)
        except (DataError, OptionError, UnreachableError) as exc:
            raise OptionError(f"{fault} its data cannot be read ({exc}): {remedy}") from exc
        if self._source.fingerprint != run.config.data_fingerprint:
            raise OptionError(f"{fault} {self._source.source} has changed since its fit: {remedy}")

    def of(self, split: SplitName, *, max_rows: int | None = None, seed: int = 0) -> TextDataset:
        """Return the texts of a split, or of ``max_rows`` rows drawn from it, in the order of their rows.

        Raises:
            RunError: If what the run keeps is damaged.
        """
        if self._source is None:
            dataset = split_texts(self._run, split)
        else:
            dataset = _rows(self._source, _row_ids(self._run, split))
        if max_rows is None or max_rows >= len(dataset):
            return dataset
        return dataset.drawn(max_rows, seed=seed)


def split_texts(run: Run, split: SplitName) -> TextDataset:
    """Return the texts, labels and row ids that a run keeps of a split, in the order of its exit table.

    Raises:
        RunError: If ``texts.parquet`` cannot be read, or does not hold the split's rows and labels.
    """
    path = run.folder / TEXTS_FILE
    task = run.config.task
    names = ("first", "second") if task.pairs else ("first",)
    with trusting_nothing(path, RunError, remedy="fit the run again"), open_regular(path) as file:
        columns = pq.read_table(file, filters=[("split", "=", split)]).to_pydict()
        texts = [columns[name] for name in names]
        row_ids = np.asarray(columns["row_id"], dtype=np.int64)
        labels = np.asarray([task.label_names.index(label) for label in columns["label"]])
    found = TextDataset(
        task=Task(task.name, task.label_names, metric=task.metric, text_columns=names),
        first=tuple(texts[0]),
        second=tuple(texts[1]) if task.pairs else None,
        labels=labels.astype(np.int64),
        row_ids=row_ids,
        source=f"{split} split of {run.folder}",
    )
    wanted = _row_ids(run, split)
    if not np.array_equal(np.sort(row_ids), np.sort(wanted)):
        raise RunError(f"{path} does not hold the rows of the {split} split: fit the run again")
    dataset = _rows(found, wanted)
    if split != "train" and not np.array_equal(dataset.labels, run.table(split).labels):
        raise RunError(
            f"{path} has other labels than the {split} table: it was altered, fit the run again"
        )
    return dataset


def _row_ids(run: Run, split: SplitName) -> NDArray[np.int64]:
    return run.splits["train"] if split == "train" else run.table(split).row_ids


def _rows(dataset: TextDataset, row_ids: NDArray[np.int64]) -> TextDataset:
    """Return the rows with these ids, in their order; all are there."""
    order = np.argsort(dataset.row_ids, kind="stable")
    return dataset.take(order[np.searchsorted(dataset.row_ids[order], row_ids)])
