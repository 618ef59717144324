"""The papers' main tables: every task and every system, published beside measured (paper 1 §5.5, paper 2 §3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import confusion, paired_interval, score
from dimec.core.tiers import Step, Tier
from dimec.evaluation import replay
from dimec.policies import fit_policies
from dimec.reporting.results import Column, Figure, Table, WhatIf
from dimec.runs.run import Run
from dimec.studies.base import PAPER_TASKS, Findings, Study
from dimec.studies.measures import (
    AT_COST,
    AT_SHARES,
    AUC,
    CHANGE,
    COST,
    GAP,
    ORACLE,
    PAPER_POLICIES,
    SCORE,
    SEEDS,
    SHARES,
    N,
    measured,
    name_of_policy,
    notes_on,
    over_seeds,
)
from dimec.studies.published import published
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import main_claims
from dimec.studies.whatif import whatif

BASELINES = ("random", "deebert", "early-exit", "adaee", "i-splitee")
OURS = ("dimec-cascade", "dimec-guarded")
ALL_CLOUD = "all-cloud"
REFERENCE = "bert-on-mobile"
_KEPT = (
    "policy",
    "score",
    "low",
    "high",
    "score_sd",
    "above_chance",
    "at_cost",
    "at_cost_low",
    "at_cost_high",
    "n",
    "seeds",
)
PAIRS = (
    ("dimec-dc-adaptive", "dimec-dc-fixed"),
    ("dimee-adaptive", "dimee-fixed"),
    *((name, ALL_CLOUD) for name in (*PAPER_POLICIES, *BASELINES, *OURS)),
    *((name, other) for name in (*PAPER_POLICIES, OURS[0]) for other in BASELINES),
)
"""Whose answers are held against whose."""


def make(shop: StudyRuns) -> Findings:
    """Evaluate every system on every task, and pair the answers of those that the papers compare."""
    found = Findings()
    all_runs, rows, pairs = [], [], []
    with shop.progress.stage("Study main", len(shop.tasks)) as advance:
        for task in shop.tasks:
            runs, measures = measured(shop, task, "main")
            all_runs += runs
            rows += measures
            seeds = [shop.part("pairs", run, partial(compare, shop, run)) for run in runs]
            pairs += [{"task": task, **row} for row in over_seeds(seeds, key=("policy", "against"))]
            prices = shop.part("whatif", runs[0], partial(_whatif, shop, runs[0]))
            found.whatif.append(WhatIf.model_validate(prices))
            advance(1)
    beside = beside_published(rows)
    found.verdicts += main_claims(rows, pairs)
    _add_published(found, beside)
    _add_systems(found, rows)
    _add_shares(found, rows)
    _add_pairs(found, pairs)
    found.notes.append(
        "The papers' figures are with BERT-base, ours with the backbone named above: compare drops against the full "
        "model rather than levels. Bandits' rows are means over five shuffles of the stream."
    )
    found.notes += notes_on(all_runs)
    return found


@dataclass(frozen=True, eq=False)
class _Answers:
    """What a rule answers to every sample, and what that costs in the mean."""

    predictions: NDArray[np.int64]
    cost: float


def compare(shop: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Pair a run's answers: adaptive against fixed, the papers' methods against baselines, all against all-cloud."""
    bed = shop.testbed(run)
    table = bed.table
    names = [*PAPER_POLICIES, *BASELINES, *OURS]
    fitted = fit_policies(bed.calibration(shop.options.price), names)
    answers = {}
    for name, policy in fitted.items():
        played = replay(policy, table, costs=bed.costs)
        answers[name] = _Answers(played.predictions, float(played.costs.mean()))
    last = Step(Tier.CLOUD, table.n_layers)
    answers[ALL_CLOUD] = _Answers(table.predictions[:, -1], bed.costs.of([last]))
    metric = run.config.task.metric
    rows = []
    for name, other in PAIRS:
        if name not in answers or other not in answers:
            continue
        first, second = answers[name], answers[other]
        scores = [
            float(
                score(metric, confusion(table.labels, each.predictions, n_classes=table.n_classes))
            )
            for each in (first, second)
        ]
        low, high = paired_interval(
            metric,
            table.labels,
            [first.predictions],
            second.predictions,
            n_classes=table.n_classes,
            rng=np.random.default_rng(0),
        )
        rows.append(
            {
                "policy": name,
                "against": other,
                "difference": scores[0] - scores[1],
                "low": low,
                "high": high,
                "cost_difference": first.cost - second.cost,
                "n": len(table),
            }
        )
    return rows


