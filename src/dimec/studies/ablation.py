"""Study `ablation`: the effect of one choice at a time on DIMEC-DC and DIMEE with fixed centroids.

Every variant is measured on a run's test split beside its controls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import RunError
from dimec.core.extras import needs_training
from dimec.core.files import check_readable
from dimec.core.options import Spread
from dimec.core.progress import SILENT, Progress
from dimec.costs.model import CostModel
from dimec.evaluation.rows import evaluate
from dimec.policies import POLICIES, Calibration, Searched, fit_policies
from dimec.policies.adaee import THRESHOLDS, AdaEe
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import against_full, evaluation_rows, notes_on
from dimec.studies.study_runs import StudyRuns

FEWER_EPOCHS = 3
POLICY_NAMES = ("dimec-dc-fixed", "dimee-fixed")
PRICES = (0.05, 0.1, 0.2, 0.5)
CLOUD_LAYERS = (0.5, 1.0, 2.0, 3.0)
N_COMPONENTS = 64

Embeddings = NDArray[np.float32]
Transform = Callable[[Embeddings], Embeddings]


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to fit and to price both methods."""

    group: str  # what is varied
    name: str
    price: float
    spread: Spread = "deviation"
    costs: CostModel = field(default_factory=CostModel)
    transform: Callable[[Embeddings], Transform] | None = None  # made from validation's embeddings
    on_training_rows: bool = False  # makes the pools of them, at the thresholds of validation
    norms: bool = False  # takes the lengths of tokens' embeddings for one, as DIMEE's code does
    arms: tuple[float, ...] = ()  # AdaEE's thresholds: it is measured in place of the methods


@Study
def ablation(runs: StudyRuns, found: Findings) -> None:
    """Measure every variant on every task."""
    price = runs.options.price
    rows: list[dict[str, Any]] = []
    for task in runs.each_task("Ablation"):
        run = runs.run(task)
        own = [
            each
            for each in variants(price)
            if run.model_folder.exists() or not (each.on_training_rows or each.norms)
        ]
        measured = runs.part("variants", run, partial(_measure, variants=own))
        for group, name, changes in _refits(runs):
            if not runs.has(task, **changes):
                continue
            run = runs.run(task, **changes)
            refit = partial(_measure, variants=[Variant(group, name, price)])
            measured += runs.part(f"refit-{group.replace(' ', '-')}", run, refit)
        rows += [{"task": task, "section": f"{task}: {row['group']}", **row} for row in measured]
    found.add("ablation", rows)
    for task in runs.tasks:
        found.add("ablation-{task}", [row for row in rows if row["task"] == task], task=task)
    found.note()
    found.notes += notes_on(runs)


