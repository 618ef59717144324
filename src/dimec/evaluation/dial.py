"""The dial: the cheapest way to answer that is expected to lose at most so many points against all-cloud.

The ways are cascades at a ladder of prices and at every cut that is allowed, and the constant ones: words alone, the
device's last exit, the edge's. Thresholds, pools and calibration of a cascade are cross-fitted: each validation row is
answered by a cascade that was fitted on other rows (`dimec.evaluation.cuts`). A way is allowed where

    drop + care * standard error of the drop <= max_drop,

all of it in the metric of the task and paired by rows. The cheapest allowed way is chosen, and all-cloud where there is
none. Where the calibration has weights, rows count by them in all of it: in the fits, the drops, their errors and the
mean costs.

Choosing among many ways makes the chosen one look better than it is. So the drop that is stated is that of the choice:
rows are drawn with replacement, the choice is made on the drawn rows, and its drop is read on the rows that were not
drawn (the bootstrap bias correction of Tsamardinos and others, 2018, Machine Learning 107). ``care`` is the least of
`CARES` with which this drop is at most ``max_drop``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import Metric, drops, effective_size, paired_differences
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import EXIT_ZERO, Depths, Step, Tier
from dimec.costs.model import Use
from dimec.evaluation.controls import single_exit
from dimec.evaluation.cuts import Cut, cross_fit
from dimec.evaluation.results import Way
from dimec.policies import Calibration
from dimec.policies.cascade import DimecCascade

RECOMMENDED = "recommended"
"""The name of the row of what the dial chose."""

PRICES = tuple(np.geomspace(0.005, 1.5, 14).tolist())
"""The prices that cascades are fitted at."""

CARES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""How many standard errors may be added to a drop before it is held against the tolerance."""

DRAWS = 200


@dataclass(frozen=True, eq=False)
class Candidate:
    """A way to answer, and what validation says of it.

    Attributes:
        price: What a cascade is fitted at; None for the constant ways.
        labels: [n], its answers; a cascade's are cross-fitted.
        cost: Its mean cost, in lambda.
        drop, error: Score of all-cloud less its own, and the standard error of that, in points.
        use: What a row uses in the mean; its cost at the prices of the calibration is `cost`.
    """

    way: Way
    cut: Cut
    price: float | None
    labels: NDArray[np.int64]
    cost: float
    drop: float
    error: float
    use: Use

    @property
    def depths(self) -> Depths:
        """The cut of the cascade."""
        return self.cut[DimecCascade.method]


@dataclass(frozen=True, eq=False)
class Choice:
    """What the dial chose.

    Attributes:
        policy: It, fitted on all of validation.
        expected_drop: Its drop in points, corrected for having been chosen.
        undecided: Whether a cheaper way might do, by its drop, and these rows are too few to tell.
        care: How many standard errors were added to every drop; None where no number of them was enough.
        candidates: The ways among which it chose, in order of their cost.
        weights: [n], how much each validation row counted; None all alike.
    """

    candidate: Candidate
    policy: DimecCascade
    expected_drop: float
    ci95: tuple[float, float]
    undecided: bool
    n: int
    care: float | None
    candidates: tuple[Candidate, ...]
    weights: NDArray[np.float64] | None = None

    @property
    def n_effective(self) -> float | None:
        """How many rows of equal weight tell as much; None without weights."""
        return None if self.weights is None else effective_size(self.weights)


def choose(
    calibration: Calibration,
    cuts: Sequence[Cut],
    *,
    metric: Metric,
    max_drop: float,
    prices: Sequence[float] = PRICES,
    cascades_only: bool = False,
    progress: Progress = SILENT,
) -> Choice:
    """Choose the cheapest way whose expected drop under all-cloud is at most ``max_drop`` points.

    Args:
        calibration: The validation rows; its own price and depths are not used.
        cuts: Where the encoder may be cut; the first one is where constant ways cut it.
        cascades_only: Whether the constant ways other than all-cloud are left out.
    """
    candidates = find_candidates(calibration, cuts, metric=metric, prices=prices, progress=progress)
    if cascades_only:
        candidates = [each for each in candidates if each.way in ("dimec-cascade", "all-cloud")]
    place, shown, care = decide(candidates, calibration, metric=metric, max_drop=max_drop)
    chosen = candidates[place]
    return Choice(
        chosen,
        fit(chosen, calibration),
        shown,
        (shown - 1.96 * chosen.error, shown + 1.96 * chosen.error),
        undecided=chosen.way == "all-cloud"
        and any(each.drop <= max_drop for each in candidates[:-1]),
        n=len(calibration.table),
        care=care,
        candidates=tuple(candidates),
        weights=calibration.weights,
    )


