"""Fitting exit zero on the training split: logistic regression on hashed token n-grams, and a dense part beside it.

Whether inverse document frequencies help, how far weights are held back, and whether the dense part stays, is chosen on
a tenth of the training rows that the others were fitted without, so that validation and test rows choose nothing here.
The dense part learns beside what n-grams say of rows that they were not fitted to, by four folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from dimec.core.progress import SILENT, Progress
from dimec.runs.exit_zero import N_BUCKETS, ExitZero, features
from dimec.training.dense_part import DenseRows, fit_dense, untrained

STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""Inverse strengths of regularisation to choose from."""

_CHOOSING_ROWS = 50_000
_MAX_ITERATIONS = 300
_FOLDS = 4
_SCALES = np.geomspace(0.25, 4, 17)
_NEVER = -20.0


def fit_exit_zero(
    input_ids: Sequence[NDArray[np.integer]],
    labels: NDArray[np.int64],
    *,
    n_classes: int,
    frame: Sequence[int],
    pairs: bool,
    seed: int,
    class_weights: Sequence[float] | None = None,
    groups: NDArray[np.int64] | None = None,
    dense: tuple[NDArray[np.float32], NDArray[np.float64]] | None = None,
    progress: Progress = SILENT,
) -> ExitZero:
    """Fit exit zero to the training rows' token ids, special tokens included, and labels [n].

    Args:
        groups: [n], rows that must not choose what was fitted to others of their group; None for none.
        dense: What the trained encoder makes of each token, [vocabulary, width], and what the dense part learns of the
            rows, probabilities [n, classes]; None for no dense part.
    """
    tokens = tuple(frame)
    counts = _counted([features(ids, frame=tokens, pairs=pairs) for ids in input_ids])
    weights = np.asarray(class_weights or [1.0] * n_classes)[labels]
    rows = np.random.default_rng(seed).permutation(len(labels))[:_CHOOSING_ROWS]
    groups = np.arange(len(labels)) if groups is None else groups
    choosing, fitting = part_rows(rows, groups)

    def ngrams(on: NDArray[np.int64], *, weighted: bool, strength: float) -> ExitZero:
        squares = _squares(counts[on], weighted=weighted)
        of_buckets, bias = _regress(
            counts[on], labels[on], squares, strength, weights[on], n_classes=n_classes
        )
        return ExitZero(of_buckets, squares, bias, tokens, pairs)

    candidates = [(weighted, strength) for weighted in (True, False) for strength in STRENGTHS]
    best, least, kept = candidates[0], np.inf, np.zeros((len(choosing), n_classes))
    with progress.stage("Fitting exit zero", len(candidates) + 1) as advance:
        for weighted, strength in candidates:
            said = ngrams(fitting, weighted=weighted, strength=strength)
            logits = _logits(said, counts[choosing])
            loss = _log_loss(logits, labels[choosing], weights[choosing])
            if loss < least:
                best, least, kept = (weighted, strength), loss, logits
            advance(1)
        plain = ngrams(np.arange(len(labels)), weighted=best[0], strength=best[1])
        advance(1)
    if dense is None or len(np.unique(labels[fitting])) < 2:
        return plain
    states, targets = dense
    apart = np.empty((len(fitting), n_classes))
    folds = np.unique(groups[fitting], return_inverse=True)[1] % _FOLDS
    with progress.stage("Fitting its dense part", _FOLDS + 1) as advance:
        for fold in range(_FOLDS):
            others = fitting[folds != fold]
            said = ngrams(others, weighted=best[0], strength=best[1])
            apart[folds == fold] = _logits(said, counts[fitting[folds == fold]])
            advance(1)
        learning, judging = (
            DenseRows([input_ids[row] for row in which.tolist()], wanted, logits, weights[which])
            for which, wanted, logits in (
                (fitting, targets[fitting], apart),
                (choosing, np.eye(n_classes)[labels[choosing]], kept),
            )
        )
        part = untrained(states, learning.input_ids, frame=tokens, n_classes=n_classes)
        part, scale, logits = fit_dense(part, learning, judging, seed=seed)
        advance(1)
    if not _is_better(logits, kept, labels[choosing], judging.weights):
        return plain
    scaled = (plain.weights.astype(np.float32) * np.float32(scale)).astype(np.float16)
    return replace(plain, weights=scaled, bias=plain.bias * np.float32(scale), dense=part)


