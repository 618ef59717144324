"""Scores from confusion matrices, so that one formula serves samples, bootstraps and mixtures alike.

Resampling rows with replacement is the same as drawing the cells of their confusion matrix from a multinomial, which
makes a bootstrap of 40,000 samples as cheap as one of forty.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from dimec.core.errors import OptionError, shown

MetricName = Literal["accuracy", "f1", "macro-f1", "balanced-accuracy", "matthews"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)

_F1_OF = re.compile("f1:(0|[1-9][0-9]{0,5})")


def _known(metric: str) -> str:
    if metric not in METRICS and not _F1_OF.fullmatch(metric):
        raise ValueError(f"it must be {', '.join(METRICS)}, or f1:CLASS with a class's number")
    return metric


Metric = Annotated[str, AfterValidator(_known)]
"""What a task is scored by: a metric's name, or ``f1:K`` for the F1 of class K, counted from 0."""

N_RESAMPLES = 2000

_NOTHING = 1e-12
"""What a sum of fractions may differ from zero by rounding."""


def confusion(
    labels: NDArray[np.integer], predictions: NDArray[np.integer], *, n_classes: int
) -> NDArray[np.int64]:
    """Count samples by true class (rows) and predicted class (columns): [classes, classes]."""
    cells = np.asarray(labels, dtype=np.int64) * n_classes + predictions
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def score(metric: Metric, matrix: NDArray[np.number]) -> NDArray[np.float64]:
    """Score confusion matrices [..., classes, classes], which may hold fractions: [...].

    ``f1`` is that of class 1 where there are two classes (GLUE's), the mean over all classes otherwise; ``f1:K`` is
    that of class K. ``macro-f1`` is the mean F1 over the classes that occur as label or as answer,
    ``balanced-accuracy`` the mean recall over the classes that occur as label, as scikit-learn has them. ``matthews``
    is the multi-class coefficient. All are 0 where they would divide by zero.

    Raises:
        OptionError: If the metric is unknown, or there is no class K.
    """
    matrix = np.asarray(matrix, dtype=np.float64)
    total = matrix.sum(axis=(-2, -1))
    hits = np.diagonal(matrix, axis1=-2, axis2=-1)
    truth, guesses = matrix.sum(axis=-1), matrix.sum(axis=-2)
    if metric == "accuracy":
        return _ratio(hits.sum(axis=-1), total)
    if metric == "balanced-accuracy":
        return _ratio(_ratio(hits, truth).sum(axis=-1), (truth > _NOTHING).sum(axis=-1))
    f1 = _ratio(2 * hits, truth + guesses)
    if metric == "macro-f1":
        return _ratio(f1.sum(axis=-1), (truth + guesses > _NOTHING).sum(axis=-1))
    if metric == "f1" and matrix.shape[-1] != 2:
        mean: NDArray[np.float64] = f1.mean(axis=-1)
        return mean
    if (positive := _positive(metric)) is not None:
        if positive >= matrix.shape[-1]:
            raise OptionError(
                f"the metric {metric} is of a class that these {matrix.shape[-1]} classes lack"
            )
        of_class: NDArray[np.float64] = f1[..., positive]
        return of_class
    if metric == "matthews":
        covariance = hits.sum(axis=-1) * total - (truth * guesses).sum(axis=-1)
        spread = (total**2 - (truth**2).sum(axis=-1)) * (total**2 - (guesses**2).sum(axis=-1))
        return _ratio(covariance, np.sqrt(np.maximum(spread, 0.0)))
    raise OptionError(f"unknown metric {shown(metric)}: choose one of {', '.join(METRICS)}")


def f1_of(positive: int) -> Metric:
    """Return the metric that is the F1 of a class, counted from 0."""
    return f"f1:{positive}"


def metric_words(metric: Metric, label_names: Sequence[str]) -> str:
    """Name a metric for a reader: the class of an F1 by its name."""
    of_class = _F1_OF.fullmatch(metric)
    return f"f1 of {label_names[int(of_class[1])]}" if of_class else metric


def _positive(metric: Metric) -> int | None:
    """Return the class that an F1 is of, None for another metric."""
    of_class = _F1_OF.fullmatch(metric)
    return int(of_class[1]) if of_class else (1 if metric == "f1" else None)


