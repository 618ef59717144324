"""The verbs of the command line as Python functions: `fit` and `evaluate`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from dimec.complexity import Spread
from dimec.costs import DEFAULT_PRICE, CostModel
from dimec.errors import MissingExtraError, OptionError, RunError
from dimec.evaluation import Evaluation
from dimec.evaluation import evaluate as evaluate_table
from dimec.policies import Calibration, fit_policies
from dimec.progress import SILENT, Progress
from dimec.runs import FitOptions, Run
from dimec.tiers import Depths, Method, method_depths

if TYPE_CHECKING:
    from dimec.training import SearchResult

_TRAINING_NEEDS = {"torch", "transformers", "tokenizers", "huggingface_hub", "pyarrow", "datasets"}


def fit(
    task: str,
    *,
    out: str | Path,
    restart: bool = False,
    progress: Progress = SILENT,
    **options: Any,  # noqa: ANN401  the fields of FitOptions
) -> Run:
    """Train a multi-exit encoder on a task and return its run folder; resumes a fit that was killed.

    Args:
        task: A registered task, or a name of your own for the data you give.
        out: The run's folder.
        restart: Replace what the folder holds.
        progress: Is told what happens.
        **options: Any field of `dimec.runs.FitOptions`, such as ``data``, ``backbone`` or ``epochs``.

    Raises:
        DataError: If the data cannot be used.
        OptionError: If an option is not allowed.
        MissingExtraError: If the training extra is not installed.
    """
    with _needs_training():
        from dimec import training
    return training.fit(
        fit_options(task=task, **options), out=out, restart=restart, progress=progress
    )


def search(
    task: str,
    *,
    out: str | Path,
    restart: bool = False,
    progress: Progress = SILENT,
    **options: Any,  # noqa: ANN401  the fields of FitOptions
) -> SearchResult:
    """Fit the papers' grid of batch sizes and learning rates and return the run that validation prefers.

    Takes what `fit` takes, and raises what it raises.
    """
    with _needs_training():
        from dimec import training
    return training.search(
        fit_options(task=task, **options), out=out, restart=restart, progress=progress
    )


def evaluate(
    run: Run | str | Path,
    *,
    data: str | Path | None = None,
    policies: Sequence[str] = (),
    costs: CostModel | None = None,
    price: float = DEFAULT_PRICE,
    spread: Spread = "deviation",
    mobile_layers: int | None = None,
    edge_layers: int | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    skip_empty: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Evaluation:
    """Fit policies on a run's validation split and replay them over its test split, or over a data set of yours.

    Args:
        run: A finished run or its folder.
        data: A labelled file or folder; without it, the held-out test split.
        policies: Names from `dimec.policies.POLICIES`; all of them where none is given.
        costs: The cost model; the papers' by default.
        price: What the full model on the mobile device costs in units of confidence.
        spread: What beta is held against in data cartography: the standard deviation, or the variance.
        mobile_layers: The mobile tier's last layer, instead of the run's.
        edge_layers: The edge tier's last layer, instead of the run's.
        text_column: Column of ``data`` with the (first) text.
        pair_column: Column of ``data`` with the second text.
        label_column: Column of ``data`` with the label.
        skip_empty: Leave out rows of ``data`` without text instead of stopping at them.
        seed: For the random policy, bootstrap and shuffles.
        progress: Is told what happens.

    Raises:
        RunError: If there is no finished run, or its model is too small for three tiers.
        OptionError: If a policy or a depth is unknown.
        DataError: If ``data`` cannot be used.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    depths = _depths(run, mobile_layers=mobile_layers, edge_layers=edge_layers)
    costs = costs or CostModel()
    names = [name for name in policies if name != "all"]
    calibration = Calibration(
        run.validation, depths, costs=costs, price=price, spread=spread, seed=seed
    )
    fitted = fit_policies(calibration, names)
    task = run.config.task
    if data is None:
        table = run.test
        source = f"test split ({run.config.options.split}) of {run.config.source}"
    else:
        with _needs_training():
            from dimec.data import load_dataset
            from dimec.training import tabulate_dataset
        dataset = load_dataset(
            task.name,
            data=data,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            label_names=task.label_names,
            min_classes=1,
            skip_empty=skip_empty,
        )
        if (dataset.second is not None) != task.pairs:
            raise OptionError(
                f"--data {data} holds {'pairs of texts' if dataset.second else 'single texts'}, but the run was "
                f"fitted on {'pairs' if task.pairs else 'single texts'}: name the columns with --text-column"
                f"{' and --pair-column' if task.pairs else ''}"
            )
        table = tabulate_dataset(run, dataset, progress=progress)
        source = dataset.source
    with progress.stage("Replaying", len(fitted)) as advance:
        return evaluate_table(
            table,
            fitted,
            task=task.name,
            source=source,
            metric=task.metric,
            costs=costs,
            price=price,
            seed=seed,
            done=lambda: advance(1),
        )


def fit_options(**options: Any) -> FitOptions:  # noqa: ANN401  the fields of FitOptions
    """Check options for a fit.

    Raises:
        OptionError: If one is unknown or not allowed.
    """
    try:
        return FitOptions(**options)
    except ValidationError as exc:
        fault = exc.errors()[0]
        name = "--" + str(fault["loc"][0]).replace("_", "-")
        raise OptionError(
            f"{name} {fault['input']}: {fault['msg'][0].lower()}{fault['msg'][1:]}"
        ) from exc


def _depths(
    run: Run, *, mobile_layers: int | None, edge_layers: int | None
) -> dict[Method, Depths]:
    """Return the run's depths, or those that the user asks for, each with an exit to read."""
    if not run.config.depths:
        layers = (
            "1 layer makes" if run.config.n_layers == 1 else f"{run.config.n_layers} layers make"
        )
        raise RunError(
            f"{run.folder} cannot be evaluated alone, since {layers} no three tiers: give it to the evaluation of "
            "another run, as --mobile-model or --edge-model"
        )
    depths = dict(run.config.depths)
    if mobile_layers is not None or edge_layers is not None:
        for method, own in depths.items():
            depths[method] = method_depths(
                method,
                run.config.n_layers,
                mobile=mobile_layers or own.mobile,
                edge=edge_layers or own.edge,
            )
    for each in depths.values():
        for layer in (each.mobile, each.edge):
            if layer not in run.config.exits:
                raise OptionError(
                    f"no exit after layer {layer}: this run has exits after layers {list(run.config.exits)}; "
                    "choose among them, or fit with --exits all"
                )
    return depths


@contextmanager
def _needs_training() -> Iterator[None]:
    """Translate a missing package of the training extra into the one sentence that installs it."""
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in _TRAINING_NEEDS:
            raise
        raise MissingExtraError("training, or tabulating new data,", "train") from exc