def beside_published(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Set every printed row of BERT-base beside what was measured, levels and drops against the full model."""
    at = {(row["task"], row["policy"]): row for row in rows}
    full = {
        (each.paper, each.task): each
        for each in published(backbone="bert-base")
        if each.cost_change == 0
    }
    beside = []
    for printed in published(backbone="bert-base"):
        row = at.get((printed.task, printed.policy))
        reference = at.get((printed.task, REFERENCE))
        if row is None or reference is None:
            continue
        theirs = printed.score - full[printed.paper, printed.task].score
        ours = row["score"] - reference["score"]
        beside.append(
            {
                "task": printed.task,
                "paper": f"paper {printed.paper}",
                "system": printed.system,
                **{name: row[name] for name in _KEPT},
                "printed": printed.score,
                "printed_drop": theirs,
                "drop": ours,
                "drop_difference": ours - theirs,
                "printed_change": printed.cost_change,
                "cost_change": row["cost_change"],
                "change_difference": row["cost_change"] - printed.cost_change,
            }
        )
    return beside


def _whatif(shop: StudyRuns, run: Run) -> dict[str, Any]:
    return whatif(shop.testbed(run), price=shop.options.price).model_dump(mode="json")


def _add_published(found: Findings, rows: list[dict[str, Any]]) -> None:
    points = [
        {
            **row,
            "whose": whose,
            "shown": f"{row['system']}, {row['paper']}",
            "x": row[change],
            "y": row[drop],
        }
        for row in rows
        for whose, change, drop in (
            ("published", "printed_change", "printed_drop"),
            ("measured", "cost_change", "drop"),
        )
    ]
    found.add(
        Table(
            name="published",
            title="Published beside measured",
            about="Printed are the notes' figures for BERT-base. A drop is against the full model of the same table; "
            "levels differ with the backbone and the rows, so the drops are what can be compared.",
            columns=(
                Column(name="paper", title="", quantity="text"),
                Column(
                    name="system", title="system", quantity="text", about="As the notes print it."
                ),
                name_of_policy("here"),
                Column(name="printed", title="published", quantity="score"),
                SCORE.model_copy(update={"title": "measured"}),
                Column(name="printed_drop", title="published drop", quantity="points"),
                Column(name="drop", title="measured drop", quantity="points"),
                Column(name="drop_difference", title="difference", quantity="points"),
                Column(name="printed_change", title="published cost", quantity="change"),
                CHANGE.model_copy(update={"title": "measured cost"}),
                Column(
                    name="change_difference",
                    title="difference",
                    quantity="change",
                    about="Measured less published, in percent of the full model's cost.",
                ),
                AT_COST,
                N,
                SEEDS,
            ),
            group="task",
            source="paper 1 §5.5, paper 2 §3.1",
        ),
        rows,
    )
    found.add(
        Table(name="published-points", title="Published and measured points"),
        points,
        Figure(
            name="published",
            title="Drop against cost, published and measured",
            about="A point for each system of the papers' tables and a panel for each task: to the left is cheaper, "
            "higher is a smaller drop against the full model. The hue tells published from measured.",
            table="published-points",
            kind="points",
            x="x",
            y="y",
            color="whose",
            facet="task",
            x_title="cost against BERT",
            y_title="score against BERT, points",
            x_quantity="change",
            y_quantity="points",
            hover=("shown", "policy", "whose", "x", "y"),
            source="paper 1 §5.5, paper 2 §3.1",
        ),
    )


def _add_systems(found: Findings, rows: list[dict[str, Any]]) -> None:
    found.add(
        Table(
            name="systems",
            title="Every system and every control",
            about="All on one cost model and at one price. A score means something only beside what chance reaches at "
            "the same shares and at the same cost, and beside each tier alone.",
            columns=(
                name_of_policy(),
                SCORE,
                COST,
                CHANGE,
                Column(name="against_cloud", title="against all-cloud", quantity="change"),
                *SHARES,
                AT_SHARES,
                AT_COST,
                ORACLE,
                GAP,
                AUC,
                N,
                SEEDS,
            ),
            group="task",
        ),
        rows,
        Figure(
            name="systems",
            title="Score against cost of every system",
            about="A point for each policy and control, a panel for each task. Higher and to the left is better.",
            table="systems",
            kind="points",
            x="cost",
            y="score",
            color="kind",
            facet="task",
            low="low",
            high="high",
            x_title="mean cost in λ",
            y_title="score × 100",
            x_quantity="cost",
            hover=("policy", "score", "cost", "cost_change", "at_shares", "at_cost", "oracle"),
        ),
    )


def _add_shares(found: Findings, rows: list[dict[str, Any]]) -> None:
    drawn = [row for row in rows if row["policy"] in (*PAPER_POLICIES, *BASELINES, *OURS)]
    found.add(
        Table(name="tier-shares", title="Tier shares"),
        [
            {"task": row["task"], "policy": row["policy"], "tier": tier, "share": row[tier]}
            for row in drawn
            for tier in ("mobile", "edge", "cloud")
        ],
        Figure(
            name="tier-shares",
            title="Which tier answers",
            about="A bar for each policy, parted into the shares of samples that mobile, edge and cloud answer; a "
            "panel for each task.",
            table="tier-shares",
            kind="stacked",
            x="policy",
            y="share",
            color="tier",
            facet="task",
            x_quantity="text",
            y_title="share",
            y_quantity="share",
            hover=("policy", "tier", "share"),
        ),
    )


def _add_pairs(found: Findings, pairs: list[dict[str, Any]]) -> None:
    found.add(
        Table(
            name="pairs",
            title="Differences between two systems on the same samples",
            about="The first's score less the second's, with the 95 % interval of a paired bootstrap (over seeds: the "
            "mean of theirs). A difference whose interval holds 0 is none. Bandits answer once, in stream order.",
            columns=(
                name_of_policy("first"),
                Column(name="against", title="second", quantity="text"),
                Column(
                    name="difference",
                    title="difference, points",
                    quantity="points",
                    low="low",
                    high="high",
                    stands_out="beyond",
                ),
                Column(name="cost_difference", title="cost, first less second", quantity="cost"),
                N,
                SEEDS,
            ),
            group="task",
        ),
        [{**row, "beyond": row["low"] > 0} for row in pairs],
    )


STUDY = Study(
    name="main",
    title="The papers' main tables",
    about="Do the papers' methods save what they say, at the accuracy that they say, and do they beat every system "
    "that they are compared with? Every task and every system, with fixed and adaptive centroids.",
    source="paper 1 §5.5, paper 2 §3.1",
    tasks=PAPER_TASKS,
    make=make,
)
