"""When to ask a tier again, when to leave it alone, and which tier stands in for it.

Failures travel as data: a `Failure` says what went wrong in words for the user; `refusal` and `fault_of` make one of
what HTTP says. `stand_ins` is the fallback rule.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from dimec.core.errors import quoted
from dimec.core.retry import retry_after_s
from dimec.core.tiers import TIERS, Step, Tier

if TYPE_CHECKING:
    import httpx


class Fault(StrEnum):
    """What can be wrong with a tier."""

    UNREACHABLE = "unreachable"
    SLOW = "slow"
    OVERLOADED = "overloaded"
    UNAUTHORISED = "unauthorised"
    REFUSED = "refused"
    BROKEN = "broken"
    WRONG = "wrong"
    SILENT = "silent"
    RESTING = "resting"


WORDS: dict[Fault, str] = {
    Fault.UNREACHABLE: "could not be reached",
    Fault.SLOW: "did not answer in time",
    Fault.OVERLOADED: "was overloaded",
    Fault.UNAUTHORISED: "refused the token or certificate of this device",
    Fault.REFUSED: "refused the request",
    Fault.BROKEN: "failed",
    Fault.WRONG: "gave an answer that cannot be trusted",
    Fault.SILENT: "asked a model that named no class",
    Fault.RESTING: "was left alone after failures",
}
"""How each fault begins in `Answer.degraded`: "the edge tier ..."."""

RETRIED = frozenset({Fault.UNREACHABLE, Fault.OVERLOADED, Fault.BROKEN})
"""What is worth a second attempt; inference changes nothing on a server, so that asking twice is safe.

A slow tier has used up the time, and what refuses or lies will do so again.
"""

OPENS_AT_ONCE = frozenset({Fault.UNAUTHORISED, Fault.WRONG})
"""What will not pass by itself within a few requests."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a tier gave no answer; ``retry_after_s`` is the wait that the server asks for, if any."""

    fault: Fault
    detail: str = ""
    retry_after_s: float | None = None

    def words(self, tier: Tier, attempts: int) -> str:
        """Say it to a user."""
        tried = f" in {attempts} attempts" if attempts > 1 else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"the {tier} tier {WORDS[self.fault]}{tried}{detail}"


def backoff_s(attempt: int, *, first_ms: float, draw: Callable[[], float] = random.random) -> float:
    """Return the wait after failed attempt 1, 2, ...: doubling, drawn from its upper half so that devices disperse."""
    return first_ms / 1_000 * 2.0 ** (attempt - 1) * (0.5 + 0.5 * draw())


def stand_ins(step: Step, *, last: Mapping[Tier, int]) -> tuple[Tier, ...]:
    """Return the tiers to try in the place of a step's, in order; the mobile tier, which cannot fail, is the last.

    The nearest in depth comes first: the tier whose last exit, of those in ``last``, is fewest layers from the exit
    that was wanted; of two equally near, the one nearer to the device.
    """
    others = [tier for tier in TIERS if tier in last and tier is not step.tier]
    ranked = sorted(others, key=lambda tier: (abs(last[tier] - step.layer), TIERS.index(tier)))
    return tuple(ranked[: ranked.index(Tier.MOBILE) + 1])


@dataclass(frozen=True, slots=True)
class Pass:
    """What lets a request go to a tier, after a probe if it says so; to be handed back with the outcome."""

    generation: int
    probes: bool = False


class Breaker:
    """Leave a tier alone that keeps failing, and find out when it is back.

    Closed, it lets every request go and counts failures in a row. Open, it lets none go. When its time is over it is
    half-open: one request goes, after a probe, and its outcome closes the breaker or opens it for twice as long.
    Outcomes of requests from before the last change are not counted.
    """

    def __init__(
        self,
        *,
        opens_after: int,
        open_s: float,
        max_open_s: float,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        """Take the limits, a clock in seconds, and draws from 0 to 1 that disperse the devices' probes."""
        self._opens_after = opens_after
        self._first_open_s = open_s
        self._max_open_s = max_open_s
        self._clock = clock
        self._draw = draw
        self._lock = threading.Lock()
        self._generation = 0
        self._failures = 0
        self._open_s = open_s
        self._open_until: float | None = None
        self._probing = False
        self.last: Failure | None = None

    def admit(self) -> Pass | None:
        """Let a request go, or not (None); a pass has to come back by `succeeded`, `failed` or `left`."""
        with self._lock:
            if self._open_until is None:
                return Pass(self._generation)
            if self._probing or self._clock() < self._open_until:
                return None
            self._probing = True
            return Pass(self._generation, probes=True)

    def succeeded(self, given: Pass) -> None:
        """Take note of an answer."""
        with self._lock:
            if given.generation != self._generation:
                return
            self._failures = 0
            if given.probes:
                self._generation += 1
                self._open_until, self._probing, self.last = None, False, None
                self._open_s = self._first_open_s

    def failed(self, given: Pass, failure: Failure) -> None:
        """Take note of a failure."""
        with self._lock:
            if given.generation != self._generation:
                return
            self.last = failure
            self._failures += 1
            if given.probes:
                self._open_s = min(2 * self._open_s, self._max_open_s)
            elif failure.fault not in OPENS_AT_ONCE and self._failures < self._opens_after:
                return
            self._generation += 1
            self._failures, self._probing = 0, False
            self._open_until = self._clock() + self._open_s * (0.75 + 0.25 * self._draw())

    def left(self, given: Pass) -> None:
        """Take note that a request says nothing about the tier: another may probe."""
        with self._lock:
            if given.generation == self._generation and given.probes:
                self._probing = False


class TierFault(Exception):
    """A failure on its way up to `TierClient.ask`, which turns it into an outcome."""

    def __init__(
        self, fault: Fault, detail: str = "", *, retry_after_s: float | None = None
    ) -> None:
        """Take what the failure says."""
        super().__init__(detail)
        self.failure = Failure(fault, detail, retry_after_s)


_BY_STATUS = {
    401: Fault.UNAUTHORISED,
    403: Fault.UNAUTHORISED,
    429: Fault.OVERLOADED,
    504: Fault.SLOW,
}


def refusal(status: int, headers: httpx.Headers, content: bytes) -> TierFault:
    """Return the failure that a status other than 200 means."""
    detail = f"HTTP {status}"
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        said = json.loads(content).get("error")
        detail += f": {quoted(said)}" if isinstance(said, str) and said else ""
    if status >= 500:
        default = Fault.BROKEN
    else:
        default = Fault.REFUSED if status >= 400 else Fault.WRONG
    pause = retry_after_s(headers.get("retry-after")) if status in (429, 503) else None
    return TierFault(_BY_STATUS.get(status, default), detail, retry_after_s=pause)


def fault_of(exc: httpx.HTTPError) -> TierFault:
    """Return the failure that an error of the HTTP client means."""
    import httpx

    said = quoted(str(exc))
    if isinstance(exc, httpx.RemoteProtocolError):
        if "disconnected" in said or "closed connection" in said:
            return TierFault(Fault.UNREACHABLE, "the connection was closed")
        return TierFault(Fault.WRONG, f"no HTTP: {said}")
    if isinstance(exc, httpx.ConnectError):
        if "CERTIFICATE" in said:
            return TierFault(Fault.WRONG, "its certificate is not trusted")
        return TierFault(Fault.UNREACHABLE, said or "no connection")
    if isinstance(exc, httpx.NetworkError):
        return TierFault(Fault.UNREACHABLE, "the connection was lost")
    return TierFault(Fault.BROKEN, quoted(f"{type(exc).__name__}: {exc}"))
