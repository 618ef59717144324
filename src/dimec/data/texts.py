"""The rows of an open table, read and checked: texts on one side, labels on the other.

A `Table` and the chosen `Columns` go in; `LabelledTexts` comes out, every row of which holds text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DataError, shown
from dimec.data.columns import Columns
from dimec.data.files import ABSENT, MAX_CELL_CHARACTERS, Table
from dimec.data.labels import MISSING, CodedLabels, LabelColumn


@dataclass(frozen=True)
class LabelledTexts:
    """What a table holds; ``second`` is None where its column is absent or empty throughout.

    ``row_ids`` are 0-based positions without the header; ``n_left_out`` counts rows that were left out for
    want of text, ``n_unlabelled`` those for want of a label.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: CodedLabels
    row_ids: NDArray[np.int64]
    n_left_out: int
    n_unlabelled: int


def read_texts(
    table: Table,
    columns: Columns,
    *,
    label_names: Sequence[str] | None,
    min_classes: int,
    max_left_out: int = 0,
    takes_pairs: bool | None = None,
    skip_unlabelled: bool = False,
    fold_labels: bool = False,
) -> LabelledTexts:
    """Read all rows of a table.

    Up to ``max_left_out`` rows without text (or of a wrong length) are left out and counted, one more is an error;
    with ``skip_unlabelled`` so are all rows without label. With ``fold_labels`` labels that look alike are one.
    ``takes_pairs`` is what the task demands, None where it takes what is there.

    Raises:
        DataError: rows have no text, text that is none, or a label that cannot be used; it tells the first of them.
    """
    names = [columns.first, *([columns.second] if columns.second else []), columns.label]
    faults = table.faults()
    labels = LabelColumn(
        label_names, column=columns.label, source=table.source, faults=faults, fold=fold_labels
    )
    first: list[str] = []
    second: list[str] = []
    positions: list[int] = []
    numbers: list[int] = []
    n_left_out = n_unlabelled = 0
    for row in faults.following(table.read(names)):
        if skip_unlabelled and row.cells and labels.is_missing(row.cells[-1]):
            n_unlabelled += 1
            continue
        text = pair = ""
        try:
            if row.cells:
                text = _text(row.cells[0], columns.first)
                if columns.second:
                    pair = _text(row.cells[1], columns.second)
        except _Fault as exc:
            faults.add(row.number, str(exc))
            continue
        if not text or (takes_pairs and not pair):
            n_left_out += 1
            if n_left_out > max_left_out:
                empty = columns.second if text and columns.second else columns.first
                faults.add(row.number, _empty(empty, row.cells, n_before=max_left_out))
            continue
        if pair and takes_pairs is False:
            faults.add(
                row.number,
                f"the task takes one text per row, and {columns.second!r} holds a second; "
                "name the one to take with --text-column",
            )
            continue
        if row.cells[-1] is ABSENT:
            faults.add(row.number, _absent(columns.label))
            continue
        if labels.is_missing(row.cells[-1]):
            faults.add(row.number, MISSING)
            continue
        labels.add(row.cells[-1], row.number)
        first.append(text)
        second.append(pair)
        positions.append(row.position)
        numbers.append(row.number)
    has_pairs = any(second)
    if columns.second and has_pairs:
        for number, pair in zip(numbers, second, strict=True):
            if not pair:
                faults.add(number, _empty(columns.second, ()))
    if not first:
        faults.refuse()
        raise DataError(
            "the table has no rows with text and label; give one with rows under its header",
            source=table.source,
        )
    return LabelledTexts(
        first=tuple(first),
        second=tuple(second) if has_pairs else None,
        labels=labels.finish(min_classes=min_classes),
        row_ids=np.asarray(positions, dtype=np.int64),
        n_left_out=n_left_out,
        n_unlabelled=n_unlabelled,
    )


class _Fault(ValueError):
    """What is wrong with a cell."""


def _text(cell: object, column: str) -> str:
    """Give a cell's text as it stands, '' where there is nothing but white space."""
    if cell is None or cell is ABSENT:
        return ""
    if not isinstance(cell, str):
        raise _Fault(
            f"the column {column!r} holds {shown(cell)}, which is no text; name the text with --text-column"
        )
    if len(cell) > MAX_CELL_CHARACTERS:
        raise _Fault(
            f"the text in {column!r} has {len(cell):,} characters, and {MAX_CELL_CHARACTERS:,} are allowed; "
            "cut it or split it into rows"
        )
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise _Fault(
                f"the text in {column!r} holds half a character (a lone surrogate); write the file again as UTF-8"
            ) from None
    return "" if cell.isspace() else cell


def _empty(column: str, cells: Sequence[object], *, n_before: int = 0) -> str:
    if ABSENT in cells[:-1]:
        return _absent(column)
    so_far = f" (like that of {n_before} rows before)" if n_before else ""
    return (
        f"the text in {column!r} is empty{so_far}; fill it in, remove the row, "
        "or leave such rows out with --skip-empty"
    )


def _absent(column: str) -> str:
    return f"the row has no {column!r}, which the first row has; add it"
