"""dimec-cascade against every system of the documents: cost at the same score, area under score against cost.

Every rule is fitted on validation at each of a ladder of prices. What is compared with what is chosen there too: for
each point of a system, the cheapest cascade that validation holds to be as accurate. Since a cascade has many borders,
the rows that it is fitted on flatter it: what validation holds of it is what cascades fitted on four fifths of the rows
say of the fifth. Then both answer the test rows, and the difference of their accuracy has a 95 % interval from a paired
bootstrap over the rows. A system's own points are those that no other of its points beats on validation.

The area is under accuracy against cost on test, from no cost (the most common class) to all-cloud's, as a share of the
whole: a rule that answers everything right for nothing has 100.

    python benchmarks/bench_cascade.py RUN [RUN ...]
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dimec.costs import CostModel
from dimec.evaluation import replay
from dimec.exits import ExitTable
from dimec.metrics import confusion, score
from dimec.policies import POLICIES, Calibration, Policy
from dimec.policies.cascade import DimecCascade
from dimec.runs import Run
from dimec.testbed import PRICES
from dimec.tiers import Step, Tier

LADDER = tuple(np.geomspace(0.001, 2, 40).tolist())
"""The cascade's prices: finer than the systems', since one of its points is held against each of theirs."""
OURS = frozenset({"dimec-cascade", "dimec-guarded"})
TOLERANCES = (0.0, 0.25, 0.5, 1.0)
DRAWS = 2_000
FOLDS = 5
COSTS = CostModel()


@dataclass(frozen=True)
class Answers:
    """What a fitted rule does with the rows of a table."""

    labels: NDArray[np.int64]
    right: NDArray[np.bool_]
    cost: float

    @property
    def accuracy(self) -> float:
        return 100 * float(self.right.mean())


@dataclass(frozen=True)
class Point:
    """A rule fitted at one price."""

    price: float
    validation: Answers
    test: Answers


def points_of(name: str, run: Run, prices: tuple[float, ...]) -> list[Point]:
    """Fit a rule at every price."""
    calibration = Calibration(run.validation, run.config.depths)
    if name == DimecCascade.name:
        cascades = DimecCascade.fit_at(prices, calibration)
        return [
            Point(price, held, answers(cascade, run.test))
            for price, held, cascade in zip(prices, crossed(run, prices), cascades, strict=True)
        ]
    points = []
    for price in prices:
        if POLICIES[name].lacks(calibration):
            return []
        policy = POLICIES[name].fit(replace(calibration, price=price))
        points.append(Point(price, answers(policy, run.validation), answers(policy, run.test)))
    return points


def answers(policy: Policy, table: ExitTable) -> Answers:
    """Replay a policy."""
    played = replay(policy, table, costs=COSTS)
    right = played.predictions == table.labels
    return Answers(played.predictions, right, float(played.costs.mean()))


def crossed(run: Run, prices: tuple[float, ...]) -> list[Answers]:
    """Let every fifth of the validation rows be answered by cascades fitted on the others, one for each price."""
    table = run.validation
    fold = np.random.default_rng(0).permutation(len(table)) % FOLDS
    labels = np.zeros((len(prices), len(table)), dtype=np.int64)
    costs = np.zeros((len(prices), len(table)))
    for each in range(FOLDS):
        held = fold == each
        cascades = DimecCascade.fit_at(prices, Calibration(table.take(~held), run.config.depths))
        for place, cascade in enumerate(cascades):
            played = replay(cascade, table.take(held), costs=COSTS)
            labels[place, held], costs[place, held] = played.predictions, played.costs
    return [
        Answers(said, said == table.labels, float(cost.mean()))
        for said, cost in zip(labels, costs, strict=True)
    ]


def envelope(points: list[Point]) -> list[Point]:
    """Keep the points that no cheaper one equals on validation."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.validation.cost, -p.validation.accuracy)):
        if not kept or point.validation.accuracy > kept[-1].validation.accuracy:
            kept.append(point)
    return kept


def area(points: list[Point], table: ExitTable, all_cloud: float) -> float:
    """Integrate accuracy on test over cost, each cost at the best that validation knew to choose up to there."""
    majority = 100 * float(np.bincount(table.labels).max() / len(table))
    cost, reached, total = 0.0, majority, 0.0
    for point in envelope(points):
        upto = min(point.test.cost, all_cloud)
        if upto < cost:
            continue
        total += (upto - cost) * reached
        cost, reached = upto, max(reached, point.test.accuracy)
    return (total + (all_cloud - cost) * reached) / all_cloud


