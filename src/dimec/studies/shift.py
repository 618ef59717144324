"""Study `shift`: fitted on one data set, tested on another of the same task; does adapting help?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dimec.core.errors import OptionError
from dimec.core.tiers import TIERS
from dimec.evaluation.setup import EvaluationSetup
from dimec.reporting.results import Verdict
from dimec.runs.run import Run
from dimec.studies.adaptation import N_ORDERS, compare, gains, in_order, routes
from dimec.studies.base import Findings, Study
from dimec.studies.measures import BASELINES, OURS, PAPER_POLICIES, evaluation_rows, notes_on
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import ruling_of, verdict

OTHERS = {"sst2": "cr", "mnli": "sick"}
"""The data set that each task's run meets."""
_TITLES = {"cr": "customer reviews (CR)", "sick": "SICK"}
SYSTEMS = (*PAPER_POLICIES, *BASELINES[1:], *OURS)


def make(runs: StudyRuns) -> Findings:
    """Evaluate every pair in its own domain and in the other one.

    Raises:
        OptionError: If a task has no other data set, or none of them is there.
    """
    found = Findings("shift")
    pairs, missing = _pairs(runs)
    places: list[dict[str, Any]] = []
    with runs.progress.stage("Shifts", len(pairs)) as advance:
        for task, path in pairs.items():
            run = runs.run(task)
            name = f"shift-{_digest(path)}"
            places += runs.part(name, run, partial(_part, runs, run, path))
            advance(1)
    scores = [{"where": place["where"], **row} for place in places for row in place["rows"]]
    found.add("scores", scores)
    found.add(
        "adaptive",
        [{"where": place["where"], **case} for place in places for case in place["adaptive"]],
    )
    found.add("shares", _shares(scores))
    shifted = [place for place in places if place["shifted"]]
    found.verdicts += [
        _verdict("adapts-to-shift", shifted),
        _verdict("adaptive-beats-fixed", places),
    ]
    found.notes += [
        *notes_on(runs, on_their_own=False),
        "Seed 0 alone. Nothing is fitted on the other data set; its labels only score.",
        f"Adaptive centroids and the guarded cascade depend on the order of the stream: the scores are for samples as "
        f"they come, the comparison of fixed and adaptive also for {N_ORDERS} shuffled orders. Bandits are means over "
        f"shuffled orders throughout.",
        *(f"{place['where']}: {place['order']}." for place in places if place["order"]),
        *(
            f"{task} on {other}: left out, since neither ROOT/{other} nor ROOT/shift/{other} nor "
            f"ROOT/../shift/{other} exists (ROOT is --data)."
            for task, other in missing.items()
        ),
    ]
    return found


def find_other(root: Path, name: str) -> Path | None:
    """Return where another data set is: in the root, in its folder `shift`, or in a folder `shift` beside it."""
    folders = (root / name, root.resolve().parent / "shift" / name, root / "shift" / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def _pairs(runs: StudyRuns) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the other data set of each task, and those that are missing."""
    root = runs.options.data
    unknown = [task for task in runs.tasks if task not in OTHERS]
    if unknown:
        raise OptionError(
            f"the study shift knows no other data set for {', '.join(unknown)}: choose among {', '.join(OTHERS)}"
        )
    if root is None:
        raise OptionError(
            "the study shift needs --data: a folder with a folder for each task, and the other data sets "
            f"({', '.join(OTHERS.values())}) in it, in its folder shift, or in a folder shift beside it"
        )
    found = {task: find_other(root, OTHERS[task]) for task in runs.tasks}
    there = {task: path for task, path in found.items() if path is not None}
    missing = {task: OTHERS[task] for task, path in found.items() if path is None}
    if not there:
        raise OptionError(
            f"--data {root} has none of the other data sets that the study shift tests on: put "
            f"{' or '.join(missing.values())} in it, in its folder shift, or in a folder shift beside it"
        )
    return there, missing


def _part(runs: StudyRuns, run: Run, path: Path) -> list[dict[str, Any]]:
    """Evaluate a run on its own test split and on another data set."""
    name = run.config.task.name
    other = _TITLES[OTHERS[run.config.task.name]]
    setups = (
        (f"{name}, its own test split", False, runs.setup(run)),
        (f"{name} on {other}", True, runs.setup(run, data=path, skip_empty=True)),
    )
    return [
        _place(where, setup, price=runs.options.price, shifted=shifted)
        for where, shifted, setup in setups
    ]


def _place(where: str, setup: EvaluationSetup, *, price: float, shifted: bool) -> dict[str, Any]:
    return {
        "where": where,
        "shifted": shifted,
        "order": in_order(setup.table.labels),
        "rows": evaluation_rows(setup.evaluate(SYSTEMS, price=price)),
        "adaptive": compare(setup, price),
    }


def _shares(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"where": row["where"], "policy": row["policy"], "tier": str(tier), "share": row[tier]}
        for row in rows
        if row["kind"] == "policy" and row["mobile"] is not None
        for tier in TIERS
    ]


def _verdict(claim_id: str, places: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge a claim about adapting: in every order of every stream it must gain and reach random at its cost."""
    cases = [case for place in places for case in place["adaptive"]]
    gaining = [case for case in cases if gains(case)]
    agreeing = sum(routes(case) for case in gaining)
    summary = (
        f"In {len(gaining)} of {len(cases)} cases (method, stream, order) adapting scores higher, beyond the "
        f"interval of the paired difference, without costing more. In {agreeing} of these it is not below random "
        "at its cost, which is what counts: one that is has only drifted to where any rule would be better."
    )
    lines = [sentence for place in places for sentence in _said_of(place)]
    return verdict(claim_id, ruling_of(agreeing, of=len(cases)), [summary], cases=lines)


def _said_of(place: Mapping[str, Any]) -> Iterator[str]:
    scores = {row["policy"]: row["score"] for row in reversed(place["rows"])}
    alone = [f"{tier} {100 * scores[f'all-{tier}']:.2f}" for tier in TIERS]
    yield f"{place['where']}: the last exits of the tiers alone score {', '.join(alone)}."
    for case in place["adaptive"]:
        above = 100 * (case["adaptive"] - case["random_at_cost"])
        yield (
            f"{place['where']}, {case['method']}, {case['order']}: adaptive minus fixed is "
            f"{100 * case['difference']:+.2f} points ({100 * case['difference_low']:+.2f} to "
            f"{100 * case['difference_high']:+.2f}) and {case['cost_difference']:+.2f} lambda "
            f"({case['cost_difference_low']:+.2f} to {case['cost_difference_high']:+.2f}); adaptive minus random at "
            f"its cost is {above:+.2f} points."
        )


def _digest(folder: Path) -> str:
    """Hash the files of a folder, so that parts of other data are not read back."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


STUDY = Study.of("shift", make)
