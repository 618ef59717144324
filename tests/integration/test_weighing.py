"""Weights of a run's rows by texts to come, from files, on the tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.commands import Here
from tests.notes import Notes

from dimec.core.errors import DataError, OptionError
from dimec.core.metrics import effective_size
from dimec.core.options import TextColumns
from dimec.data import reviews
from dimec.runs.run import Run
from dimec.training import weighing
from dimec.training.texts import split_texts
from dimec.training.weighing import weigh_like

COLUMNS = TextColumns()


def lengths(texts: tuple[str, ...]) -> np.ndarray:
    return np.array([len(text.split()) for text in texts])


@pytest.fixture(scope="module")
def others() -> tuple[str, ...]:
    """Give texts that no run of 600 rows has read all of."""
    return reviews().first[600:1800]


@pytest.fixture
def long(others: tuple[str, ...], tmp_path: Path) -> Path:
    """Write the longer half of them."""
    many = np.median(lengths(others))
    path = tmp_path / "long.txt"
    path.write_text("\n".join(each for each in others if len(each.split()) > many) + "\n\n")
    return path


@pytest.fixture
def few_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the sixty validation rows of the tiny run do."""
    monkeypatch.setattr(weighing, "FEWEST", 10)


def test_a_weighed_mean_is_that_of_the_texts_to_come(
    tiny_run: Run, long: Path, few_do: None
) -> None:
    heard = Notes()
    own = lengths(split_texts(tiny_run, "validation").first)
    weights = weigh_like(tiny_run, long, columns=COLUMNS, progress=heard)
    assert weights is not None
    assert weights.mean() == pytest.approx(1)
    assert weights.min() > 0
    wanted = lengths(tuple(long.read_text().splitlines()[:-1])).mean()
    weighed = np.average(own, weights=weights)
    assert abs(weighed - wanted) < abs(own.mean() - wanted) / 2
    assert any(f"{effective_size(weights):.0f} rows" in line for line in heard.said)
    assert heard.warned  # of the empty line


def test_texts_like_those_of_the_run_weigh_nothing(
    tiny_run: Run, others: tuple[str, ...], tmp_path: Path, few_do: None
) -> None:
    path = tmp_path / "alike.csv"
    path.write_text("\n".join(["body", *(f'"{each}"' for each in others)]))
    assert weigh_like(tiny_run, path, columns=TextColumns(text_column="body")) is None


def test_too_few_texts_or_effective_rows_are_refused(
    tiny_run: Run, long: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="--like"):
        weigh_like(tiny_run, long, columns=COLUMNS)
    few = tmp_path / "few.txt"
    few.write_text("a text to come\n" * 99)
    with pytest.raises(OptionError, match="--like"):
        weigh_like(tiny_run, few, columns=COLUMNS)
    with pytest.raises(DataError):
        weigh_like(tiny_run, tmp_path / "nowhere.txt", columns=COLUMNS)


def test_evaluate_says_how_much_weighed_rows_tell(
    tiny_run: Run, long: Path, few_do: None, here: Here
) -> None:
    said = here("evaluate", tiny_run.folder, "--like", long, "--json").out
    found = json.loads(said)["recommendation"]
    assert 10 <= found["n_effective"] < found["n_validation"]
    low, high = found["test_drop_like_ci95"]
    assert low <= found["test_drop_like_points"] <= high
