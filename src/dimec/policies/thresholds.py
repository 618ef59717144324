"""Threshold search: the operating point that maximises the expected reward on the validation split.

The reward of a sample is r = C - lambda cost (paper 1 eq. 4, paper 2 eq. 3), with C the confidence of the exit that
would answer it. Where several grid points earn the same, the cheapest wins, then the first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import TIERS, Step
from dimec.costs.model import N_USED, CostModel, Use
from dimec.runs.exit_table import TierTables

ALPHAS = (0.55, 0.6, 0.65, 0.7, 0.8)
BETAS = (0.05, 0.08, 0.11, 0.14, 0.17)
N_EXIT_ALPHAS = 10


@dataclass(frozen=True, eq=False)
class ThresholdSearch:
    """The whole grid of a search, [alphas] or [alphas, betas], and the point it chose."""

    grids: tuple[tuple[float, ...], ...]  # those of alpha, and of beta where there is one
    confidence: NDArray[np.float64]  # [...], the expected confidence of the answers at each point
    use: NDArray[np.float64]  # [..., 8], what a sample uses there in the mean, as in `Use`
    prices: NDArray[np.float64]  # [8], what each of these costs, in lambda
    unit: float  # lambda in units of confidence

    @property
    def costs(self) -> NDArray[np.float64]:
        """The expected cost at each point, in lambda."""
        return self.use @ self.prices

    @property
    def rewards(self) -> NDArray[np.float64]:
        """The expected reward at each point."""
        return self.confidence - self.unit * self.costs

    @property
    def points(self) -> list[tuple[float, ...]]:
        """The grid's points in order, beta fastest."""
        return list(itertools.product(*self.grids))

    @property
    def point(self) -> tuple[float, ...]:
        """The chosen point: alpha, and beta where there is one."""
        tied = np.isclose(self.rewards, self.rewards.max(), rtol=0, atol=1e-12)
        return self.points[np.where(tied, self.costs, np.inf).argmin()]


def search_thresholds(
    answer: Callable[..., tuple[NDArray[np.float64], NDArray[np.float64]]],
    *grids: Sequence[float],
    costs: CostModel,
    unit: float,
) -> ThresholdSearch:
    """Search one threshold over a grid, or two.

    Args:
        answer: Says, for a threshold (or alpha and beta), with what confidence [n] each validation sample would be
            answered and what it would use [n, 8], as in `Use`.
        unit: Lambda in units of confidence.
    """
    means = [
        (confidence.mean(), use.mean(axis=0))
        for confidence, use in itertools.starmap(answer, itertools.product(*grids))
    ]
    shape = [len(grid) for grid in grids]
    confidence = np.array([confidence for confidence, _ in means]).reshape(shape)
    use = np.array([use for _, use in means]).reshape(*shape, -1)
    return ThresholdSearch(tuple(map(tuple, grids)), confidence, use, costs.prices.vector, unit)


def confidence_grid(n_classes: int) -> tuple[float, ...]:
    """Return the ten equidistant confidences from 1/classes to 1 that paper 2 searches."""
    return tuple(np.linspace(1 / n_classes, 1.0, N_EXIT_ALPHAS).tolist())


def answers_in_pools(
    tables: TierTables, pools: NDArray[np.int8], layers: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return with what confidence [n] samples are answered on their pool's tier, and what they use [n, 8].

    Args:
        pools: [n], in the order of the tiers.
        layers: [n], the layer that each sample is answered at.
    """
    confidence, use = np.zeros(len(tables)), np.zeros((len(tables), N_USED))
    for pool, tier in enumerate(TIERS):
        table = tables.of(tier)
        for position, layer in enumerate(table.layers):
            here = (pools == pool) & (layers == layer)
            confidence[here] = table.confidence[here, position]
            use[here] = Use.of([Step(tier, layer)]).vector
    return confidence, use
