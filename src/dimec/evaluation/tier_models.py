"""Classifiers that hold a tier in place of a prefix of a run's encoder: their exit tables and what a layer costs.

Such a model is another run, or any sequence classifier in Hugging Face's layout. Another run that was fitted on the
same splits has its tables already, so that reading them needs no torch; everything else is tabulated on the run's
own texts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dimec.core.errors import InputError, OptionError, RunError
from dimec.core.extras import needs_training
from dimec.core.files import check_readable
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import Depths, Tier
from dimec.core.untrusted import read_json
from dimec.evaluation.cuts import Cut
from dimec.policies import Calibration
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run

if TYPE_CHECKING:
    from dimec.data import TextDataset

SplitName = Literal["validation", "test"]
SPLITS: tuple[SplitName, ...] = ("validation", "test")

_ALLOWED = "the folder of a run, a folder with a Hugging Face sequence classifier, or a classifier's name on the hub"
# Their feed-forward part has a gate: a third matrix of hidden times intermediate size.
_GATED = {"modernbert"}


@dataclass(frozen=True, eq=False)
class TierModel:
    """A classifier that holds a tier in place of a prefix of a run's encoder.

    Attributes:
        validation: Its exit table on the run's validation rows, in their order; with training dynamics where it is
            a run whose own validation split has these very rows.
        table: Its exit table on the rows that are evaluated.
        layer_work: What one of its layers costs, as a multiple of one layer of the run's encoder: the ratio of their
            weights. An estimate: time also depends on lengths, engine and device.
    """

    name: str
    validation: ExitTable
    table: ExitTable
    layer_work: float


def read_tier_model(
    run: Run,
    name: str | Path,
    *,
    option: str,
    kind: str = "",
    dataset: TextDataset | None = None,
    progress: Progress = SILENT,
) -> TierModel:
    """Read the classifier that is to hold a tier, and what it says about a run's validation and evaluated rows.

    Args:
        name: Another run's folder, a folder with a Hugging Face sequence classifier, or such a classifier's hub name.
        option: The flag that named it, such as ``--mobile-model``, for messages.
        kind: ``run`` or ``hf``, which says what it is; by default its config does.
        dataset: The rows that are evaluated, where they are not the run's test split.

    Raises:
        OptionError: If it has other classes, was trained on rows that it would be judged on, cannot be read, or if the
            run keeps no texts to tabulate.
        RunError: If a run's folder is unfinished or damaged.
        UnreachableError: If the hub cannot be reached or does not have it.
        MissingExtraError: If rows have to be tabulated and the training extra is not installed.
    """
    reader = _Reader(run, str(name), option, dataset, progress)
    folder = Path(name).expanduser()
    if kind == "run" or (kind != "hf" and folder.is_dir() and _holds_run(folder, option=option)):
        return reader.from_run(Run.open(folder))
    return reader.from_classifier()


def with_models(
    calibration: Calibration, cuts: Sequence[Cut], models: Mapping[Tier, TierModel]
) -> tuple[Calibration, list[Cut]]:
    """Return a calibration and cuts for tiers of which some hold another model, which is run to its end there."""
    if not models:
        return calibration, list(cuts)
    last: dict[str, Any] = {str(tier): each.validation.n_layers for tier, each in models.items()}
    work: dict[str, Any] = {f"{tier}_work": each.layer_work for tier, each in models.items()}

    def held(cut: Cut) -> Cut:
        return {method: replace(own, **last) for method, own in cut.items()}

    made = replace(
        calibration,
        depths=held(calibration.depths),
        costs=replace(calibration.costs, **work),
        models={tier: each.validation for tier, each in models.items()},
    )
    unlike: dict[Depths, Cut] = {}
    for cut in map(held, cuts):
        unlike.setdefault(cut["ee"], cut)
    return made, list(unlike.values())


def layer_weights(config_file: Path, *, fault: type[InputError]) -> int:
    """Count the weights of one encoder layer, 4 h² + 2 h i: hidden size h, intermediate size i; biases left out.

    ``config_file`` is a Hugging Face model's; ``fault`` is raised where it cannot be read.
    """
    config = _read_json(config_file)
    if not isinstance(config, dict):
        raise fault(f"{config_file} is missing or is not the config of a Hugging Face model")
    hidden, intermediate = (
        next((config[key] for key in keys if type(config.get(key)) is int), 0)
        for keys in (("hidden_size", "dim", "d_model"), ("intermediate_size", "hidden_dim"))
    )
    if hidden < 1 or intermediate < 1:
        raise fault(
            f"{config_file} does not say how wide a layer is (hidden and intermediate size)"
        )
    matrices = 3 if config.get("model_type") in _GATED else 2
    return int(4 * hidden**2 + matrices * hidden * intermediate)


def _layer_work(run: Run, config_file: Path, *, fault: type[InputError]) -> float:
    """Return what a layer of the model with this config costs, as a multiple of a layer of the run's encoder."""
    own = layer_weights(run.model_folder / "config.json", fault=RunError)
    return layer_weights(config_file, fault=fault) / own


