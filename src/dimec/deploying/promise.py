"""What can be promised of a policy's accuracy: exact tests of its paired drop. Counts in, numbers out.

Of n samples that were used for nothing else, x are losses (all-cloud is right, the policy wrong) and y are gains (the
other way round).

**In the long run** the drop is p10 - p01, the difference of their probabilities. Held against the hypothesis that it
is ``max_drop`` = delta or more is the score statistic of paired proportions,

    Z = (x - y - n delta) / sqrt(n (2 q + delta - delta^2)),    q: the likeliest p01 where p10 = p01 + delta,

and the p-value is exact, not normal: the probability of so small a Z or a smaller one, largest over what p01 may be
(Berger and Boos: a Clopper-Pearson interval that holds but for `NUISANCE`, which is added).

**Over the next m samples** the drop is what will be counted on them, and their luck counts too. Were there L losses
and G gains among all n + m, then which n of them came first is a draw without replacement,

    P(x, y) = C(L, x) C(G, y) C(n + m - L - G, n - x - y) / C(n + m, n),

and the p-value is the probability of so small a Z or a smaller one, largest over those L and G that break the promise
on the m: the fewest losses that do, and any gains that the seen ones leave open (all but for `NUISANCE`).

scipy has such tests for proportions of independent samples and, as a binomial test, for delta = 0; MAPIE's bounds for
losses in [0, 1] do not see that most samples of a pair are alike, and need several times the rows. So only the
statistics are ours; binomial and beta distributions are scipy's.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from dimec.core.errors import OptionError

NUISANCE = 1e-4
"""How often p01 may lie outside of the interval that it is looked for in; part of every p-value."""

HIGHEST_ASSURANCE = 0.999
MOST_ROWS = 1_000_000

_POINTS = 64
_POINTS_TO_COME = 16
_CUT_OFF = 1e-12
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How a policy's answers differ from all-cloud's on samples that were used for nothing else.

    Attributes:
        losses: Those that all-cloud answers rightly and the policy does not.
        gains: Those that the policy answers rightly and all-cloud does not.
    """

    n: int
    losses: int
    gains: int

    @classmethod
    def of(cls, cloud_right: NDArray[np.bool_], policy_right: NDArray[np.bool_]) -> Outcomes:
        """Count them from who is right: [n] each."""
        return cls(
            len(cloud_right),
            int((cloud_right & ~policy_right).sum()),
            int((policy_right & ~cloud_right).sum()),
        )

    @property
    def drop(self) -> float:
        """The accuracy that was lost on these samples, a fraction."""
        return (self.losses - self.gains) / self.n if self.n else 0.0


@dataclass(frozen=True, slots=True)
class Assurance:
    """How sure a promise is, and of what.

    Attributes:
        level: How often it is kept, from 0.5 to `HIGHEST_ASSURANCE`.
        over: The number of samples that it is counted on, the next ones; None is the long run.

    Raises:
        OptionError: If there is no such assurance.
    """

    level: float = 0.95
    over: int | None = None

    def __post_init__(self) -> None:
        if not 0.5 <= self.level <= HIGHEST_ASSURANCE:
            raise OptionError(
                f"--assurance {self.level:g}: it must be from 0.5 to {HIGHEST_ASSURANCE:g}, such as 0.95"
            )
        if self.over is not None and not 1 <= self.over <= MOST_ROWS:
            raise OptionError(
                f"--over {self.over}: it must be a number of texts from 1 to {MOST_ROWS:,}, such as 5000"
            )

    def allows(self, outcomes: Outcomes, max_drop: float) -> bool:
        """Whether a drop of at most ``max_drop``, a fraction, can be promised after these outcomes."""
        limit = 1 - self.level + 1e-12
        return p_value(outcomes, max_drop, over=self.over, limit=limit) <= limit


DEFAULT_ASSURANCE = Assurance()


