"""An evaluation's rows as a study's table prints them: each score beside its controls."""

from __future__ import annotations

from typing import Any

from dimec.evaluation import Evaluation, Row
from dimec.results import Column


def score_row(row: Row, **more: Any) -> dict[str, Any]:  # noqa: ANN401  further cells
    """Return the cells of `SCORE_COLUMNS` for a policy or a control, after further ones."""
    shares = row.shares
    return {
        **more,
        "policy": row.policy,
        "kind": row.kind,
        "score": row.score,
        "score_low": row.score_ci95 and row.score_ci95[0],
        "score_high": row.score_ci95 and row.score_ci95[1],
        "stands_out": beats_chance(row),
        "accuracy": row.accuracy,
        "cost": row.cost,
        "cost_change": row.cost_change,
        "mobile": shares and shares.mobile,
        "edge": shares and shares.edge,
        "cloud": shares and shares.cloud,
        "at_shares": row.random_at_shares,
        "at_shares_low": row.random_at_shares_ci95 and row.random_at_shares_ci95[0],
        "at_shares_high": row.random_at_shares_ci95 and row.random_at_shares_ci95[1],
        "at_cost": row.random_at_cost,
        "at_cost_low": row.random_at_cost_ci95 and row.random_at_cost_ci95[0],
        "at_cost_high": row.random_at_cost_ci95 and row.random_at_cost_ci95[1],
        "gap_closed": row.gap_closed,
        "auc": row.auc_mobile_right,
    }


def beats_chance(row: Row) -> bool:
    """Say whether a score is above chance at its cost, beyond the intervals of both."""
    if row.score is None or row.score_ci95 is None or row.random_at_cost is None:
        return False
    highest = row.random_at_cost_ci95[1] if row.random_at_cost_ci95 else row.random_at_cost
    return row.score_ci95[0] > row.random_at_cost and row.score > highest


def row_of(evaluation: Evaluation, policy: str) -> Row:
    """Return one row of an evaluation by its name, the first where the methods' depths give two."""
    return next(row for row in evaluation.rows if row.policy == policy)


SCORE_COLUMNS = (
    Column(name="policy", title="Policy", quantity="text"),
    Column(
        name="score",
        title="Score",
        quantity="score",
        about="In the task's metric, with its 95 % bootstrap interval.",
        low="score_low",
        high="score_high",
        stands_out="stands_out",
    ),
    Column(name="cost", title="Cost", quantity="cost", about="Mean, in lambda."),
    Column(
        name="cost_change",
        title="Change",
        quantity="change",
        about="Of the cost, against the full model on the device.",
    ),
    Column(name="mobile", title="Mobile", quantity="share"),
    Column(name="edge", title="Edge", quantity="share"),
    Column(name="cloud", title="Cloud", quantity="share"),
    Column(
        name="at_shares",
        title="Random at its shares",
        quantity="score",
        about="Its tiers shuffled over the samples, and where 95 % of such shuffles land.",
        low="at_shares_low",
        high="at_shares_high",
    ),
    Column(
        name="at_cost",
        title="Random at its cost",
        quantity="score",
        about="The best random mixture of single exits at its cost, and where 95 % of such draws land.",
        low="at_cost_low",
        high="at_cost_high",
    ),
    Column(
        name="gap_closed",
        title="Gap closed",
        quantity="share",
        about="On accuracy: 0 is random at its cost, 100 the oracle at its cost.",
    ),
    Column(
        name="auc",
        title="Router's AUC",
        quantity="number",
        about='For "the mobile exit is right"; 0.5 is chance.',
    ),
)
