"""Thresholds of exits on the wire: the parameter ``exit_threshold`` of a request, a number or one for every exit.

A parameter of the protocol is no list, so that several travel as the JSON text of one, with null where a row is never
to leave.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import WireError
from dimec.runtime.wire import EXIT_THRESHOLD, Parameter

_MOST = 1e18


def said_thresholds(thresholds: Sequence[float]) -> Parameter:
    """Return the parameter that says at which confidence a row leaves each exit, inf for never."""
    if len(set(thresholds)) == 1 and math.isfinite(thresholds[0]):
        return thresholds[0]
    return json.dumps([each if math.isfinite(each) else None for each in thresholds])


def read_thresholds(value: Parameter | None, *, n_exits: int) -> NDArray[np.float64] | None:
    """Return the confidence from which a row leaves each exit, inf for never: [exits]; None where none is given.

    Raises:
        WireError: If it is neither a number from 0 up nor the JSON text of a list of ``n_exits`` such numbers or nulls.
    """
    if value is None:
        return None
    given: object = value
    if isinstance(value, str):
        try:
            given = json.loads(value)
        except (ValueError, RecursionError):
            given = None
    listed = given if isinstance(given, list) else [given] * n_exits
    allowed = (None,) if isinstance(given, list) else ()
    if len(listed) != n_exits or not all(each in allowed or _is_threshold(each) for each in listed):
        raise WireError(
            f"{EXIT_THRESHOLD} is {str(value)[:40]!r}: it must be a number from 0 up, or the JSON text of a list of "
            f"{n_exits} such numbers, one for every exit, null for never"
        )
    return np.array([math.inf if each is None else each for each in listed], dtype=np.float64)


def _is_threshold(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MOST  # type: ignore[operator]  # a number, by its type
