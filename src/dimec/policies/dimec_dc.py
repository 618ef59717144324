"""DIMEC-DC: pools by data cartography; every tier answers with its last exit (paper 1)."""

from __future__ import annotations

from typing import Self

from dimec.complexity import Centroids, cartography, cartography_pools, search_cartography
from dimec.policies.base import Calibration, Lack
from dimec.policies.centroid import CentroidPolicy
from dimec.tiers import Step, Tier


class DimecDcFixed(CentroidPolicy):
    """Keep the validation split's centroids."""

    name = "dimec-dc-fixed"

    @classmethod
    def lacks(cls, calibration: Calibration) -> Lack | None:
        """Need the mobile exit's training dynamics."""
        if calibration.tables.of(Tier.MOBILE).dynamics is None:
            return Lack(
                "training dynamics of the mobile exit, which only a run records",
                ("layers", calibration.depths["dc"].mobile),
                Tier.MOBILE,
            )
        return None

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Search (alpha, beta), build the pools there and average their embeddings."""
        tables, depths = calibration.tables, calibration.depths["dc"]
        mobile = tables.of(Tier.MOBILE)
        samples = cartography(mobile, layer=depths.mobile, spread=calibration.spread)
        search = search_cartography(
            tables, samples, depths=depths, costs=calibration.costs, price=calibration.price
        )
        pools = cartography_pools(samples, alpha=search.alpha, beta=search.beta)
        thresholds = {"alpha": search.alpha, "beta": search.beta}
        policy = cls(depths, Centroids.of_pools(tables.embeddings, pools), thresholds)
        policy.search = search
        return policy

    def enter(self, tier: Tier) -> Step:
        """Run the whole tier."""
        return Step(tier, self.depths.of(tier))


class DimecDcAdaptive(DimecDcFixed):
    """Move the chosen centroid with every sample."""

    name = "dimec-dc-adaptive"
    adaptive = True
