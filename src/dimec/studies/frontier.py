"""Score against cost as the price is swept, every policy beside the controls."""

from __future__ import annotations

from typing import Any

from dimec.evaluation.options import PRICES
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import averaged, evaluation_rows, notes_on
from dimec.studies.study_runs import StudyRuns

_DRAWN = (
    "dimec-dc-fixed",
    "dimee-fixed",
    "early-exit",
    "dee",
    "cde",
    "dimec-cascade",
)
"""What a picture has room for: the papers' two methods, three strong baselines, and ours."""


def make(runs: StudyRuns) -> Findings:
    """Fit and replay every policy at every price."""
    found = Findings("frontier")
    for task in runs.each_task("Study frontier"):
        rows = averaged(runs, task, "frontier", sweep, key=("price", "policy"))
        policies = [row for row in rows if row["kind"] == "policy"]
        found.add("frontier-{task}", policies, task=task)
        found.add("frontier-drawn-{task}", _lines(rows), task=task)
    found.notes.append(
        "Drawn are the papers' methods with fixed centroids, three baselines and dimec-cascade; the tables have all "
        f"policies. Prices: {', '.join(f'{price:g}' for price in PRICES)}."
    )
    found.notes += notes_on(runs)
    return found


def sweep(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Evaluate every policy of a run at every price."""
    setup = runs.setup(run)
    rows = []
    for price in PRICES:
        evaluation = setup.evaluate(
            (), price=price, progress=runs.progress, what=f"{run.folder.name}, price {price:g}"
        )
        rows += [{"price": price, **row} for row in evaluation_rows(evaluation)]
    return rows


def _lines(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the points to draw: some policies, random at the cost of one of them, and each tier alone."""
    drawn = [row for row in rows if row["policy"] in _DRAWN]
    random = [
        {**row, "policy": "random at its cost", "score": row["random_at_cost"]}
        for row in drawn
        if row["policy"] == "dimec-dc-fixed"
    ]
    alone = [
        {**row, "policy": "a tier alone"}
        for row in rows
        if row["price"] == PRICES[0] and row["policy"] in ("all-mobile", "all-edge", "all-cloud")
    ]
    return [*drawn, *random, *alone]


STUDY = Study.of("frontier", make)
