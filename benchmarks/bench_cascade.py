"""dimec-cascade against every system of the documents: cost at the same score, area under score against cost.

Every rule is fitted on validation at each of a ladder of prices. Three comparisons on test rows, each with a 95 %
interval from a paired bootstrap over the rows; scores are the task's metric, x 100:

- The choice on validation: for each point of a system (those that no other of its points beats there), the cheapest
  cascade that validation holds to score as much. Cascades are held to what cross-fitted ones score on the rows left
  out, made to grow with cost (isotonic regression), since the cheapest of many prices would be a lucky one.
- The cost at the same score: the cascade's scores at every price, made to grow with cost and ending with all-cloud, are
  read at the system's score on test; at each point, at the price `evaluate` reports, and over the whole frontier.
- The area under score against cost, from the most common class at no cost to all-cloud's cost, as a share of the whole.

Deebert, early-exit, dee and others hold the whole encoder on the device, where going on costs no transfer. The cascade
has its tiers' depths, or, with `--cuts`, at each price the best of several cuts, as validation finds it.

    python benchmarks/bench_cascade.py RUN [RUN ...] [--cuts 4/5 | --cuts all] [--like-cloud] [--whole]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import isotonic_regression

from dimec.core.metrics import Metric, confusion, interval, paired_differences, score
from dimec.core.tiers import Step, Tier
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.evaluation.cuts import Cut, compare_cuts, fit_cascades
from dimec.evaluation.options import PRICES
from dimec.policies import POLICIES, Calibration, Policy
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from subject import whole_rows

LADDER = tuple(np.geomspace(0.001, 2, 40).tolist())
"""The cascade's prices: finer than the systems', since one of its points is held against each of theirs."""
OURS = frozenset({"dimec-cascade", "dimec-guarded"})
TOLERANCES = (0.0, 0.25, 0.5, 1.0)
FRONTIER_DRAWS = 500
SCORES = 50
LESS = 1 - 1e-9
COSTS = CostModel()


@dataclass(frozen=True)
class Answers:
    """What a fitted rule does with the rows of a table, and what scores it."""

    table: ExitTable
    metric: Metric
    labels: NDArray[np.int64]
    costs: NDArray[np.float64]

    @property
    def cost(self) -> float:
        return float(self.costs.mean())

    @property
    def score(self) -> float:
        matrix = confusion(self.table.labels, self.labels, n_classes=self.table.n_classes)
        return 100 * float(score(self.metric, matrix))

    @property
    def cells(self) -> NDArray[np.float64]:
        """Which cell of the confusion matrix each row is in: [n, classes * classes], one 1 each."""
        k = self.table.n_classes
        cells: NDArray[np.float64] = np.eye(k * k)[self.table.labels * k + self.labels]
        return cells


@dataclass(frozen=True)
class Point:
    """A rule fitted at one price, and what validation holds it to score."""

    price: float
    validation: Answers
    test: Answers
    held: float
    cut: Cut


def cascade_points(
    run: Run, prices: tuple[float, ...], cuts: Sequence[Cut], *, like_cloud: bool
) -> list[Point]:
    """Fit the cascade at every price, at the cut that validation finds best there."""
    table = run.validation
    calibration = Calibration(table, cuts[0], seed=run.config.options.seed)
    like = table.predictions[:, -1] if like_cloud else None
    chosen, crossed = compare_cuts(calibration, cuts, prices, like=like)
    metric = run.config.task.metric
    validation = [
        Answers(table, metric, said, cost)
        for said, cost in zip(crossed.labels, crossed.costs, strict=True)
    ]
    held = growing(
        np.array([each.cost for each in validation]), np.array([each.score for each in validation])
    )
    cascades = fit_cascades(calibration, chosen, prices, like=like)
    return [
        Point(price, said, answers(cascade, run.test, metric), float(scored), cut)
        for price, said, scored, cut, cascade in zip(
            prices, validation, held, chosen, cascades, strict=True
        )
    ]


def growing(cost: NDArray[np.float64], scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the scores that grow with cost and are nearest to these."""
    order = np.argsort(cost, kind="stable")
    grown = np.empty_like(scores)
    grown[order] = isotonic_regression(scores[order])
    return grown


