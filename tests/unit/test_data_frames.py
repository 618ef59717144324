"""Rows in memory: frames, data sets and lists, read as files are."""

from __future__ import annotations

from typing import Any

import datasets
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dimec import api
from dimec.core.errors import InputError
from dimec.core.options import checked
from dimec.data import load_dataset
from dimec.runs.run import FitOptions

TEXTS, LABELS = ("a gripping film", "dull", "fine"), ("good", "bad", "good")
FRAME = pd.DataFrame({"id": [1, 2, 3], "text": TEXTS, "label": LABELS}, index=[7, 8, 9])
CLASSES = datasets.Features(
    {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["good", "bad"])}
)
HELD: dict[str, Any] = {
    "pandas": FRAME,
    "categories": FRAME.astype({"label": "category"}),
    "polars": pl.from_pandas(FRAME),
    "pyarrow": pa.table(dict(FRAME)),
    "dicts": FRAME.to_dict("records"),
    "datasets": datasets.Dataset.from_dict({"text": [*TEXTS], "label": [*LABELS]}),
    "classes": datasets.Dataset.from_dict({"text": [*TEXTS], "label": [0, 1, 0]}, features=CLASSES),
}


@pytest.mark.parametrize("name", HELD)
def test_every_kind_of_frame_gives_the_same_rows(name: str) -> None:
    options = checked(FitOptions, {"task": "mine", "data": HELD[name]})
    found = load_dataset("mine", data=options.data)
    assert found.first == TEXTS
    assert [found.task.label_names[code] for code in found.labels] == [*LABELS]
    assert found.row_ids.tolist() == [0, 1, 2]
    assert found.source.endswith("of 3 rows")
    # A run keeps the name alone, and a fit that goes on finds it again.
    kept = FitOptions.model_validate_json(options.model_dump_json())
    assert kept == options and type(kept.data) is str


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        (pd.DataFrame({"text": ["x", None], "label": ["a", "b"]}), "row 2"),
        (pd.DataFrame({"text": ["x", "y"], "label": ["a", None]}), "row 2"),
        (pd.DataFrame({"text": [1, "y"], "label": ["a", "b"]}), "text"),
        (pd.DataFrame({"body": ["x"], "queue": ["a"]}), "--label-column"),
        ([{"text": "x", "label": "a"}, {"text": "y"}], "'label'"),
        (datasets.DatasetDict({"train": HELD["datasets"]}), "train"),
        (FRAME["text"], "a list of dicts"),
        ([1, 2], "a list of dicts"),
        (b"bytes", "a list of dicts"),
    ],
)
def test_rows_that_cannot_be_used_are_told_in_one_sentence(rows: Any, named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        load_dataset("mine", data=checked(FitOptions, {"task": "mine", "data": rows}).data)
    assert "\n" not in str(caught.value)


def test_the_splits_of_a_dataset_dict_find_their_places() -> None:
    one, two, three = (HELD["datasets"].select([at]) for at in range(3))
    splits = datasets.DatasetDict({"train": one, "test": two, "unsupervised": three})
    given = api._by_split({"data": splits, "test": None, "epochs": 1})
    assert given == {"data": one, "test": None, "epochs": 1}
    assert api._by_split({"data": splits}) == {"data": one, "test": two}
    assert api._by_split({"data": FRAME})["data"] is FRAME
