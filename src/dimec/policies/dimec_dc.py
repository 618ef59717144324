"""DIMEC-DC: pools by data cartography; every tier answers with its last exit (paper 1)."""

from __future__ import annotations

from typing import Self

from dimec.complexity import Centroids, cartography, cartography_pools, search_cartography
from dimec.policies.base import Calibration
from dimec.policies.centroid import CentroidPolicy
from dimec.tiers import Step, Tier


class DimecDcFixed(CentroidPolicy):
    """Keep the validation split's centroids."""

    name = "dimec-dc-fixed"

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Search (alpha, beta), build the pools there and average their embeddings."""
        table, depths = calibration.table, calibration.depths["dc"]
        samples = cartography(table, layer=depths.mobile, spread=calibration.spread)
        search = search_cartography(
            table, samples, depths=depths, costs=calibration.costs, price=calibration.price
        )
        pools = cartography_pools(samples, alpha=search.alpha, beta=search.beta)
        thresholds = {"alpha": search.alpha, "beta": search.beta}
        policy = cls(depths, Centroids.of_pools(table.embeddings, pools), thresholds)
        policy.search = search
        return policy

    def enter(self, tier: Tier) -> Step:
        """Run the whole tier."""
        return Step(tier, self.depths.of(tier))


class DimecDcAdaptive(DimecDcFixed):
    """Move the chosen centroid with every sample."""

    name = "dimec-dc-adaptive"
    adaptive = True
