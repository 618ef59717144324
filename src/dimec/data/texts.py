"""The rows of an open table, read and checked: texts, labels, and when each row was made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, time

import numpy as np

from dimec.core.errors import DataError, shown
from dimec.core.options import LabelledColumns
from dimec.data.columns import Table, choose_columns
from dimec.data.dataset import TextDataset
from dimec.data.delimited import MAX_CELL_CHARACTERS
from dimec.data.faults import Faults
from dimec.data.files import ABSENT
from dimec.data.labels import MISSING, LabelColumn
from dimec.data.tasks import Task


class BadCell(ValueError):
    """Why a cell cannot be read as a text or a time, and what to do."""


class TimeColumn:
    """Reads the cells of one column, which are all numbers or all dates."""

    def __init__(self, name: str) -> None:
        """Expect any of both until the first cell decides."""
        self._name = name
        self._written = ""

    def read(self, cell: object) -> float:
        """Return a number that grows with time; of dates the seconds since 1970, those without a zone in UTC.

        Raises:
            BadCell: If it is neither a number nor an ISO date, or not what the rows before it have.
        """
        number, written = _number(cell), "numbers"
        if number is None:
            number, written = _seconds(cell), "dates"
        if number is None:
            raise BadCell(
                f"the time in {self._name!r} is {shown(cell)}; it must be an ISO date such as 2026-11-29 or "
                "2026-11-29T18:30:00Z, or a number: correct it or remove the row"
            )
        self._written = self._written or written
        if written != self._written:
            raise BadCell(
                f"the time in {self._name!r} is {shown(cell)}, and the rows before it have {self._written}: "
                "write all of them in one way"
            )
        return number


def _number(cell: object) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, int | float | str):
        return None
    try:
        number = float(cell)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _seconds(cell: object) -> float | None:
    try:
        moment = datetime.fromisoformat(cell.strip()) if isinstance(cell, str) else cell
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime.combine(moment, time())
        if not isinstance(moment, datetime):
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def checked_text(cell: object, what: str) -> str:
    """Return a cell's text as it stands, '' where there is nothing but white space; messages call it ``what``.

    Raises:
        BadCell: it is no text, or too long.
    """
    if cell is None or cell is ABSENT:
        return ""
    if not isinstance(cell, str):
        raise BadCell(
            f"{what} is {shown(cell)}, which is no text; name the text with --text-column"
        )
    if len(cell) > MAX_CELL_CHARACTERS:
        raise BadCell(
            f"{what} has {len(cell):,} characters, and {MAX_CELL_CHARACTERS:,} are allowed; cut it or split it"
        )
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise BadCell(
                f"{what} holds half a character (a lone surrogate); write the file again as UTF-8"
            ) from None
    return "" if cell.isspace() else cell


def read_labelled(
    table: Table,
    task: str | Task,
    columns: LabelledColumns,
    *,
    label_names: Sequence[str] | None,
    min_classes: int,
    max_left_out: int = 0,
    fold_labels: bool = False,
    time_column: str | None = None,
) -> TextDataset:
    """Read all rows of a table; ``task`` is a registry task, or the name of a user's own.

    Up to ``max_left_out`` rows without text (or of a wrong length) are left out and counted, one more is an error.
    With ``time_column`` the data set has times.

    Raises:
        DataError: rows have no text, text that is none, or a label or a time that cannot be used; it tells the first of
            them.
    """
    known = task if isinstance(task, Task) else None
    names, label_column = choose_columns(table, known, columns)
    whats = [f"the text in {name!r}" for name in names]
    faults = Faults(table.source, table.unit)
    labels = LabelColumn(label_names, column=label_column, faults=faults, fold=fold_labels)
    first: list[str] = []
    second: list[str] = []
    positions: list[int] = []
    numbers: list[int] = []
    times: list[float] = []
    timed = None if time_column is None else TimeColumn(time_column)
    wanted = [*names, label_column]
    if time_column is not None:
        wanted.append(table.find(time_column, "a time", (), "--time-column"))
    n_left_out = n_unlabelled = 0
    for row in faults.following(table.read(wanted)):
        cells = row.cells or ("",) * len(wanted)
        label = cells[len(names)]
        is_missing = bool(row.cells) and labels.is_missing(label)
        if columns.skip_unlabelled and is_missing:
            n_unlabelled += 1
            continue
        try:
            texts = list(map(checked_text, cells, whats))  # as many as there are names
        except BadCell as exc:
            faults.add(row.number, str(exc))
            continue
        if not texts[0] or (known is not None and known.is_pair and not all(texts)):
            n_left_out += 1
            if n_left_out > max_left_out and not columns.skip_empty:
                place = texts.index("")
                faults.add(row.number, _empty(names[place], cells[place], n_before=max_left_out))
        elif known is not None and not known.is_pair and any(texts[1:]):
            faults.add(
                row.number,
                f"the task takes one text per row, and {names[1]!r} holds a second; "
                "name the one to take with --text-column",
            )
        elif label is ABSENT:
            faults.add(row.number, _absent(label_column))
        elif is_missing:
            faults.add(row.number, MISSING)
        else:
            if timed is not None:
                try:
                    times.append(timed.read(cells[-1]))
                except BadCell as exc:
                    faults.add(row.number, str(exc))
                    continue
            labels.add(label, row.number)
            first.append(texts[0])
            second.extend(texts[1:])
            positions.append(row.position)
            numbers.append(row.number)
    if not first:
        faults.refuse()
        raise DataError(
            "the table has no rows with text and label; give one with rows under its header",
            source=table.source,
        )
    has_pairs = any(second)
    if has_pairs:
        for number, text in zip(numbers, second, strict=True):
            if not text:
                faults.add(number, _empty(names[1]))
    codes, label_names, mapping = labels.finish(min_classes=min_classes)
    left_out = "".join(
        f" (rows without {what} left out: {n:,})"
        for what, n in (("text", n_left_out), ("label", n_unlabelled))
        if n
    )
    if isinstance(task, Task):
        task = replace(task, label_names=label_names)
    else:
        task = Task(task, label_names, "accuracy", names if has_pairs else names[:1])
    return TextDataset(
        task=task,
        first=tuple(first),
        second=tuple(second) if has_pairs else None,
        labels=codes,
        row_ids=np.asarray(positions, dtype=np.int64),
        source=table.source + left_out,
        label_mapping=mapping,
        times=None if timed is None else np.asarray(times, dtype=np.float64),
    )


def _empty(column: str, cell: object = "", *, n_before: int = 0) -> str:
    if cell is ABSENT:
        return _absent(column)
    so_far = f" (like that of {n_before} rows before)" if n_before else ""
    return (
        f"the text in {column!r} is empty{so_far}; fill it in, remove the row, "
        "or leave such rows out with --skip-empty"
    )


def _absent(column: str) -> str:
    return f"the row has no {column!r}, which the first row has; add it"
