"""The papers' tables and figures as named studies: each finds runs, computes, and leaves a folder of results."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dimec.core.errors import OptionError
from dimec.core.options import command_line
from dimec.core.outputs import check_output_folder
from dimec.core.progress import SILENT, Progress
from dimec.core.version import __version__
from dimec.reporting.results import Result, write_result
from dimec.runs.run import Run
from dimec.studies.ablation import ablation
from dimec.studies.base import Findings, Study
from dimec.studies.embeddings import embeddings
from dimec.studies.large import large
from dimec.studies.main import main
from dimec.studies.options import StudyOptions
from dimec.studies.partition import partition
from dimec.studies.pools import datamap, pools
from dimec.studies.shift import shift
from dimec.studies.study_runs import StudyRuns
from dimec.studies.sweeps import costs, frontier, thresholds, tiers

_STUDIES = (
    *(main, large, costs, tiers, pools, embeddings),
    *(datamap, thresholds, frontier, partition, shift, ablation),
)
STUDIES = {study.name: study for study in _STUDIES}
_OF_A_RUN = (main, frontier, datamap, thresholds, pools, costs)


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


def run_study(
    name: str, options: StudyOptions, *, out: Path, progress: Progress = SILENT
) -> Result:
    """Run a study, or go on where a killed one stopped, and leave its result in a folder.

    Raises:
        OptionError: If there is no such study, or an option does not fit.
        DataError: If data cannot be used.
        MissingExtraError: If an install is missing.
    """
    if name not in STUDIES:
        raise OptionError(f"there is no study {name!r}: choose from {', '.join(STUDIES)}")
    study = STUDIES[name]
    check_output_folder(out, inputs={"--data": options.data})
    runs = StudyRuns(options, tasks=study.tasks, out=out, progress=progress)
    command = command_line("study", options, name, out=out)
    return keep(study, runs, out=out, command=command)


def study_run(run: Run, *, price: float, out: Path, progress: Progress = SILENT) -> Result:
    """Ask of a single run what the studies ask, and leave the result in a folder.

    Raises:
        RunError: If the run's model is too small for three tiers.
        MissingExtraError: If an install is missing.
    """
    task = run.config.task.name
    study = Study(
        name="run",
        title=f"{task}: {run.folder.name}",
        about=f"What every policy makes of {task} on this run's held-out rows, beside random routing and perfect "
        "knowledge at its cost; its data map, thresholds, pools and cost structure.",
        source="",
        tasks=(task,),
        fill=_of_a_run,
    )
    runs = SingleRun(run, price=price, out=out, progress=progress)
    return keep(study, runs, out=out, command=f"dimec report {run.folder}")


def _of_a_run(runs: StudyRuns, found: Findings) -> None:
    for study in _OF_A_RUN:
        found.merge(study.make(runs))


def keep(study: Study, runs: StudyRuns, *, out: Path, command: str) -> Result:
    """Ask a study of runs, and write what it finds."""
    found = study.make(runs)
    result = Result(
        study=study.name,
        title=study.title,
        about=study.about,
        command=command,
        settings={
            **runs.options.model_dump(mode="json", exclude={"tasks"}),
            "tasks": " ".join(runs.tasks),
        },
        runs=runs.used,
        verdicts=tuple(found.verdicts),
        tables=tuple(found.tables),
        figures=tuple(found.figures),
        notes=tuple(found.notes),
        versions={
            "dimec": __version__,
            "python": platform.python_version(),
            **{each: version(each) for each in ("numpy", "pyarrow")},
        },
    )
    write_result(out, result, found.rows, whatif=found.whatif)
    return result
