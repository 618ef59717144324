"""The papers' tables and figures as named studies: each finds runs, computes, and leaves a folder of results."""

from __future__ import annotations

import platform
from importlib.metadata import version
from pathlib import Path

from dimec.core.errors import OptionError
from dimec.core.options import command_line
from dimec.core.outputs import check_output_folder
from dimec.core.progress import SILENT, Progress
from dimec.core.version import __version__
from dimec.reporting.results import Result, write_result
from dimec.runs.run import Run
from dimec.studies import (
    ablation,
    costs,
    datamap,
    embeddings,
    frontier,
    large,
    main,
    of_run,
    partition,
    pools,
    shift,
    thresholds,
    tiers,
)
from dimec.studies.base import Findings, Study
from dimec.studies.options import StudyOptions
from dimec.studies.study_runs import StudyRuns

_STUDIES: tuple[Study, ...] = (
    main.STUDY,
    large.STUDY,
    costs.STUDY,
    tiers.STUDY,
    pools.STUDY,
    embeddings.STUDY,
    datamap.STUDY,
    thresholds.STUDY,
    frontier.STUDY,
    partition.STUDY,
    shift.STUDY,
    ablation.STUDY,
)
STUDIES = {study.name: study for study in _STUDIES}


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
    return keep(study, runs, study.make(runs), out=out, command=command)


def study_run(run: Run, *, price: float, out: Path, progress: Progress = SILENT) -> Result:
    """Ask of a single run what the studies ask, and leave the result in a folder.

    Raises:
        RunError: If the run's model is too small for three tiers.
        MissingExtraError: If an install is missing.
    """
    study = of_run.study_of(run)
    runs = of_run.SingleRun(run, price=price, out=out, progress=progress)
    return keep(study, runs, study.make(runs), out=out, command=f"dimec report {run.folder}")


def keep(study: Study, runs: StudyRuns, found: Findings, *, out: Path, command: str) -> Result:
    """Write what a study found."""
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
