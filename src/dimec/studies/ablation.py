"""Study `ablation`: one choice at a time, what it changes for DIMEC-DC and DIMEE with fixed centroids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from dimec.reporting.results import Column, Figure, Table
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import N, notes_on
from dimec.studies.score_rows import CONTROLS, ONE_SCORE, POLICY, SPENT
from dimec.studies.study_runs import StudyRuns
from dimec.studies.training_rows import training_table
from dimec.studies.variants import Variant, measure, variants

FEWER_EPOCHS = 3
SOURCE = "paper 1 §3, §4.2, §4.3, §5.3, paper 2 §1.2, §1.5, §2.3"


def make(shop: StudyRuns) -> Findings:
    """Measure every variant on every task."""
    found = Findings()
    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    with shop.progress.stage("Ablation", len(shop.tasks)) as advance:
        for task in shop.tasks:
            run = shop.run(task)
            runs.append(run)
            own = shop.part("variants", run, partial(_of_one_run, shop, run))
            refitted = [
                row
                for group, name, changes in _refits(shop)
                for row in _of_a_refit(shop, task, group, name, changes)
            ]
            rows += [
                {"task": task, "section": f"{task}: {row['group']}", **row}
                for row in [*own, *refitted]
            ]
            advance(1)
    found.add(_table(), rows)
    for task in shop.tasks:
        found.add(
            Table(name=f"ablation-{task}", title=f"The variants of {task}"),
            [row for row in rows if row["task"] == task],
            _figure(task),
        )
    found.notes += [
        "Seed 0 alone: a difference within the intervals is none. Every group holds the usual way, marked so.",
        "Centring moves every point and every centroid alike, so that no distance changes; it is there to show "
        "that. What is fitted to embeddings (mean, principal components) is fitted on the validation split.",
        "The first token's vector is left out: before any layer has run it is the same for every text, since it has "
        "met neither the words nor their positions.",
        "Pools of training rows are made at the thresholds that validation chose, from what the exits said while "
        "they were being trained on these very rows.",
        "With exits after the tiers' last layers alone DIMEE has one exit on each tier, and policies that need an exit "
        "after every layer cannot be run there; these are not part of this study.",
        "A grouped split has other test rows than a random one, and other ones that are part of a training row: "
        "compare what each row gains on its own controls, not its level.",
        "At another price or charge the costs are those of that price or charge: its column is relative to the full "
        "model on the device, whose price none of them changes.",
        *notes_on(runs),
    ]
    return found


def _of_one_run(shop: StudyRuns, run: Run) -> list[dict[str, Any]]:
    @cache
    def training_rows() -> ExitTable:
        return training_table(run, progress=shop.progress)

    return [
        row
        for variant in variants(shop.options.price)
        for row in measure(run, variant, training_rows=training_rows)
    ]


def _refits(shop: StudyRuns) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give the variants that take a fit of their own: what is varied, the variant, and the options of its fit."""
    chosen = shop.options
    groups: dict[tuple[str, str], list[Any]] = {
        ("epochs", "epochs of the fit"): [chosen.epochs, FEWER_EPOCHS],
        ("exits", "where exits are"): ["all", "tiers"],
        ("split", "how rows are split"): ["random", "grouped"],
        ("pooling", "what an exit looks at"): [chosen.pooling, "attention"],
    }
    for (option, group), values in groups.items():
        for place, value in enumerate(dict.fromkeys(values)):
            yield group, f"{value}{' (usual)' if place == 0 else ''}", {option: value}


def _of_a_refit(
    shop: StudyRuns, task: str, group: str, name: str, changes: dict[str, Any]
) -> list[dict[str, Any]]:
    run = shop.run(task, **changes)
    variant = Variant(group, name, shop.options.price)

    def never() -> ExitTable:
        raise AssertionError("a refit is measured with pools of its validation rows")

    def compute() -> list[dict[str, Any]]:
        return measure(run, variant, training_rows=never)

    rows: list[dict[str, Any]] = shop.part(f"refit-{group.replace(' ', '-')}", run, compute)
    return rows


def _table() -> Table:
    against_full = Column(
        name="against_full",
        title="against the full model",
        quantity="points",
        about="Score minus that of the full model on the device, with the interval of the paired difference.",
        low="against_full_low",
        high="against_full_high",
    )
    return Table(
        name="ablation",
        title="One choice at a time",
        about=(
            "In each group one choice is varied and everything else is as usual. Both methods search their "
            "thresholds anew. Hold a score against chance at the same cost in its row, since a choice that only "
            "moves the thresholds moves cost and score together; the router's AUC says what the embeddings tell of "
            "the mobile exit, whatever the thresholds. A score stands out if it is above chance at its cost beyond "
            "both intervals."
        ),
        columns=(
            Column(name="variant", title="variant", quantity="text"),
            POLICY,
            Column(name="point", title="thresholds", quantity="text"),
            ONE_SCORE,
            against_full,
            *SPENT,
            *CONTROLS,
            N,
        ),
        group="section",
        source=SOURCE,
    )


def _figure(task: str) -> Figure:
    return Figure(
        name=f"ablation-{task}",
        title=f"What each choice costs and loses on {task}",
        about=(
            "Each point is a variant of one method: its cost against the full model on the device, and the points "
            "that it gains or loses against it; a panel for each choice."
        ),
        table=f"ablation-{task}",
        kind="points",
        x="cost_change",
        y="against_full",
        color="policy",
        facet="group",
        low="against_full_low",
        high="against_full_high",
        hover=("variant", "point", "auc"),
        x_title="cost against BERT",
        y_title="score against BERT, points",
        color_title="policy",
        x_quantity="change",
        y_quantity="points",
        source=SOURCE,
    )


STUDY = Study(
    name="ablation",
    title="Which choices matter?",
    about=(
        "What an embedding is, what beta is held against, whose pools make the centroids, the price, the cloud's "
        "charge, the length of the fit, where exits are, how rows are split and what an exit looks at: each is "
        "varied alone, for both methods with fixed centroids, beside chance at the same cost and what the router "
        "knows."
    ),
    source=SOURCE,
    tasks=("cola", "mrpc"),
    make=make,
)
