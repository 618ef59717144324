"""Evidence against "the mean of these values is at most (or at least) m", value by value, at any time.

A gambler bets a fraction of their wealth on every value; if the mean is what it is said to be, no such game wins on
average. Wealth that was never topped up is above 1/a with a chance of at most a, ever (Ville); wealth that is topped
up to 1 whenever it is lower tells of a change late in a stream as fast as of one at its start, and then takes 1/a
values on average before it is above 1/a by chance. Neither needs a distribution, only bounded values, and both are
one number per fraction, so that they are kept over restarts as arrays of a fixed shape.

Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting" (2024); Shin, Ramdas and Rinaldo,
"E-detectors" (2024).

`drifts` bets that one value a sample no longer has the mean that it had. The reference for it is a sample too: the
mean is taken to be unchanged within three of its standard errors and half a point.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

FRACTIONS = np.array([0.02, 0.05, 0.1, 0.25, 0.5])
"""Which fractions are bet, side by side with equal shares of the wealth."""

FEWEST = 100  # a value that validation had fewer times is not watched
UP, DOWN = 0, 1

_RELEARNS = 500
_ERRORS_OF_REFERENCE = 3.0
_LEAST_BAND = 0.005


def bet(
    wealth: NDArray[np.float64], value: float, bound: float, room: float, *, top_up: bool
) -> None:
    """Play one value: change each fraction's log wealth, [fractions], in place.

    Args:
        wealth: Log wealth of each fraction.
        bound: What its mean is said not to cross.
        room: How far values may lie from the bound on the side that is safe, negative where safe is above: at the
            end of the room a bet on everything would lose everything.
        top_up: Whether to start each round with a wealth of at least 1.
    """
    if top_up:
        np.maximum(wealth, 0.0, out=wealth)
    wealth += np.log1p(FRACTIONS * ((value - bound) / room))


def total(wealth: NDArray[np.float64]) -> float:
    """Return the log of the wealth of all fractions together."""
    top = float(wealth.max())
    return top + math.log(float(np.exp(wealth - top).mean()))


def wilson(hits: int, trials: int, *, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval for a probability; all of [0, 1] without trials."""
    if not trials:
        return 0.0, 1.0
    rate, square = hits / trials, z * z / trials
    centre = rate + square / 2
    reach = z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials))
    low, high = (centre - reach) / (1 + square), (centre + reach) / (1 + square)
    return (low if hits else 0.0), (high if hits < trials else 1.0)


def drifts(
    value: float,
    reference: NDArray[np.float64],
    wealth: NDArray[np.float64],
    *,
    validation: float,
    limit: float,
    falls: bool,
) -> int | None:
    """Take note of a value; return where to the mean has drifted, `UP` or `DOWN`, once that is sure.

    Args:
        reference: [3], count, sum and sum of squares of the values that are held to be normal; one that was emptied
            is filled first, from the stream.
        wealth: [2, fractions], log wealth of the bets on up and on down.
        validation: How many values validation had.
        limit: The log wealth at which it is sure.
        falls: Whether a fall is looked for too.
    """
    if validation < FEWEST:
        return None
    if reference[0] < min(_RELEARNS, validation):
        reference += 1.0, value, value**2
        return None
    low, high = unchanged(reference)
    if high < 1:
        bet(wealth[UP], value, high, high, top_up=True)
    if falls and low > 0:
        bet(wealth[DOWN], value, low, low - 1, top_up=True)
    side = UP if total(wealth[UP]) > total(wealth[DOWN]) else DOWN
    return side if total(wealth[side]) >= limit else None


def unchanged(reference: NDArray[np.float64]) -> tuple[float, float]:
    """Return between what the mean is taken to be unchanged."""
    n, added, squares = reference.tolist()
    mean = added / n
    deviation = math.sqrt(max(squares / n - mean**2, 0.0))
    band = _ERRORS_OF_REFERENCE * deviation / math.sqrt(n) + _LEAST_BAND
    return mean - band, mean + band
