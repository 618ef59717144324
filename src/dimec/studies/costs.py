"""Study `costs`: score and cost as one price is varied at a time (paper 1 §6.1, paper 2 §4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from dimec.costs.model import CostModel
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import PAPER_POLICIES, averaged, evaluation_rows, notes_on
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import cost_claims

VARIED = {
    "λ_m": "mobile_layer",
    "λ_e": "edge_layer",
    "o_e": "to_edge",
    "o_c": "to_cloud",
    "γ": "cloud_layer",
}
FACTORS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
POLICIES = (*PAPER_POLICIES, "early-exit", "deebert", "dimec-cascade")


def make(runs: StudyRuns) -> Findings:
    """Fit and replay the policies at every value of every cost, with λ's worth in confidence held constant."""
    found = Findings("costs")
    rows = []
    for task in runs.each_task("Study costs"):
        rows += averaged(runs, task, "costs", sweep, key=("varied", "factor", "policy"))
    found.verdicts += cost_claims(rows)
    for task in runs.tasks:
        shown = [row for row in rows if row["task"] == task and row["policy"] in POLICIES]
        found.add("costs-{task}", shown, task=task)
    found.notes += notes_on(runs)
    return found


def sweep(runs: StudyRuns, run: Run, policies: Sequence[str] = POLICIES) -> list[dict[str, Any]]:
    """Evaluate policies of a run with each cost at each factor."""
    papers = CostModel()
    rows = []
    for symbol, name in VARIED.items():
        for factor in FACTORS:
            costs = replace(papers, **{name: factor * getattr(papers, name)})
            # λ is worth price / (λ_m l): the price moves with λ_m, so that λ is worth what it was.
            price = runs.options.price * costs.mobile_layer / papers.mobile_layer
            setup = runs.setup(run, costs=costs)
            rows += [
                {"varied": symbol, "factor": factor, "value": getattr(costs, name), **row}
                for row in evaluation_rows(setup.evaluate(policies, price=price))
            ]
    return rows


STUDY = Study.of("costs", make)
