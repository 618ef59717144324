"""The room on the real data sets under DIMEC_DATA; only counts of them are written here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dimec.core.errors import DataError
from dimec.core.options import LabelledColumns
from dimec.data import load_dataset, split_dataset
from dimec.data.tasks import TASKS

ROWS = {
    "sst2": 67_349,
    "cola": 8_551,
    "mrpc": 3_668,
    "rte": 2_490,
    "qnli": 12_096,
    "qqp": 34_684,
    "mnli": 27_648,
}


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_task_loads_from_the_folder_above_it(data_root: Path, name: str) -> None:
    dataset = load_dataset(name, data=data_root / "glue")
    assert len(dataset) == ROWS[name]
    assert dataset.task == TASKS[name]
    assert (dataset.second is not None) == TASKS[name].is_pair
    assert set(dataset.labels.tolist()) == set(range(TASKS[name].n_classes))
    assert dataset.row_ids.tolist() == list(range(len(dataset)))


@pytest.mark.parametrize(
    ("name", "n_duplicates", "n_conflicts"),
    # CoLA has 19 exact duplicates; two more differ in nothing but case.
    [("sst2", 371, 5), ("cola", 21, 11)],
)
def test_duplicates_and_conflicts_are_found(
    data_root: Path, name: str, n_duplicates: int, n_conflicts: int
) -> None:
    split = split_dataset(load_dataset(name, data=data_root / "glue" / name))
    assert (split.n_duplicates, split.n_conflicts) == (n_duplicates, n_conflicts)


def test_a_shifted_set_loads_with_the_labels_of_a_run(data_root: Path) -> None:
    folder = data_root / "shift" / "cr"
    names = ["negative", "positive"]
    with pytest.raises(DataError, match="--skip-empty") as caught:
        load_dataset("sst2", data=folder, label_names=names)
    assert caught.value.row == 769
    dataset = load_dataset(
        "sst2", data=folder, label_names=names, columns=LabelledColumns(skip_empty=True)
    )
    assert len(dataset) == 3_771
    assert dataset.second is None
    assert dataset.source.endswith("(rows without text left out: 2)")
    assert len(load_dataset("mnli", data=data_root / "shift" / "sick")) == 4_906


def test_grouping_takes_most_contained_rows_out_of_test(data_root: Path) -> None:
    """Of SST-2's phrases most are part of another row; random splits test on parts of what was trained on."""
    dataset = load_dataset("sst2", data=data_root / "glue")
    texts = [f" {' '.join(text.casefold().split())} " for text in dataset.first]
    sample = np.random.default_rng(0).permutation(len(dataset))
    shares = {}
    for kind in ("random", "grouped"):
        split = split_dataset(dataset, kind=kind)
        parts = (split.train, split.validation, split.test)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(dataset)))
        for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):
            assert abs(len(part) / len(dataset) - share) < 0.01
            assert abs(dataset.labels[part].mean() - dataset.labels.mean()) < 0.01
        trained = "|".join(texts[row] for row in split.train)
        held_out = set(split.test.tolist())
        rows = [row for row in sample.tolist() if row in held_out][:200]
        shares[kind] = np.mean([texts[row] in trained for row in rows])
    assert shares["random"] > 0.7
    assert shares["grouped"] < 0.15
