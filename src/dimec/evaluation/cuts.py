"""Where the encoder is best cut: cascades of several cuts, compared by five-fold cross-fitting.

A cut is chosen after the fit, like a price. At each price the best cut is the one whose cascade has the least
``wrong + lambda * cost`` (`dimec.policies.cascade`) where every fifth of the rows is answered by a cascade fitted on
the other four.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import Depths, Method
from dimec.costs.model import N_USED
from dimec.policies import Calibration
from dimec.policies.cascade import DimecCascade
from dimec.policies.cascade_fit import Pools
from dimec.policies.replay import replay

FOLDS = 5

Cut = Mapping[Method, Depths]


@dataclass(frozen=True, slots=True, eq=False)
class CrossFitted:
    """What cascades say of rows that did not fit them.

    Attributes:
        labels: [prices, n] int64.
        costs: [prices, n], in lambda.
        uses: [prices, 8], what a row uses in the mean, as in `dimec.costs.model.Use`.
    """

    labels: NDArray[np.int64]
    costs: NDArray[np.float64]
    uses: NDArray[np.float64]


def cross_fit(
    calibration: Calibration,
    cuts: Sequence[Cut],
    prices: Sequence[float],
    *,
    like: NDArray[np.int64] | None = None,
    progress: Progress = SILENT,
) -> list[CrossFitted]:
    """Answer every fifth of the rows by cascades fitted on the others, at each cut one for each price.

    The calibration's seed draws the fifths; its own depths and price are not used. ``like`` is that of
    `DimecCascade.fit_at`. Rows count by the calibration's weights, in the fits and in the mean uses.
    """
    n = len(calibration.table)
    shares = np.full(n, 1 / n) if calibration.shares is None else calibration.shares
    fold = np.random.default_rng([calibration.seed, 0xC075]).permutation(n) % FOLDS
    size, used = (len(prices), n), (len(prices), N_USED)
    found = [CrossFitted(np.zeros(size, np.int64), np.zeros(size), np.zeros(used)) for _ in cuts]
    with progress.stage("Comparing cuts", FOLDS * len(cuts)) as advance:
        for each in range(FOLDS):
            held = np.flatnonzero(fold == each)
            tables = calibration.tables.take(held)
            others = np.flatnonzero(fold != each)
            own = None if like is None else like[others]
            fitting = calibration.take(others)
            pools: Pools = {}
            for cut, result in zip(cuts, found, strict=True):
                at_cut = replace(fitting, depths=cut)
                cascades = DimecCascade.fit_at(prices, at_cut, like=own, pools=pools)
                for place, cascade in enumerate(cascades):
                    played = replay(cascade, tables, costs=calibration.costs)
                    result.labels[place, held] = played.predictions
                    result.costs[place, held] = played.costs
                    result.uses[place] += shares[held] @ played.uses
                advance(1)
    return found


def compare_cuts(
    calibration: Calibration,
    cuts: Sequence[Cut],
    prices: Sequence[float],
    *,
    like: NDArray[np.int64] | None = None,
    progress: Progress = SILENT,
) -> tuple[list[Cut], CrossFitted]:
    """Return the best cut for each price, the first of equals, and what its cascade says.

    The calibration's own depths and price are not used, nor are weights. ``like`` is that of `DimecCascade.fit_at`, and
    counts in the comparison too.
    """
    tried = cross_fit(calibration, cuts, prices, like=like, progress=progress)
    labels = np.stack([each.labels for each in tried])
    costs, uses = (np.stack([getattr(each, name) for each in tried]) for name in ("costs", "uses"))
    units = np.array([replace(calibration, price=price).unit for price in prices])
    wrong = (labels != calibration.table.labels).mean(axis=2)
    if like is not None:
        wrong += (labels != like).mean(axis=2)
    best = (wrong + units * costs.mean(axis=2)).argmin(axis=0)
    at = best, np.arange(len(prices))
    return [cuts[place] for place in best], CrossFitted(labels[at], costs[at], uses[at])


def best_cuts(
    calibration: Calibration,
    cuts: Sequence[Cut],
    prices: Sequence[float],
    *,
    like: NDArray[np.int64] | None = None,
    progress: Progress = SILENT,
) -> list[Cut]:
    """Return the best cut for each price as `compare_cuts` does; a single one is not tried."""
    if len(cuts) == 1:
        return [cuts[0]] * len(prices)
    return compare_cuts(calibration, cuts, prices, like=like, progress=progress)[0]


def fit_cascades(
    calibration: Calibration,
    cuts: Sequence[Cut],
    prices: Sequence[float],
    *,
    like: NDArray[np.int64] | None = None,
    progress: Progress = SILENT,
) -> list[DimecCascade]:
    """Fit a cascade at each cut and price, pair by pair: the pools are fitted once for all of them."""
    places: dict[Depths, list[int]] = {}
    for place, cut in enumerate(cuts):
        places.setdefault(cut[DimecCascade.method], []).append(place)
    fitted: dict[int, DimecCascade] = {}
    pools: Pools = {}
    with progress.stage("Fitting cascades", len(prices)) as advance:
        for own in places.values():
            here = replace(calibration, depths=cuts[own[0]])
            wanted = [prices[place] for place in own]
            cascades = DimecCascade.fit_at(wanted, here, like=like, pools=pools)
            for place, cascade in zip(own, cascades, strict=True):
                fitted[place] = cascade
                advance(1)
    return [fitted[place] for place in range(len(prices))]
