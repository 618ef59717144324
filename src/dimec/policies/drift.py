"""Whether a value in [0, 1], one a sample, still has the mean that it had: a reference, and a test by betting.

Both are arrays of the caller's, so that they outlive a restart. The reference is a sample too: the mean is taken to be
unchanged within three of its standard errors and half a point.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from dimec.policies.betting import bet, total

FEWEST = 100
"""A value that validation had fewer times is not watched."""

UP, DOWN = 0, 1

_RELEARNS = 500
_ERRORS_OF_REFERENCE = 3.0
_LEAST_BAND = 0.005


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
        value: The value.
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
