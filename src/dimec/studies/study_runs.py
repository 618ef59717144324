"""The runs of a study, found or fitted, and the parts that were computed from them before."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import dimec
from dimec.core.errors import OptionError, RunError
from dimec.core.extras import needs_training
from dimec.core.files import write_json
from dimec.core.progress import SILENT, Progress
from dimec.core.untrusted import read_json
from dimec.evaluation.options import SetupOptions
from dimec.evaluation.setup import EvaluationSetup
from dimec.reporting.results import UsedRun
from dimec.runs.run import FitOptions, Run, read_config
from dimec.studies.options import StudyOptions

LONG_S = 600.0
"""A fit that took longer is not repeated with other seeds unless the user asks for them."""
USUAL_SEEDS = 3
_MOST_SEEDS = 20


class StudyRuns:
    """A study's runs and parts."""

    def __init__(
        self,
        options: StudyOptions,
        *,
        tasks: tuple[str, ...],
        out: Path,
        progress: Progress = SILENT,
    ) -> None:
        """Take the options, the study's tasks, and the folder that parts are kept in."""
        self.options = options
        self.progress = progress
        self.left_out: tuple[str, ...] = ()
        self.tasks = options.tasks or tasks
        self._parts = out / "parts"
        self._read: dict[Path, Run] = {}
        self._fingerprints: dict[tuple[str, int | None], str] = {}
        if options.fitted and not options.tasks:
            self.tasks = tuple(task for task in tasks if self.has(task))
            self.left_out = tuple(task for task in tasks if task not in self.tasks)
            if not self.tasks:
                raise self._no_run(", ".join(tasks))

    @property
    def read(self) -> tuple[Run, ...]:
        """The runs that were used, in order of first use."""
        return tuple(self._read.values())

    def each_task(self, what: str) -> Iterator[str]:
        """Yield the tasks, and report progress after each."""
        with self.progress.stage(what, len(self.tasks)) as advance:
            for task in self.tasks:
                yield task
                advance(1)

    def data(self, task: str) -> Path | None:
        """Return where a task's rows are; None on the hub.

        Raises:
            OptionError: If the user's folder has nothing of that name.
        """
        root = self.options.data
        if root is None:
            return None
        found = [path for path in (root / task, *sorted(root.glob(f"{task}.*"))) if path.exists()]
        if not found:
            there = ", ".join(sorted(path.name for path in root.iterdir())) if root.is_dir() else ""
            raise OptionError(
                f"--data {root} holds no {task}: it must be a folder with a folder or a file for each task"
                + (f", and holds {there}" if there else "")
            )
        return found[0]

    def run(self, task: str, *, seed: int = 0, **changes: Any) -> Run:  # noqa: ANN401  options of a fit
        """Return a finished run of these options: one that exists in the folder of runs, or a new one.

        Raises:
            DataError: If the data cannot be used; and what a fit raises.
        """
        if self.options.fitted:
            run = self._as_found(task, seed, changes)
            if run is None:
                raise self._no_run(f"{task} with seed {seed}")
        else:
            run = self._made(task, seed, changes)
        self._read[run.folder] = run
        return run

    def _made(self, task: str, seed: int, changes: dict[str, Any]) -> Run:
        own = self.options.model_dump(include={"backbone", "pooling", "epochs", "max_rows"})
        # The papers split at random.
        own = {**own, "split": "random", "seed": seed, **changes}
        options = FitOptions(task=task, data=self.data(task), **own)
        run = self._existing(options)
        if run is None:
            with needs_training():
                from dimec import training
            folder = self._free_folder(options, changes)
            self.progress.say(
                f"fitting {folder}: no run in {self.options.runs} has these options and rows"
            )
            run = training.fit(options, out=folder, progress=self.progress)
            self._finished.append(run)
        return run

    def has(self, task: str, *, seed: int = 0, **changes: Any) -> bool:  # noqa: ANN401  options of a fit
        """Tell whether `run` has a run of these options, without a fit where none is to be made."""
        return not self.options.fitted or self._as_found(task, seed, changes) is not None

    def _as_found(self, task: str, seed: int, changes: dict[str, Any]) -> Run | None:
        """Return the run of the most rows and epochs, whatever these are."""
        usual: dict[str, Any] = {
            "split": "random",
            "exits": "all",
            "training": "joint",
            "layers": None,
        }
        wanted = usual | {"r_drop": 0.0} | changes | {"seed": seed, "class_weight": "none"}
        pooling = wanted.pop("pooling", self.options.pooling)
        split = wanted.pop("split")  # its kind, whatever the sizes of the parts
        name = Path(self.options.backbone).name
        alike = [
            run
            for run in self._finished
            if run.config.task.name == task
            and run.config.pooling == pooling
            and run.config.split.kind == split
            and Path(run.config.options.backbone).name == name
            and all(getattr(run.config.options, key) == value for key, value in wanted.items())
        ]
        return max(alike, key=lambda run: (len(run.test), run.config.options.epochs), default=None)

    def _no_run(self, what: str) -> OptionError:
        return OptionError(
            f"--fitted: {self.options.runs} holds no run of {what} fitted on {self.options.backbone} with --split "
            f"random and --pooling {self.options.pooling}: leave out --fitted to fit it, or give another --runs"
        )

    def seeds(self, task: str) -> list[Run]:
        """Return a run for each seed: as many as the user asks for, else three, or one where a fit takes long.

        Where nothing is to be fitted, return those there are.
        """
        first = self.run(task)
        usual = 1 if (fit_seconds(first) or 0.0) > LONG_S else USUAL_SEEDS
        wanted = self.options.seeds or (_MOST_SEEDS if self.options.fitted else usual)
        others = (seed for seed in range(1, wanted) if self.has(task, seed=seed))
        return [first, *(self.run(task, seed=seed) for seed in others)]

    def setup(self, run: Run, **options: Any) -> EvaluationSetup:  # noqa: ANN401  the fields of SetupOptions
        """Return what an evaluation of a run reads."""
        return EvaluationSetup.of(run, SetupOptions(**options), progress=self.progress)

    def part(self, name: str, run: Run, make: Callable[[StudyRuns, Run], Any]) -> Any:  # noqa: ANN401  any JSON value
        """Compute a part of the study from a run, or read it if this code has computed it from this run before.

        Args:
            name: What tells it from the study's other parts of the run.
        """
        stamp = {
            "run": run.config.model_dump(mode="json"),
            "tables": [
                hashlib.sha256((run.folder / "exits" / name).read_bytes()).hexdigest()
                for name in ("validation.safetensors", "test.safetensors")
            ],
            "price": self.options.price,
            "code": _code_digest(),
        }
        key = hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:8]
        path = self._parts / f"{name}-{run.config.task.name}-{key}.json"
        try:
            kept = read_json(path, limit=2**30)
            if kept["stamp"] == stamp:
                return kept["value"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        value = make(self, run)
        write_json(path, {"stamp": stamp, "value": value})
        return value

    @cached_property
    def _finished(self) -> list[Run]:
        """The finished runs that the folder of runs holds."""
        found = []
        for path in sorted(self.options.runs.glob("*/config.json")):
            try:
                found.append(Run.open(path.parent))
            except RunError:
                continue  # unfinished, or of another version: no run of ours
        return found

    def _existing(self, options: FitOptions) -> Run | None:
        """Return a finished run of the same options on the same rows, whatever the path of its data."""
        wanted = options.model_dump(exclude=_ELSEWHERE)
        alike = [
            run
            for run in self._finished
            if run.config.options.model_dump(exclude=_ELSEWHERE) == wanted
            and options.pooling in (None, run.config.pooling)
        ]
        if not alike:
            return None
        fingerprint = self._fingerprint(options)
        return next((run for run in alike if run.config.data_fingerprint == fingerprint), None)

    def _fingerprint(self, options: FitOptions) -> str:
        """Return the fingerprint of a fit's rows, read once per task, and per seed where ``max_rows`` draws some."""
        key = (options.task, options.seed if options.max_rows is not None else None)
        if key not in self._fingerprints:
            with needs_training():
                from dimec.training.prepare import read_dataset
            dataset, _ = read_dataset(options)
            self._fingerprints[key] = dataset.fingerprint
        return self._fingerprints[key]

    def _free_folder(self, options: FitOptions, changes: dict[str, Any]) -> Path:
        """Return a folder for a run: that of an unfinished run of the same options, else a free one."""
        parts = [options.task, *(str(value) for value in changes.values())]
        if options.seed:
            parts.append(f"seed{options.seed}")
        for number in range(1, 1000):
            name = "-".join(parts if number == 1 else [*parts, str(number)])
            folder = self.options.runs / name
            if not folder.exists():
                return folder
            try:
                config = read_config(folder)
            except RunError:
                continue
            if config is not None and config.options == options:
                return folder
        raise OptionError(f"--runs {self.options.runs} holds too many runs: give another folder")


_ELSEWHERE = {"data", "keep_texts", "pooling", "precision"}
"""Options of a fit that say where something is, or that are resolved in the configuration."""


def used_run(run: Run) -> UsedRun:
    """Return a run as a record of a result."""
    config = run.config
    return UsedRun(
        task=config.task.name,
        seed=config.options.seed,
        folder=str(run.folder),
        source=config.source,
        n_validation=len(run.validation),
        n_test=len(run.test),
        metric=config.task.metric,
        backbone=config.options.backbone,
        n_layers=config.n_layers,
        pooling=config.pooling,
        split=config.split.kind,
        seconds=fit_seconds(run),
        code_revision=config.code_revision,
        **config.options.model_dump(
            include={
                "exits",
                "epochs",
                "batch_size",
                "learning_rate",
                "head_learning_rate",
                "max_rows",
            }
        ),
    )


def fit_seconds(run: Run) -> float | None:
    """Return how long a run's epochs took; None where its log does not say."""
    try:
        return float(sum(each["seconds"] for each in run.epochs()))
    except (RunError, KeyError, TypeError):
        return None


@cache
def _code_digest() -> str:
    """Hash the package's code, so that parts which other code computed are computed again."""
    digest = hashlib.sha256()
    root = Path(dimec.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