def fit(
    candidate: Candidate, calibration: Calibration, *, like: NDArray[np.int64] | None = None
) -> DimecCascade:
    """Fit a way on all rows of a calibration; ``like`` [n] is what all-cloud answers if its table says otherwise."""
    depths = candidate.depths
    if candidate.price is None:
        step, tables = _step(candidate.way, depths), calibration.tables.with_exit_zero
        return DimecCascade.always(step, depths, tables, shares=calibration.shares)
    own = replace(calibration, depths=candidate.cut)
    like = _cloud(calibration) if like is None else like
    return next(DimecCascade.fit_at([candidate.price], own, like=like))


def find_candidates(
    calibration: Calibration,
    cuts: Sequence[Cut],
    *,
    metric: Metric,
    prices: Sequence[float] = PRICES,
    progress: Progress = SILENT,
) -> list[Candidate]:
    """Return the ways in order of their cost, those dearer than all-cloud left out; all-cloud itself is the last."""
    table, costs, weights = calibration.table, calibration.costs, calibration.weights
    cloud = _cloud(calibration)
    least = 1 / (len(table) if weights is None else effective_size(weights))
    rng = np.random.default_rng([calibration.seed, 0xD1A1])

    def candidate(
        way: Way, cut: Cut, price: float | None, labels: NDArray[np.int64], use: Use
    ) -> Candidate:
        cost = costs.of_use(use)
        about: dict[str, Any] = {"n_classes": table.n_classes, "weights": weights}
        drop, error = float(drops(metric, table.labels, labels[None], cloud, **about)[0]), 0.0
        if not np.array_equal(labels, cloud):
            differences = paired_differences(
                metric, table.labels, [labels], cloud, rng=rng, n=DRAWS, **about
            )
            error = 100 * max(float(differences.std()), least)
        return Candidate(way, cut, price, labels, cost, drop, error, use)

    found = []
    tried = cross_fit(calibration, cuts, prices, like=cloud, progress=progress)
    for cut, fitted in zip(cuts, tried, strict=True):
        for price, labels, uses in zip(prices, fitted.labels, fitted.uses, strict=True):
            found.append(candidate("dimec-cascade", cut, price, labels, Use(*uses.tolist())))
    usual = cuts[0][DimecCascade.method]
    ways: list[Way] = ["all-mobile", "all-edge", "all-cloud"]
    if table.exit_zero is not None:
        ways.insert(0, "words-only")
    for way in ways:
        step = _step(way, usual)
        single = single_exit(calibration.tables, step, costs=costs)
        found.append(candidate(way, cuts[0], None, single.predictions, Use.of([step])))
    last = found[-1]
    cheaper = [each for each in found if each.cost < last.cost - 1e-9]
    # Of equal costs, up to the rounding of a mean, the plain way comes first.
    return [*sorted(cheaper, key=lambda each: (round(each.cost, 9), each.price is not None)), last]


def _step(way: Way, depths: Depths) -> Step:
    steps: dict[Way, Step] = {
        "words-only": EXIT_ZERO,
        "all-mobile": Step(Tier.MOBILE, depths.mobile),
        "all-edge": Step(Tier.EDGE, depths.edge),
        "all-cloud": Step(Tier.CLOUD, depths.cloud),
    }
    return steps[way]


def _cloud(calibration: Calibration) -> NDArray[np.int64]:
    return calibration.table.predictions[:, -1]


def decide(
    candidates: Sequence[Candidate], calibration: Calibration, *, metric: Metric, max_drop: float
) -> tuple[int, float, float | None]:
    """Return the place of the way to choose, its drop in points on rows left out of such a choice, and the care."""
    table, rng = calibration.table, np.random.default_rng([calibration.seed, 0xBBC])
    cloud, weights = _cloud(calibration), calibration.weights
    answers = np.stack([each.labels for each in candidates])

    def lost(rows: NDArray[np.integer]) -> NDArray[np.float64]:
        columns = table.labels[rows], answers[:, rows], cloud[rows]
        own = None if weights is None else weights[rows]
        return drops(metric, *columns, n_classes=table.n_classes, weights=own)

    draws = rng.integers(len(table), size=(DRAWS, len(table)))
    drawn = np.array([lost(rows) for rows in draws])
    left_out = np.array([lost(np.setdiff1d(np.arange(len(table)), rows)) for rows in draws])
    own = np.array([each.drop for each in candidates])
    margin = np.array([each.error for each in candidates])

    def places(seen: NDArray[np.float64], care: float) -> NDArray[np.intp]:
        allowed = seen + care * margin <= max_drop + 1e-9
        allowed[..., -1] = True
        found: NDArray[np.intp] = allowed.argmax(axis=-1)
        return found

    for care in CARES:
        shown = float(left_out[np.arange(DRAWS), places(drawn, care)].mean())
        if shown <= max_drop:
            place = int(places(own, care))
            return place, shown if place < len(candidates) - 1 else 0.0, care
    return len(candidates) - 1, 0.0, None
