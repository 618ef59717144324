"""The papers' hyper-parameter grid: {8, 16, 32} rows a batch by {1, 2, 3, 4, 5}e-5, judged on validation alone."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from pathlib import Path

from dimec.core.errors import OptionError, RunError
from dimec.core.files import write_json, writing
from dimec.core.outputs import check_output_folder, holding, remove_written
from dimec.core.progress import SILENT, Progress, n_launched
from dimec.core.untrusted import trusting_nothing
from dimec.data.likeness import Likeness
from dimec.runs.run import MODEL_FILES, RUN_FILES, FitOptions, Run
from dimec.training.fitting import STAGES, fit, inputs_of
from dimec.training.state import EpochLog

BATCH_SIZES = (8, 16, 32)
LEARNING_RATES = (1e-5, 2e-5, 3e-5, 4e-5, 5e-5)


@dataclass(frozen=True)
class Trial:
    """One point of the grid: its validation score at each exit in the epoch that it keeps, of the last stage."""

    batch_size: int
    learning_rate: float
    best_epoch: int
    validation_scores: tuple[float, ...]

    @property
    def name(self) -> str:
        """Name of the trial's folder."""
        return _name(self.batch_size, self.learning_rate)


@dataclass(frozen=True)
class SearchResult:
    """The whole grid, and the run that won by the last exit's validation score; the first of equals."""

    run: Run
    trials: tuple[Trial, ...]
    best: Trial


def search(
    options: FitOptions,
    *,
    out: str | Path,
    batch_sizes: tuple[int, ...] = BATCH_SIZES,
    learning_rates: tuple[float, ...] = LEARNING_RATES,
    restart: bool = False,
    progress: Progress = SILENT,
) -> SearchResult:
    """Fit every point of the grid under ``out/search`` and leave the winner in ``out`` as a run of its own.

    A killed search goes on with the point it was at. Of the others, the metrics stay and the models go.

    Raises:
        OptionError: If ``out`` holds a run that this search did not make, or another process is fitting it.
        OutputError: If ``out`` cannot be written to.
    """
    folder = Path(out)
    if n_launched() > 1:
        raise OptionError(
            f"--search in {n_launched()} processes: start it in one, or fit one point of the grid in several"
        )
    check_output_folder(folder, inputs=inputs_of(options))
    points = list(itertools.product(batch_sizes, learning_rates))
    with holding(folder, doing="fitting"):
        trials_folder = folder / "search"
        searched = (folder / "search.json").exists() or trials_folder.exists()
        if restart and searched:
            remove_written(folder, [each for each in RUN_FILES if not each.startswith("search")])
            remove_written(folder, RUN_FILES)
        elif not searched and any(folder.iterdir()):
            raise OptionError(
                f"--out {folder} holds something that is no search: give a new folder"
            )
        trials: list[Trial] = []
        known: dict[str, Likeness] = {}
        for number, (batch_size, rate) in enumerate(points, start=1):
            place = trials_folder / _name(batch_size, rate)
            point = options.model_copy(update={"batch_size": batch_size, "learning_rate": rate})
            progress.say(f"search {number}/{len(points)}: {place.name}")
            # At once if an earlier search has done it.
            trials.append(_read_trial(fit(point, out=place, known=known, progress=progress)))
            best = max(trials, key=lambda trial: trial.validation_scores[-1])
            for trial in trials:
                if trial != best:
                    model = [f"model/{each}" for each in MODEL_FILES]
                    remove_written(trials_folder / trial.name, model)
        _promote(trials_folder / best.name, folder)
        run = Run.open(folder)
        told = {
            "metric": run.config.task.metric,
            "best": vars(best),
            "trials": [vars(trial) for trial in trials],
        }
        write_json(folder / "search.json", told)
        return SearchResult(run, tuple(trials), best)


def _name(batch_size: int, learning_rate: float) -> str:
    return f"batch-{batch_size}-rate-{learning_rate:.0e}"


def _read_trial(run: Run) -> Trial:
    options = run.config.options
    with trusting_nothing(run.folder / "metrics.jsonl", RunError, remedy="fit the run again"):
        history = [EpochLog(**each) for each in run.epochs()]
        kept = STAGES[options.training][-1].best(history)
    return Trial(
        options.batch_size, options.learning_rate, kept.epoch, tuple(kept.validation_scores)
    )


def _promote(winner: Path, folder: Path) -> None:
    """Copy the winner's parts beside the search, its configuration last, so that a run is whole or not there."""
    if (folder / "search.json").exists():
        return
    with writing(folder):
        for part in sorted(winner.iterdir(), key=lambda path: path.name == "config.json"):
            if part.is_dir():
                shutil.copytree(part, folder / part.name, dirs_exist_ok=True)
            else:
                shutil.copy2(part, folder / part.name)
