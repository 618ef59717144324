"""The papers' tables and figures as named studies: each finds runs, computes, and leaves a folder of results."""

from __future__ import annotations

from pathlib import Path

from dimec.core.errors import OptionError
from dimec.core.options import command_line
from dimec.core.outputs import check_output_folder
from dimec.core.progress import SILENT, Progress
from dimec.reporting.results import Result
from dimec.studies.ablation import ablation
from dimec.studies.base import write_findings
from dimec.studies.embeddings import embeddings
from dimec.studies.large import large
from dimec.studies.layers import layers
from dimec.studies.main import main
from dimec.studies.options import StudyOptions
from dimec.studies.partition import partition
from dimec.studies.pools import datamap, pools
from dimec.studies.shift import shift
from dimec.studies.study_runs import StudyRuns, used_run
from dimec.studies.sweeps import costs, frontier, thresholds, tiers

_STUDIES = (
    *(main, large, costs, tiers, pools, embeddings),
    *(datamap, thresholds, frontier, partition, shift, ablation, layers),
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
    settings = options.model_dump(mode="json", exclude={"tasks"})
    return write_findings(
        study.make(runs),
        out,
        title=study.title,
        about=study.about,
        command=command_line("study", options, name, out=out),
        settings={**settings, "tasks": " ".join(runs.tasks)},
        runs=tuple(map(used_run, runs.read)),
    )
