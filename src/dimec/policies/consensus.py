"""What several exits say together: a logarithmic opinion pool, p ~ prod_i p_i^{w_i}.

With one exit this is temperature scaling, w = 1/T; with several, exits that agree make each other surer and exits that
disagree make each other doubt. The weights minimise the log loss on validation, which is convex in them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce

import numpy as np
from numpy.typing import NDArray

FLOOR = 1e-6
"""The least probability that an exit is taken to give, so that one exit cannot forbid a class."""

_RIDGE = 1e-4
_ITERATIONS = 50


def log_opinions(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log p_i for probabilities [...], at least log `FLOOR`."""
    logs: NDArray[np.float64] = np.log(np.maximum(probabilities, FLOOR))
    return logs


def consensus(opinions: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the pooled probabilities [n, classes] of opinions [n, exits, classes] with weights [exits]."""
    return normalised(np.einsum("nkc,k->nc", opinions, weights))


def normalised(pooled: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn weighted sums of log opinions [n, classes] into probabilities, in place."""
    pooled -= _along_classes(np.maximum, pooled)[:, None]
    np.exp(pooled, out=pooled)
    pooled /= _along_classes(np.add, pooled)[:, None]
    return pooled


def _along_classes(operation: np.ufunc, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Reduce values [n, classes] to [n]: a class at a time, since numpy is slow where the axis is short."""
    reduced: NDArray[np.float64] = reduce(operation, values.T)
    return reduced


def consensus_of_one(
    probabilities: Sequence[NDArray[np.float64]], weights: Sequence[float]
) -> list[float]:
    """Return what `consensus` does for one sample, whose exits say [classes] each, without numpy's overhead."""
    pooled = [0.0] * len(probabilities[0])
    for said, weight in zip(probabilities, weights, strict=True):
        for place, value in enumerate(said.tolist()):
            pooled[place] += weight * math.log(max(value, FLOOR))
    top = max(pooled)
    raised = [math.exp(each - top) for each in pooled]
    total = sum(raised)
    return [each / total for each in raised]


def fit_consensus(
    opinions: NDArray[np.float64],
    labels: NDArray[np.int64],
    *,
    shares: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Return the weights [exits] that minimise the log loss of the pool, none of them negative.

    Args:
        opinions: [n, exits, classes], from `log_opinions`.
        labels: [n], the true classes.
        shares: [n], how much each row counts, with a sum of 1; None all alike.
    """
    exits = opinions.shape[1]
    used = list(range(exits))
    weights = np.zeros(exits)
    while used:
        found = _newton(opinions[:, used], labels, shares)
        if (found >= 0).all():
            weights[used] = found
            break
        used.pop(int(found.argmin()))  # it would count against what it says
    return weights


def _newton(
    opinions: NDArray[np.float64], labels: NDArray[np.int64], shares: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """Minimise the log loss, with a slight pull towards equal weights."""
    n, exits, _ = opinions.shape
    if shares is None:
        shares = np.full(n, 1 / n)
    counted = opinions * shares[:, None, None]
    told = opinions[np.arange(n), :, labels]
    centre = np.full(exits, 1 / exits)
    weights = centre.copy()

    def loss(at: NDArray[np.float64]) -> float:
        pooled = np.einsum("nkc,k->nc", opinions, at)
        top = _along_classes(np.maximum, pooled)
        spread = np.log(_along_classes(np.add, np.exp(pooled - top[:, None]))) + top
        return float(shares @ (spread - told @ at) + _RIDGE * ((at - centre) ** 2).sum())

    now = loss(weights)
    for _ in range(_ITERATIONS):
        pooled = consensus(opinions, weights)
        weighed = opinions * pooled[:, None]
        expected = weighed.sum(axis=2)
        gradient = shares @ (expected - told) + 2 * _RIDGE * (weights - centre)
        curvature = np.tensordot(weighed, counted, axes=((0, 2), (0, 2)))
        curvature -= expected.T @ (expected * shares[:, None])
        curvature[np.diag_indices(exits)] += 2 * _RIDGE
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (then := loss(weights - size * step)) > now and size > 1e-6:
            size /= 2
        if now - then < 1e-10:
            break
        weights, now = weights - size * step, then
    return weights
