"""Each tier alone beside the papers' methods: accuracy and cost (paper 1 §6.2, paper 2 §4.1)."""

from __future__ import annotations

from dimec.reporting.results import Figure, Table
from dimec.studies.base import PAPER_TASKS, Findings, Study
from dimec.studies.measures import (
    CHANGE,
    COST,
    PAPER_POLICIES,
    SCORE,
    SEEDS,
    N,
    measured,
    name_of_policy,
    notes_on,
)
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import tiers_alone

_SHOWN = ("all-mobile", "all-edge", "all-cloud", *PAPER_POLICIES, "dimec-cascade")


def make(shop: StudyRuns) -> Findings:
    """Evaluate the papers' methods and ours on every task, beside each tier alone."""
    found = Findings()
    all_runs, rows = [], []
    with shop.progress.stage("Study tiers", len(shop.tasks)) as advance:
        for task in shop.tasks:
            runs, measures = measured(shop, task, "tiers", _SHOWN[3:])
            all_runs += runs
            by_name = {row["policy"]: row for row in measures}
            rows += [by_name[name] for name in _SHOWN if name in by_name]
            advance(1)
    found.verdicts.append(tiers_alone(rows))
    common = {
        "table": "tiers",
        "x": "policy",
        "x_quantity": "text",
        "facet": "task",
        "color": "policy",
    }
    found.add(
        Table(
            name="tiers",
            title="Each tier alone, and the methods",
            about="A tier alone answers every sample with its last exit. A method that merely mixes tiers cannot be "
            "above the best of them; one that knows which exit is right can.",
            columns=(name_of_policy("answered by"), SCORE, COST, CHANGE, N, SEEDS),
            group="task",
            source="paper 1 §6.2, paper 2 §4.1",
        ),
        rows,
        Figure(
            name="tiers-score",
            title="Score of each tier alone, and of the methods",
            about="The task's metric with its 95 % interval, a panel per task: mobile, edge and cloud alone, then the "
            "papers' methods and dimec-cascade. Panels share their axis.",
            kind="points",
            y="score",
            low="low",
            high="high",
            y_title="score × 100",
            hover=("policy", "score", "cost", "n"),
            source="paper 1 §6.2",
            **common,
        ),
        Figure(
            name="tiers-cost",
            title="Cost of each tier alone, and of the methods",
            about="Bars of the mean cost of a sample in λ, a panel per task.",
            kind="bars",
            y="cost",
            y_title="cost in λ",
            y_quantity="cost",
            hover=("policy", "score", "cost", "n"),
            source="paper 2 §4.1",
            **common,
        ),
    )
    found.notes += notes_on(all_runs)
    return found


STUDY = Study(
    name="tiers",
    title="Each tier alone",
    about="How accurate and how dear are the mobile device, the edge and the cloud, each answering everything by "
    "itself, and where do the methods that mix them stand?",
    source="paper 1 §6.2, paper 2 §4.1",
    tasks=PAPER_TASKS,
    make=make,
)
