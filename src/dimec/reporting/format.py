"""The text of a quantity: one place for the page, its files and its figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dimec.reporting.results import Column, Quantity

NOTHING = "–"  # the text where there is no value

_MINUS = "\N{MINUS SIGN}"
_PERCENT = "\N{NO-BREAK SPACE}%"
_SIGNED: tuple[Quantity, ...] = ("points", "change")
_DIGITS: dict[Quantity, int] = {
    "count": 0,
    "score": 2,
    "points": 2,
    "change": 0,
    "share": 1,
    "cost": 2,
}
_IN_HUNDREDTHS: tuple[Quantity, ...] = ("score", "points", "change", "share")


def number(value: object) -> float | None:
    """Return a value as a finite number, or None where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


# What stands in texts of data sets and in no XML, so in no SVG: control signs are written as their pictures.
_UNSEEN: dict[int, int | str] = {
    code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"
}
_UNSEEN |= {0x7F: 0x2421} | dict.fromkeys([*range(0xD800, 0xE000), 0xFFFE, 0xFFFF], "\ufffd")


def scaled(value: object, quantity: Quantity) -> object:
    """Return a value on the scale of its text, for the axes of a figure: a score of 0.92 is 92."""
    found = number(value)
    if quantity == "text":
        return formatted(value, quantity)
    return found * 100 if found is not None and quantity in _IN_HUNDREDTHS else found


def unit(quantity: Quantity) -> str:
    """Return the unit of an axis on the scale of `scaled`."""
    return {"share": "%", "change": "%", "points": "points"}.get(quantity, "")


def formatted(value: object, quantity: Quantity, *, digits: int | None = None) -> str:
    """Return a value as text; ``digits`` behind the point replace those of the quantity."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    found = number(value)
    if found is None or quantity == "text":
        return str(value).translate(_UNSEEN)
    if quantity == "number":
        return _with_minus(_plain(value, found, digits))
    places = _DIGITS[quantity] if digits is None else digits
    text = f"{found * 100 if quantity in _IN_HUNDREDTHS else found:,.{places}f}"
    if quantity != "count":
        text = text.replace(",", "")
    if not text.strip("-0."):
        text = text.lstrip("-")
    elif quantity in _SIGNED and not text.startswith("-"):
        text = f"+{text}"
    return _with_minus(text) + (_PERCENT if quantity in ("change", "share") else "")


def interval(row: Mapping[str, Any], column: Column) -> str:
    """Return the interval about a column's value as text, empty where the row has none."""
    if column.low is None or column.high is None:
        return ""
    ends = (row.get(column.low), row.get(column.high))
    if any(number(end) is None for end in ends):
        return ""
    digits = 1 if column.quantity == "score" else None
    low, high = (formatted(end, column.quantity, digits=digits) for end in ends)
    # A dash between signed numbers would read as one more minus.
    return f"{low} to {high}" if column.quantity in _SIGNED else f"{low}–{high}"


def spread(row: Mapping[str, Any], column: Column) -> str:
    """Return the standard deviation over seeds as text, empty where the row has none."""
    found = number(row.get(column.spread)) if column.spread is not None else None
    if found is None:
        return ""
    quantity: Quantity = "score" if column.quantity == "points" else column.quantity
    return f"±\N{NO-BREAK SPACE}{formatted(abs(found), quantity).lstrip('+')}"


def around(row: Mapping[str, Any], column: Column) -> list[str]:
    """Return what stands about a column's value: its spread, then its interval; each only where the row has it."""
    return [part for part in (spread(row, column), interval(row, column)) if part]


def stands_out(row: Mapping[str, Any], column: Column) -> bool:
    """Tell whether a value is better than all it is compared with, beyond its interval."""
    return column.stands_out is not None and row.get(column.stands_out) is True


def _plain(value: object, found: float, digits: int | None) -> str:
    if digits is not None:
        return f"{found:.{digits}f}"
    if isinstance(value, int) or (found.is_integer() and abs(found) < 1e6):
        return f"{found:.0f}"
    return f"{found:.4g}"


def _with_minus(text: str) -> str:
    return _MINUS + text[1:] if text.startswith("-") else text
