"""Answers that were logged: a table with a text, and the class that a model gave it, on each row."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from dimec.core.errors import OptionError
from dimec.core.options import TextColumns
from dimec.data.columns import LABEL_COLUMNS, choose_texts
from dimec.data.faults import Faults
from dimec.data.files import open_table
from dimec.data.texts import checked_text

ANSWER_COLUMNS = ("answer", "prediction", "predicted", *LABEL_COLUMNS)
_NUMBERS = ("cost", "ms")


@dataclass(frozen=True, slots=True)
class Logged:
    """What a log says of a text.

    Attributes:
        masses: Probabilities by the model's names of its classes; of the answer alone where there is no more.
        cost: Dollars; None where the log has no column ``cost``.
        ms: Milliseconds; likewise.
    """

    masses: dict[str, float]
    cost: float | None
    ms: float | None


def read_logged(
    path: Path, label_names: tuple[str, ...], *, pairs: bool
) -> dict[tuple[str, ...], Logged]:
    """Read what a log says of each text; of a text that is there twice, the last row counts.

    The columns are the text, or the two of a pair, by their usual names; ``answer``, ``prediction`` or a usual name of
    labels; and, where they are there, ``cost``, ``ms``, and a column of probabilities for each class, by its name.

    Raises:
        DataError: If the file is no table, a column is missing, or a number is none.
    """
    with open_table(path) as table:
        texts = choose_texts(table, TextColumns(), pairs=pairs)
        classes = table.all_of(label_names)
        answer: tuple[str, ...] = ()
        if not classes:
            answer = (table.find(None, "the model's answer", ANSWER_COLUMNS, "the header"),)
        numbers = [name for each in _NUMBERS for name in table.all_of([each])]
        whats = [f"the text in {name!r}" for name in texts]
        found = {}
        faults = Faults(table.source, table.unit)
        for row in faults.following(table.read([*texts, *answer, *classes, *numbers])):
            try:
                text = tuple(map(checked_text, row.cells, whats))
                values = [_number(each) for each in row.cells[len(texts) + len(answer) :]]
            except ValueError as exc:
                faults.add(row.number, str(exc))
                continue
            masses = dict(zip(classes, values, strict=False))
            told = dict(zip(map(str.lower, numbers), values[len(classes) :], strict=True))
            if answer:
                masses = {str(row.cells[len(texts)]): 1.0}
            found[text] = Logged(masses, told.get("cost"), told.get("ms"))
        faults.refuse()
    if not found:
        raise OptionError(f"{path} holds no answer: give a table of texts and answers")
    return found


def _number(cell: object) -> float:
    number = float(str(cell))
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{cell!r} is no number from 0 up")
    return number
