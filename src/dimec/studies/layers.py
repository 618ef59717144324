"""Study `layers`: early exits in their own unit, layers run, at the drops that their papers allow.

One machine holds the encoder: a layer costs 1 wherever it runs, and nothing is sent. Each rule's threshold, or price,
is the one that runs the fewest layers among those that lose at most so many points on validation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import Metric, drops, interval
from dimec.core.tiers import Depths, Method
from dimec.costs.model import CostModel
from dimec.evaluation.cuts import cross_fit
from dimec.evaluation.dial import PRICES
from dimec.policies import POLICIES, Calibration, Policy, replay
from dimec.policies.cascade import DimecCascade
from dimec.policies.early_exit import EarlyExit
from dimec.policies.first_exit import FirstExit, quantiles
from dimec.reporting.results import Ruling, Verdict
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import difference, ends, notes_on, over_seeds
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import ruling_of

ONE_MACHINE = CostModel(mobile_layer=1.0, to_edge=0.0, to_cloud=0.0)
OURS = DimecCascade.name
ALONE = f"{OURS} without exit zero"
"""The same over the encoder's exits alone, which is all that the others have."""
RIVALS = ("pabee", "berxit", "beem", "uat", "deebert", "early-exit")
DROPS = (2.0, 1.0, 0.5)  # points under the full model that may be lost; the papers' is the first
LADDER = (0.0005, 0.001, 0.002, *PRICES)
"""The prices to choose among: a small drop may need a smaller one than the dial's."""
GOAL = 0.8
ENOUGH = 2_000  # test rows from which on the goal is held against a task
SHUFFLES = 5
_DRAWS = 2_000


@dataclass(frozen=True, eq=False)
class Way:
    """A rule at one threshold or price, with what it does on validation: points lost, and layers run."""

    policy: Policy
    point: float
    drop: float
    layers: float


@dataclass(frozen=True, eq=False)
class Played:
    """What a way does on test rows: answers, and layers run by each [n]; several of a bandit, one a shuffle."""

    answers: Sequence[NDArray[np.int64]]
    layers: NDArray[np.float64]


@Study
def layers(runs: StudyRuns, found: Findings) -> None:
    """Choose each rule on validation at each drop, and hold the cascade against it on test rows."""
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for task in runs.each_task("Study layers"):
        found_of = [runs.part("layers", run, _measured) for run in runs.seeds(task)]
        chosen = over_seeds([each["chosen"] for each in found_of], key=("allowed", "policy"))
        rows += [{"task": task, **row} for row in chosen]
        curves += [{"task": task, **point} for point in found_of[0]["curve"]]
    for row in rows:
        row["section"] = f"{row['task']}, at most {row['allowed']:g} points"
    found.add("layers", rows)
    found.add("curve", curves)
    found.verdicts.append(goal(rows))
    found.note(goal=GOAL, enough=f"{ENOUGH:,}", shuffles=SHUFFLES)
    found.notes += notes_on(runs)


def _ways(calibration: Calibration, metric: Metric) -> Iterator[tuple[str, list[Way]]]:
    """Give each rule at every threshold or price, by its name."""
    table = calibration.table

    def way(policy: Policy, point: float) -> Way:
        played = replay(policy, table, costs=ONE_MACHINE)
        lost = _drop(metric, table, played.predictions)
        return Way(policy, point, lost, float(played.costs.mean()))

    yield OURS, list(_cascades(calibration, metric))
    if table.exit_zero is not None:
        bare = replace(table, exit_zero=None, unseen=None)
        yield ALONE, list(_cascades(replace(calibration, table=bare), metric))
    for name in RIVALS:
        kind = POLICIES[name]
        if kind.missing_input(calibration) is not None:
            continue
        if not issubclass(kind, FirstExit):
            yield name, [way(kind.fit(replace(calibration, price=p)), p) for p in LADDER]
            continue
        # Paper 2's ten confidences are few: every rule gets as many thresholds.
        early = table.confidence[:, :-1]
        grid = quantiles(early) if kind is EarlyExit else kind.grid(calibration)
        usual, ways = kind.at(calibration, grid[0]), []
        for threshold in grid:
            policy = usual.fresh()
            policy.threshold = threshold
            ways.append(way(policy, threshold))
        yield name, ways


