"""The rows of an open table, read and checked: texts on one side, labels on the other.

A `Table` and the chosen `Columns` go in; `LabelledTexts` comes out, every row of which holds text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DataError, shown
from dimec.data.columns import Columns, Table
from dimec.data.delimited import MAX_CELL_CHARACTERS
from dimec.data.faults import Faults
from dimec.data.files import ABSENT
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


class BadText(ValueError):
    """Why a cell cannot be read as a text, and what to do."""


def checked_text(cell: object, what: str) -> str:
    """Return a cell's text as it stands, '' where there is nothing but white space; messages call it ``what``.

    Raises:
        BadText: it is no text, or too long.
    """
    if cell is None or cell is ABSENT:
        return ""
    if not isinstance(cell, str):
        raise BadText(
            f"{what} is {shown(cell)}, which is no text; name the text with --text-column"
        )
    if len(cell) > MAX_CELL_CHARACTERS:
        raise BadText(
            f"{what} has {len(cell):,} characters, and {MAX_CELL_CHARACTERS:,} are allowed; cut it or split it"
        )
    if not cell.isascii():
        try:
            cell.encode()
        except UnicodeEncodeError:
            raise BadText(
                f"{what} holds half a character (a lone surrogate); write the file again as UTF-8"
            ) from None
    return "" if cell.isspace() else cell


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
    names = columns.texts
    whats = [f"the text in {name!r}" for name in names]
    faults = Faults(table.source, table.unit)
    labels = LabelColumn(
        label_names, column=columns.label, source=table.source, faults=faults, fold=fold_labels
    )
    first: list[str] = []
    second: list[str] = []
    positions: list[int] = []
    numbers: list[int] = []
    n_left_out = n_unlabelled = 0
    for row in faults.following(table.read([*names, columns.label])):
        *cells, label = row.cells or ("",) * (len(names) + 1)
        is_missing = bool(row.cells) and labels.is_missing(label)
        if skip_unlabelled and is_missing:
            n_unlabelled += 1
            continue
        try:
            texts = list(map(checked_text, cells, whats))
        except BadText as exc:
            faults.add(row.number, str(exc))
            continue
        if not texts[0] or (takes_pairs and not all(texts)):
            n_left_out += 1
            if n_left_out > max_left_out:
                place = texts.index("")
                faults.add(row.number, _empty(names[place], cells[place], n_before=max_left_out))
        elif texts[1:] and texts[1] and takes_pairs is False:
            faults.add(
                row.number,
                f"the task takes one text per row, and {names[1]!r} holds a second; "
                "name the one to take with --text-column",
            )
        elif label is ABSENT:
            faults.add(row.number, _absent(columns.label))
        elif is_missing:
            faults.add(row.number, MISSING)
        else:
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
    if any(second):
        for number, text in zip(numbers, second, strict=True):
            if not text:
                faults.add(number, _empty(names[1]))
    return LabelledTexts(
        first=tuple(first),
        second=tuple(second) if any(second) else None,
        labels=labels.finish(min_classes=min_classes),
        row_ids=np.asarray(positions, dtype=np.int64),
        n_left_out=n_left_out,
        n_unlabelled=n_unlabelled,
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
