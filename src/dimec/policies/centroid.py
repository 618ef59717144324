"""What both papers' methods share: the nearest centroid picks the tier, before any layer runs (algorithm 2)."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import TIERS, Depths, Step, Tier
from dimec.policies.base import Choices, Group, PolicyState, Searched, View
from dimec.policies.centroids import Centroids


class CentroidPolicy(Searched):
    """Route to the tier of the nearest pool; the adaptive kind moves that pool's centroid by the sample."""

    adaptive: ClassVar[bool] = False
    any_model = True

    def __init__(self, depths: Depths, centroids: Centroids, thresholds: dict[str, float]) -> None:
        """Keep the pools' centroids and the thresholds they were made with."""
        super().__init__(depths)
        self.centroids = centroids
        self.thresholds = thresholds

    def __init_subclass__(cls) -> None:
        """Let the adaptive kind be replayed in stream order."""
        cls.learns = cls.adaptive

    @abstractmethod
    def enter(self, tier: Tier) -> Step:
        """Return the first step on the tier that the router chose."""

    def decide(self, view: View) -> Step | None:
        """Route a new sample by its embedding; later exits are the subclass's matter."""
        if not view.steps:
            return self.enter(TIERS[self.centroids.nearest(view.embedding)])
        return None

    def decide_group(self, group: Group) -> Choices:
        """Route a group at once."""
        if not group.steps:
            options = tuple(self.enter(tier) for tier in TIERS)
            return Choices(options, self.centroids.nearest_of(group.embeddings))
        return Choices((None,), np.zeros(len(group), dtype=np.intp))

    def learn(self, view: View) -> None:
        """Move the chosen centroid by this sample, where the policy is adaptive (paper 1, eq. 5)."""
        if self.adaptive:
            self.centroids.update(TIERS.index(view.steps[0].tier), view.embedding)

    def routing_score(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Return d(hard) - d(easy), or None while one of these pools is empty."""
        if not (self.centroids.counts[0] and self.centroids.counts[2]):
            return None
        distances = self.centroids.distances(embeddings)
        score: NDArray[np.float64] = distances[..., 2] - distances[..., 0]
        return score

    def operating_point(self) -> dict[str, float]:
        """Return the thresholds that made the pools."""
        return dict(self.thresholds)

    def state(self) -> PolicyState:
        """Return the thresholds, and the centroids as sums and counts."""
        return PolicyState(
            dict(self.thresholds),
            {"sums": self.centroids.sums.copy(), "counts": self.centroids.counts.copy()},
        )

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        return cls(depths, Centroids(state.arrays["sums"], state.arrays["counts"]), state.settings)