def _cascades(calibration: Calibration, metric: Metric) -> Iterator[Way]:
    """Give the cascades over all exits of one machine; what they do on validation is cross-fitted.

    The exits are taken as the device's, which are always pooled, and as the cloud's, whose last one may answer alone.
    """
    table = calibration.table
    last = table.n_layers
    cuts: list[dict[Method, Depths]] = [
        dict.fromkeys(calibration.depths, depths)
        for depths in (Depths(last, last, last), Depths(1, 2, last))
    ]
    for like in (None, table.predictions[:, -1]):
        tried = cross_fit(calibration, cuts, LADDER, like=like)
        for cut, own in zip(cuts, tried, strict=True):
            fitted = DimecCascade.fit_at(LADDER, replace(calibration, depths=cut), like=like)
            for price, policy, labels, costs in zip(
                LADDER, fitted, own.labels, own.costs, strict=True
            ):
                yield Way(policy, price, _drop(metric, table, labels), float(costs.mean()))


def _drop(metric: Metric, table: ExitTable, answers: NDArray[np.int64]) -> float:
    full = table.predictions[:, -1]
    lost = drops(metric, table.labels, answers[None], full, n_classes=table.n_classes)
    return float(lost[0])


def fewest(ways: Sequence[Way], allowed: float) -> Way:
    """Return the way that runs the fewest layers of those that lose at most so many points, else that loses least."""
    kept = [each for each in ways if each.drop <= allowed + 1e-9]
    if kept:
        return min(kept, key=lambda each: each.layers)
    return min(ways, key=lambda each: each.drop)


def play(policy: Policy, table: ExitTable) -> Played:
    """Replay a rule on test rows; one that learns in so many orders, each from the start."""
    orders = [np.arange(len(table))]
    if policy.learns:
        orders = [np.random.default_rng(seed).permutation(len(table)) for seed in range(SHUFFLES)]
    answers, spent = [], np.zeros(len(table))
    for order in orders:
        played = replay(policy, table.take(order), costs=ONE_MACHINE)
        back = np.argsort(order)
        answers.append(played.predictions[back])
        spent += played.costs[back] / len(orders)
    return Played(answers, spent)


def _measured(runs: StudyRuns, run: Run) -> dict[str, list[dict[str, Any]]]:
    """Return what each rule does on test rows where validation chose it, and at every threshold or price."""
    setup = runs.setup(run, costs=ONE_MACHINE)
    table, metric = setup.table, run.config.task.metric
    ways = dict(_ways(setup.calibration(runs.options.price), metric))
    return {"chosen": _chosen(table, metric, ways), "curve": _curve(table, metric, ways)}


def _chosen(
    table: ExitTable, metric: Metric, ways: Mapping[str, Sequence[Way]]
) -> list[dict[str, Any]]:
    full = table.predictions[:, -1]
    rows = []
    for allowed in DROPS:
        chosen = {name: fewest(each, allowed) for name, each in ways.items()}
        played = {name: play(each.policy, table) for name, each in chosen.items()}
        ours, alone = played[OURS], played.get(ALONE, played[OURS])
        for name, own in played.items():
            lost, low, high = difference(metric, table, own.answers, full)
            rows.append(
                {
                    "allowed": allowed,
                    "policy": name,
                    "point": chosen[name].point,
                    "validation_drop": chosen[name].drop / 100,
                    "validation_layers": chosen[name].layers,
                    "score": float(np.mean([table.score(metric, each) for each in own.answers])),
                    "change": lost,
                    **ends((low, high), "change_"),
                    "layers": float(own.layers.mean()),
                    "speedup": float(table.n_layers / own.layers.mean()),
                    "ratio": float(ours.layers.mean() / own.layers.mean()),
                    **ends(ratio_interval(ours.layers, own.layers), "ratio_"),
                    "alone": float(alone.layers.mean() / own.layers.mean()),
                    **ends(ratio_interval(alone.layers, own.layers), "alone_"),
                    **_gain("alone_gain", metric, table, alone, own),
                    **_gain("gain", metric, table, ours, own),
                    "n": len(table),
                }
            )
    return rows