def points_of(name: str, run: Run, prices: tuple[float, ...]) -> list[Point]:
    """Fit a system at every price."""
    calibration = Calibration(run.validation, run.config.depths)
    metric = run.config.task.metric
    if POLICIES[name].missing_input(calibration):
        return []
    points = []
    for price in prices:
        policy = POLICIES[name].fit(replace(calibration, price=price))
        own = answers(policy, run.validation, metric)
        test = answers(policy, run.test, metric)
        points.append(Point(price, own, test, own.score, run.config.depths))
    return points


def answers(policy: Policy, table: ExitTable, metric: Metric) -> Answers:
    """Replay a policy."""
    played = replay(policy, table, costs=COSTS)
    return Answers(table, metric, played.predictions, played.costs)


def all_cloud(table: ExitTable, metric: Metric) -> Answers:
    """Let the cloud answer everything."""
    cost = COSTS.of([Step(Tier.CLOUD, table.n_layers)])
    return Answers(table, metric, table.predictions[:, -1], np.full(len(table), float(cost)))


def envelope(points: list[Point]) -> list[Point]:
    """Keep the points that no cheaper one equals on validation."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.validation.cost, -p.held)):
        if not kept or point.held > kept[-1].held:
            kept.append(point)
    return kept


def areas(points: list[Point], cloud: Answers) -> NDArray[np.float64]:
    """Integrate the score on test over cost, each cost at the best that validation knew to choose up to there.

    Returns:
        [1 + draws], in per cent: on all rows, then on each draw of them.
    """
    most_common = np.bincount(cloud.table.labels).argmax()
    majority = replace(cloud, labels=np.full_like(cloud.labels, most_common))
    reached = seen([majority])[0][:, 0]
    scores, costs = seen([point.test for point in envelope(points)])
    cost, total = np.zeros(len(reached)), np.zeros(len(reached))
    for scored, spent in zip(scores.T, costs.T, strict=True):
        upto = np.minimum(spent, cloud.cost)
        farther = upto >= cost
        total += np.where(farther, (upto - cost) * reached, 0)
        cost = np.where(farther, upto, cost)
        reached = np.where(farther, np.maximum(reached, scored), reached)
    found: NDArray[np.float64] = (total + (cloud.cost - cost) * reached) / cloud.cost
    return found


@cache
def drawn(n: int) -> NDArray[np.float64]:
    """Return the weights of n rows: all alike, then by draws with replacement, [1 + draws, n]."""
    draws = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), size=FRONTIER_DRAWS) / n
    return np.vstack([np.full((1, n), 1 / n), draws])


def seen(rules: list[Answers]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return score and cost on all rows, then on each draw: [1 + draws, rules]."""
    weights = drawn(len(rules[0].labels))
    k = rules[0].table.n_classes
    scores = [100 * score(each.metric, (weights @ each.cells).reshape(-1, k, k)) for each in rules]
    spent = np.stack([each.costs for each in rules], axis=1)
    return np.stack(scores, axis=1), weights @ spent


