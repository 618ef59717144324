"""What can be promised of a policy's accuracy: an exact test of its paired drop. Counts in, numbers out.

Of n samples that were used for nothing else, x are losses (all-cloud is right, the policy wrong) and y are gains (the
other way round). The drop is p10 - p01, the difference of their probabilities. Held against the hypothesis that it is
``max_drop`` = delta or more is the score statistic of paired proportions,

    Z = (x - y - n delta) / sqrt(n (2 q + delta - delta^2)),    q: the likeliest p01 where p10 = p01 + delta,

and the p-value is exact, not normal: the probability of so small a Z or a smaller one, largest over what p01 may be
(Berger and Boos: a Clopper-Pearson interval that holds but for `NUISANCE`, which is added).

scipy has such tests for proportions of independent samples and, as a binomial test, for delta = 0; MAPIE's bounds for
losses in [0, 1] do not see that most samples of a pair are alike, and need several times the rows. So only the
statistic is ours; binomial and beta distributions are scipy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from dimec.errors import OptionError

NUISANCE = 1e-4
"""How often p01 may lie outside of the interval that it is looked for in; part of every p-value."""

HIGHEST_ASSURANCE = 0.999
MOST_ROWS = 1_000_000

_POINTS = 64
_CUT_OFF = 1e-12
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How a policy's answers differ from all-cloud's on samples that were used for nothing else.

    Attributes:
        n: The samples.
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


@lru_cache(maxsize=100_000)
def p_value(outcomes: Outcomes, max_drop: float) -> float:
    """Return how probable it is to look as good as this, or better, with a drop of ``max_drop`` or more.

    Args:
        outcomes: What was seen.
        max_drop: A fraction from 0 to below 1.
    """
    n, gains = outcomes.n, outcomes.gains
    if n == 0:
        return 1.0
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


def upper_bound(outcomes: Outcomes, *, assurance: float) -> float:
    """Return the drop, a fraction from 0 up, that is not exceeded with this assurance."""
    allowed = _allowed(assurance)
    if outcomes.n == 0:
        return 1.0
    if p_value(outcomes, 0.0) <= allowed:
        return 0.0
    top = 1 - 1e-9
    if p_value(outcomes, top) > allowed:
        return 1.0
    return float(
        optimize.bisect(lambda drop: p_value(outcomes, drop) - allowed, 0.0, top, xtol=1e-6) + 1e-6
    )


def rows_for(
    max_drop: float, *, assurance: float, loss_rate: float = 0.0, gain_rate: float = 0.0
) -> int | None:
    """Return how many rows would do where losses and gains come at these rates; None if not even `MOST_ROWS`."""
    allowed = _allowed(assurance)

    def does(n: int) -> bool:
        seen = Outcomes(n, round(n * loss_rate), round(n * gain_rate))
        return p_value(seen, max_drop) <= allowed

    enough = 1
    while not does(enough):
        enough *= 2
        if enough > MOST_ROWS:
            return None
    short = enough // 2
    while enough - short > 1:
        middle = (enough + short) // 2
        if does(middle):
            enough = middle
        else:
            short = middle
    return enough


def last_kept(trials: Sequence[Outcomes], *, max_drop: float, assurance: float) -> int | None:
    """Return the last of an ordered sequence that can be promised; None where not even the first can.

    The order must not come from these samples. Each is tested at the full level, up to the first that fails: one
    that does not deserve its promise is reached first by exactly one test, so nothing need be corrected.
    """
    allowed = _allowed(assurance)
    last = None
    for place, outcomes in enumerate(trials):
        if p_value(outcomes, max_drop) > allowed:
            break
        last = place
    return last


def _allowed(assurance: float) -> float:
    """Return how often a promise may be broken."""
    if not 0.5 <= assurance <= HIGHEST_ASSURANCE:
        raise OptionError(
            f"--assurance {assurance:g}: it must be from 0.5 to {HIGHEST_ASSURANCE:g}, such as 0.95"
        )
    return 1 - assurance + 1e-12


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
