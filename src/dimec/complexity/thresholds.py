"""Threshold search: the operating point that maximises the expected reward on the validation split.

The reward of a sample is r = C - lambda cost (paper 1 eq. 4, paper 2 eq. 3), with C the confidence of the exit that
would answer it. Where several grid points earn the same, the cheapest wins, then the first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.complexity.cartography import Cartography
from dimec.complexity.pools import cartography_pools, sure_exits
from dimec.costs import CostModel
from dimec.exits import ExitTable, TierTables
from dimec.tiers import TIERS, Depths, Step

ALPHAS = (0.55, 0.6, 0.65, 0.7, 0.8)
BETAS = (0.05, 0.08, 0.11, 0.14, 0.17)
N_EXIT_ALPHAS = 10


@dataclass(frozen=True, eq=False)
class ThresholdSearch:
    """The whole grid of a search and the point it chose.

    Attributes:
        alphas: The grid of alpha.
        betas: The grid of beta; empty where there is none.
        rewards: [alphas] or [alphas, betas] float64, the expected reward at each point.
        costs: The same shape, the expected cost in lambda.
    """

    alphas: tuple[float, ...]
    betas: tuple[float, ...]
    rewards: NDArray[np.float64]
    costs: NDArray[np.float64]

    @property
    def best(self) -> tuple[int, ...]:
        """Index of the chosen point."""
        tied = np.isclose(self.rewards, self.rewards.max(), rtol=0, atol=1e-12)
        flat = np.where(tied, self.costs, np.inf).argmin()
        return tuple(int(index) for index in np.unravel_index(flat, self.rewards.shape))

    @property
    def alpha(self) -> float:
        """The chosen alpha."""
        return self.alphas[self.best[0]]

    @property
    def beta(self) -> float:
        """The chosen beta.

        Raises:
            IndexError: If the search had none.
        """
        return self.betas[self.best[1]]


def search_cartography(
    tables: ExitTable | TierTables,
    samples: Cartography,
    *,
    depths: Depths,
    costs: CostModel,
    price: float,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> ThresholdSearch:
    """Search (alpha, beta) of DIMEC-DC: each pool is answered by its tier's last exit (paper 1, eq. 4)."""
    tables = TierTables.of_all(tables)
    unit = costs.unit_price(tables.encoder.n_layers, price=price)
    tier_costs = np.array([costs.of([Step(tier, depths.of(tier))]) for tier in TIERS])
    confidence = np.stack(
        [tables.of(tier).confidence[:, tables.of(tier).exit(depths.of(tier))] for tier in TIERS]
    )

    def point(alpha: float, beta: float) -> tuple[float, float]:
        pools = cartography_pools(samples, alpha=alpha, beta=beta)
        cost = tier_costs[pools].mean()
        return float(np.choose(pools, confidence).mean() - unit * cost), float(cost)

    grid = np.array([[point(alpha, beta) for beta in betas] for alpha in alphas])
    return ThresholdSearch(tuple(alphas), tuple(betas), grid[..., 0], grid[..., 1])


def search_thresholds(
    grid: Sequence[float],
    answer: Callable[[float], tuple[NDArray[np.float64], NDArray[np.float64]]],
    *,
    unit: float,
) -> ThresholdSearch:
    """Search one threshold over a grid.

    Args:
        grid: The thresholds.
        answer: Says, for a threshold, with what confidence [n] each validation sample would be answered and at what
            cost [n].
        unit: Lambda in units of confidence.
    """

    def point(threshold: float) -> tuple[float, float]:
        confidence, cost = answer(threshold)
        return float(confidence.mean() - unit * cost.mean()), float(cost.mean())

    points = np.array([point(threshold) for threshold in grid])
    return ThresholdSearch(tuple(grid), (), points[:, 0], points[:, 1])


def confidence_grid(n_classes: int) -> tuple[float, ...]:
    """Return the ten equidistant confidences from 1/classes to 1 that paper 2 searches."""
    return tuple(np.linspace(1 / n_classes, 1.0, N_EXIT_ALPHAS).tolist())


def search_exits(
    tables: ExitTable | TierTables,
    *,
    depths: Depths,
    costs: CostModel,
    price: float,
    alphas: Sequence[float] | None = None,
) -> ThresholdSearch:
    """Search alpha of DIMEE over ten values from 1/classes to 1 (paper 2, eq. 3 to 7).

    A sample leaves at its first sure exit: on mobile up to layer m, on the edge up to n, at the last in the cloud.
    """
    tables = TierTables.of_all(tables)
    n = len(tables)

    def answer(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        pools, layers = sure_exits(tables, alpha=alpha, depths=depths)
        confidence, cost = np.zeros(n), np.zeros(n)
        for pool, tier in enumerate(TIERS):
            table = tables.of(tier)
            for position, layer in enumerate(table.layers):
                here = (pools == pool) & (layers == layer)
                confidence[here] = table.confidence[here, position]
                cost[here] = costs.of([Step(tier, layer)])
        return confidence, cost

    return search_thresholds(
        alphas or confidence_grid(tables.encoder.n_classes),
        answer,
        unit=costs.unit_price(tables.encoder.n_layers, price=price),
    )