@dataclass(frozen=True)
class Interval:
    """A figure on all rows, and where 95 % of the draws have it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, drawn: Sequence[float] | NDArray[np.float64]) -> Interval:
        """Return that of a figure of all rows, followed by that of each draw."""
        low, high = np.quantile(drawn[1:], (0.025, 0.975), method="nearest")
        return cls(float(drawn[0]), float(low), float(high))

    def __format__(self, spec: str) -> str:
        """Format the three numbers alike."""
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def __neg__(self) -> Interval:
        """Return that of the figure with the other sign."""
        return Interval(-self.value, -self.high, -self.low)


def difference(ours: Answers, theirs: Answers) -> Interval:
    """Return by how many points one scores more, by a paired bootstrap."""
    drawn = paired_differences(
        ours.metric,
        ours.table.labels,
        [ours.labels],
        theirs.labels,
        n_classes=ours.table.n_classes,
        rng=np.random.default_rng(0),
    )
    low, high = interval(drawn)
    return Interval(ours.score - theirs.score, 100 * low, 100 * high)


class Frontier:
    """The score that grows with cost, of a set of rules on all test rows and on each draw of them."""

    def __init__(self, rules: list[Answers]) -> None:
        """Take the rules; the last one, such as all-cloud, is there at its own score whatever grows."""
        scores, costs = seen(rules)
        order = np.argsort(costs, axis=1, kind="stable")
        self._costs = np.take_along_axis(costs, order, axis=1)
        ranked = np.take_along_axis(scores, order, axis=1)
        self._scores = np.stack([isotonic_regression(each) for each in ranked])
        self._last_scores, self._last_costs = scores[:, -1], costs[:, -1]

    def ratio(self, system: Answers) -> Interval:
        """Return what these cost at a system's score, as a share of its cost."""
        scores, costs = seen([system])
        reached = [self._cost_at(draw, each) for draw, each in enumerate(scores[:, 0])]
        return Interval.of(np.array(reached) / costs[:, 0])

    def over(self, system: Frontier) -> Interval:
        """Return the same over all scores that a system's frontier has and these reach: a ratio of mean costs."""
        ratios = []
        for draw in range(len(self._scores)):
            top = min(
                system._scores[draw, -1], max(self._scores[draw, -1], self._last_scores[draw])
            )
            grid = np.linspace(min(system._scores[draw, 0], top), top, SCORES)
            spent = [(self._cost_at(draw, each), system._cost_at(draw, each)) for each in grid]
            ours, theirs = np.mean(spent, axis=0)
            ratios.append(float(ours / theirs))
        return Interval.of(ratios)

    def _cost_at(self, draw: int, score: float) -> float:
        grown, spent = self._scores[draw], self._costs[draw]
        place = int(np.searchsorted(grown, score - 1e-12))
        if place == len(grown):
            reached = self._last_scores[draw] >= score - 1e-12
            return float(self._last_costs[draw]) if reached else float("inf")
        if place == 0:
            return float(spent[0])
        share = (score - grown[place - 1]) / (grown[place] - grown[place - 1])
        return float(spent[place - 1] + share * (spent[place] - spent[place - 1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a folder that `dimec fit` made")
    parser.add_argument("--cuts", help="where the cascade may cut: the run's own by default")
    parser.add_argument("--like-cloud", action="store_true", help="as `plan` fits cascades")
    parser.add_argument(
        "--whole", action="store_true", help="test rows that are part of no other row"
    )
    given = parser.parse_args()
    for folder in given.runs:
        run = Run.open(Path(folder))
        if given.whole:
            rows = np.flatnonzero(whole_rows(run)[len(run.validation) :])
            vars(run)["test"] = replace(run.test, dynamics=None).take(rows)
        report(run, run.cuts(given.cuts), like_cloud=given.like_cloud)


def report(run: Run, cuts: Sequence[Cut], *, like_cloud: bool) -> None:
    table, task = run.test, run.config.task
    cloud = all_cloud(table, task.metric)
    cascade = cascade_points(run, LADDER, cuts, like_cloud=like_cloud)
    frontier = Frontier([*(each.test for each in cascade), cloud])
    print(
        f"\n== {task.name}: {len(table):,} test rows, all-cloud's {task.metric} {cloud.score:.2f} at {cloud.cost:g} λ; "
        f"the cascade may cut after {', '.join(map(named, cuts))}"
        + (", is fitted to be like all-cloud" if like_cloud else "")
    )
    print("\nThe cheapest cascade that validation holds to be within a tolerance of all-cloud")
    print("points  price  cut  cost  of all-cloud  of bert-on-mobile  score  drop (95 % interval)")
    said = all_cloud(run.validation, task.metric).score
    for tolerance in TOLERANCES:
        point = cheapest(cascade, said - tolerance)
        if point is None:
            print(f"{tolerance:6.2f}  none")
            continue
        print(
            f"{tolerance:6.2f}  {point.price:5.3f}  {named(point.cut)}  {point.test.cost:4.2f}  "
            f"{point.test.cost / cloud.cost:12.3f}  "
            f"{point.test.cost / COSTS.reference(table.n_layers) - 1:17.0%}  "
            f"{point.test.score:5.2f}  {-difference(point.test, cloud):+.2f}"
        )
    print(
        "\nsystem              area   its point    cascade of that score by validation  at the same score"
    )
    print(
        "                         score at cost  score at cost cost ratio  difference (95 %)  cost ratio (95 %)"
    )
    ours_under = areas(cascade, cloud)
    print(f"{DimecCascade.name:18} {ours_under[0]:5.2f}")
    ratios: list[float] = []
    better = worse = without = 0
    same, at_own, overall, wider = [], [], [], []
    for name in POLICIES:
        points = points_of(name, run, PRICES) if name not in OURS else []
        if not points:
            continue
        under = areas(points, cloud)
        wider.append(Interval.of(ours_under - under))
        overall.append(frontier.over(Frontier([each.test for each in points])))
        print(
            f"{name:18} {under[0]:5.2f}  the cascade's {wider[-1]:+.2f}; its cost {overall[-1]:.2f}"
        )
        own = next(point for point in points if point.price == DEFAULT_PRICE)
        at_own.append(frontier.ratio(own.test))
        print(
            f"{'':24} {own.test.score:6.2f} {own.test.cost:5.2f}  by evaluate{'':43}{at_own[-1]:.2f}"
        )
        for theirs in envelope(points):
            same.append(frontier.ratio(theirs.test))
            at_score = f"{same[-1]:.2f}"
            ours = cheapest(cascade, theirs.held)
            line = f"{'':24} {theirs.test.score:6.2f} {theirs.test.cost:5.2f}"
            if ours is None:
                without += 1
                print(f"{line}  no cascade reaches {theirs.held:.2f} on validation  {at_score}")
                continue
            more = difference(ours.test, theirs.test)
            ratios.append(ours.test.cost / theirs.test.cost)
            better += more.low > 0
            worse += more.high < 0
            print(
                f"{line}  {ours.test.score:6.2f} {ours.test.cost:5.2f}  "
                f"{ours.test.cost / theirs.test.cost:9.2f}  {more:+.2f}  {at_score}"
            )
    print(
        f"{len(ratios)} points met: {sum(ratio < 1 for ratio in ratios)} cheaper, median cost ratio "
        f"{np.median(ratios):.2f}; {better} better and {worse} worse with 95 %; {without} that no cascade meets"
    )
    print(f"{len(same)} points at the same score: {summary(same)}")
    print(f"{len(at_own)} systems at the point that evaluate reports: {summary(at_own)}")
    print(f"{len(overall)} systems over all scores that both reach: {summary(overall)}")
    print(
        f"{len(wider)} systems' areas: the cascade's is larger than {sum(each.value > 0 for each in wider)}, "
        f"than {sum(each.low > 0 for each in wider)} with 95 %"
    )


def summary(ratios: Sequence[Interval]) -> str:
    """Say how many ratios of costs, with their intervals, are under 1."""
    return (
        f"{sum(each.value < LESS for each in ratios)} cheaper, median cost ratio "
        f"{np.median([each.value for each in ratios]):.2f}; {sum(each.high < LESS for each in ratios)} cheaper and "
        f"{sum(each.low > 1 for each in ratios)} dearer with 95 %"
    )


def named(cut: Cut) -> str:
    return f"{cut['ee'].mobile}/{cut['ee'].edge}"


def cheapest(points: list[Point], wanted: float) -> Point | None:
    """Return the cheapest point that reaches a score on validation."""
    reach = [point for point in points if point.held >= wanted - 1e-9]
    return min(reach, key=lambda point: point.validation.cost, default=None)


if __name__ == "__main__":
    main()