def part_rows(
    rows: NDArray[np.int64], groups: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Part shuffled rows: a tenth of them or a little less, in whole groups, that choose; and those that are fitted to.

    Where large groups leave too few for that, the first tenth chooses.
    """
    tenth = max(1, len(rows) // 10)
    _, first, own, counts = np.unique(
        groups[rows], return_index=True, return_inverse=True, return_counts=True
    )
    order = np.argsort(first)
    order = order[counts[order] <= max(1, tenth // 4)]
    chosen = np.isin(own, order[np.cumsum(counts[order]) <= tenth])
    if 2 * chosen.sum() < tenth:
        chosen = np.arange(len(rows)) < tenth
    return rows[chosen], rows[~chosen]


def _counted(rows: Sequence[NDArray[np.uint32]]) -> csr_matrix:
    """Return how often each row has each bucket: [n, 2^18]."""
    ends = np.cumsum([0, *map(len, rows)])
    columns = np.concatenate(rows).astype(np.int32)
    counts = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(rows), N_BUCKETS))
    counts.sum_duplicates()
    return counts


def _squares(counts: csr_matrix, *, weighted: bool) -> NDArray[np.float16]:
    """Return the squares of the inverse document frequencies, as they are kept: [2^18]; ones where none count."""
    if not weighted:
        return np.ones(N_BUCKETS, dtype=np.float16)
    frequency = np.bincount(counts.indices, minlength=N_BUCKETS)
    inverse = np.log((1 + counts.shape[0]) / (1 + frequency)) + 1
    squares: NDArray[np.float16] = np.square(inverse).astype(np.float16)
    return squares


def _lengths(counts: csr_matrix, squares: NDArray[np.float16]) -> NDArray[np.float64]:
    """Return what each row is divided by: [n]."""
    lengths: NDArray[np.float64] = np.sqrt(np.maximum(counts @ squares.astype(np.float64), 1e-6))
    return lengths


def _regress(
    counts: csr_matrix,
    labels: NDArray[np.int64],
    squares: NDArray[np.float16],
    strength: float,
    row_weights: NDArray[np.float64],
    *,
    n_classes: int,
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Fit a logistic regression: weights [2^18, classes], and bias [classes].

    A class that no row has gets nothing, as do all where all labels are the same.
    """
    kept = np.zeros((N_BUCKETS, n_classes), dtype=np.float16)
    bias = np.full(n_classes, _NEVER, dtype=np.float32)
    if len(np.unique(labels)) < 2:
        return kept, bias
    weights = np.sqrt(squares.astype(np.float64))
    # A bucket that no row has keeps its weight of zero, so the others suffice.
    present = np.unique(counts.indices)
    scaled = diags(1 / _lengths(counts, squares)) @ counts[:, present] @ diags(weights[present])
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    # More threads only get into each other's way: the vectors are too short for them.
    with threadpool_limits(1):
        model.fit(scaled, labels, sample_weight=row_weights)
    coefficients, intercept = model.coef_, model.intercept_
    # Of two classes half of the margin is for one, half against the other.
    if len(coefficients) == 1:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercept = np.concatenate([-intercept, intercept]) / 2
    kept[np.ix_(present, model.classes_)] = coefficients.T * weights[present, None]
    bias[model.classes_] = intercept
    return kept, bias


def _logits(exit_zero: ExitZero, counts: csr_matrix) -> NDArray[np.float64]:
    """Return what n-grams say about some rows: [n, classes]."""
    weights = exit_zero.weights.astype(np.float64)
    logits: NDArray[np.float64] = counts @ weights
    return logits / _lengths(counts, exit_zero.squares)[:, None] + exit_zero.bias


def _is_better(
    logits: NDArray[np.float64],
    plain: NDArray[np.float64],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> bool:
    """Tell whether logits [n, classes] are better than plain ones, by more than a standard error of their log loss.

    The plain ones are taken at the scale that suits these rows best, since the dense part comes with its own.
    """
    best = min(_SCALES, key=lambda scale: _log_loss(scale * plain, labels, weights))
    gains = (_losses(best * plain, labels) - _losses(logits, labels)) * weights
    return bool(gains.mean() > gains.std() / np.sqrt(len(gains)))


def _log_loss(
    logits: NDArray[np.float64], labels: NDArray[np.int64], row_weights: NDArray[np.float64]
) -> float:
    """Return the mean log loss of logits [n, classes], each row with its weight."""
    return float(np.average(_losses(logits, labels), weights=row_weights))


def _losses(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the log loss of each row: [n]."""
    top = logits.max(axis=1, keepdims=True)
    spread: NDArray[np.float64] = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return spread - logits[np.arange(len(labels)), labels]