def _refits(runs: StudyRuns) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the variants that need a fit: what is varied, the variant, and the options of its fit."""
    chosen = runs.options
    groups: dict[tuple[str, str], list[Any]] = {
        ("epochs", "epochs of the fit"): [chosen.epochs, FEWER_EPOCHS],
        ("exits", "where exits are"): ["all", "tiers"],
        ("split", "how rows are split"): ["random", "grouped"],
        ("pooling", "what an exit looks at"): [chosen.pooling, "attention", "pooler"],
        ("exit_weights", "what exits weigh in training"): ["equal", "depth"],
    }
    for (option, group), values in groups.items():
        for value in dict.fromkeys(values):
            yield group, _marked(f"{value}", value == values[0]), {option: value}


def variants(price: float) -> Iterator[Variant]:
    """Yield every variant of one run. Each group includes the usual choice."""
    usual = Variant("", "", price)
    for name, transform in TRANSFORMS.items():
        yield replace(usual, group="what an embedding is", name=name, transform=transform)
    yield replace(usual, group="what an embedding is", name="lengths of the tokens'", norms=True)
    for step, arms in (("0.1 (usual)", THRESHOLDS), ("0.2", THRESHOLDS[::2])):
        yield replace(usual, group="AdaEE's arms", name=f"step of {step}", arms=arms)
    beta, whose = "what beta is compared with", "whose pools"
    yield replace(usual, group=beta, name="standard deviation (usual)")
    yield replace(usual, group=beta, name="variance", spread="variance")
    yield replace(usual, group=whose, name="validation rows (usual)")
    yield replace(usual, group=whose, name="training rows", on_training_rows=True)
    for each in PRICES:
        yield replace(usual, group="price", name=_marked(f"{each:g}", each == price), price=each)
    for each in CLOUD_LAYERS:
        yield replace(
            usual,
            group="charge for a cloud layer",
            name=_marked(f"{each:g} lambda", each == usual.costs.cloud_layer),
            costs=CostModel(cloud_layer=each),
        )


def _measure(runs: StudyRuns, run: Run, *, variants: Iterable[Variant]) -> list[dict[str, Any]]:
    """Fit both methods as each variant says and return a row for each."""
    return [row for variant in variants for row in _measure_one(runs, run, variant)]


def _measure_one(runs: StudyRuns, run: Run, variant: Variant) -> Iterator[dict[str, Any]]:
    validation, test = run.validation, run.test
    if variant.transform is not None:
        change = variant.transform(validation.embeddings)
        validation = replace(validation, embeddings=change(validation.embeddings))
        test = replace(test, embeddings=change(test.embeddings))
    if variant.norms:
        with needs_training():
            from dimec.training.tabulate import token_norms
            from dimec.training.texts import RunTexts
        texts = RunTexts(run, progress=runs.progress)
        validation, test = (
            replace(table, embeddings=token_norms(run, rows, progress=runs.progress))
            for table, rows in ((validation, texts.of("validation")), (test, texts.of("test")))
        )
    calibration = Calibration(
        validation,
        run.config.depths,
        costs=variant.costs,
        price=variant.price,
        spread=variant.spread,
    )
    policies = fit_policies(calibration, (AdaEe.name,) if variant.arms else POLICY_NAMES)
    if variant.arms:
        fitted = policies[AdaEe.name]
        settings = {**fitted.settings(), "thresholds": variant.arms}
        policies = {AdaEe.name: AdaEe(fitted.depths, **settings)}
    points = {name: policy.operating_point() for name, policy in policies.items()}
    if variant.on_training_rows:
        there = replace(calibration, table=training_table(run, progress=runs.progress))
        for name, policy in policies.items():
            kind = POLICIES[name]
            assert issubclass(kind, Searched) and policy.search is not None
            policies[name] = kind.at(there, *policy.search.point)
    task = run.config.task
    evaluation = evaluate(
        test,
        policies,
        task=task.name,
        source="test split",
        metric=task.metric,
        costs=variant.costs,
        price=variant.price,
    )
    held = {row["policy"]: row for row in evaluation_rows(evaluation)}
    for name, policy in policies.items():
        point = ", ".join(f"{key} = {value:.3g}" for key, value in points[name].items())
        yield {
            "group": variant.group,
            "variant": variant.name,
            "point": point,
            **held[name],
            **against_full(task.metric, test, policy, variant.costs),
        }


def _marked(name: str, usual: bool) -> str:
    return f"{name} (usual)" if usual else name


def _centred(fitted_on: Embeddings) -> Transform:
    mean = fitted_on.mean(axis=0, dtype=np.float64)
    return lambda embeddings: (embeddings - mean).astype(np.float32)


def _whitened(fitted_on: Embeddings) -> Transform:
    """Project onto the first principal components of the validation split, each scaled to variance 1."""
    mean = fitted_on.mean(axis=0, dtype=np.float64)
    _, singular, components = np.linalg.svd(fitted_on - mean, full_matrices=False)
    kept = min(N_COMPONENTS, int((singular > 1e-6 * singular[0]).sum()))
    scale = np.sqrt(len(fitted_on)) / singular[:kept]
    projection = components[:kept].T * scale
    return lambda embeddings: ((embeddings - mean) @ projection).astype(np.float32)


def _unit(embeddings: Embeddings) -> Embeddings:
    """Scale every embedding to length 1, so that the nearest centroid is nearly that of the largest cosine."""
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: Embeddings = (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


TRANSFORMS: dict[str, Callable[[Embeddings], Transform]] = {
    "mean of tokens (usual)": lambda _: lambda embeddings: embeddings,
    "normalised to length 1": lambda _: _unit,
    "centred": _centred,
    "centred and normalised": lambda fitted_on: lambda each: _unit(_centred(fitted_on)(each)),
    f"whitened, {N_COMPONENTS} components": _whitened,
}
"""What is done to embeddings, made from those of the validation split."""


def training_table(run: Run, *, progress: Progress = SILENT) -> ExitTable:
    """Tabulate a run's training rows.

    Raises:
        OptionError: If the run keeps no texts, and its data are not there any more or are others.
        RunError: If the run's texts, split or dynamics cannot be read, or are about other rows.
    """
    with needs_training():
        from dimec.training import tabulate_dataset
        from dimec.training.texts import RunTexts
    rows = RunTexts(run, progress=progress).of("train")
    table = tabulate_dataset(run, rows, progress=progress)
    return replace(table, dynamics=_training_dynamics(run, table.row_ids))


def _training_dynamics(run: Run, row_ids: NDArray[np.int64]) -> Dynamics:
    """Return the dynamics of training rows, by their ids and in their order."""
    with needs_training():
        import pyarrow as pa
        import pyarrow.parquet as pq
    path = run.folder / "dynamics.parquet"
    exits = run.config.exits
    check_readable(path, fault=RunError)
    try:
        found = pq.read_table(path, filters=[("split", "=", "train")])
        columns = {name: found[name].to_numpy() for name in found.column_names if name != "split"}
        order = np.lexsort((columns["epoch"], columns["row_id"]))
        epochs = len(np.unique(columns["epoch"]))
        ids = columns["row_id"][order][::epochs]
        probability, correct = (
            np.stack([columns[f"{name}_{layer}"][order] for layer in exits], axis=1).reshape(
                len(ids), epochs, len(exits)
            )
            for name in ("true_probability", "correct")
        )
        position = np.minimum(np.searchsorted(ids, row_ids), len(ids) - 1)
        whole = bool((ids[position] == row_ids).all())
    except (OSError, pa.ArrowException, KeyError, ValueError) as exc:
        raise RunError(f"{path} cannot be read: fit the run again") from exc
    if not whole:
        raise RunError(f"{path} does not hold all training rows: fit the run again")
    return Dynamics(probability[position].astype(np.float32), correct[position].astype(np.bool_))
