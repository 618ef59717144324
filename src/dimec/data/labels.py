"""Labels of a column, as codes into a tuple of names.

Cells go in one at a time (`LabelColumn.add`), with their row so that a bad one can be pointed at; `finish` gives the
codes. A cell may be a name, a truth value or a whole number, typed or spelled.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DataError, shown
from dimec.data.faults import Faults
from dimec.data.files import ABSENT
from dimec.data.folding import folded

MAX_CLASSES = 1_000
# Fewer classes than this are never taken for free text or a number, however few rows there are.
_SURELY_CLASSES = 10

_INTEGER = re.compile(r"[+-]?[0-9]{1,15}")
_FRACTION = re.compile(r"[+-]?(?:[0-9]{1,15}\.[0-9]*|\.[0-9]+|[0-9.]+[eE][+-]?[0-9]+)")
_WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]{0,14}))(?:\.0?)?")
# What a program that took it for a number would write otherwise: a sign, zeros before or after.
_TEXT_OF_DIGITS = re.compile(
    r"\+[0-9]{1,15}|[+-]?0[0-9]{1,14}|[+-]?0[0-9]+\.[0-9]*|[+-]?[0-9]+\.[0-9]+0"
)
# How programs write that there is no value. None and NA are words too, and are taken for classes.
_MISSING = frozenset(("", "nan", "null", "<na>", "nat", r"\n", "#n/a"))
# Half a character, which JSON can spell and no file can hold.
_HALF = re.compile("[\ud800-\udfff]")
_TRUTH = {"false": "False", "true": "True"}

MISSING = (
    "the label is missing (empty, null, or a word for it such as nan); fill it in, remove the row, leave such rows out "
    "with --skip-unlabelled, or rename it if it is a class"
)


class LabelColumn:
    """Codes labels as they stream by: against known names, or discovering them."""

    def __init__(
        self, names: Sequence[str] | None, *, column: str, faults: Faults, fold: bool = False
    ) -> None:
        """Expect labels among ``names``, codes into them or spellings that look alike; with None take what there is.

        With ``fold`` classes that look alike are one, under the spelling that most rows have.
        """
        self._known = tuple(names) if names is not None else None
        numbers = map(re.compile(f"{_INTEGER.pattern}|{_FRACTION.pattern}").fullmatch, names or ())
        self._takes_codes = not any(numbers)
        self._column = column
        self._faults = faults
        self._fold = fold
        self._codes: list[int] = []
        self._rows: list[int] = []
        self._found: dict[str, int] = {}

    def is_missing(self, cell: object) -> bool:
        """Tell whether a cell holds no label: it is empty, null, or a word that programs have for that.

        Nobody can tell such a word from a class of that name, unless a trained model knows the class.
        """
        if cell is None or cell is ABSENT or (isinstance(cell, float) and math.isnan(cell)):
            return True
        if not isinstance(cell, str) or (self._known is not None and cell in self._known):
            return False
        return folded(cell) in _MISSING

    def add(self, cell: object, row: int) -> None:
        """Take the label of the next row.

        Raises:
            DataError: there are so many different ones that these are no classes.
        """
        spelling = _spell(cell)
        if spelling is None:
            said = f"the label {shown(cell)} is neither text nor a whole number; labels are classes"
            self._faults.add(row, said)
            return
        code = self._found.setdefault(spelling, len(self._found))
        if len(self._found) > MAX_CLASSES + len(self._known or ()):
            raise self._no_classes(f"more than {MAX_CLASSES:,} different labels", row)
        self._codes.append(code)
        self._rows.append(row)

    def finish(
        self, *, min_classes: int
    ) -> tuple[NDArray[np.int64], tuple[str, ...], dict[str, str]]:
        """Give all codes, the names they stand for, and the name of each spelling that is none itself.

        Discovered names are sorted, as numbers where all of them are. What is wrong with labels is added to the faults.

        Raises:
            DataError: fewer classes occur than ``min_classes``, or so many that these are no classes.
        """
        found = list(self._found)
        read = self._discovered(found) if self._known is None else list(map(self._match, found))
        wrong = {code: self._why(found[code]) for code, name in enumerate(read) if not name}
        if wrong:
            for code, row in zip(self._codes, self._rows, strict=True):
                if code in wrong:
                    self._faults.add(row, wrong[code])
        names = self._known
        if names is None:
            distinct = sorted({name for name in read if name})
            numeric = all(_whole(name) == name for name in distinct)
            names = tuple(sorted(distinct, key=int) if numeric else distinct)
        place = {name: code for code, name in enumerate(names)}
        codes = np.asarray([place.get(name, -1) for name in read], dtype=np.int64)
        codes = codes[self._codes] if self._codes else codes
        self._faults.refuse()
        n_classes, n_rows = len(names), len(self._codes)
        if self._known is None and n_classes > _SURELY_CLASSES and n_classes * 2 > n_rows:
            row = self._rows[self._codes.index(_SURELY_CLASSES)]
            raise self._no_classes(f"{n_classes} different labels in {n_rows} rows", row)
        present = np.unique(codes)
        if len(present) < min_classes:
            only = ", ".join(repr(names[code]) for code in present)
            raise DataError(
                f"every row has the same label ({only}); at least {min_classes} classes are needed: "
                f"check that {self._column!r} is the label, or name it with --label-column",
                source=self._faults.source,
            )
        mapping = {
            spelling: name
            for spelling, name in zip(found, read, strict=True)
            if name not in (spelling, _whole(spelling), _truth(spelling, as_number=False))
        }
        return codes, names, mapping

    # --- names of spellings; '' where there is none

    def _discovered(self, found: list[str]) -> list[str]:
        """Return the class that each spelling is of, in a column that may hold any classes."""
        # One value that no number is written as, such as 01 or 1.10, makes all of them text.
        is_text = any(map(_TEXT_OF_DIGITS.fullmatch, found))
        names = found if is_text else [_whole(spelling) or spelling for spelling in found]
        others = [name for name in names if name.casefold() not in _TRUTH]
        are_numbers = bool(others) and all(map(_INTEGER.fullmatch, others))
        names = [_truth(name, as_number=are_numbers) or name for name in names]
        if not is_text:
            names = ["" if name == "-1" or _FRACTION.fullmatch(name) else name for name in names]
        return self._joined(names) if self._fold else names

    def _joined(self, names: list[str]) -> list[str]:
        """Replace each name by the most frequent one of those that look like it; of equals by the first."""
        rows = np.bincount(self._codes, minlength=len(names))
        counts: Counter[str] = Counter()
        for name, n in zip(names, rows, strict=True):
            counts[name] += int(n)
        best: dict[str, str] = {}
        for name in names:
            held = best.setdefault(folded(name), name)
            if counts[name] > counts[held]:
                best[folded(name)] = name
        return [best[folded(name)] for name in names]

    def _match(self, spelling: str) -> str:
        """Return the known class that a spelling means."""
        known = self._known or ()
        if spelling in known:
            return spelling
        alike = [name for name in known if folded(name) == folded(spelling)]
        if len(alike) == 1:
            return alike[0]
        number = _whole(spelling) or _truth(spelling, as_number=True)
        if number is None:
            return ""
        if number in known:
            return number
        # Where the names are numbers themselves, a number is always a name: taking "0" for a code
        # where the classes are "1" to "5" would shift every label by one.
        if self._takes_codes and 0 <= int(number) < len(known):
            return known[int(number)]
        return ""

    def _why(self, spelling: str) -> str:
        if _whole(spelling) == "-1":
            return (
                "the label is -1, which marks an unlabelled row (GLUE's test files have only such); "
                "give labelled rows, or another name to the class"
            )
        if _FRACTION.fullmatch(spelling) and (self._known is None or self._takes_codes):
            return (
                f"the label {spelling} is no whole number; labels are classes, not measurements: round them, put a "
                "letter before them if they are names, or name the label with --label-column"
            )
        known = self._known or ()
        listed = ", ".join(
            f"{label} ({code})" if self._takes_codes else label
            for code, label in enumerate(known[:20])
        )
        more = ", ..." if len(known) > 20 else ""
        return f"the label {shown(spelling)} is unknown; allowed are {listed}{more}: correct or remove the row"

    def _no_classes(self, how_many: str, row: int) -> DataError:
        return DataError(
            f"the column {self._column!r} has {how_many}; these look like texts, ids or measurements: name the label "
            "with --label-column",
            source=self._faults.source,
            row=row,
            unit=self._faults.unit,
        )


def _spell(cell: object) -> str | None:
    """Spell a cell; None where it cannot be a label."""
    if isinstance(cell, str):
        return None if _HALF.search(cell) else cell.strip()
    if isinstance(cell, bool | int):
        return str(cell)
    if isinstance(cell, float) and math.isfinite(cell):
        return str(int(cell)) if cell.is_integer() else repr(cell)
    return None


def _whole(spelling: str) -> str | None:
    """Return the whole number that a spelling is, or None; 2.0 is 2, while 02 and 2.00 are names."""
    found = _WHOLE.fullmatch(spelling)
    return str(int(found[1])) if found else None


def _truth(spelling: str, *, as_number: bool) -> str | None:
    """Return the one name, or the number, of a truth value however it is spelled, or None."""
    name = _TRUTH.get(spelling.casefold())
    return str(int(name == "True")) if name and as_number else name
