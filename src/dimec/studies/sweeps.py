"""The studies that move one thing along: a tier at a time, thresholds, the price, or one of the costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from dimec.core.metrics import Metric
from dimec.core.tiers import TIERS, Depths, Step
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.evaluation.controls import oracle, random_at_cost, single_exit
from dimec.evaluation.dial import RECOMMENDED
from dimec.evaluation.options import DEFAULT_DROP, PRICES
from dimec.policies import fit_policies
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import (
    PAPER_POLICIES,
    averaged,
    difference,
    ends,
    evaluation_rows,
    measured,
    notes_on,
    ruled_prices,
)
from dimec.studies.pools import METHODS
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import cost_claims, over_prices, tiers_alone

VARIED = {
    "λ_m": "mobile_layer",
    "λ_e": "edge_layer",
    "o_e": "to_edge",
    "o_c": "to_cloud",
    "γ": "cloud_layer",
}
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
_BESIDE_TIERS = (*PAPER_POLICIES, "dimec-cascade")
_AT_COSTS = (*PAPER_POLICIES, "early-exit", "deebert", "dimec-cascade")
_DRAWN = ("dimec-dc-fixed", "dimee-fixed", "early-exit", "dee", "cde", "dimec-cascade")
"""What a picture has room for: the papers' two methods, three strong baselines, and ours."""
_ALONE = tuple(f"all-{tier}" for tier in TIERS)
_ACCURACY: Metric = "accuracy"
_REWARDS = {"dimec-dc-fixed": "reward-alpha-beta", "dimee-fixed": "reward-alpha"}


@Study
def tiers(runs: StudyRuns, found: Findings) -> None:
    """Evaluate the papers' methods and ours on every task, beside each tier alone."""
    rows, counts, oracles = [], [], []
    for task in runs.each_task("Study tiers"):
        counts += averaged(runs, task, "overthinking", undone)
        oracles += across_seeds(runs, task)
        measures = averaged(runs, task, "tiers", partial(measured, policies=_BESIDE_TIERS))
        by_name = {row["policy"]: row for row in measures}
        rows += [by_name[name] for name in (*_ALONE, *_BESIDE_TIERS) if name in by_name]
    found.verdicts += tiers_alone(rows, counts)
    found.add("tiers", rows)
    found.add("overthinking", counts)
    found.add("oracles", oracles)
    found.notes += notes_on(runs)


@Study
def thresholds(runs: StudyRuns, found: Findings) -> None:
    """Show the expected reward at all points of both searches for every task."""
    grids: dict[str, list[dict[str, Any]]] = {name: [] for name in METHODS}
    for task in runs.each_task("Study thresholds"):
        for name, rows in grids.items():
            points = averaged(runs, task, name, partial(_grid, name=name), key=("alpha", "beta"))
            most = max(row["reward"] for row in points)
            rows += [
                {**row, "below": row["reward"] - most, "best": (row["chosen"] or 0) > 0}
                for row in points
            ]
    for name, rows in grids.items():
        found.add(_REWARDS[name], rows)
    found.note(price=runs.options.price)
    found.notes += notes_on(runs)


def _grid(runs: StudyRuns, run: Run, *, name: str) -> list[dict[str, Any]]:
    """Return every point of a policy's search on validation."""
    search = METHODS[name].search_in(runs.setup(run).calibration(runs.options.price))
    rewards, confidence, costs = (
        each.ravel().tolist() for each in (search.rewards, search.confidence, search.costs)
    )
    return [
        {
            "alpha": point[0],
            "beta": point[1] if len(point) > 1 else None,
            "reward": rewards[place],
            "confidence": confidence[place],
            "cost": costs[place],
            "chosen": float(point == search.point),
        }
        for place, point in enumerate(search.points)
    ]


