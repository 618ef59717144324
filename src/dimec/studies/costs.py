"""One cost varied at a time: what becomes of accuracy and cost (paper 1 §6.1, paper 2 §4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from dimec.costs.model import CostModel
from dimec.reporting.results import Column, Figure, Table
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import (
    AT_COST,
    CHANGE,
    COST,
    PAPER_POLICIES,
    SCORE,
    SEEDS,
    SHARES,
    N,
    evaluation_rows,
    name_of_policy,
    notes_on,
    over_seeds,
)
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


def make(shop: StudyRuns) -> Findings:
    """Vary each cost alone, λ's worth in confidence held fast, and fit and replay the policies at every value."""
    found = Findings()
    all_runs, rows = [], []
    with shop.progress.stage("Study costs", len(shop.tasks)) as advance:
        for task in shop.tasks:
            runs = shop.seeds(task)
            all_runs += runs
            seeds = [shop.part("costs", run, partial(sweep, shop, run)) for run in runs]
            averaged = over_seeds(seeds, key=("varied", "factor", "policy"))
            rows += [{"task": task, **row} for row in averaged]
            advance(1)
    found.verdicts += cost_claims(rows)
    shown = [row for row in rows if row["policy"] in POLICIES]
    figures = []
    for task in shop.tasks:
        for quantity, title in (("score", "score × 100"), ("cost_change", "cost against BERT")):
            figures.append(
                Figure(
                    name=f"costs-{quantity.replace('_', '-')}-{task}",
                    title=f"{task}: {'score' if quantity == 'score' else 'cost against BERT'} as one cost varies",
                    about=f"{task}, lines over the factor that one cost is multiplied by, a panel for each of "
                    "λ_m, λ_e, o_e, o_c and γ, a line for each policy. Factor 1 is the papers' cost model.",
                    table=f"costs-{task}",
                    kind="lines",
                    x="factor",
                    y=quantity,
                    color="policy",
                    facet="varied",
                    x_title="factor on the papers' value",
                    y_title=title,
                    y_quantity="score" if quantity == "score" else "change",
                    hover=("policy", "varied", "factor", "value", "score", "cost"),
                    source="paper 1 §6.1, paper 2 §4.3",
                )
            )
    for task in shop.tasks:
        found.add(
            Table(
                name=f"costs-{task}",
                title=f"{task}: one cost varied at a time",
                about="λ keeps its worth in confidence while one cost is multiplied by the factor. BERT on the mobile "
                "device, which the costs are held against, gets dearer with λ_m too.",
                columns=(
                    name_of_policy(),
                    Column(name="factor", title="factor", quantity="number"),
                    Column(
                        name="value",
                        title="value",
                        quantity="cost",
                        about="In λ; γ is per layer in the cloud.",
                    ),
                    SCORE,
                    COST,
                    CHANGE,
                    AT_COST,
                    *SHARES,
                    N,
                    SEEDS,
                ),
                group="varied",
                source="paper 1 §6.1, paper 2 §4.3",
            ),
            [row for row in shown if row["task"] == task],
            *(figure for figure in figures if figure.table == f"costs-{task}"),
        )
    found.notes += notes_on(all_runs)
    return found


def sweep(shop: StudyRuns, run: Run, policies: Sequence[str] = POLICIES) -> list[dict[str, Any]]:
    """Evaluate policies of a run with each cost at each factor."""
    papers = CostModel()
    rows = []
    for symbol, name in VARIED.items():
        for factor in FACTORS:
            costs = replace(papers, **{name: factor * getattr(papers, name)})
            # λ is worth price / (λ_m l): the price moves with λ_m, so that λ is worth what it was.
            price = shop.options.price * costs.mobile_layer / papers.mobile_layer
            bed = shop.testbed(run, costs=costs)
            rows += [
                {"varied": symbol, "factor": factor, "value": getattr(costs, name), **row}
                for row in evaluation_rows(bed.evaluate(policies, price=price))
            ]
    return rows


STUDY = Study(
    name="costs",
    title="The cost structure",
    about="If one of the costs were another, would the methods still answer as well, and what would they cost? Each of "
    "λ_m, λ_e, o_e, o_c and γ is multiplied by a quarter to four while the others stay; thresholds are searched anew.",
    source="paper 1 §6.1, paper 2 §4.3",
    tasks=("sst2", "cola", "mrpc"),
    make=make,
)
