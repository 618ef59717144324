"""The router of both papers: the nearest centroid of the three pools picks the tier, before any layer runs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Depths, Step, Tier
from dimec.policies.base import Choices, FirstSure, Group, PolicyState, Searched, View

_LARGEST = 1e100  # beyond it squares of sums, which distances are made of, are not finite


class Centroids:
    """Mean embeddings of the pools, kept as float64 sums with counts.

    Sums and counts stay exact where a running float32 mean stops moving after some million samples. A pool without a
    sample has no centroid and is never the nearest.
    """

    def __init__(self, sums: NDArray[np.floating], counts: NDArray[np.integer]) -> None:
        """Take sums [pools, width] and counts [pools].

        Raises:
            ContractError: If shapes disagree, a count is negative, or every pool is empty.
        """
        self.sums = np.array(sums, dtype=np.float64)
        self.counts = np.array(counts, dtype=np.int64)
        if self.sums.ndim != 2 or self.counts.shape != self.sums.shape[:1]:
            raise ContractError(f"sums {self.sums.shape} and counts {self.counts.shape} disagree")
        if (
            (self.counts < 0).any()
            or not self.counts.any()
            or not (np.abs(self.sums) < _LARGEST).all()
        ):
            raise ContractError("centroids need finite sums and at least one sample")
        self.means = np.zeros_like(
            self.sums
        )  # [pools, width], the centroids; zeros of an empty one
        self._offsets = np.full(len(self.counts), np.inf)
        for pool in np.flatnonzero(self.counts):
            self._refresh(int(pool))

    @classmethod
    def of_pools(cls, embeddings: NDArray[np.floating], pools: NDArray[np.integer]) -> Centroids:
        """Average the embeddings [n, width] over the samples of each pool [n]."""
        sums = np.stack(
            [embeddings[pools == pool].sum(axis=0, dtype=np.float64) for pool in range(3)]
        )
        return cls(sums, np.bincount(pools, minlength=3))

    def nearest(self, embedding: NDArray[np.floating]) -> int:
        """Return the pool whose centroid is nearest to one embedding [width]; the easier one of equals.

        The L2 distance |x - c| orders as |c|^2 - 2 x.c does, which spares the differences.
        """
        products = (self.means @ embedding).tolist()
        # Three numbers: Python's own arithmetic, which is the same, takes less here than three calls of numpy.
        scores = [
            offset - 2.0 * product
            for offset, product in zip(self._offsets.tolist(), products, strict=True)
        ]
        return scores.index(min(scores))

    def nearest_of(self, embeddings: NDArray[np.floating]) -> NDArray[np.intp]:
        """Return what `nearest` does for each row of embeddings [n, width]: [n]."""
        products = embeddings.astype(np.float64) @ self.means.T
        pools: NDArray[np.intp] = (self._offsets - 2.0 * products).argmin(axis=1)
        return pools

    def distances(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the L2 distances [..., pools] of embeddings [..., width]; infinite for an empty pool."""
        points = np.asarray(embeddings, dtype=np.float64)
        squares = np.einsum("...d,...d->...", points, points)[..., None] + self._offsets
        distances: NDArray[np.float64] = np.sqrt(
            np.maximum(squares - 2.0 * (points @ self.means.T), 0.0)
        )
        return distances

    def preference(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Return d(hard) - d(easy) for embeddings [..., width]: [...]; None while one of these pools is empty."""
        if not (self.counts[0] and self.counts[2]):
            return None
        distances = self.distances(embeddings)
        preferred: NDArray[np.float64] = distances[..., 2] - distances[..., 0]
        return preferred

    def update(self, pool: int, embedding: NDArray[np.floating]) -> None:
        """Move one centroid by one sample: P <- (n P + x) / (n + 1), n <- n + 1 (paper 1, eq. 5)."""
        self.sums[pool] += embedding
        self.counts[pool] += 1
        self._refresh(pool)

    def _refresh(self, pool: int) -> None:
        mean = self.means[pool]
        np.divide(self.sums[pool], self.counts[pool], out=mean)
        self._offsets[pool] = mean @ mean


class CentroidPolicy(Searched, FirstSure):
    """Route to the tier of the nearest pool; the adaptive kind moves that pool's centroid by the sample."""

    any_model = True

    def __init__(self, depths: Depths, centroids: Centroids) -> None:
        super().__init__(depths)
        self.centroids = centroids

    @abstractmethod
    def enter(self, tier: Tier) -> Step:
        """Return the first step on the tier that the router chose."""

    def onward(self, steps: Sequence[Step]) -> Step | None:
        """Return the step that follows these on the chosen tier; none by default."""
        return None

    def decide(self, view: View) -> Step | None:
        """Route a new sample by its embedding."""
        if not view.steps:
            return self.enter(TIERS[self.centroids.nearest(view.embedding)])
        return super().decide(view)

    def decide_group(self, group: Group) -> Choices:
        """Route a group at once."""
        if not group.steps:
            options = tuple(self.enter(tier) for tier in TIERS)
            return Choices(options, self.centroids.nearest_of(group.embeddings))
        return super().decide_group(group)

    def learn(self, view: View) -> None:
        """Move the chosen centroid by this sample, where the policy is adaptive (paper 1, eq. 5)."""
        if self.learns:
            self.centroids.update(TIERS.index(view.steps[0].tier), view.embedding)

    def routing_score(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Return what the centroids prefer."""
        return self.centroids.preference(embeddings)

    def state(self) -> PolicyState:
        """Return the settings, and the centroids as sums and counts."""
        return PolicyState(
            self.settings(),
            {"sums": self.centroids.sums.copy(), "counts": self.centroids.counts.copy()},
        )

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        centroids = Centroids(state.arrays["sums"], state.arrays["counts"])
        return cls(depths, centroids, **state.settings)
