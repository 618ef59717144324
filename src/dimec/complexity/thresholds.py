"""Threshold search: the operating point that maximises the expected reward on the validation split.

The reward of a sample is r = C - lambda cost (paper 1 eq. 4, paper 2 eq. 3), with C the confidence of the exit that
would answer it. Where several grid points earn the same, the cheapest wins, then the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.complexity.cartography import Cartography
from dimec.complexity.pools import cartography_pools, first_sure_exit
from dimec.costs import CostModel
from dimec.exits import ExitTable
from dimec.tiers import TIERS, Depths, Step, Tier

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
    table: ExitTable,
    samples: Cartography,
    *,
    depths: Depths,
    costs: CostModel,
    price: float,
    alphas: Sequence[float] = ALPHAS,
    betas: Sequence[float] = BETAS,
) -> ThresholdSearch:
    """Search (alpha, beta) of DIMEC-DC: each pool is answered by its tier's last exit (paper 1, eq. 4)."""
    unit = costs.unit_price(table.n_layers, price=price)
    tier_costs = np.array([costs.of([Step(tier, depths.of(tier))]) for tier in TIERS])
    confidence = table.confidence[:, [table.exit(depths.of(tier)) for tier in TIERS]]
    everyone = np.arange(len(table))

    def point(alpha: float, beta: float) -> tuple[float, float]:
        pools = cartography_pools(samples, alpha=alpha, beta=beta)
        cost = tier_costs[pools].mean()
        return float(confidence[everyone, pools].mean() - unit * cost), float(cost)

    grid = np.array([[point(alpha, beta) for beta in betas] for alpha in alphas])
    return ThresholdSearch(tuple(alphas), tuple(betas), grid[..., 0], grid[..., 1])


def search_exits(
    table: ExitTable,
    *,
    depths: Depths,
    costs: CostModel,
    price: float,
    alphas: Sequence[float] | None = None,
) -> ThresholdSearch:
    """Search alpha of DIMEE over ten values from 1/classes to 1 (paper 2, eq. 3 to 7).

    A sample leaves at its first sure exit: on mobile up to layer m, on the edge up to n, at the last in the cloud.
    """
    unit = costs.unit_price(table.n_layers, price=price)
    grid = tuple(alphas or np.linspace(1 / table.n_classes, 1.0, N_EXIT_ALPHAS).tolist())
    everyone = np.arange(len(table))

    def leaving_cost(layer: int) -> float:
        tier = (
            Tier.MOBILE
            if layer <= depths.mobile
            else Tier.EDGE
            if layer <= depths.edge
            else Tier.CLOUD
        )
        return costs.of([Step(tier, layer)])

    exit_costs = np.array([leaving_cost(layer) for layer in table.layers])

    def point(alpha: float) -> tuple[float, float]:
        leaves = first_sure_exit(table.confidence, table.layers, alpha=alpha, up_to=depths.edge)
        leaves[leaves == 0] = depths.cloud
        exits = np.searchsorted(table.layers, leaves)
        cost = exit_costs[exits].mean()
        return float(table.confidence[everyone, exits].mean() - unit * cost), float(cost)

    points = np.array([point(alpha) for alpha in grid])
    return ThresholdSearch(grid, (), points[:, 0], points[:, 1])
