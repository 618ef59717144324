"""From cases that agree with a claim to what became of it."""

from __future__ import annotations

from dimec.results import Ruling


def ruling_of(agreeing: int, *, of: int) -> Ruling:
    """Return the verdict on a claim that so many of the cases agree with."""
    if not of:
        return "could not be tested"
    if agreeing == of:
        return "holds"
    return "holds in part" if agreeing else "does not hold here"
