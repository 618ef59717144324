"""Score against cost as the price is swept, every policy beside the controls."""

from __future__ import annotations

from functools import partial
from typing import Any

from dimec.evaluation.options import PRICES
from dimec.reporting.results import Column, Figure, Table
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import (
    AT_COST,
    AT_SHARES,
    CHANGE,
    COST,
    ORACLE,
    SCORE,
    SEEDS,
    SHARES,
    N,
    evaluation_rows,
    notes_on,
    over_seeds,
)
from dimec.studies.study_runs import StudyRuns

_DRAWN = (
    "dimec-dc-fixed",
    "dimee-fixed",
    "early-exit",
    "dee",
    "cde",
    "dimec-cascade",
)
"""What a picture has room for: the papers' two, three strong ones of what they compare with, and ours."""


def make(shop: StudyRuns) -> Findings:
    """Fit and replay every policy at every price."""
    found = Findings()
    all_runs = []
    rows: dict[str, list[dict[str, Any]]] = {}
    with shop.progress.stage("Study frontier", len(shop.tasks)) as advance:
        for task in shop.tasks:
            runs = shop.seeds(task)
            all_runs += runs
            seeds = [shop.part("frontier", run, partial(sweep, shop, run)) for run in runs]
            rows[task] = [
                {"task": task, **row} for row in over_seeds(seeds, key=("price", "policy"))
            ]
            advance(1)
    for task, of_task in rows.items():
        policies = [row for row in of_task if row["kind"] == "policy"]
        found.add(
            Table(
                name=f"frontier-{task}",
                title=f"{task}: every policy at every price",
                about="At each price a policy is fitted anew on validation.",
                columns=(
                    Column(name="price", title="price", quantity="number"),
                    SCORE,
                    COST,
                    CHANGE,
                    AT_SHARES,
                    AT_COST,
                    ORACLE,
                    *SHARES,
                    N,
                    SEEDS,
                ),
                group="policy",
            ),
            policies,
        )
        found.add(
            Table(name=f"frontier-drawn-{task}", title=f"{task}: the frontier as drawn"),
            _lines(of_task),
            Figure(
                name=f"frontier-{task}",
                title=f"{task}: score against cost",
                about="A line for each policy through its points at the prices; the controls and chance at the cost of "
                "each point stand beside them. Higher and to the left is better.",
                table=f"frontier-drawn-{task}",
                kind="lines",
                x="cost",
                y="score",
                color="policy",
                x_title="mean cost in λ",
                y_title="score × 100",
                x_quantity="cost",
                hover=("policy", "price", "score", "cost", "at_cost", "oracle"),
            ),
        )
    found.notes.append(
        "Drawn are the papers' methods with fixed centroids, three baselines and dimec-cascade; the tables have all "
        f"policies. Prices: {', '.join(f'{price:g}' for price in PRICES)}."
    )
    found.notes += notes_on(all_runs)
    return found


def sweep(shop: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Evaluate every policy of a run at every price."""
    bed = shop.testbed(run)
    rows = []
    for price in PRICES:
        evaluation = bed.evaluate(
            (), price=price, progress=shop.progress, what=f"{run.folder.name}, price {price:g}"
        )
        rows += [{"price": price, **row} for row in evaluation_rows(evaluation)]
    return rows


def _lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points to draw: those policies, their chance at cost as one line, and each tier alone."""
    drawn = [row for row in rows if row["policy"] in _DRAWN]
    chance = [
        {**row, "policy": "chance at cost", "score": row["at_cost"]}
        for row in drawn
        if row["policy"] == "dimec-dc-fixed"
    ]
    alone = [
        {**row, "policy": "a tier alone"}
        for row in rows
        if row["price"] == PRICES[0] and row["policy"] in ("all-mobile", "all-edge", "all-cloud")
    ]
    return [*drawn, *chance, *alone]


STUDY = Study(
    name="frontier",
    title="Score against cost",
    about="What does each policy reach at each price, and what would chance and perfect knowledge reach for the same?",
    source="",
    tasks=("sst2", "cola", "mrpc"),
    make=make,
)
