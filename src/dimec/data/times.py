"""When rows were made: cells of a column of ISO dates or of numbers, as numbers that grow with time."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from typing import Literal

from dimec.core.errors import shown

Written = Literal["numbers", "dates"]


class BadTime(ValueError):
    """Why a cell cannot be read as a time, and what to do."""


class TimeColumn:
    """Reads the cells of one column, which are all numbers or all dates."""

    def __init__(self, name: str) -> None:
        """Expect any of both until the first cell decides."""
        self._name = name
        self._written: Written | None = None

    def read(self, cell: object) -> float:
        """Return a number that grows with time; of dates the seconds since 1970, those without a zone in UTC.

        Raises:
            BadTime: If it is neither a number nor an ISO date, or not what the rows before it have.
        """
        number, written = _number(cell), "numbers"
        if number is None:
            number, written = _seconds(cell), "dates"
        if number is None:
            raise BadTime(
                f"the time in {self._name!r} is {shown(cell)}; it must be an ISO date such as 2026-11-29 or "
                "2026-11-29T18:30:00Z, or a number: correct it or remove the row"
            )
        if self._written is None:
            self._written = "numbers" if written == "numbers" else "dates"
        if written != self._written:
            raise BadTime(
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
