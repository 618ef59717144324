"""What an earlier exit would get right that the last gets wrong, and how much of that is luck of one network.

An oracle over the exits of one network exceeds what any rule can know: where exits differ by chance, it takes the lucky
one. So another seed's network says which tier to take, on rows that neither saw in training.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dimec.core.metrics import Metric
from dimec.core.tiers import TIERS, Depths, Step
from dimec.costs.model import CostModel
from dimec.evaluation.controls import oracle, random_at_cost, single_exit
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.study_runs import StudyRuns

_ACCURACY: Metric = "accuracy"


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
    """Return the oracles of each pair of neighbouring seeds; none where there is one seed."""
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