def _gain(
    name: str, metric: Metric, table: ExitTable, ours: Played, own: Played
) -> dict[str, float | None]:
    """Return our score less the mean of a rule's replays, with its paired interval."""
    lost, low, high = difference(metric, table, own.answers, ours.answers[0])
    return {name: -lost, **ends((-high, -low), f"{name}_")}


def ratio_interval(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> tuple[float, float]:
    """Return the paired 95 % bootstrap interval of the ratio of two mean costs of the same rows, [n] each."""
    kinds, counts = np.unique(np.stack([ours, theirs], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(len(ours), counts / counts.sum(), size=_DRAWS) @ kinds
    return interval(drawn[:, 0] / drawn[:, 1])


def _curve(
    table: ExitTable, metric: Metric, ways: Mapping[str, Sequence[Way]]
) -> list[dict[str, Any]]:
    rows = []
    for name, each in ways.items():
        for way in each[: len(LADDER)] if name in (OURS, ALONE) else each:
            played = replay(way.policy, table, costs=ONE_MACHINE)
            change = -_drop(metric, table, played.predictions) / 100
            spent = float(played.costs.mean())
            rows.append({"policy": name, "point": way.point, "layers": spent, "change": change})
    return rows


def goal(rows: Sequence[dict[str, Any]]) -> Verdict:
    """Rule on the project's own goal: 0.8 of the layers of the best rival at the papers' drop, at its score."""
    own = [row for row in rows if row["allowed"] == DROPS[0]]
    lines, reached, without, total = [], 0, 0, 0
    for task in dict.fromkeys(str(row["task"]) for row in own):
        rivals = [row for row in own if row["task"] == task and row["policy"] in RIVALS]
        if not rivals:
            continue
        # The best is the one that validation says runs the fewest layers.
        best = min(rivals, key=lambda row: row["validation_layers"])
        kept = best["ratio"] <= GOAL and best["gain_high"] >= 0
        counts = best["n"] >= ENOUGH
        total += counts
        reached += counts and kept
        without += counts and best["alone"] <= GOAL and best["alone_gain_high"] >= 0
        lines.append(
            f"{task}: the best is {best['policy']} with {best['layers']:.2f} layers ({best['speedup']:.2f} times "
            f"as fast) at {100 * best['change']:+.2f} points; the cascade needs {best['ratio']:.2f} of that "
            f"({best['ratio_low']:.2f} to {best['ratio_high']:.2f}) at {100 * best['gain']:+.2f} points against it "
            f"({100 * best['gain_low']:+.2f} to {100 * best['gain_high']:+.2f}; n {best['n']:,}), without exit zero "
            f"{best['alone']:.2f} ({best['alone_low']:.2f} to {best['alone_high']:.2f}) at "
            f"{100 * best['alone_gain']:+.2f} points"
            + ("" if counts else f", under {ENOUGH:,} test rows, so not counted")
        )
    ruling: Ruling = ruling_of(reached, of=total)
    summary = (
        f"The cascade needs at most {GOAL:g} of the layers of the best published early exit, and is not below its "
        f"score beyond the interval, on {reached} of {total} tasks with {ENOUGH:,} test rows, at a drop of at most "
        f"{DROPS[0]:g} points chosen on validation; without exit zero, which the others lack, on {without}."
    )
    claim = (
        "At a drop of less than two points dimec-cascade needs at most 0.8 of the layers of the best published early "
        "exit."
    )
    return Verdict(
        claim=claim, source="this project", ruling=ruling, evidence=(summary,), cases=tuple(lines)
    )
