"""A promise about one corpus, without labels: how many of its texts are answered otherwise than by all-cloud.

Operating points of a cascade are put in order, from the safest to the cheapest. A random sample of the corpus, drawn
without replacement, is answered by all-cloud as well. The last operating point that passes the test answers the rest;
the sampled texts keep all-cloud's answer. An answer that differs from all-cloud's loses at most one text, whatever the
labels are, so that a bound on these bounds the drop.

**The test.** Let M of the N texts be the most that may differ, and x the sampled ones of n on which an operating point,
or one before it, differs from all-cloud. It passes if

    P(H <= x) <= 1 - assurance,    H hypergeometric: n drawn from N texts of which M + 1 + x are marked.

**Why it is exact.** Let c be the largest x that passes. Sort the texts by the first operating point that differs on
them. Those up to an operating point hold all on which it differs. Suppose it passes, with x <= c of these sampled and
more than M not. Then at most x of the first M + 1 + x texts were sampled, and so at most c of the first M + 1 + c. That
is one event, whichever operating point it is, and its probability is at most 1 - assurance by the choice of c. So
nothing has to be corrected for trying many, and what all-cloud has answered counts as right.

The sample's size is fixed before it is drawn. A test by betting may stop at any size and takes more texts to pass the
same operating points (`benchmarks/bench_corpus.py`).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from dimec.core.tiers import Step, Tier
from dimec.policies.cascade import DimecCascade
from dimec.policies.cascade_fit import Point

DOUBTS = tuple(np.geomspace(1 / 64, 8, 28).tolist())
"""What one minus each border is multiplied by: from far safer than a cascade was fitted to much cheaper."""

_SHARE = 2.0
_TIE = 1e-9


def most_differing(n_rows: int, n_sampled: int, *, max_drop: float, assurance: float) -> int:
    """Return on how many sampled texts an operating point may differ and pass; -1 where even none is too many.

    Args:
        n_rows: The texts of the corpus, N.
        n_sampled: How many of them are drawn, n.
        max_drop: The share of the corpus that may be answered otherwise than by all-cloud.
        assurance: The probability that the promise holds.

    Example:
        >>> most_differing(100_000, 4_000, max_drop=0.005, assurance=0.95)
        12
    """
    allowed = math.floor(max_drop * n_rows + _TIE)
    if n_rows - n_sampled <= allowed:
        return n_sampled

    def fails(seen: int) -> bool:
        marked = allowed + 1 + seen
        chance = stats.hypergeom.cdf(seen, n_rows, marked, n_sampled) if marked <= n_rows else 0.0
        return bool(chance > 1 - assurance + 1e-12)

    return bisect_left(range(n_sampled + 1), True, key=fails) - 1


def sample_size(n_rows: int, *, max_drop: float, assurance: float) -> int:
    """Return how many texts of a corpus to draw: enough for the test, and of a large one what pays for itself.

    Each sampled text costs what all-cloud costs. The bound lies some standard error, which falls with the square root
    of the sample, under what is allowed, and all other texts pay for that: the sum is least at a size that grows with
    the corpus to the power of two thirds.
    """
    most = partial(most_differing, n_rows, max_drop=max_drop, assurance=assurance)
    wanted = max(0, most(min(n_rows, math.ceil(_SHARE * n_rows ** (2 / 3)))))
    return bisect_left(range(n_rows), wanted, key=most)


def operating_points(cascade: DimecCascade) -> tuple[DimecCascade, ...]:
    """Return a cascade with all its borders moved, from the safest to the cheapest; all-cloud comes before the first.

    Where all layers have run, their last exit answers alone, as all-cloud does.
    """
    return tuple(_moved(cascade, doubt) for doubt in DOUBTS)


def all_cloud(cascade: DimecCascade) -> DimecCascade:
    """Return the policy that has the cloud's last exit answer everything."""
    step = Step(Tier.CLOUD, cascade.depths.cloud)
    return DimecCascade(cascade.depths, [Point((step,), (1.0,), (None,), ())])


def last_passing(differs: NDArray[np.bool_], most: int) -> int | None:
    """Return the last operating point that passes; None where not even the first does.

    Args:
        differs: [points, n], on which sampled texts each differs from all-cloud, from the safest point on.
        most: On how many it may, by `most_differing`.
    """
    so_far = np.logical_or.accumulate(differs, axis=0).sum(axis=1)
    n_passing = int(np.searchsorted(so_far, most, side="right"))
    return n_passing - 1 if n_passing else None


def _moved(cascade: DimecCascade, doubt: float) -> DimecCascade:
    points = []
    for point in cascade.points:
        weights = point.weights
        if point.steps[-1].layer == cascade.depths.cloud:
            weights = (*(0.0 for _ in weights[1:]), 1.0)
        borders = tuple(
            each if each >= 1 else max(0.0, 1 - doubt * (1 - each)) for each in point.borders
        )
        points.append(replace(point, weights=weights, borders=borders))
    return DimecCascade(cascade.depths, points, unseen_limit=cascade.unseen_limit)