def interval(ours: Answers, theirs: Answers) -> tuple[float, float]:
    """Return the 95 % interval of the difference in accuracy, in points, by a paired bootstrap."""
    difference = ours.right.astype(float) - theirs.right
    # Rows are alike within a value of the difference, so draws of the three counts are draws of the rows.
    counts = np.array([(difference == value).sum() for value in (-1, 0, 1)])
    drawn = np.random.default_rng(0).multinomial(
        len(difference), counts / len(difference), size=DRAWS
    )
    low, high = np.quantile((drawn[:, 2] - drawn[:, 0]) / len(difference), (0.025, 0.975))
    return 100 * float(low), 100 * float(high)


def main() -> None:
    folders = sys.argv[1:]
    if not folders:
        sys.exit(
            "give the folders of runs that `dimec fit` made: python benchmarks/bench_cascade.py RUN"
        )
    for folder in folders:
        report(Run.open(Path(folder)))


def report(run: Run) -> None:
    table = run.test
    all_cloud = COSTS.of([Step(Tier.CLOUD, table.n_layers)])
    cloud = Answers(table.predictions[:, -1], table.right[:, -1], all_cloud)
    cascade = points_of(DimecCascade.name, run, LADDER)
    task = run.config.task
    print(
        f"\n== {task.name}: {len(table):,} test rows, all-cloud {cloud.accuracy:.2f} at {all_cloud:g} λ"
    )
    print("\nThe cheapest cascade that validation holds to be within a tolerance of all-cloud")
    print("points  price  cost  of all-cloud  of bert-on-mobile  accuracy  drop (95 % interval)")
    said = run.validation.right[:, -1].mean() * 100
    for tolerance in TOLERANCES:
        point = cheapest(cascade, said - tolerance)
        if point is None:
            print(f"{tolerance:6.2f}  none")
            continue
        low, high = interval(point.test, cloud)
        print(
            f"{tolerance:6.2f}  {point.price:5.3f}  {point.test.cost:4.2f}  "
            f"{point.test.cost / all_cloud:12.3f}  "
            f"{point.test.cost / COSTS.reference(table.n_layers) - 1:17.0%}  "
            f"{point.test.accuracy:8.2f}  {cloud.accuracy - point.test.accuracy:+.2f} "
            f"({-high:+.2f} to {-low:+.2f})"
            + (
                ""
                if task.metric == "accuracy"
                else f"  {task.metric} {metric(point.test, run):.2f} / {metric(cloud, run):.2f}"
            )
        )
    print("\nsystem              area   its point    cascade as accurate by validation")
    print("                           acc at cost  acc at cost   cost ratio  difference (95 %)")
    print(f"{DimecCascade.name:18} {area(cascade, table, all_cloud):5.2f}")
    ratios: list[float] = []
    better = worse = without = 0
    for name in POLICIES:
        if name in OURS:
            continue
        points = envelope(points_of(name, run, PRICES))
        if not points:
            continue
        print(f"{name:18} {area(points, table, all_cloud):5.2f}")
        for theirs in points:
            ours = cheapest(cascade, theirs.validation.accuracy)
            line = f"{'':24} {theirs.test.accuracy:6.2f} {theirs.test.cost:5.2f}"
            if ours is None:
                without += 1
                print(f"{line}  no cascade reaches {theirs.validation.accuracy:.2f} on validation")
                continue
            low, high = interval(ours.test, theirs.test)
            ratios.append(ours.test.cost / theirs.test.cost)
            better += low > 0
            worse += high < 0
            print(
                f"{line}  {ours.test.accuracy:6.2f} {ours.test.cost:5.2f}  "
                f"{ours.test.cost / theirs.test.cost:9.2f}  "
                f"{ours.test.accuracy - theirs.test.accuracy:+.2f} ({low:+.2f} to {high:+.2f})"
            )
    print(
        f"{len(ratios)} points met: {sum(ratio < 1 for ratio in ratios)} cheaper, median cost ratio "
        f"{np.median(ratios):.2f}; {better} better and {worse} worse with 95 %; {without} that no cascade meets"
    )


def cheapest(points: list[Point], accuracy: float) -> Point | None:
    """Return the cheapest point that reaches an accuracy on validation."""
    reach = [point for point in points if point.validation.accuracy >= accuracy - 1e-9]
    return min(reach, key=lambda point: point.validation.cost, default=None)


def metric(answers: Answers, run: Run) -> float:
    matrix = confusion(run.test.labels, answers.labels, n_classes=run.test.n_classes)
    return 100 * float(score(run.config.task.metric, matrix))


if __name__ == "__main__":
    main()
