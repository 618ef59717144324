"""Fixed against adaptive centroids on the same samples, in the order of the data and in shuffled orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import Metric, paired_interval
from dimec.core.tiers import TIERS
from dimec.evaluation import Replay, controls, replay
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import POLICIES, Policy
from dimec.runs.exit_table import ExitTable
from dimec.studies.measures import score_of
from dimec.studies.separation import mean_interval

N_ORDERS = 5
METHODS = {
    "dimec-dc": ("dimec-dc-fixed", "dimec-dc-adaptive"),
    "dimee": ("dimee-fixed", "dimee-adaptive"),
}
AS_THEY_COME, SHUFFLED = "as they come", f"shuffled, mean of {N_ORDERS}"


def compare(setup: EvaluationSetup, price: float) -> list[dict[str, Any]]:
    """Compare adaptive with fixed centroids by method and kind of order, with paired 95 % bootstrap intervals."""
    calibration = setup.calibration(price)
    table = setup.table
    orders = [
        np.random.default_rng([setup.options.seed, each]).permutation(len(table))
        for each in range(N_ORDERS)
    ]
    found = []
    for method, (fixed_name, adaptive_name) in METHODS.items():
        fixed = replay(POLICIES[fixed_name].fit(calibration), table, costs=setup.costs)
        policy = POLICIES[adaptive_name].fit(calibration)
        for order, streams in ((AS_THEY_COME, [np.arange(len(table))]), (SHUFFLED, orders)):
            plays = []
            for rows in streams:
                stream = table if order == AS_THEY_COME else table.take(rows)
                plays.append((replay(policy, stream, costs=setup.costs), np.argsort(rows)))
            case = _difference(setup.run.config.task.metric, table, fixed, plays)
            spent = case["fixed_cost"] + case["cost_difference"]
            random = random_at_cost(setup, policy, spent)
            found.append({"method": method, "order": order, **case, "random_at_cost": random})
    return found


def random_at_cost(setup: EvaluationSetup, policy: Policy, cost: float) -> float:
    """Return the score of the best random mixture of a policy's single exits at a mean cost."""
    table, metric = setup.table, setup.run.config.task.metric
    exits = [controls.single_exit(table, step, costs=setup.costs) for step in policy.endpoints()]
    mixture = controls.random_at_cost(
        [controls.majority(table), *exits],
        cost,
        metric=metric,
        labels=table.labels,
        n_classes=table.n_classes,
    )
    return mixture.expected_score(metric, table.labels, n_classes=table.n_classes)


def _difference(
    metric: Metric,
    table: ExitTable,
    fixed: Replay,
    plays: Sequence[tuple[Replay, NDArray[np.intp]]],
) -> dict[str, Any]:
    """Compare replays of the adaptive kind with that of the fixed kind.

    Each comes with the indices that restore the table's order.
    """
    answers = [play.predictions[back] for play, back in plays]
    scores = [score_of(metric, table, each) for each in answers]
    base = score_of(metric, table, fixed.predictions)
    rng = np.random.default_rng(0)
    low, high = paired_interval(
        metric, table.labels, answers, fixed.predictions, n_classes=table.n_classes, rng=rng
    )
    spent = np.mean([play.costs[back] for play, back in plays], axis=0) - fixed.costs
    cost_low, cost_high = mean_interval(spent, rng=rng)
    return {
        "n": len(table),
        "fixed": base,
        "adaptive": float(np.mean(scores)),
        "difference": float(np.mean(scores)) - base,
        "difference_low": low,
        "difference_high": high,
        "least": min(scores) - base,
        "most": max(scores) - base,
        "fixed_cost": float(fixed.costs.mean()),
        "cost_difference": float(spent.mean()),
        "cost_difference_low": cost_low,
        "cost_difference_high": cost_high,
        **_shares("fixed", [fixed]),
        **_shares("adaptive", [play for play, _ in plays]),
    }


def gains(case: Mapping[str, Any]) -> bool:
    """Tell whether adapting scores higher and does not cost more, both beyond their 95 % intervals."""
    return bool(case["difference_low"] > 0 and case["cost_difference_low"] <= 0)


def routes(case: Mapping[str, Any]) -> bool:
    """Tell whether the adaptive kind reaches random at its cost. One that does not has drifted instead of adapting."""
    return bool(case["adaptive"] >= case["random_at_cost"])


def in_order(labels: NDArray[np.integer]) -> str | None:
    """Describe how the stream is ordered by label; None where neighbours agree as often as in a shuffled stream."""
    if len(labels) < 2:
        return None
    alike = float((labels[1:] == labels[:-1]).mean())
    shares = np.bincount(labels) / len(labels)
    chance = float((shares**2).sum())
    error = np.sqrt(chance * (1 - chance) / (len(labels) - 1))
    if abs(alike - chance) <= 4 * error:
        return None
    return f"{alike:.1%} of neighbouring rows have the same label, where a shuffled stream has {chance:.1%}"


def _shares(kind: str, plays: Sequence[Replay]) -> dict[str, float]:
    tiers = np.concatenate([play.tiers for play in plays])
    return {f"{kind}_{tier}": float((tiers == index).mean()) for index, tier in enumerate(TIERS)}
