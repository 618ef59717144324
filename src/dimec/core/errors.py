"""Every error the package raises: `InputError` and its kinds, a tier's refusal, an unreachable hub, a broken contract.

A message says what was given, what is allowed and what to do. A library's errors are translated once, at the boundary,
with ``from exc``.
"""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path

_QUOTED = 100
_LONGEST = 4_000


def printable(text: str, *, keep: str = "") -> str:
    """Escape control characters, line breaks, directions and whatever else nobody sees, except those in ``keep``."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    if unicodedata.category(character) == "Zs":  # such as a blank that does not break
        return " "
    return character.encode("unicode_escape").decode()


def quoted(text: str) -> str:
    """Return what a message may quote of a text that anyone may have written: its beginning, on one line."""
    found = printable(text[:_QUOTED])
    return found if len(text) <= _QUOTED else f"{found}..."


class DimecError(Exception):
    """Base of every error of this package; ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def __str__(self) -> str:
        """Return the message; nothing in it is obeyed by a terminal, and it ends."""
        said = super().__str__()
        return printable(said if len(said) <= _LONGEST else f"{said[:_LONGEST]}...", keep="\n\t")


class InputError(DimecError):
    """What the user gave is wrong."""

    exit_code = 2


class DataError(InputError):
    """A data set cannot be used; names the file and, where one is to blame, the row."""

    def __init__(
        self,
        message: str,
        *,
        source: str | Path | None = None,
        row: int | None = None,
        unit: str = "row",
        others: Sequence[int] = (),
    ) -> None:
        """Prefix the message with its place: ``row`` counts ``unit`` from 1, ``others`` have the same fault."""
        count = f"{unit}s" if others else unit
        numbers = ", ".join(map(str, (row, *others)))
        parts = (str(source) if source is not None else "", f"{count} {numbers}" if row else "")
        place = ", ".join(part for part in parts if part)
        super().__init__(f"{place}: {message}" if place else message)
        self.source = source
        self.row = row
        self.said = message
        """The message without its place."""


class OptionError(InputError):
    """An option has a value that is not allowed, or two options contradict each other."""


class RunError(InputError):
    """A run folder is missing, unfinished, altered, or written by a version this one cannot read."""


class BundleError(InputError):
    """A bundle, or a tier of one, is missing, altered, truncated, or written by a version this one cannot read."""


class EngineError(InputError):
    """An engine cannot run a graph on what it was given."""


class StateError(InputError):
    """What a device has learnt is missing, damaged, in use by another process, or of another bundle."""


class WireError(InputError):
    """A message between a device and a tier is malformed, or beyond its limits."""


class OutputError(InputError, OSError):
    """A file cannot be written or removed, whichever library noticed; an ``OSError`` too."""


class MissingExtraError(InputError):
    """A part of the package needs an optional install."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional install: pip install 'dimec[{extra}]'")
        self.extra = extra


class RefusedError(DimecError):
    """A tier server will not answer a request."""

    def __init__(
        self, status: int, reason: str, message: str, *, retry_after_s: int | None = None
    ) -> None:
        """Say the HTTP status, a word to count it under, and when to come back."""
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s


class UnreachableError(DimecError):
    """The hub cannot be reached, or does not hold what was asked for."""

    exit_code = 2


class ContractError(DimecError):
    """A rule that this package's own code must keep was broken."""


class OverloadedError(UnreachableError):
    """A model of others has too much to do; ``retry_after_s`` is the pause that it asks for, if it asks for one."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class _Short(reprlib.Repr):
    """Quotes plain values, and names the type of anything else, whose own text may fill a screen."""

    def repr_instance(self, value: object, level: int) -> str:
        plain = value is None or isinstance(value, int | float | str | bytes)
        return repr(value) if plain else f"a {type(value).__name__}"


_SHORT = _Short()
_SHORT.maxstring = _SHORT.maxlong = 60


def shown(value: object) -> str:
    """Quote a value for a message, cut to a length that a terminal line bears."""
    text = _SHORT.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
