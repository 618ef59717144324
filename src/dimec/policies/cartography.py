"""Data cartography: what the training dynamics of one exit say about each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.runs.exit_table import ExitTable

Spread = Literal["deviation", "variance"]
"""What the threshold beta is held against. The notes write a variance in eq. 2 and grids that fit a deviation."""


@dataclass(frozen=True, eq=False)
class Cartography:
    """The map coordinates of every sample at one exit.

    Attributes:
        confidence: [n] float64, the mean over epochs of the true label's probability (paper 1, eq. 1).
        variability: [n] float64, its population standard deviation, or the variance where asked for (eq. 2).
        correctness: [n] int64, the number of epochs in which the exit was right.
    """

    confidence: NDArray[np.float64]
    variability: NDArray[np.float64]
    correctness: NDArray[np.int64]


def cartography(table: ExitTable, *, layer: int, spread: Spread = "deviation") -> Cartography:
    """Summarise the dynamics of the exit after ``layer``.

    Raises:
        ContractError: If the table holds no dynamics or no such exit.
    """
    if table.dynamics is None:
        raise ContractError(
            "this exit table holds no training dynamics: only a run's own splits do"
        )
    position = table.exit(layer)
    probability = table.dynamics.true_probability[:, :, position].astype(np.float64)
    return Cartography(
        confidence=probability.mean(axis=1),
        variability=probability.std(axis=1) if spread == "deviation" else probability.var(axis=1),
        correctness=table.dynamics.correct[:, :, position].sum(axis=1),
    )
