"""The texts of a finished run, training rows included: from what the run keeps, else from where its data came from."""

from __future__ import annotations

from typing import Literal

import numpy as np

from dimec.core.errors import DataError, OptionError, UnreachableError
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset
from dimec.runs.run import Run
from dimec.training.prepare import read_dataset
from dimec.training.texts import TEXTS_FILE, split_texts, splits_of, train_texts

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
        if not (run.folder / TEXTS_FILE).exists():
            self._source = _from_source(run, progress=progress)

    def of(self, split: SplitName, *, max_rows: int | None = None, seed: int = 0) -> TextDataset:
        """Return the texts of a split, or of ``max_rows`` rows drawn from it, in the order of their rows.

        Raises:
            RunError: If what the run keeps is damaged.
        """
        if self._source is not None:
            dataset = self._take(self._source, split)
        elif split == "train":
            dataset = train_texts(self._run)
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
    except (DataError, OptionError, UnreachableError) as exc:
        raise OptionError(
            f"{run.folder} keeps no texts (no texts.parquet) and its data cannot be read ({exc}): {remedy}"
        ) from exc
    if dataset.fingerprint != run.config.data_fingerprint:
        raise OptionError(
            f"{run.folder} keeps no texts (no texts.parquet) and {dataset.source} has changed since its fit: {remedy}"
        )
    return dataset