@Study
def frontier(runs: StudyRuns, found: Findings) -> None:
    """Fit and replay every policy at every price."""
    for task in runs.each_task("Study frontier"):
        rows = averaged(runs, task, "frontier", _at_prices, key=("price", "policy"))
        policies = [row for row in rows if row["kind"] == "policy"]
        found.add("frontier-{task}", policies, task=task)
        found.add("frontier-drawn-{task}", _lines(rows), task=task)
    found.note(prices=", ".join(f"{price:g}" for price in PRICES))
    found.notes += notes_on(runs)


def _at_prices(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    setup = runs.setup(run)
    choice = setup.choose(DEFAULT_DROP, progress=runs.progress)
    # Seeds choose prices of their own, and are averaged at none.
    chosen = evaluation_rows(setup.evaluate(price=DEFAULT_PRICE, choice=choice))
    rows = [{"price": None, **row} for row in chosen if row["policy"] == RECOMMENDED]
    for price in PRICES:
        what = f"{run.folder.name}, price {price:g}"
        evaluation = setup.evaluate((), price=price, progress=runs.progress, what=what)
        rows += [{"price": price, **row} for row in evaluation_rows(evaluation)]
    return rows


def _lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points to draw: some policies, what is recommended, random at the cost of one, each tier alone."""
    drawn = [row for row in rows if row["policy"] in (*_DRAWN, RECOMMENDED)]
    random = [
        {**row, "policy": "random at its cost", "score": row["random_at_cost"]}
        for row in drawn
        if row["policy"] == "dimec-dc-fixed"
    ]
    alone = [
        {**row, "policy": "a tier alone"}
        for row in rows
        if row["price"] == PRICES[0] and row["policy"] in _ALONE
    ]
    return [
        {**row, "recommended": row["policy"] == RECOMMENDED} for row in (*drawn, *random, *alone)
    ]


@Study
def costs(runs: StudyRuns, found: Findings) -> None:
    """Fit and replay the policies at every value of every cost, with λ's worth in confidence held constant."""
    rows: list[dict[str, Any]] = []
    ruled: dict[float, list[dict[str, Any]]] = {price: [] for price in ruled_prices(runs)}
    key = ("varied", "factor", "policy")
    for task in runs.each_task("Study costs"):
        rows += averaged(runs, task, "costs", _at_costs, key=key)
        for price, own in ruled.items():
            moved = partial(_moved, price=price)
            own += averaged(runs, task, f"moved-{price:g}", moved, key=key)
    by_price = {price: cost_claims(own) for price, own in ruled.items()}
    found.verdicts += over_prices(by_price, own=runs.options.price)
    for task in runs.tasks:
        shown = [row for row in rows if row["task"] == task and row["policy"] in _AT_COSTS]
        found.add("costs-{task}", shown, task=task)
    found.notes += notes_on(runs)


def _varied(
    price: float, factors: Sequence[float]
) -> Iterator[tuple[dict[str, Any], CostModel, float]]:
    """Give each variation of one cost, the costs there, and the price at which λ is worth what it was."""
    papers = CostModel()
    for symbol, name in VARIED.items():
        for factor in factors:
            costs = replace(papers, **{name: factor * getattr(papers, name)})
            about = {"varied": symbol, "factor": factor, "value": getattr(costs, name)}
            # λ is worth price / (λ_m l), so the price moves with λ_m.
            yield about, costs, price * costs.mobile_layer / papers.mobile_layer


def _at_costs(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    rows = []
    for about, costs, price in _varied(runs.options.price, FACTORS):
        evaluation = runs.setup(run, costs=costs).evaluate(_AT_COSTS, price=price)
        rows += [{**about, **row} for row in evaluation_rows(evaluation)]
    return rows


def _moved(runs: StudyRuns, run: Run, *, price: float) -> list[dict[str, Any]]:
    """Return what the papers' methods do at the ends of every cost's range, and how far that moves their score."""
    metric, rows, usual = run.config.task.metric, [], {}
    base = runs.setup(run, costs=CostModel())
    for name, policy in fit_policies(base.calibration(price), PAPER_POLICIES).items():
        usual[name] = replay(policy, base.table, costs=base.costs).predictions
    for about, costs, own_price in _varied(price, (FACTORS[0], 1.0, FACTORS[-1])):
        setup = runs.setup(run, costs=costs)
        for name, policy in fit_policies(setup.calibration(own_price), PAPER_POLICIES).items():
            played = replay(policy, setup.table, costs=costs)
            answers = played.predictions
            low = high = 0.0
            if not np.array_equal(answers, usual[name]):
                _, low, high = difference(metric, setup.table, [answers], usual[name])
            cost = float(played.costs.mean())
            counted = np.bincount(played.tiers, minlength=len(TIERS)) / len(answers)
            rows.append(
                {
                    **about,
                    "policy": name,
                    "score": setup.table.score(metric, answers),
                    "cost": cost,
                    "cost_change": cost / costs.reference(setup.table.n_layers) - 1,
                    **dict(zip(map(str, TIERS), counted.tolist(), strict=True)),
                    **ends((low, high), "moved_"),
                    "n": len(answers),
                }
            )
    return rows


def undone(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Count test rows that a tier's last exit gets right and the last of all wrong, and those the other way round."""
    table, depths = run.test, run.config.depths["dc"]
    right = table.right
    last = right[:, -1]
    rows = []
    for tier in TIERS[:2]:
        early = right[:, table.exit(depths.of(tier))]
        rows.append(
            {
                "policy": str(tier),
                "undone": int((early & ~last).sum()),
                "mended": int((~early & last).sum()),
                "undone_by_any": int((right[:, :-1].any(axis=1) & ~last).sum()),
                "n": len(table),
            }
        )
    return rows


def across_seeds(runs: StudyRuns, task: str) -> list[dict[str, Any]]:
    """Return the oracles of each pair of neighbouring seeds; none where there is one seed.

    An oracle over the exits of one network exceeds what any rule can know: where exits differ by chance, it takes the
    lucky one. So another seed's network says which tier to take, on rows that neither saw in training.
    """
    seeds = runs.seeds(task)
    found = []
    for run, other in zip(seeds, [*seeds[1:], *seeds[:1]], strict=True):
        if run is other:
            continue
        own, guide = (each.validation.joined(each.test) for each in (run, other))
        row = compare(own, guide, run.config.depths["dc"], CostModel())
        pair = f"{run.config.options.seed}, tiers by {other.config.options.seed}"
        found += [{"task": task, "pair": pair, **row}] if row is not None else []
    return found


def compare(
    own: ExitTable, other: ExitTable, depths: Depths, costs: CostModel
) -> dict[str, Any] | None:
    """Score a network on the tiers that it, or another one, says are the cheapest right ones, on rows both hold out.

    None where they share no row.
    """
    _, mine, theirs = np.intersect1d(own.row_ids, other.row_ids, return_indices=True)
    if not len(mine):
        return None
    table, guide = own.take(mine), other.take(theirs)
    exits = [single_exit(table, Step(tier, depths.of(tier)), costs=costs) for tier in TIERS]
    answers = np.stack([each.predictions for each in exits])
    spent = np.array([each.cost for each in exits])
    everyone = np.arange(len(table))
    found: dict[str, Any] = {"cloud": float((answers[-1] == table.labels).mean())}
    for name, by in (("oracle", table), ("across", guide)):
        tiers = oracle(by, depths, costs=costs)
        score = float((answers[tiers, everyone] == table.labels).mean())
        cost = float(spent[tiers].mean())
        random = random_at_cost(exits, cost, metric=_ACCURACY, table=table)
        chance = random.expected_score(_ACCURACY, table)
        found |= {name: score, f"{name}_cost": cost, f"{name}_random": chance}
    return {**found, "n": len(table)}