@lru_cache(maxsize=100_000)
def p_value(
    outcomes: Outcomes, max_drop: float, *, over: int | None = None, limit: float = 1.0
) -> float:
    """Return how probable it is to look as good as this, or better, with a drop that breaks the promise.

    In the long run that is a drop of ``max_drop`` or more, over the next samples one of more than that.

    Args:
        max_drop: A fraction from 0 to below 1.
        over: How many samples come next; None for the long run.
        limit: Above this it need not be found to the end: over the next samples, what is returned then lies above it
            too, and below what it would be.
    """
    if outcomes.n == 0:
        return 1.0
    if over is None:
        return _in_the_long_run(outcomes, max_drop)
    return _over_the_next(outcomes, max_drop, over, limit=limit)


def _in_the_long_run(outcomes: Outcomes, max_drop: float) -> float:
    n, gains = outcomes.n, outcomes.gains
    low = stats.beta.ppf(NUISANCE / 2, gains, n - gains + 1) if gains else 0.0
    high = stats.beta.ppf(1 - NUISANCE / 2, gains + 1, n - gains) if gains < n else 1.0
    high = min(high, (1 - max_drop) / 2)
    if low > high:  # with so many gains, p10 + p01 would be more than 1
        return NUISANCE
    p01 = np.linspace(low, high, _POINTS)
    first = max(int(stats.binom.ppf(_CUT_OFF, n, low)), 0)
    y = np.arange(first, min(int(stats.binom.ppf(1 - _CUT_OFF, n, high)), n) + 1)
    # For every number of gains, up to how many losses look as good as this: the region does not depend on p01.
    most = _most_losses(outcomes, max_drop, y.astype(float)).astype(np.int64)
    p10 = np.minimum((p01 + max_drop) / (1 - p01), 1)
    seen = stats.binom.pmf(y, n, p01[:, None])
    as_good = special.bdtr(np.clip(most, 0, n - y).astype(float), n - y, p10[:, None])
    as_good = np.where(most < 0, 0.0, as_good)
    worst = float((seen * as_good).sum(axis=1).max())
    return min(worst + NUISANCE + 2 * _CUT_OFF, 1.0)


def _over_the_next(outcomes: Outcomes, max_drop: float, over: int, *, limit: float) -> float:
    n, total = outcomes.n, outcomes.n + over
    net = math.floor(max_drop * over + _TIE) + 1  # the fewest losses beyond gains that are too many
    most = (over - net) // 2
    if most < 0:  # so few samples cannot lose so much
        return 0.0

    def at_most_seen(to_come: int) -> float:
        return float(stats.hypergeom.cdf(outcomes.gains, total, outcomes.gains + to_come, n))

    def at_least_seen(to_come: int) -> float:
        return float(stats.hypergeom.sf(outcomes.gains - 1, total, outcomes.gains + to_come, n))

    open_to_come = range(most + 1)
    low = bisect_left(open_to_come, NUISANCE / 2, key=at_least_seen)
    high = bisect_left(open_to_come, True, key=lambda each: at_most_seen(each) < NUISANCE / 2)
    if low >= high:
        return NUISANCE
    candidates = np.unique(np.linspace(low, high - 1, _POINTS_TO_COME).round().astype(np.int64))
    worst = 0.0
    for gains in (candidates[::-1] + outcomes.gains).tolist():  # the worst are mostly many
        losses = outcomes.losses + gains - outcomes.gains + net
        x, y = _likely(n, total, losses)[:, None], _likely(n, total, gains)
        worse = x > _most_losses(outcomes, max_drop, y.astype(float))
        # What is cut off counts as good: that is the safe side.
        worst = max(worst, 1 - float(_drawn(n, total, losses, gains, x, y)[worse].sum()))
        if worst + NUISANCE > limit:
            break
    return min(worst + NUISANCE, 1.0)


