"""Labels of a column, as codes into a tuple of names.

Cells go in one at a time (`LabelColumn.add`), with their row so that a bad one can be pointed at; `finish` gives the
`CodedLabels`. A cell may be a name or a whole number, typed or spelled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.data.files import shown
from dimec.errors import DataError

MAX_CLASSES = 1_000
# Fewer classes than this are never taken for free text or a number, however few rows there are.
_SURELY_CLASSES = 10

_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_DECIMAL = re.compile(
    r"([+-]?[0-9]{1,15})\.([0-9]*)|[+-]?[0-9]*\.[0-9]+|[+-]?[0-9.]+[eE][+-]?[0-9]+"
)


@dataclass(frozen=True)
class CodedLabels:
    """Codes of a column's labels and the names they stand for."""

    codes: NDArray[np.int64]
    names: tuple[str, ...]


class LabelColumn:
    """Codes labels as they stream by: against known names, or discovering them."""

    def __init__(self, names: Sequence[str] | None, *, column: str, source: str) -> None:
        """Expect labels among ``names`` (or codes into them); with None take whatever classes there are."""
        self._known = tuple(names) if names is not None else None
        self._column = column
        self._source = source
        self._codes: list[int] = []
        self._cells: dict[object, int] = {}
        self._discovered: dict[str, int] = {}
        self._first_rows: list[int] = []

    def add(self, cell: object, row: int) -> None:
        """Take the label of the next row."""
        try:
            code = self._cells.get(cell)
        except TypeError:  # a list or an object from JSON or parquet
            code = None
        if code is None:
            name = self._name_of(cell, row)
            code = self._known_code(name, row) if self._known is not None else self._new(name, row)
            self._cells[cell] = code
        self._codes.append(code)

    def finish(self, *, min_classes: int) -> CodedLabels:
        """Give all codes; discovered names are sorted, as numbers where all of them are.

        Raises:
            DataError: fewer classes occur than ``min_classes``, or so many that these are no classes.
        """
        codes = np.asarray(self._codes, dtype=np.int64)
        names = self._known
        if names is None:
            self._refuse_free_text()
            found = list(self._discovered)
            numeric = all(_INTEGER.fullmatch(name) for name in found)
            names = tuple(sorted(found, key=int) if numeric else sorted(found))
            place = {name: code for code, name in enumerate(names)}
            codes = np.asarray([place[name] for name in found], dtype=np.int64)[codes]
        present = np.unique(codes)
        if len(present) < min_classes:
            only = ", ".join(repr(names[code]) for code in present)
            raise DataError(
                f"every row has the same label ({only}); at least {min_classes} classes are needed: "
                f"check that {self._column!r} is the label, or name it with --label-column",
                source=self._source,
            )
        return CodedLabels(codes, names)

    def _name_of(self, cell: object, row: int) -> str:
        """Spell a cell as a class name; whole numbers lose a fraction of zeros."""
        name = _spell(cell)
        if name is None:
            raise self._fault(
                f"the label {shown(cell)} is neither text nor a whole number; labels are classes",
                row,
            )
        if name == "":
            raise self._fault("the label is missing; fill it in or remove the row", row)
        decimal = _DECIMAL.fullmatch(name)
        if decimal:
            if decimal[1] is None or decimal[2].strip("0"):
                raise self._fault(
                    f"the label {name} is no whole number; labels are classes, not measurements: "
                    "round them, or name the label with --label-column",
                    row,
                )
            name = decimal[1]
        if _INTEGER.fullmatch(name) and int(name) == -1:
            raise self._fault(
                "the label is -1, which marks an unlabelled row (GLUE's test files have only such); "
                "give labelled rows, or another name to the class",
                row,
            )
        return name

    def _known_code(self, name: str, row: int) -> int:
        known = self._known or ()
        if name in known:
            return known.index(name)
        folded = [label.casefold() for label in known]
        if folded.count(name.casefold()) == 1:
            return folded.index(name.casefold())
        # Where the names are numbers themselves, a number is always a name: taking "0" for a code
        # where the classes are "1" to "5" would shift every label by one.
        are_codes_allowed = not any(_INTEGER.fullmatch(label) for label in known)
        if are_codes_allowed and _INTEGER.fullmatch(name) and 0 <= int(name) < len(known):
            return int(name)
        listed = ", ".join(
            f"{label} ({code})" if are_codes_allowed else label
            for code, label in enumerate(known[:20])
        )
        more = ", ..." if len(known) > 20 else ""
        raise self._fault(
            f"the label {shown(name)} is unknown; allowed are {listed}{more}: correct or remove the row",
            row,
        )

    def _new(self, name: str, row: int) -> int:
        if name not in self._discovered:
            self._discovered[name] = len(self._discovered)
            self._first_rows.append(row)
            if len(self._discovered) > MAX_CLASSES:
                raise self._fault(
                    f"the column {self._column!r} has more than {MAX_CLASSES:,} different labels; these look like "
                    "texts, ids or measurements: name the label with --label-column",
                    row,
                )
        return self._discovered[name]

    def _refuse_free_text(self) -> None:
        n_classes, n_rows = len(self._discovered), len(self._codes)
        if n_classes > _SURELY_CLASSES and n_classes * 2 > n_rows:
            raise self._fault(
                f"the column {self._column!r} has {n_classes} different labels in {n_rows} rows; these look like "
                "texts, ids or measurements: name the label with --label-column",
                self._first_rows[_SURELY_CLASSES],
            )

    def _fault(self, message: str, row: int) -> DataError:
        return DataError(message, source=self._source, row=row)


def _spell(cell: object) -> str | None:
    """Spell a cell: '' where it is missing, None where it cannot be a label."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, str):
        return cell.strip()
    if isinstance(cell, bool | int):
        return str(int(cell))
    if isinstance(cell, float) and math.isfinite(cell):
        return str(int(cell)) if cell.is_integer() else repr(cell)
    return None
