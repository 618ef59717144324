"""What systems with one threshold share: samples leave a way of exits at the first that is sure by it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.base import Calibration, Choices, Group, OneWay, Searched, View
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


class ManyExits(FirstExit):
    """Leave where the exits read so far speak for it with at least the threshold, in the cloud."""

    tier = Tier.CLOUD

    @abstractmethod
    def evidence(
        self, labels: NDArray[np.int64], confidence: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return what speaks for leaving at the last of the exits read: [k], from their answers [exits, k]."""

    def decide(self, view: View) -> Step | None:
        """Go on, unless enough speaks for leaving."""
        step = self.onward(view.steps)
        if step is None or not view.readings:
            return step
        labels = np.array([[each.label] for each in view.readings])
        confidence = np.array([[each.confidence] for each in view.readings])
        return None if self.evidence(labels, confidence)[0] >= self.threshold else step

    def decide_group(self, group: Group) -> Choices:
        """Decide for a group at once."""
        step = self.onward(group.steps)
        if step is None or not group.readings:
            return Choices.same(step, group)
        labels = np.stack([each.labels for each in group.readings])
        confidence = np.stack([each.confidence for each in group.readings])
        enough = self.evidence(labels, confidence) >= self.threshold
        return Choices((step, None), enough.astype(np.intp))

    def evidence_in(self, table: ExitTable) -> NDArray[np.float64]:
        """Return what speaks for leaving at each exit but the last: [exits - 1, n]."""
        labels, confidence = table.predictions.T, table.confidence.T
        ends = range(1, len(labels))
        found = [self.evidence(labels[:end], confidence[:end]) for end in ends]
        return np.array(found).reshape(len(ends), len(table))


def quantiles(values: NDArray[np.float64]) -> list[float]:
    """Return thresholds for values: their quantiles, and one above all of them, at which no sample leaves early."""
    if not values.size:
        return [1.0]
    found = np.unique(np.quantile(values, np.linspace(0, 1, N_QUANTILES + 1)))
    return [*found.tolist(), float(np.nextafter(found[-1], np.inf))]