def _holds_run(folder: Path, *, option: str) -> bool:
    """Tell a run's folder from one with a Hugging Face model."""
    if (folder / "exits.json").is_file():
        raise OptionError(f"{option} {folder} is the model inside a run: give the run's own folder")
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict) or not {"model_type", "options"} & set(config):
        raise OptionError(
            f"{option} {folder} holds no config.json of a run or of a Hugging Face model: give {_ALLOWED}"
        )
    return "model_type" not in config


@dataclass(frozen=True, eq=False)
class _Reader:
    """Reads the classifier that an option names."""

    run: Run
    name: str
    option: str
    dataset: TextDataset | None
    progress: Progress

    def from_run(self, other: Run) -> TierModel:
        """Read another run: its saved tables where they are of the same rows, the rest by tabulating."""
        self._check_task(other)
        layer_work = _layer_work(self.run, other.model_folder / "config.json", fault=RunError)
        judged = SPLITS if self.dataset is None else SPLITS[:1]
        saved = self._saved_tables(other, splits=judged)
        if not _same_source(self.run, other):
            self.progress.warn(
                f"{self.option} {self.name} was fitted on other data ({other.config.source}): nothing tells whether "
                "it was trained on rows that it is judged on"
            )
        elif len(saved) < len(judged):
            self._check_leakage(other, splits=judged)
        tables = dict(saved)
        if len(saved) < len(SPLITS):
            with needs_training():
                from dimec.training import tabulate_dataset
            for split, rows in self._texts(set(SPLITS) - set(saved)).items():
                tables[split] = tabulate_dataset(other, rows, progress=self.progress)
        for split, table in tables.items():
            if table.label_names != self.run.config.task.label_names:
                raise RunError(
                    f"the {split} table or the model of {other.folder} has other classes than its config.json: "
                    "it was altered, fit it again"
                )
        return TierModel(self.name, tables["validation"], tables["test"], layer_work)

    def from_classifier(self) -> TierModel:
        """Read a sequence classifier and tabulate it."""
        with needs_training():
            from dimec.training.classifier import load_classifier
            from dimec.training.model.checkpoint import Purpose
            from dimec.training.tabulate import tabulate_texts
        texts = self._texts(SPLITS)
        loaded = load_classifier(
            self.name,
            label_names=self.run.config.task.label_names,
            purpose=Purpose(
                "classifier",
                f"offline, give {self.option} a folder that is here: a run's, or a Hugging Face sequence classifier's",
            ),
            progress=self.progress,
        )
        self.progress.warn(
            f"{self.option} {self.name} was not fitted by dimec: nothing tells whether it was trained on rows that it "
            "is judged on"
        )
        layer_work = _layer_work(self.run, loaded.folder / "config.json", fault=OptionError)
        config = self.run.config
        tables = {
            split: tabulate_texts(
                loaded,
                rows,
                max_length=config.max_length,
                cut=config.options.cut,
                progress=self.progress,
            )
            for split, rows in texts.items()
        }
        return TierModel(self.name, tables["validation"], tables["test"], layer_work)

    def _texts(self, lacking: Collection[SplitName]) -> dict[SplitName, TextDataset]:
        """Read the texts to tabulate; the evaluated rows stand in for the test split where they are given.

        Raises:
            OptionError: If the run kept no texts.
        """
        found: dict[SplitName, TextDataset] = {}
        for split in sorted(lacking, key=SPLITS.index):
            rows = self.dataset if split == "test" else None
            if rows is None:
                if not (self.run.folder / "texts.parquet").exists():
                    raise OptionError(
                        f"{self.option} {self.name} has to read the texts of {self.run.folder}, which keeps none (no "
                        f"texts.parquet): fit that run without --no-texts, or give {self.option} a run of the same "
                        "data and splits"
                    )
                with needs_training():
                    from dimec.training.texts import split_texts
                rows = split_texts(self.run, split)
            self.progress.say(f"{self.option} {self.name}: reading {rows.source}")
            found[split] = rows
        return found

    def _check_task(self, other: Run) -> None:
        """Refuse a run that answers another question."""
        ours, theirs = self.run.config.task, other.config.task
        if theirs.label_names != ours.label_names:
            raise OptionError(
                f"{self.option} {self.name} was fitted on the classes {', '.join(theirs.label_names)}, but "
                f"{self.run.folder} on {', '.join(ours.label_names)}: give a run with the same classes in the same "
                "order"
            )
        if theirs.pairs != ours.pairs:
            kinds = {True: "pairs of texts", False: "single texts"}
            raise OptionError(
                f"{self.option} {self.name} was fitted on {kinds[theirs.pairs]}, but {self.run.folder} on "
                f"{kinds[ours.pairs]}: give a run on {kinds[ours.pairs]}"
            )

    def _saved_tables(
        self, other: Run, *, splits: Sequence[SplitName]
    ) -> dict[SplitName, ExitTable]:
        """Return the other run's saved tables of those splits that hold the same rows in both runs."""
        saved: dict[SplitName, ExitTable] = {}
        if self.run.config.data_fingerprint != other.config.data_fingerprint:
            return saved
        for split in splits:
            ours, theirs = self.run.table(split), other.table(split)
            if not np.array_equal(ours.row_ids, theirs.row_ids):
                continue
            if not np.array_equal(ours.labels, theirs.labels):
                raise RunError(
                    f"the {split} tables of {self.run.folder} and {other.folder} give the same rows different labels: "
                    "one of them was altered, fit both again"
                )
            saved[split] = theirs
        return saved

    def _check_leakage(self, other: Run, *, splits: Sequence[SplitName]) -> None:
        """Refuse a run that was trained on rows that it would be judged on."""
        judged_on = np.concatenate([self.run.table(split).row_ids for split in splits])
        shared = int(np.isin(judged_on, other.splits["train"]).sum())
        if shared:
            own = self.run.config.options
            max_rows = "no --max-rows" if own.max_rows is None else f"--max-rows {own.max_rows}"
            raise OptionError(
                f"{self.option} {self.name} was trained on {shared:,} of the {len(judged_on):,} rows "
                f"({' and '.join(splits)} split of {self.run.folder}) that it would be judged on: fit it with the "
                f"same splits, --seed {own.seed}, --split {own.split} and {max_rows}"
            )


def _same_source(run: Run, other: Run) -> bool:
    """Tell whether row ids of both runs count the same rows.

    A fingerprint is taken of the rows that --max-rows left, so where a run has drawn some, the source's name decides.
    """
    if run.config.data_fingerprint == other.config.data_fingerprint:
        return True
    drawn = any(each.config.options.max_rows is not None for each in (run, other))
    return drawn and run.config.source == other.config.source


def _read_json(path: Path) -> Any:  # noqa: ANN401  any JSON value
    """Return what a JSON file holds; None where it is missing or damaged."""
    check_readable(path, fault=RunError)
    try:
        return read_json(path, limit=2**30)
    except (OSError, ValueError):
        return None
