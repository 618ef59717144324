"""What systems with one threshold share: samples leave a way of exits at the first that is sure by it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Reading, Step, Tier
from dimec.policies.base import Calibration, GroupReading, OneWay, Searched
from dimec.policies.replay import replay
from dimec.policies.thresholds import ThresholdSearch, search_thresholds
from dimec.runs.exit_table import ExitTable

N_QUANTILES = 40


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

        return search_thresholds(answer, grid, costs=calibration.costs, unit=calibration.unit)

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
        """Take the threshold, and fit what else there is."""
        (threshold,) = thresholds
        depths, table = calibration.depths[cls.method], calibration.table
        return cls(depths, layers=table.layers, threshold=threshold, **cls.fitted(table))

    @classmethod
    def fitted(cls, table: ExitTable) -> dict[str, Any]:
        """Return the other arguments of the constructor, fitted on validation."""
        return {}

    def operating_point(self) -> dict[str, float]:
        """Return the threshold."""
        return {self.threshold_name: self.threshold}


class ManyExits(FirstExit):
    """Leave where the exits read so far speak for it with at least the threshold, in the cloud."""

    tier = Tier.CLOUD

    @abstractmethod
    def evidence(
        self, labels: NDArray[np.int64], confidence: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return what speaks for leaving at the last of the exits read: [...], from their answers [exits, ...]."""

    def are_enough(self, readings: Sequence[Reading | GroupReading]) -> NDArray[np.bool_]:
        """Hold the evidence against the threshold."""
        labels = np.array([each.label for each in readings])
        confidence = np.array([each.confidence for each in readings])
        enough: NDArray[np.bool_] = self.evidence(labels, confidence) >= self.threshold
        return enough


def quantiles(values: NDArray[np.float64]) -> list[float]:
    """Return thresholds for values: their quantiles, and one above all of them, at which no sample leaves early."""
    if not values.size:
        return [1.0]
    found = np.unique(np.quantile(values, np.linspace(0, 1, N_QUANTILES + 1)))
    return [*found.tolist(), float(np.nextafter(found[-1], np.inf))]
