"""How costs are printed in each unit."""

from __future__ import annotations

from dimec.costs.pricing import Unit
from dimec.evaluation import Evaluation
from dimec.evaluation.results import Amount

_SCALE: dict[Unit, float] = {"joules": 1e3, "money": 1e6}
_DIGITS: dict[Unit, int] = {"lambda": 2, "ms": 2, "bytes": 0, "joules": 2, "money": 3}


def amount(value: float, unit: Unit) -> str:
    """Write a cost: joules in thousandths, money for a million texts."""
    return f"{value * _SCALE.get(unit, 1.0):,.{_DIGITS[unit]}f}"


def plus_minus(found: Amount, unit: Unit) -> str:
    """Write how far the interval of a mean goes to either side."""
    return f"±{amount(found.ci95[1] - found.mean, unit)}"


def unit_words(unit: Unit, *, currency: str | None) -> str:
    """Say what `amount` writes."""
    words = {
        "lambda": "λ",
        "ms": "ms",
        "bytes": "bytes that the device sends",
        "joules": "mJ of the device's battery",
        "money": f"{currency} a million texts",
    }
    return words[unit]


def profile_words(profile: str | None) -> str:
    """Say by which profile costs are told, if there is one."""
    return "" if profile is None else f" by the profile {profile}"


def reference_words(evaluation: Evaluation) -> str:
    """Name what the relative costs are held against."""
    at = amount(evaluation.reference_cost, evaluation.unit)
    if evaluation.unit in ("bytes", "money"):
        return f"all-cloud ({at}), since the device works for nothing in this unit"
    return f"bert-on-mobile ({at}{' λ' if evaluation.unit == 'lambda' else ''})"
