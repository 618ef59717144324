"""Fitting exit zero on the training split: logistic regression on hashed token n-grams.

Whether inverse document frequencies help, and how far weights are held back, is chosen on a tenth of the training rows
that the others were fitted without, so that validation and test rows choose nothing here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from dimec.core.progress import SILENT, Progress
from dimec.runs.exit_zero import N_BUCKETS, ExitZero, features

STRENGTHS = (1.0, 3.0, 10.0, 30.0)
"""Inverse strengths of regularisation to choose from."""

_CHOOSING_ROWS = 50_000
_MAX_ITERATIONS = 300
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
    progress: Progress = SILENT,
) -> ExitZero:
    """Fit exit zero to the training rows' token ids, special tokens included, and labels [n].

    Args:
        input_ids: The rows.
        labels: Their classes.
        n_classes: How many classes there are.
        frame: The special tokens around a text.
        pairs: Whether the rows are pairs of texts.
        seed: Draws the rows that choose.
        class_weights: What a row of each class weighs; None for all the same.
        progress: Progress reporter.
    """
    tokens = tuple(frame)
    counts = _counted([features(ids, frame=tokens, pairs=pairs) for ids in input_ids])
    weights = None if class_weights is None else np.asarray(class_weights)[labels]
    rows = np.random.default_rng(seed).permutation(len(labels))[:_CHOOSING_ROWS]
    held = max(1, len(rows) // 10)
    choosing, fitting = rows[:held], rows[held:]
    candidates = [(weighted, strength) for weighted in (True, False) for strength in STRENGTHS]
    best, least = candidates[0], np.inf
    with progress.stage("Fitting exit zero", len(candidates) + 1) as advance:
        for weighted, strength in candidates:
            squares = _squares(counts[fitting], weighted=weighted)
            own = None if weights is None else weights[fitting]
            model = _regress(counts[fitting], labels[fitting], squares, strength, own)
            said = _zero(model, squares, n_classes=n_classes, frame=tokens, pairs=pairs)
            own = None if weights is None else weights[choosing]
            loss = _log_loss(said, counts[choosing], labels[choosing], own)
            if loss < least:
                best, least = (weighted, strength), loss
            advance(1)
        squares = _squares(counts, weighted=best[0])
        model = _regress(counts, labels, squares, best[1], weights)
        advance(1)
    return _zero(model, squares, n_classes=n_classes, frame=tokens, pairs=pairs)


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
    row_weights: NDArray[np.float64] | None,
) -> LogisticRegression | None:
    """Fit a logistic regression; None where all labels are the same."""
    if len(np.unique(labels)) < 2:
        return None
    weights = np.sqrt(squares.astype(np.float64))
    # A bucket that no row has keeps its weight of zero, so the others suffice.
    present = np.unique(counts.indices)
    scaled = diags(1 / _lengths(counts, squares)) @ counts[:, present] @ diags(weights[present])
    model = LogisticRegression(C=strength, max_iter=_MAX_ITERATIONS)
    # More threads only get into each other's way: the vectors are too short for them.
    with threadpool_limits(1):
        model.fit(scaled, labels, sample_weight=row_weights)
    coefficients = np.zeros((len(model.coef_), N_BUCKETS))
    coefficients[:, present] = model.coef_
    model.coef_ = coefficients
    return model


def _zero(
    model: LogisticRegression | None,
    squares: NDArray[np.float16],
    *,
    n_classes: int,
    frame: tuple[int, ...],
    pairs: bool,
) -> ExitZero:
    """Write a regression as what is kept; a class that no row has gets nothing."""
    weights = np.zeros((N_BUCKETS, n_classes))
    bias = np.full(n_classes, _NEVER, dtype=np.float32)
    if model is not None:
        coefficients, intercept = model.coef_, model.intercept_
        if (
            len(coefficients) == 1
        ):  # two classes: half of the margin for one, half against the other
            coefficients = np.concatenate([-coefficients, coefficients]) / 2
            intercept = np.concatenate([-intercept, intercept]) / 2
        weights[:, model.classes_] = coefficients.T * np.sqrt(squares.astype(np.float64))[:, None]
        bias[model.classes_] = intercept
    return ExitZero(weights.astype(np.float16), squares, bias, frame, pairs)


def _log_loss(
    exit_zero: ExitZero,
    counts: csr_matrix,
    labels: NDArray[np.int64],
    row_weights: NDArray[np.float64] | None,
) -> float:
    """Return the mean log loss of what an exit zero says about some rows, each with its weight."""
    weights = exit_zero.weights.astype(np.float64)
    logits = (counts @ weights) / _lengths(counts, exit_zero.squares)[:, None] + exit_zero.bias
    top = logits.max(axis=1, keepdims=True)
    spread = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    losses = spread - logits[np.arange(len(labels)), labels]
    return float(np.average(losses, weights=row_weights))
