"""What `--split` says, and what goes with it."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from dimec.core.errors import OptionError
from dimec.core.options import checked
from dimec.core.split_choice import SplitChoice
from dimec.data.texts import BadCell, TimeColumn
from dimec.runs.run import FitOptions


@pytest.mark.parametrize(
    ("text", "kind", "sizes"),
    [
        ("auto", "auto", (80, 10, 10)),
        ("grouped", "grouped", (80, 10, 10)),
        ("70/15/15", "auto", (70, 15, 15)),
        ("random:60/20/20", "random", (60, 20, 20)),
        ("grouped:80/10/10", "grouped", (80, 10, 10)),
    ],
)
def test_a_choice_is_a_kind_sizes_or_both(
    text: str, kind: str, sizes: tuple[int, int, int]
) -> None:
    choice = SplitChoice.read(text)
    assert (choice.kind, choice.sizes) == (kind, sizes)
    assert SplitChoice.read(str(choice)) == choice


@pytest.mark.parametrize(
    "text", ["", "odd", "80/20", "70/15/16", "100/0/0", "grouped:", "odd:80/10/10", "80/-5/25"]
)
def test_what_is_no_choice_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--split"):
        checked(FitOptions, {"task": "mine", "split": text})


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"split": "time"}, "--time-column"),
        ({"time_column": "day"}, "--split time"),
        ({"split": "grouped", "validation": "v.csv", "test": "t.csv"}, "--split grouped"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, str], named: str) -> None:
    with pytest.raises(OptionError, match=named):
        checked(FitOptions, {"task": "mine", **options})


def test_equal_choices_are_equal_options() -> None:
    ours = checked(FitOptions, {"task": "mine", "split": "80/10/10"})
    assert ours == checked(FitOptions, {"task": "mine"})


def test_dates_of_every_kind_are_moments() -> None:
    column = TimeColumn("day")
    noon = datetime(2026, 11, 29, 12, tzinfo=UTC)
    assert column.read("2026-11-29T12:00:00Z") == noon.timestamp()
    assert column.read("2026-11-29T13:00:00+01:00") == noon.timestamp()
    assert column.read(noon.replace(tzinfo=None)) == noon.timestamp()
    assert column.read(date(2026, 11, 29)) == column.read("2026-11-29") == noon.timestamp() - 43_200


def test_numbers_may_be_written() -> None:
    column = TimeColumn("step")
    assert [column.read(cell) for cell in (3, 2.5, " 7 ")] == [3, 2.5, 7]


@pytest.mark.parametrize("cell", ["soon", "", None, True, float("nan"), "inf", "2026-13-01", [1]])
def test_what_is_no_time_is_refused(cell: object) -> None:
    with pytest.raises(BadCell, match="day"):
        TimeColumn("day").read(cell)


def test_numbers_and_dates_are_not_ordered() -> None:
    column = TimeColumn("day")
    column.read("2026-11-29")
    with pytest.raises(BadCell, match="dates"):
        column.read(20261130)
