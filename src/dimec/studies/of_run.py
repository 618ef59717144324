"""The report of a single run: the findings of six studies on this run alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dimec.core.progress import SILENT, Progress
from dimec.runs.run import Run
from dimec.studies import costs, datamap, frontier, main, pools, thresholds
from dimec.studies.base import Findings, Study
from dimec.studies.options import StudyOptions
from dimec.studies.study_runs import StudyRuns

_ASKED = (main, frontier, datamap, thresholds, pools, costs)


class SingleRun(StudyRuns):
    """The runs of a study of one run."""

    def __init__(self, run: Run, *, price: float, out: Path, progress: Progress = SILENT) -> None:
        """Take the run, the price of its tables, and the folder that parts are kept in."""
        task = run.config.task.name
        options = StudyOptions(
            backbone=run.config.options.backbone,
            pooling=run.config.pooling,
            epochs=run.config.options.epochs,
            seeds=1,
            price=price,
            runs=run.folder.parent,
        )
        super().__init__(options, tasks=(task,), out=out, progress=progress)
        self._run = run
        self._read[run.folder] = run

    def run(self, task: str, *, seed: int = 0, **changes: Any) -> Run:  # noqa: ANN401  as StudyRuns'
        """Return the run."""
        return self._run


def make(runs: StudyRuns) -> Findings:
    """Merge the findings of the studies."""
    found = Findings("run")
    for study in _ASKED:
        found.merge(study.STUDY.make(runs))
    return found


def study_of(run: Run) -> Study:
    """Return the study of a run."""
    task = run.config.task.name
    return Study(
        name="run",
        title=f"{task}: {run.folder.name}",
        about=f"What every policy makes of {task} on this run's held-out rows, beside random routing and perfect "
        "knowledge at its cost; its data map, thresholds, pools and cost structure.",
        source="",
        tasks=(task,),
        make=make,
    )
