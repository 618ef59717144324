"""Study `ablation`: the effect of one choice at a time on DIMEC-DC and DIMEE with fixed centroids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache, partial
from typing import Any

from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import notes_on
from dimec.studies.study_runs import StudyRuns
from dimec.studies.variants import Variant, measure, training_table, variants

FEWER_EPOCHS = 3


def make(runs: StudyRuns) -> Findings:
    """Measure every variant on every task."""
    found = Findings("ablation")
    rows: list[dict[str, Any]] = []
    for task in runs.each_task("Ablation"):
        run = runs.run(task)
        own = runs.part("variants", run, partial(_of_one_run, runs, run))
        refitted = [
            row
            for group, name, changes in _refits(runs)
            for row in _of_a_refit(runs, task, group, name, changes)
        ]
        rows += [
            {"task": task, "section": f"{task}: {row['group']}", **row} for row in [*own, *refitted]
        ]
    found.add("ablation", rows)
    for task in runs.tasks:
        found.add("ablation-{task}", [row for row in rows if row["task"] == task], task=task)
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


def _of_one_run(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    @cache
    def training_rows() -> ExitTable:
        return training_table(run, progress=runs.progress)

    return [
        row
        for variant in variants(runs.options.price)
        for row in measure(run, variant, training_rows=training_rows)
    ]


def _refits(runs: StudyRuns) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the variants that need a fit: what is varied, the variant, and the options of its fit."""
    chosen = runs.options
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
    runs: StudyRuns, task: str, group: str, name: str, changes: dict[str, Any]
) -> list[dict[str, Any]]:
    run = runs.run(task, **changes)
    compute = partial(measure, run, Variant(group, name, runs.options.price))
    rows: list[dict[str, Any]] = runs.part(f"refit-{group.replace(' ', '-')}", run, compute)
    return rows


STUDY = Study.of("ablation", make)
