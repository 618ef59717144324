"""How probable it is that an exit is right: one small model for all exits, which sees what an exit said, and its depth.

g = sigmoid(w . x) is fitted to whether exits are right by least squares, as BERxiT's learning-to-exit module is. That
module and UAT's reliability function look at more (a hidden state, all probabilities) and are trained with the
encoder; an exit table holds what exits said, so that x = (1, logit C, H, d, d logit C), with H the entropy and d the
exit's depth as a share of the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.policies.deebert import entropy
from dimec.runs.exit_table import ExitTable

N_FEATURES = 5
_RIDGE = 1e-4
_ITERATIONS = 100
_CLOSE = 1e-6  # how near to 0 and 1 a confidence is taken at most


def features(probabilities: NDArray[np.float64], depth: float) -> NDArray[np.float64]:
    """Return x of what an exit at a depth said: [..., 5] for probabilities [..., classes]."""
    sure = np.clip(probabilities.max(axis=-1), _CLOSE, 1 - _CLOSE)
    logit = np.log(sure / (1 - sure))
    deep = np.full_like(logit, depth)
    return np.stack(
        [np.ones_like(logit), logit, entropy(probabilities), deep, deep * logit], axis=-1
    )


def reliability(
    probabilities: NDArray[np.float64], depth: float, weights: Sequence[float]
) -> NDArray[np.float64]:
    """Return g for what an exit at a depth said: [...] for probabilities [..., classes]."""
    score: NDArray[np.float64] = (features(probabilities, depth) * np.asarray(weights)).sum(axis=-1)
    return _sigmoid(score)


def fit_reliability(table: ExitTable) -> list[float]:
    """Return the weights with the least mean (g - right)^2 over all exits of a table, with a slight pull to 0.

    Levenberg and Marquardt's steps from 0: every step that is taken lowers the loss.
    """
    depth = [layer / table.n_layers for layer in table.layers]
    x = np.concatenate(
        [features(table.probabilities[:, place], each) for place, each in enumerate(depth)]
    )
    right = table.right.T.ravel().astype(np.float64)

    def loss(weights: NDArray[np.float64]) -> float:
        return float(((_sigmoid(x @ weights) - right) ** 2).mean() + _RIDGE * weights @ weights)

    weights, damping = np.zeros(N_FEATURES), 1e-3
    now = loss(weights)
    for _ in range(_ITERATIONS):
        g = _sigmoid(x @ weights)
        slopes = x * (g * (1 - g))[:, None]
        gradient = slopes.T @ (g - right) / len(x) + _RIDGE * weights
        curvature = slopes.T @ slopes / len(x) + _RIDGE * np.eye(N_FEATURES)
        step = np.linalg.solve(curvature + damping * np.eye(N_FEATURES), gradient)
        then = loss(weights - step)
        if then < now:
            weights, damping = weights - step, damping / 4
            if now - then < 1e-12:
                break
            now = then
        else:
            damping *= 8
            if damping > 1e6:
                break
    return [float(each) for each in weights]


def check_weights(weights: Sequence[float]) -> list[float]:
    """Return the weights as a list of numbers.

    Raises:
        ContractError: If there are too few or too many.
    """
    if len(weights) != N_FEATURES:
        raise ContractError(f"the reliability has {N_FEATURES} weights, not {len(weights)}")
    return [float(each) for each in weights]


def _sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = 0.5 * (1 + np.tanh(scores / 2))
    return found
