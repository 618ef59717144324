"""DIMEE: pools by early exits; a tier answers at its first sure exit, at the latest at its last (paper 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Depths, Reading, Step, Tier
from dimec.policies.base import Calibration, GroupReading, View
from dimec.policies.centroids import CentroidPolicy, Centroids
from dimec.policies.pools import sure_exits
from dimec.policies.thresholds import (
    ThresholdSearch,
    answers_in_pools,
    confidence_grid,
    search_thresholds,
)


class DimeeFixed(CentroidPolicy):
    """Keep the validation split's centroids."""

    name = "dimee-fixed"
    method = "ee"

    def __init__(
        self,
        depths: Depths,
        centroids: Centroids,
        *,
        thresholds: Mapping[str, float],
        layers: Sequence[int],
        edge_layers: Sequence[int] | None = None,
    ) -> None:
        """Take the centroids, alpha, and the layers that have an exit: on mobile, and on the edge where it differs."""
        super().__init__(depths, centroids)
        self.thresholds = dict(thresholds)
        self.layers = tuple(layers)
        self.edge_layers = self.layers if edge_layers is None else tuple(edge_layers)
        self.alpha = thresholds["alpha"]
        self._exits = {
            Tier.MOBILE: [layer for layer in self.layers if layer <= depths.mobile],
            Tier.EDGE: [layer for layer in self.edge_layers if layer <= depths.edge],
            Tier.CLOUD: [depths.cloud],
        }
        if not all(self._exits.values()):
            raise ContractError("a tier has no exit to leave at")
        self._next = {
            Step(tier, layer): Step(tier, deeper)
            for tier in TIERS
            for layer, deeper in zip(self._exits[tier], self._exits[tier][1:], strict=False)
        }

    @classmethod
    def search_in(cls, calibration: Calibration) -> ThresholdSearch:
        """Search alpha over ten values from 1/classes to 1 (paper 2, eq. 3 to 7).

        A sample leaves at its first sure exit: on mobile up to layer m, on the edge up to n, at the last in the cloud.
        """
        tables, depths = calibration.tables, calibration.depths[cls.method]

        def answer(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            return answers_in_pools(tables, *sure_exits(tables, alpha=alpha, depths=depths))

        grid = confidence_grid(calibration.table.n_classes)
        return search_thresholds(answer, grid, costs=calibration.costs, unit=calibration.unit)

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Build the pools at alpha and average their embeddings."""
        (alpha,) = thresholds
        tables, depths = calibration.tables, calibration.depths["ee"]
        pools, _ = sure_exits(tables, alpha=alpha, depths=depths)
        return cls(
            depths,
            Centroids.of_pools(tables.embeddings, pools),
            thresholds={"alpha": alpha},
            layers=tables.of(Tier.MOBILE).layers,
            edge_layers=tables.of(Tier.EDGE).layers,
        )

    def enter(self, tier: Tier) -> Step:
        """Run up to the tier's first exit; the cloud runs to its end."""
        return Step(tier, self._exits[tier][0])

    def onward(self, steps: Sequence[Step]) -> Step | None:
        """Go on to the tier's next exit."""
        return self._next.get(steps[-1])

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Leave with C_i >= alpha."""
        return reading.confidence >= self.alpha

    def exit_thresholds(self, view: View, step: Step) -> Mapping[int, float]:
        """Return alpha for every exit that the tier may be left at."""
        return dict.fromkeys(self._exits[step.tier], self.alpha)

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit of the mobile and the edge tier, and the cloud's last."""
        return tuple(Step(tier, layer) for tier in TIERS for layer in self._exits[tier])

    def operating_point(self) -> dict[str, float]:
        """Return alpha, which made the pools too."""
        return {"alpha": self.alpha}


class DimeeAdaptive(DimeeFixed):
    """Move the chosen centroid with every sample."""

    name = "dimee-adaptive"
    learns = True
