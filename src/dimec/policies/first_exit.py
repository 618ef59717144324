"""What DeeBERT, Early-Exit and CDE share: samples leave a way of exits at the first that is sure by a threshold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.base import Calibration, OneWay, Searched
from dimec.policies.replay import replay
from dimec.policies.thresholds import ThresholdSearch, search_thresholds


class ThresholdPolicy(Searched, OneWay):
    """Answer at the first exit that is sure, at the latest at the last of the way."""

    threshold: float

    @classmethod
    @abstractmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return the thresholds to search."""

    @classmethod
    def search_in(cls, calibration: Calibration) -> ThresholdSearch:
        """Replay validation at every threshold of the grid."""
        grid = cls.grid(calibration)
        policy = cls.at(calibration, grid[0])

        def answer(threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            policy.threshold = threshold
            played = replay(policy, calibration.tables, costs=calibration.costs)
            return played.confidence, played.uses

        return search_thresholds(grid, answer, costs=calibration.costs, unit=calibration.unit)

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit of the way."""
        return self.way


class FirstExit(ThresholdPolicy):
    """Run one tier exit by exit, from the first layer to the encoder's last."""

    tier: ClassVar[Tier]
    threshold_name: ClassVar[str]
    method = "ee"
    picks = "exits"
    every_exit = True

    def __init__(self, depths: Depths, *, layers: Sequence[int], threshold: float) -> None:
        super().__init__(depths, tuple(Step(self.tier, layer) for layer in layers))
        self.layers = tuple(layers)
        self.threshold = threshold

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Take the threshold."""
        (threshold,) = thresholds
        depths = calibration.depths[cls.method]
        return cls(depths, layers=calibration.table.layers, threshold=threshold)

    def operating_point(self) -> dict[str, float]:
        """Return the threshold."""
        return {self.threshold_name: self.threshold}