def bootstrap_interval(
    metric: Metric, matrix: NDArray[np.number], *, rng: np.random.Generator, n: int = N_RESAMPLES
) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a score over ``n`` resamples of the samples.

    The matrix may be a mean over several rounds on the same samples.
    """
    cells = np.asarray(matrix, dtype=np.float64)
    drawn = rng.multinomial(round(cells.sum()), cells.ravel() / cells.sum(), size=n)
    return interval(score(metric, drawn.reshape(n, *matrix.shape)))


def drops(
    metric: Metric,
    labels: NDArray[np.integer],
    answers: NDArray[np.integer],
    base: NDArray[np.integer],
    *,
    n_classes: int,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return score(base) less the score of each of several answers [ways, n], in points: [ways].

    ``labels`` and ``base`` are [n]; ``weights`` [n] say how much each sample counts, None all alike.
    """
    n_ways, n_cells = len(answers), n_classes**2
    cells = labels * n_classes + np.concatenate([answers, base[None]])
    cells = cells + n_cells * np.arange(n_ways + 1)[:, None]
    each = None if weights is None else np.tile(weights, n_ways + 1)
    counts = np.bincount(cells.ravel(), each, minlength=n_cells * (n_ways + 1))
    scores = score(metric, counts.reshape(-1, n_classes, n_classes))
    lost: NDArray[np.float64] = 100 * (scores[-1] - scores[:-1])
    return lost


def paired_differences(
    metric: Metric,
    labels: NDArray[np.integer],
    answers: Sequence[NDArray[np.integer]],
    base: NDArray[np.integer],
    *,
    n_classes: int,
    rng: np.random.Generator,
    n: int = N_RESAMPLES,
    weights: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return mean score(answers) - score(base) on ``n`` resamples of the same samples: [n].

    ``labels``, ``base`` and each of ``answers`` (replays of one rule) are classes [samples]. Samples with the same
    label and the same answers are alike, so resampling rows is drawing their counts. ``weights`` [samples] go with
    their rows, which are then drawn themselves.
    """
    columns = np.stack([labels, base, *answers], axis=1)
    kinds, kind, counts = np.unique(columns, axis=0, return_inverse=True, return_counts=True)
    if weights is None:
        drawn = rng.multinomial(len(labels), counts / counts.sum(), size=n)
    else:
        draws = (rng.integers(len(labels), size=len(labels)) for _ in range(n))
        drawn = np.stack([np.bincount(kind[at], weights[at], len(kinds)) for at in draws])
    scores = []
    for column in range(1, columns.shape[1]):
        cells = np.zeros((len(kinds), n_classes**2))
        cells[np.arange(len(kinds)), kinds[:, 0] * n_classes + kinds[:, column]] = 1
        scores.append(score(metric, (drawn @ cells).reshape(n, n_classes, n_classes)))
    differences: NDArray[np.float64] = np.mean(scores[1:], axis=0) - scores[0]
    return differences


def effective_size(weights: NDArray[np.float64]) -> float:
    """Return how many rows of equal weight tell as much as these (Kish, 1965): (sum w)^2 / sum w^2."""
    return float(weights.sum() ** 2 / (weights**2).sum())


def interval(scores: NDArray[np.float64]) -> tuple[float, float]:
    """Return the range that holds the middle 95 % of scores [n]."""
    low, high = np.quantile(scores, (0.025, 0.975))
    return float(low), float(high)


def auc(ranking: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the chance that a positive sample has a larger ``ranking`` [n] than a negative one, ties counting half.

    None where all samples are positive, or all negative.
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    _, place, counts = np.unique(ranking, return_inverse=True, return_counts=True)
    mean_rank = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = mean_rank[place][positive].sum()
    return float((rank_sum - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(ranking: NDArray[np.floating], positive: NDArray[np.bool_]) -> float | None:
    """Return the mean precision over recall where samples are taken from the largest ``ranking`` [n] down.

    The precision at each different value counts by the recall that is gained there, as scikit-learn has it. None
    without a positive sample.
    """
    n_positive = int(positive.sum())
    if not n_positive:
        return None
    order = np.argsort(-ranking, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(ranking[order])), len(order) - 1)
    found = positive[order].cumsum()[ends]
    return float((np.diff(found, prepend=0) * found / (ends + 1)).sum() / n_positive)


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide, with 0 where nothing is below (up to the rounding of a sum of fractions)."""
    zero = below <= _NOTHING
    quotient: NDArray[np.float64] = np.where(zero, 0.0, above / np.where(zero, 1.0, below))
    return quotient
