"""The rows of an open table, read and checked: texts on one side, labels on the other.

A `Table` and the chosen `Columns` go in; `LabelledTexts` comes out, every row of which holds text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.data.columns import Columns
from dimec.data.files import MAX_CELL_CHARACTERS, Table, shown
from dimec.data.labels import CodedLabels, LabelColumn
from dimec.errors import DataError


@dataclass(frozen=True)
class LabelledTexts:
    """What a table holds; ``second`` is None where its column is absent or empty throughout.

    ``row_ids`` are 0-based positions without the header; ``n_left_out`` counts rows that were left out.
    """

    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: CodedLabels
    row_ids: NDArray[np.int64]
    n_left_out: int


def read_texts(
    table: Table,
    columns: Columns,
    *,
    label_names: Sequence[str] | None,
    min_classes: int,
    max_left_out: int = 0,
    takes_pairs: bool | None = None,
) -> LabelledTexts:
    """Read all rows of a table.

    Up to ``max_left_out`` rows without text (or of a wrong length) are left out and counted, one more is an error.
    ``takes_pairs`` is what the task demands, None where it takes what is there.

    Raises:
        DataError: a row has no text, text that is none, or a label that cannot be used.
    """
    source = table.source
    names = [columns.first, *([columns.second] if columns.second else []), columns.label]
    labels = LabelColumn(label_names, column=columns.label, source=source)
    first: list[str] = []
    second: list[str] = []
    positions: list[int] = []
    numbers: list[int] = []
    n_left_out = 0
    for row in table.read(names):
        text = pair = ""
        if row.cells:
            text = _text(row.cells[0], columns.first, source, row.number)
            if columns.second:
                pair = _text(row.cells[1], columns.second, source, row.number)
        if not text or (takes_pairs and not pair):
            n_left_out += 1
            if n_left_out > max_left_out:
                empty = columns.second if text and columns.second else columns.first
                raise _empty(empty, source, row.number, n_left_out)
            continue
        if pair and takes_pairs is False:
            raise DataError(
                f"the task takes one text per row, and {columns.second!r} holds a second; "
                "name the one to take with --text-column",
                source=source,
                row=row.number,
            )
        labels.add(row.cells[-1], row.number)
        first.append(text)
        second.append(pair)
        positions.append(row.position)
        numbers.append(row.number)
    if not first:
        raise DataError("the table has no rows; give one with rows under its header", source=source)
    has_pairs = any(second)
    if columns.second and has_pairs and not all(second):
        raise _empty(columns.second, source, numbers[second.index("")])
    return LabelledTexts(
        first=tuple(first),
        second=tuple(second) if has_pairs else None,
        labels=labels.finish(min_classes=min_classes),
        row_ids=np.asarray(positions, dtype=np.int64),
        n_left_out=n_left_out,
    )


def _text(cell: object, column: str, source: str, row: int) -> str:
    """Give a cell's text as it stands, '' where there is nothing but white space."""
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise DataError(
            f"the column {column!r} holds {shown(cell)}, which is no text; name the text with --text-column",
            source=source,
            row=row,
        )
    if len(cell) > MAX_CELL_CHARACTERS:
        raise DataError(
            f"the text in {column!r} has {len(cell):,} characters, and {MAX_CELL_CHARACTERS:,} are allowed; "
            "cut it or split it into rows",
            source=source,
            row=row,
        )
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError as exc:
            raise DataError(
                f"the text in {column!r} holds half a character (a lone surrogate); write the file again as UTF-8",
                source=source,
                row=row,
            ) from exc
    return "" if cell.isspace() else cell


def _empty(column: str, source: str, row: int, n_rows: int = 1) -> DataError:
    so_far = f" (like that of {n_rows - 1} rows before)" if n_rows > 1 else ""
    return DataError(
        f"the text in {column!r} is empty{so_far}; fill it in, remove the row, "
        "or leave such rows out with --skip-empty",
        source=source,
        row=row,
    )
