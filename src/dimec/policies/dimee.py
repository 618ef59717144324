"""DIMEE: pools by early exits; a tier answers at its first sure exit, at the latest at its last (paper 2)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Depths, Step, Tier
from dimec.policies.base import Calibration, Choices, Group, PolicyState, View
from dimec.policies.centroids import CentroidPolicy, Centroids
from dimec.policies.pools import exit_pools
from dimec.policies.thresholds import ThresholdSearch, search_exits


class DimeeFixed(CentroidPolicy):
    """Keep the validation split's centroids."""

    name = "dimee-fixed"
    method = "ee"

    def __init__(
        self,
        depths: Depths,
        centroids: Centroids,
        thresholds: dict[str, float],
        *,
        layers: tuple[int, ...],
        edge_layers: tuple[int, ...] | None = None,
    ) -> None:
        """Take beside the centroids the layers that have an exit: on mobile, and on the edge where it differs."""
        super().__init__(depths, centroids, thresholds)
        self.layers = layers
        self.edge_layers = layers if edge_layers is None else edge_layers
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
        """Search alpha."""
        return search_exits(
            calibration.tables,
            depths=calibration.depths["ee"],
            costs=calibration.costs,
            price=calibration.price,
        )

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Build the pools at alpha and average their embeddings."""
        (alpha,) = thresholds
        tables, depths = calibration.tables, calibration.depths["ee"]
        pools = exit_pools(tables, alpha=alpha, depths=depths)
        return cls(
            depths,
            Centroids.of_pools(tables.embeddings, pools),
            {"alpha": alpha},
            layers=tables.of(Tier.MOBILE).layers,
            edge_layers=tables.of(Tier.EDGE).layers,
        )

    def enter(self, tier: Tier) -> Step:
        """Run up to the tier's first exit; the cloud runs to its end."""
        return Step(tier, self._exits[tier][0])

    def decide(self, view: View) -> Step | None:
        """Leave at the first exit with C_i >= alpha, at the latest at the tier's last."""
        if not view.steps:
            return super().decide(view)
        if view.readings[-1].confidence >= self.alpha:
            return None
        return self._next.get(view.steps[-1])

    def decide_group(self, group: Group) -> Choices:
        """Route or exit a group at once."""
        if not group.steps:
            return super().decide_group(group)
        sure = group.readings[-1].confidence >= self.alpha
        return Choices((self._next.get(group.steps[-1]), None), sure.astype(np.intp))

    def exit_thresholds(self, view: View, step: Step) -> Mapping[int, float]:
        """Return alpha for every exit that the tier may be left at."""
        return dict.fromkeys(self._exits[step.tier], self.alpha)

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit of the mobile and the edge tier, and the cloud's last."""
        return tuple(Step(tier, layer) for tier in TIERS for layer in self._exits[tier])

    def state(self) -> PolicyState:
        """Return the centroids, alpha and the exits' layers."""
        state = super().state()
        settings = {
            "thresholds": state.settings,
            "layers": list(self.layers),
            "edge_layers": list(self.edge_layers),
        }
        return PolicyState(settings, state.arrays)

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        return cls(
            depths,
            Centroids(state.arrays["sums"], state.arrays["counts"]),
            state.settings["thresholds"],
            layers=tuple(state.settings["layers"]),
            edge_layers=tuple(state.settings.get("edge_layers", state.settings["layers"])),
        )


class DimeeAdaptive(DimeeFixed):
    """Move the chosen centroid with every sample."""

    name = "dimee-adaptive"
    adaptive = True
