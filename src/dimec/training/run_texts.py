"""The texts of a finished run, training rows included: from what the run keeps, else from where its data came from."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dimec.data import TextDataset
from dimec.data.tasks import Task
from dimec.errors import DataError, OptionError, RunError
from dimec.progress import SILENT, Progress
from dimec.runs import Run
from dimec.training.prepare import read_dataset
from dimec.training.texts import split_texts, splits_of

SplitName = Literal["train", "validation", "test"]


class RunTexts:
    """Gives the texts of a run by split."""

    def __init__(self, run: Run, *, progress: Progress = SILENT) -> None:
        """Find out where the texts are.

        Raises:
            OptionError: If the run keeps none and its data are not there any more, or are others.
        """
        self._run = run
        self._source: TextDataset | None = None
        if not (run.folder / "texts.parquet").exists():
            self._source = _from_source(run, progress=progress)

    def of(self, split: SplitName, *, max_rows: int | None = None, seed: int = 0) -> TextDataset:
        """Return the texts of a split, or of ``max_rows`` rows drawn from it, in the order of their rows.

        Raises:
            RunError: If what the run keeps is damaged.
        """
        if self._source is not None:
            dataset = self._take(self._source, split)
        elif split == "train":
            dataset = _kept_train(self._run)
        else:
            dataset = split_texts(self._run, split)
        if max_rows is None or max_rows >= len(dataset):
            return dataset
        drawn = np.random.default_rng(seed).permutation(len(dataset))[:max_rows]
        return dataset.take(np.sort(drawn))

    def _take(self, source: TextDataset, split: SplitName) -> TextDataset:
        if split == "train":
            wanted = splits_of(self._run)["train"]
        else:
            own = self._run.validation if split == "validation" else self._run.test
            wanted = own.row_ids
        order = np.argsort(source.row_ids, kind="stable")
        return source.take(order[np.searchsorted(source.row_ids[order], wanted)])


def _from_source(run: Run, *, progress: Progress) -> TextDataset:
    remedy = "put the data back, or fit the run again without --no-texts"
    try:
        dataset = read_dataset(run.config.options, progress=progress)
    except (DataError, OptionError) as exc:
        raise OptionError(
            f"{run.folder} keeps no texts (no texts.parquet) and its data cannot be read ({exc}): {remedy}"
        ) from exc
    if dataset.fingerprint != run.config.data_fingerprint:
        raise OptionError(
            f"{run.folder} keeps no texts (no texts.parquet) and {dataset.source} has changed since its fit: {remedy}"
        )
    return dataset


def _kept_train(run: Run) -> TextDataset:
    path = run.folder / "texts.parquet"
    task = run.config.task
    names = ("first", "second") if task.pairs else ("first",)
    try:
        columns = pq.read_table(path, filters=[("split", "=", "train")]).to_pydict()
        texts = [columns[name] for name in names]
        row_ids: NDArray[np.int64] = np.asarray(columns["row_id"], dtype=np.int64)
        labels = np.asarray([task.label_names.index(label) for label in columns["label"]])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise RunError(
            f"{path} cannot be read ({str(exc).splitlines()[0]}): it is damaged, fit the run again"
        ) from exc
    if not np.array_equal(np.sort(row_ids), np.sort(splits_of(run)["train"])):
        raise RunError(f"{path} does not hold the training rows of split.json: fit the run again")
    return TextDataset(
        task=Task(task.name, task.label_names, metric=task.metric, text_columns=names),
        first=tuple(texts[0]),
        second=tuple(texts[1]) if task.pairs else None,
        labels=labels.astype(np.int64),
        row_ids=row_ids,
        source=f"train split of {run.folder}",
    )
