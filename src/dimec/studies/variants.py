"""Variants of DIMEC-DC and DIMEE, each measured on a run's test split beside its controls."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import RunError
from dimec.core.extras import needs_training
from dimec.core.files import check_readable
from dimec.core.metrics import paired_interval
from dimec.core.progress import SILENT, Progress
from dimec.costs.model import CostModel
from dimec.evaluation import evaluate, replay
from dimec.policies import POLICIES, Calibration, Policy, Searched, fit_policies
from dimec.policies.pools import Spread
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.run import Run
from dimec.studies.measures import evaluation_rows

POLICY_NAMES = ("dimec-dc-fixed", "dimee-fixed")
PRICES = (0.05, 0.1, 0.2, 0.5)
CLOUD_LAYERS = (0.5, 1.0, 2.0, 3.0)
N_COMPONENTS = 64

Embeddings = NDArray[np.float32]
Transform = Callable[[Embeddings], Embeddings]


@dataclass(frozen=True, eq=False)
class Variant:
    """One way to fit and to price both methods.

    Attributes:
        group: What is varied.
        name: The variant.
        price: What the full model on the mobile device costs in units of confidence.
        spread: What beta is compared with.
        costs: The cost model.
        transform: Makes the function that changes embeddings, from those of the validation split.
        on_training_rows: Whether the pools, at the thresholds that validation chose, are made of the training rows.
    """

    group: str
    name: str
    price: float
    spread: Spread = "deviation"
    costs: CostModel = field(default_factory=CostModel)
    transform: Callable[[Embeddings], Transform] | None = None
    on_training_rows: bool = False


def variants(price: float) -> Iterator[Variant]:
    """Yield every variant of one run. Each group includes the usual choice."""
    usual = Variant("", "", price)
    for name, transform in TRANSFORMS.items():
        yield replace(usual, group="what an embedding is", name=name, transform=transform)
    spreads: tuple[tuple[Spread, str], ...] = (
        ("deviation", "standard deviation (usual)"),
        ("variance", "variance"),
    )
    for spread, name in spreads:
        yield replace(usual, group="what beta is compared with", name=name, spread=spread)
    for on_training_rows, name in ((False, "validation rows (usual)"), (True, "training rows")):
        yield replace(usual, group="whose pools", name=name, on_training_rows=on_training_rows)
    for each in PRICES:
        yield replace(usual, group="price", name=_marked(f"{each:g}", each == price), price=each)
    for each in CLOUD_LAYERS:
        yield replace(
            usual,
            group="charge for a cloud layer",
            name=_marked(f"{each:g} lambda", each == usual.costs.cloud_layer),
            costs=CostModel(cloud_layer=each),
        )


def measure(
    run: Run, variant: Variant, *, training_rows: Callable[[], ExitTable] | None = None
) -> list[dict[str, Any]]:
    """Fit both methods as a variant says and return a row for each."""
    validation, test = run.validation, run.test
    if variant.transform is not None:
        change = variant.transform(validation.embeddings)
        validation = replace(validation, embeddings=change(validation.embeddings))
        test = replace(test, embeddings=change(test.embeddings))
    calibration = Calibration(
        validation,
        run.config.depths,
        costs=variant.costs,
        price=variant.price,
        spread=variant.spread,
    )
    policies = fit_policies(calibration, POLICY_NAMES)
    points = {name: policy.operating_point() for name, policy in policies.items()}
    if variant.on_training_rows:
        assert training_rows is not None
        policies = _on(replace(calibration, table=training_rows()), policies)
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
    full = test.predictions[:, -1]
    held = {row["policy"]: row for row in evaluation_rows(evaluation)}
    base = held["bert-on-mobile"]["score"]
    rows = []
    for name, policy in policies.items():
        answers = replay(policy, test, costs=variant.costs).predictions
        low, high = paired_interval(
            task.metric,
            test.labels,
            [answers],
            full,
            n_classes=test.n_classes,
            rng=np.random.default_rng(0),
        )
        point = ", ".join(f"{key} = {value:.3g}" for key, value in points[name].items())
        rows.append(
            {
                "group": variant.group,
                "variant": variant.name,
                "point": point,
                **held[name],
                "against_full": held[name]["score"] - base,
                "against_full_low": low,
                "against_full_high": high,
            }
        )
    return rows


def _on(calibration: Calibration, policies: dict[str, Policy]) -> dict[str, Policy]:
    """Rebuild policies from other rows, at the thresholds they have."""
    found: dict[str, Policy] = {}
    for name, policy in policies.items():
        kind = POLICIES[name]
        assert issubclass(kind, Searched) and policy.search is not None
        found[name] = kind.at(calibration, *policy.search.point)
    return found


def _marked(name: str, usual: bool) -> str:
    return f"{name} (usual)" if usual else name


def as_it_is(_: Embeddings) -> Transform:
    """Leave embeddings as they are."""
    return lambda embeddings: embeddings


def normalised(_: Embeddings) -> Transform:
    """Scale every embedding to length 1, so that the nearest centroid is nearly that of the largest cosine."""
    return _unit


def centred(fitted_on: Embeddings) -> Transform:
    """Subtract the validation split's mean."""
    mean = fitted_on.mean(axis=0, dtype=np.float64)
    return lambda embeddings: (embeddings - mean).astype(np.float32)


def centred_and_normalised(fitted_on: Embeddings) -> Transform:
    """Subtract the mean, then scale to length 1."""
    centre = centred(fitted_on)
    return lambda embeddings: _unit(centre(embeddings))


def whitened(fitted_on: Embeddings) -> Transform:
    """Project onto the first principal components of the validation split, each scaled to variance 1."""
    mean = fitted_on.mean(axis=0, dtype=np.float64)
    _, singular, components = np.linalg.svd(fitted_on - mean, full_matrices=False)
    kept = min(N_COMPONENTS, int((singular > 1e-6 * singular[0]).sum()))
    scale = np.sqrt(len(fitted_on)) / singular[:kept]
    projection = components[:kept].T * scale
    return lambda embeddings: ((embeddings - mean) @ projection).astype(np.float32)


def _unit(embeddings: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit: Embeddings = (embeddings / np.maximum(lengths, 1e-12)).astype(np.float32)
    return unit


TRANSFORMS: dict[str, Callable[[Embeddings], Transform]] = {
    "mean of tokens (usual)": as_it_is,
    "normalised to length 1": normalised,
    "centred": centred,
    "centred and normalised": centred_and_normalised,
    f"whitened, {N_COMPONENTS} components": whitened,
}


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
    return replace(table, dynamics=training_dynamics(run, table.row_ids))


def training_dynamics(run: Run, row_ids: NDArray[np.int64]) -> Dynamics:
    """Return the dynamics of training rows, by their ids and in their order.

    Raises:
        RunError: If ``dynamics.parquet`` cannot be read or does not hold them.
    """
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
