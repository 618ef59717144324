"""When a server asks to be left alone: what its Retry-After header says."""

from __future__ import annotations

import time
from datetime import UTC
from email.utils import parsedate_to_datetime

_MAX_S = 60.0


def retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which says a number of them or a date; None for anything else."""
    said = (value or "").strip()
    if said.isascii() and said.isdecimal():
        return min(float(said[:9]), _MAX_S)
    try:
        then = parsedate_to_datetime(said)
        seconds = then.replace(tzinfo=then.tzinfo or UTC).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), _MAX_S)
