"""Study `large`: both methods on a 24-layer encoder, beside what the papers print for BERT-large."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimec.core.errors import OptionError
from dimec.core.extras import needs_training
from dimec.reporting.results import Verdict
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import BASELINES, PAPER_POLICIES, evaluation_rows, notes_on
from dimec.studies.published import REFERENCE, published_row
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import ruling_of, verdict

N_LAYERS = 24
REAL = "bert-large"
SYSTEMS = (*PAPER_POLICIES, *BASELINES)


@Study
def large(runs: StudyRuns, found: Findings) -> None:
    """Measure every system that the papers print for BERT-large.

    Raises:
        OptionError: If the backbone has not 24 layers.
    """
    backbone = runs.options.backbone
    _check_depth(backbone)
    rows: list[dict[str, Any]] = []
    for task in runs.each_task("Large"):
        run = runs.run(task)
        rows += _beside_printed(task, runs.part("large", run, _evaluate))
    found.add("large", rows)
    found.verdicts.append(_verdict(rows, backbone))
    found.note()
    found.notes += notes_on(runs)
    if not is_real(backbone):
        found.notes.append(
            f"{backbone} is not BERT-large: these rows show that the study runs at this depth, no more."
        )


def is_real(backbone: str) -> bool:
    """Tell whether the name of a backbone, or of its folder, is that of BERT-large."""
    return Path(backbone).name.startswith(REAL)


def _check_depth(backbone: str) -> None:
    with needs_training():
        from dimec.training.prepare import count_layers
    layers = count_layers(backbone)
    if layers != N_LAYERS:
        raise OptionError(
            f"the study large needs an encoder of {N_LAYERS} layers such as bert-large-uncased, and {backbone} has "
            f"{layers}: give --backbone FOLDER|NAME on a machine that has its weights; its figures wait for that"
        )


def _evaluate(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    evaluation = runs.setup(run).evaluate(SYSTEMS, price=runs.options.price)
    rows = evaluation_rows(evaluation)
    for cells, row in zip(rows, evaluation.rows, strict=True):
        depths = row.depths
        cells["depths"] = f"{depths.mobile}/{depths.edge}/{depths.cloud}" if depths else ""
    return rows


def _beside_printed(task: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the measured rows, policies then controls, with what is printed."""
    base = next(row["score"] for row in rows if row["policy"] == REFERENCE)
    found = []
    for row in rows:
        printed = published_row(backbone=REAL, task=task, policy=row["policy"])
        found.append(
            {
                "task": task,
                **row,
                "drop": None if row["score"] is None or base is None else row["score"] - base,
                "printed": printed and printed.score,
                "printed_drop": printed and printed.score - printed.beside(REFERENCE).score,
                "printed_change": printed and printed.cost_change,
                "doubt": (printed and printed.doubt) or "",
            }
        )
    return found


def _verdict(rows: Sequence[Mapping[str, Any]], backbone: str) -> Verdict:
    """Judge "BERT-large saves more than BERT-base" by measured changes against those printed for BERT-base."""
    if not is_real(backbone):
        waits = (
            f"{backbone} is not BERT-large: its savings say nothing about the claim, which waits for a machine with "
            "the weights of bert-large-uncased."
        )
        return verdict("larger-savings-large", "could not be tested", [waits])
    cases = []
    for row in rows:
        printed = published_row(backbone="bert-base", task=row["task"], policy=row["policy"])
        if row["policy"] in PAPER_POLICIES and printed is not None:
            cases.append((row["task"], row["policy"], row["cost_change"], printed.cost_change))
    saving_more = sum(change < base for *_, change, base in cases)
    measured = [
        f"{task}, {policy}: {100 * change:+.1f} % here, {100 * base:+.0f} % printed for BERT-base."
        for task, policy, change, base in cases
    ]
    summary = f"{saving_more} of {len(cases)} rows save more here than is printed for BERT-base."
    ruling = ruling_of(saving_more, of=len(cases))
    return verdict("larger-savings-large", ruling, [summary], cases=measured)
