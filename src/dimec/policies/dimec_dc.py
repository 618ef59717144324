"""DIMEC-DC: pools by data cartography; every tier answers with its last exit (paper 1)."""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import TIERS, Depths, Step, Tier
from dimec.policies.base import Calibration, MissingInput
from dimec.policies.centroids import CentroidPolicy, Centroids
from dimec.policies.pools import Cartography, cartography, cartography_pools
from dimec.policies.thresholds import (
    ALPHAS,
    BETAS,
    ThresholdSearch,
    answers_in_pools,
    search_thresholds,
)


class DimecDcFixed(CentroidPolicy):
    """Keep the validation split's centroids."""

    name = "dimec-dc-fixed"

    def __init__(self, depths: Depths, centroids: Centroids, *, alpha: float, beta: float) -> None:
        """Take the centroids, and the thresholds that the pools were made with."""
        super().__init__(depths, centroids)
        self.alpha = alpha
        self.beta = beta

    @classmethod
    def missing_input(cls, calibration: Calibration) -> MissingInput | None:
        """Need the mobile exit's training dynamics."""
        if calibration.tables.of(Tier.MOBILE).dynamics is None:
            return MissingInput(
                "training dynamics of the mobile exit, which only a run records",
                ("layers", calibration.depths["dc"].mobile),
                Tier.MOBILE,
            )
        return None

    @classmethod
    def search_in(cls, calibration: Calibration) -> ThresholdSearch:
        """Search (alpha, beta): each pool is answered by its tier's last exit (paper 1, eq. 4)."""
        tables, samples = calibration.tables, cls._samples(calibration)
        last = np.array([calibration.depths[cls.method].of(tier) for tier in TIERS])

        def answer(alpha: float, beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            pools = cartography_pools(samples, alpha=alpha, beta=beta)
            return answers_in_pools(tables, pools, last[pools])

        costs, unit = calibration.costs, calibration.unit
        return search_thresholds(answer, ALPHAS, BETAS, costs=costs, unit=unit)

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Build the pools at (alpha, beta) and average their embeddings."""
        alpha, beta = thresholds
        pools = cartography_pools(cls._samples(calibration), alpha=alpha, beta=beta)
        return cls(
            calibration.depths["dc"],
            Centroids.of_pools(calibration.tables.embeddings, pools),
            alpha=alpha,
            beta=beta,
        )

    @staticmethod
    def _samples(calibration: Calibration) -> Cartography:
        mobile = calibration.tables.of(Tier.MOBILE)
        layer = calibration.depths["dc"].mobile
        return cartography(mobile, layer=layer, spread=calibration.spread)

    def enter(self, tier: Tier) -> Step:
        """Run the whole tier."""
        return Step(tier, self.depths.of(tier))

    def operating_point(self) -> dict[str, float]:
        """Return the thresholds that made the pools."""
        return {"alpha": self.alpha, "beta": self.beta}


class DimecDcAdaptive(DimecDcFixed):
    """Move the chosen centroid with every sample."""

    name = "dimec-dc-adaptive"
    learns = True
