"""Each tier alone beside the papers' methods: accuracy and cost (paper 1 §6.2, paper 2 §4.1)."""

from __future__ import annotations

from functools import partial

from dimec.studies.base import Findings, Study
from dimec.studies.measures import PAPER_POLICIES, averaged, measured, notes_on
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import tiers_alone

_METHODS = (*PAPER_POLICIES, "dimec-cascade")


def make(runs: StudyRuns) -> Findings:
    """Evaluate the papers' methods and ours on every task, beside each tier alone."""
    found = Findings("tiers")
    rows = []
    for task in runs.each_task("Study tiers"):
        measures = averaged(runs, task, "tiers", partial(measured, policies=_METHODS))
        by_name = {row["policy"]: row for row in measures}
        shown = ("all-mobile", "all-edge", "all-cloud", *_METHODS)
        rows += [by_name[name] for name in shown if name in by_name]
    found.verdicts.append(tiers_alone(rows))
    found.add("tiers", rows)
    found.notes += notes_on(runs)
    return found


STUDY = Study.of("tiers", make)
