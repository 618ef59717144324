"""The two pool algorithms: which samples are easy (0), medium (1) and hard (2), in the order of the tiers.

Data cartography judges a sample by the training dynamics of the mobile exit, early exits by the first sure exit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.options import Spread
from dimec.core.tiers import Depths, Tier
from dimec.runs.exit_table import ExitTable, TierTables

EASY, MEDIUM, HARD = 0, 1, 2
POOL_NAMES = ("easy", "medium", "hard")


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


def cartography_pools(samples: Cartography, *, alpha: float, beta: float) -> NDArray[np.int8]:
    """Assign pools by data cartography (paper 1, algorithm 1): [n], each 0, 1 or 2.

    Easy if the mean is at least ``alpha`` and the spread below ``beta``, medium if only the first holds, else hard.
    """
    sure = samples.confidence >= alpha
    steady = samples.variability < beta
    return np.where(sure, np.where(steady, EASY, MEDIUM), HARD).astype(np.int8)


def sure_exits(
    tables: ExitTable | TierTables, *, alpha: float, depths: Depths
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Return each sample's pool [n] (paper 2, algorithm 1) and the layer that it leaves at there [n].

    Easy if an exit of the mobile tier is sure, C_i >= alpha, medium if only one of the edge tier is, else hard, to
    run to the end.
    """
    tables = TierTables.of_all(tables)
    found = []
    for tier in (Tier.MOBILE, Tier.EDGE):
        table = tables.of(tier)
        layers = np.asarray(table.layers)
        sure = (table.confidence >= alpha) & (layers <= depths.of(tier))
        found.append(np.where(sure.any(axis=1), layers[sure.argmax(axis=1)], 0))
    mobile, edge = found
    pools = np.where(mobile > 0, EASY, np.where(edge > 0, MEDIUM, HARD)).astype(np.int8)
    return pools, np.choose(pools, (mobile, edge, np.full_like(edge, depths.cloud)))
