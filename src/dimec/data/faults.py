"""The faults of a table's rows, gathered so that a file is mended in one go.

Rows go on being read after a fault; `Faults.refuse` then raises one `DataError` that tells the first of them by place.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from dimec.core.errors import DataError


@dataclass(frozen=True, slots=True)
class Row:
    """The chosen cells of one row and where it stands.

    ``number`` is for messages: the line in an editor, header included, or the row of a parquet file from 1.
    ``position`` counts rows from 0 without the header. ``fault`` is why there are no cells.
    """

    number: int
    position: int
    cells: tuple[object, ...]
    fault: str | None = None


def numbered(batches: Iterable[Sequence[Iterable[object]]]) -> Iterator[Row]:
    """Give the rows of batches of columns that hold nothing but rows, numbered from 1."""
    rows = chain.from_iterable(zip(*columns, strict=True) for columns in batches)
    for position, cells in enumerate(rows):
        yield Row(position + 1, position, cells)


MAX_TOLD = 20


class Faults:
    """Gathers what is wrong with rows; ``unit`` is what their numbers count, line or row."""

    def __init__(self, source: str, unit: str) -> None:
        self.source = source
        self.unit = unit
        self._found: list[tuple[int, str]] = []
        self._n = 0

    def add(self, number: int, message: str) -> None:
        """Note that a row cannot be used."""
        self._n += 1
        self._found.append((number, message))
        if len(self._found) > 50 * MAX_TOLD:
            self._found = sorted(self._found)[:MAX_TOLD]

    def following(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Give the rows that can be read, and note those that cannot, up to where all that follows is unreadable."""
        try:
            for row in rows:
                if row.fault is None:
                    yield row
                else:
                    self.add(row.number, row.fault)
        except DataError as exc:
            if not (self._found and exc.row):
                raise
            self.add(exc.row, exc.said)
            self.refuse()

    def refuse(self) -> None:
        """Raise what has been found; do nothing where all is well."""
        places: dict[str, list[int]] = {}
        for number, message in sorted(self._found)[:MAX_TOLD]:
            places.setdefault(message, []).append(number)
        if not places:
            return
        (first, numbers), *more = places.items()
        words = [first]
        remedies = {first.partition("; ")[2]}
        for message, at in more:
            fault, _, remedy = message.partition("; ")
            said = fault if remedy in remedies else message  # a remedy is told once
            remedies.add(remedy)
            words.append(
                f"{self.unit}{'s' if len(at) > 1 else ''} {', '.join(map(str, at))}: {said}"
            )
        if self._n > MAX_TOLD:
            words.append(f"and {self._n - MAX_TOLD:,} faults more")
        raise DataError(
            "; ".join(words), source=self.source, row=numbers[0], unit=self.unit, others=numbers[1:]
        )
