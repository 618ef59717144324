"""Whether a full model is worth its layers: validation holds it against answers that need none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import shown
from dimec.core.metrics import Metric, metric_words, paired_differences
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import FitOptions, Run

_SURE = 2.0
"""How many standard errors a difference must exceed to be more than chance."""

_RESAMPLES = 500


def baseline_warnings(run: Run) -> list[str]:
    """Say what `warnings_of` does of a run's validation rows."""
    return warnings_of(run.validation, metric=run.config.task.metric, options=run.config.options)


def warnings_of(
    table: ExitTable, *, metric: Metric, options: FitOptions | None = None, rows: str = "validation"
) -> list[str]:
    """Say whether the full model is no better than the commonest class, and whether words alone beat it.

    Both are in the task's metric; better is what exceeds two standard errors (a paired bootstrap of the rows).

    Args:
        options: What the model was fitted with, where that is known, so that a remedy in use is not named.
    """
    found = (_commonest(table, metric, options, rows), _words(table, metric, rows))
    return [each for each in found if each is not None]


def _commonest(
    table: ExitTable, metric: Metric, options: FitOptions | None, rows: str
) -> str | None:
    counts = np.bincount(table.labels, minlength=table.n_classes)
    common = int(counts.argmax())
    full = table.predictions[:, -1]
    if _surely_better(metric, table, full, np.full_like(full, common)):
        return None
    others = table.labels != common
    right = int((full == table.labels)[others].sum())
    return (
        f"By {metric_words(metric, table.label_names)}, the full model is no better on {rows} than always "
        f"answering {shown(table.label_names[common])}, the class of {counts[common]:,} of the {len(table):,} rows; "
        f"it gets {right:,} of the {int(others.sum()):,} rows of other classes right. {_remedy(metric, options)}"
    )


def _remedy(metric: Metric, options: FitOptions | None) -> str:
    """Name the options that help and are not in use."""
    if options is None or options.class_weight == "none":
        left = ["--class-weight balanced, so that rare classes count in training"]
    else:
        left = ["more --epochs or more labelled rows of rare classes"]
    if metric == "accuracy" or (metric == "f1" and (options is None or options.positive is None)):
        left.append("--metric macro-f1 or --positive LABEL, so that they count in the score")
    return f"Fit with {', and '.join(left)}."


def _words(table: ExitTable, metric: Metric, rows: str) -> str | None:
    if table.exit_zero is None:
        return None
    words, full = table.exit_zero.argmax(axis=1), table.predictions[:, -1]
    if not _surely_better(metric, table, words, full):
        return None
    scores = [100 * table.score(metric, each) for each in (words, full)]
    return (
        f"Words alone beat the full model on {rows}: {scores[0]:.1f} against {scores[1]:.1f} by "
        f"{metric_words(metric, table.label_names)}. The encoder has learnt too little: fit with more --epochs, label "
        "more rows, or deploy words alone."
    )


def _surely_better(
    metric: Metric, table: ExitTable, ours: NDArray[np.int64], theirs: NDArray[np.int64]
) -> bool:
    """Tell whether answers score better than others, beyond chance."""
    difference = table.score(metric, ours) - table.score(metric, theirs)
    if difference <= 0:
        return False
    drawn = paired_differences(
        metric,
        table.labels,
        [ours],
        theirs,
        n_classes=table.n_classes,
        rng=np.random.default_rng(0),
        n=_RESAMPLES,
    )
    return difference > _SURE * float(drawn.std())
