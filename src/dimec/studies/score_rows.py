"""A policy's row held against chance, as the studies of one run at a time print it."""

from __future__ import annotations

from typing import Any

from dimec.evaluation import Evaluation, Row
from dimec.results import Column
from dimec.studies.measures import (
    AT_COST,
    AT_SHARES,
    CHANGE,
    COST,
    SCORE,
    SHARES,
    N,
    evaluation_rows,
    name_of_policy,
)


def held_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return the cells of `SCORE_COLUMNS` for every policy and control, in the order of the evaluation's rows."""
    return [
        {**cells, "stands_out": beats_chance(row)}
        for cells, row in zip(evaluation_rows(evaluation), evaluation.rows, strict=True)
    ]


def beats_chance(row: Row) -> bool:
    """Say whether a score is above chance at its cost, beyond the intervals of both."""
    if row.score is None or row.score_ci95 is None or row.random_at_cost is None:
        return False
    highest = row.random_at_cost_ci95[1] if row.random_at_cost_ci95 else row.random_at_cost
    return row.score_ci95[0] > row.random_at_cost and row.score > highest


def row_of(evaluation: Evaluation, policy: str) -> Row:
    """Return one row of an evaluation by its name, the first where the methods' depths give two."""
    return next(row for row in evaluation.rows if row.policy == policy)


POLICY = name_of_policy()
HELD_SCORE = SCORE.model_copy(
    update={
        "about": "In the task's metric, × 100, with its 95 % bootstrap interval; bold where it is above chance at its "
        "cost beyond both intervals.",
        "spread": None,
        "stands_out": "stands_out",
    }
)
CONTROLS = (
    AT_SHARES,
    AT_COST.model_copy(update={"low": "at_cost_low", "high": "at_cost_high"}),
    Column(
        name="gap",
        title="gap closed",
        quantity="share",
        about="On accuracy: 0 is chance at its cost, 100 the oracle at its cost.",
    ),
    Column(
        name="auc",
        title="router AUC",
        quantity="number",
        about='For "the mobile exit is right"; 0.5 is chance.',
    ),
)
SPENT = (COST.model_copy(update={"spread": None}), CHANGE, *SHARES)
SCORE_COLUMNS = (POLICY, HELD_SCORE, *SPENT, *CONTROLS, N)
