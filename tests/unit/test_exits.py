from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from dimec.core.errors import ContractError, RunError
from dimec.runs.exit_table import ExitTable
from tests.unit.tables import random_table, table_of

COLUMNS = (
    "logits",
    "labels",
    "embeddings",
    "n_tokens",
    "payload_bytes",
    "row_ids",
    "exit_zero",
    "unseen",
)


def test_what_exits_say() -> None:
    table = table_of([[0.2, 0.9], [0.5, 0.6]], labels=[0, 1], layers=(2, 6))
    assert table.predictions.tolist() == [[0, 1], [0, 1]]
    assert table.confidence == pytest.approx(np.array([[0.8, 0.9], [0.5, 0.6]]), abs=1e-6)
    assert table.right.tolist() == [[True, False], [False, True]]
    assert table.exit(6) == 1
    assert table.n_layers == 6
    with pytest.raises(ContractError):
        table.exit(3)


def test_saved_and_loaded_whole(tmp_path: Path) -> None:
    table = random_table(50, n_classes=3)
    path = tmp_path / "exits" / "test.safetensors"
    table.save(path)
    again = ExitTable.load(path)
    assert again.layers == table.layers
    assert again.label_names == table.label_names
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert again.dynamics is not None and table.dynamics is not None
    np.testing.assert_array_equal(again.dynamics.correct, table.dynamics.correct)
    assert [each.name for each in path.parent.iterdir()] == ["test.safetensors"]


def test_rows_are_taken_in_order() -> None:
    table = random_table(20)
    part = table.take(np.array([7, 3]))
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(part, name), getattr(table, name)[[7, 3]])
    assert part.row_ids.tolist() == [7, 3]
    assert part.dynamics is not None and table.dynamics is not None
    np.testing.assert_array_equal(
        part.dynamics.true_probability, table.dynamics.true_probability[[7, 3]]
    )
    np.testing.assert_array_equal(part.dynamics.correct, table.dynamics.correct[[7, 3]])


def test_tables_of_the_same_exits_are_joined() -> None:
    table = random_table(20)
    first, then = table.take(np.arange(12)), table.take(np.arange(12, 20))
    whole = first.joined(then)
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(whole, name), getattr(table, name))
    assert whole.dynamics is None
    wordless = first.joined(replace(then, exit_zero=None, unseen=None))
    assert wordless.exit_zero is None and wordless.unseen is None
    assert len(wordless) == 20
    deeper = replace(then, layers=tuple(layer + 1 for layer in then.layers))
    with pytest.raises(ContractError):
        first.joined(deeper)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "table.safetensors"

    def refused() -> None:
        with pytest.raises(RunError, match=path.name):
            ExitTable.load(path)

    refused()
    random_table(20).save(path)
    whole, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(whole[: len(whole) // 2])
    refused()
    save_file({"a": np.zeros(3)}, path)
    refused()
    for version in (99, 1):
        header = {"format": version, "layers": [1], "label_names": ["a", "b"]}
        save_file(tensors, path, metadata={"dimec": json.dumps(header)})
        refused()


@pytest.mark.parametrize(
    "fault",
    [
        {"labels": np.full(20, 5)},
        {"labels": np.zeros(3, dtype=np.int64)},
        {"layers": (1, 2, 3, 4, 6, 5)},
        {"label_names": ("one",)},
        {"logits": np.full((20, 6, 2), np.nan, dtype=np.float32)},
        {"embeddings": np.full((20, 8), np.inf, dtype=np.float32)},
        {"unseen": np.full(20, 1.5, dtype=np.float32)},
        {"unseen": np.zeros(3, dtype=np.float32)},
    ],
)
def test_columns_must_fit(fault: dict[str, Any]) -> None:
    with pytest.raises(ContractError):
        replace(random_table(20), **fault)