def _drawn(
    n: int, total: int, losses: int, gains: int, x: NDArray[np.int64], y: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return P(x, y): how probable x of the losses and y of the gains are in a draw of ``n`` of ``total``."""
    rest = n - x - y
    possible = (rest >= 0) & (rest <= total - losses - gains)
    drawn = np.exp(
        _log_choose(losses, x)
        + _log_choose(gains, y)
        + _log_choose(total - losses - gains, np.where(possible, rest, 0))
        - _log_choose(total, np.array(n))
    )
    return np.where(possible, drawn, 0.0)


def _likely(n: int, total: int, marked: int) -> NDArray[np.int64]:
    """Return how many marked samples a draw of ``n`` of ``total`` may hold, up to a probability of `_CUT_OFF`."""
    low, high = stats.binom.ppf([_CUT_OFF, 1 - _CUT_OFF], n, marked / total)
    first, last = max(int(low), n - (total - marked), 0), min(int(high), marked, n)
    return np.arange(min(first, last), last + 1)


def _log_choose(n: int, k: NDArray[np.int64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = (
        special.gammaln(n + 1.0) - special.gammaln(k + 1.0) - special.gammaln(n - k + 1.0)
    )
    return found


def upper_bound(outcomes: Outcomes, assurance: Assurance) -> float:
    """Return the drop, a fraction from 0 up, that is not exceeded with this assurance."""
    if outcomes.n == 0:
        return 1.0
    if assurance.allows(outcomes, 0.0):
        return 0.0
    top = 1 - 1e-9
    if not assurance.allows(outcomes, top):
        return 1.0
    turn = optimize.bisect(lambda drop: assurance.allows(outcomes, drop) - 0.5, 0.0, top, xtol=1e-6)
    return float(turn + 1e-6)


def rows_for(
    max_drop: float, assurance: Assurance, *, loss_rate: float = 0.0, gain_rate: float = 0.0
) -> int | None:
    """Return how many rows would do where losses and gains come at these rates; None if not even `MOST_ROWS`."""

    def does(n: int) -> bool:
        seen = Outcomes(n, round(n * loss_rate), round(n * gain_rate))
        return assurance.allows(seen, max_drop)

    enough = 1
    while not does(enough):
        enough *= 2
        if enough > MOST_ROWS:
            return None
    untried = range(enough // 2 + 1, enough)
    return untried.start + bisect_left(untried, True, key=does)


def last_kept(trials: Sequence[Outcomes], *, max_drop: float, assurance: Assurance) -> int | None:
    """Return the last of an ordered sequence that can be promised; None where not even the first can.

    The order must not come from these samples. Each is tested at the full level, up to the first that fails. In the
    long run nothing need be corrected for that: one that does not deserve its promise is reached first by exactly one
    test. Over the next samples it is true in the normal approximation: where v is how often a policy breaks its
    promise on them, it passes a test with Phi(-v' r - z sqrt(1 + r^2)) at most (v' = Phi^-1(v), r^2 = n / m), however
    the tests hang together, and the integral of that over v is the level.
    """
    last = None
    for place, outcomes in enumerate(trials):
        if not assurance.allows(outcomes, max_drop):
            break
        last = place
    return last


def _score(
    n: int, losses: NDArray[np.float64], gains: NDArray[np.float64], max_drop: float
) -> NDArray[np.float64]:
    """Return Z; 0 where nothing differs and nothing may."""
    linear = (losses + gains) * (1 - max_drop) - 2 * max_drop * (n - losses)
    root = np.sqrt(linear**2 + 8 * n * gains * max_drop * (1 - max_drop))
    variance = np.maximum((linear + root) / (2 * n) + max_drop - max_drop**2, 0)
    difference = losses - gains - n * max_drop
    scale = np.sqrt(n * variance)
    score: NDArray[np.float64] = np.divide(
        difference, scale, out=np.zeros_like(difference), where=scale > 0
    )
    return score


def _most_losses(
    outcomes: Outcomes, max_drop: float, gains: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the most losses with which each number of gains scores no higher than what was seen; -1 for none."""
    n = outcomes.n
    seen = _score(n, np.array([outcomes.losses * 1.0]), np.array([outcomes.gains * 1.0]), max_drop)
    limit = float(seen[0]) + _TIE
    good, bad = np.full(len(gains), -1.0), n - gains + 1
    for _ in range(math.ceil(math.log2(n + 2)) + 1):
        middle = np.floor((good + bad) / 2)
        fits = (middle >= 0) & (_score(n, np.maximum(middle, 0), gains, max_drop) <= limit)
        moving = bad - good > 1
        good = np.where(moving & fits, middle, good)
        bad = np.where(moving & ~fits, middle, bad)
    return good
