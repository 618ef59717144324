"""What DeeBERT and Early-Exit share: one tier runs the encoder exit by exit and answers at the first sure one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Reading, Step, Tier
from dimec.costs.model import Use
from dimec.policies.base import (
    Calibration,
    Choices,
    Group,
    GroupReading,
    MissingInput,
    PolicyState,
    Searched,
    View,
    needs_every_exit,
)
from dimec.policies.thresholds import ThresholdSearch, search_thresholds


class FirstExit(Searched):
    """Leave at the first exit that is sure, at the latest at the encoder's last."""

    tier: ClassVar[Tier]
    threshold_name: ClassVar[str]
    method = "ee"
    picks = "exits"

    def __init__(self, depths: Depths, *, layers: Sequence[int], threshold: float) -> None:
        """Take the exits' layers and the threshold."""
        super().__init__(depths)
        self.layers = tuple(layers)
        self.threshold = threshold
        self._steps = tuple(Step(self.tier, layer) for layer in self.layers)

    @classmethod
    @abstractmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return the thresholds to search."""

    @classmethod
    @abstractmethod
    def is_sure(
        cls,
        confidence: float | NDArray[np.float64],
        probabilities: NDArray[np.float64],
        threshold: float,
    ) -> bool | NDArray[np.bool_]:
        """Tell whether exits of confidence [...] and probabilities [..., classes] answer at a threshold: [...]."""

    @classmethod
    def missing_input(cls, calibration: Calibration) -> MissingInput | None:
        """Need an exit after every layer."""
        return needs_every_exit(calibration)

    @classmethod
    def search_in(cls, calibration: Calibration) -> ThresholdSearch:
        """Search the threshold."""
        table = calibration.table
        everyone = np.arange(len(table))
        use = np.array([Use.of([Step(cls.tier, each)]).vector for each in table.layers])

        def answer(threshold: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            sure = np.asarray(cls.is_sure(table.confidence, table.probabilities, threshold))
            sure[:, -1] = True  # the last exit answers whatever is left
            leaves = sure.argmax(axis=1)
            return table.confidence[everyone, leaves], use[leaves]

        return search_thresholds(
            cls.grid(calibration), answer, costs=calibration.costs, unit=calibration.unit
        )

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Take the threshold."""
        (threshold,) = thresholds
        depths = calibration.depths[cls.method]
        return cls(depths, layers=calibration.table.layers, threshold=threshold)

    def decide(self, view: View) -> Step | None:
        """Run to the next exit until one is sure."""
        done = len(view.steps)
        if done == len(self._steps) or (done and self._leaves(view.readings[-1])):
            return None
        return self._steps[done]

    def decide_group(self, group: Group) -> Choices:
        """Decide for a group at once."""
        done = len(group.steps)
        if done == 0:
            return Choices((self._steps[0],), np.zeros(len(group), dtype=np.intp))
        if done == len(self._steps):
            return Choices((None,), np.zeros(len(group), dtype=np.intp))
        leaves = np.asarray(self._leaves(group.readings[-1]))
        return Choices((self._steps[done], None), leaves.astype(np.intp))

    def _leaves(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        return self.is_sure(reading.confidence, reading.probabilities, self.threshold)

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit of its tier."""
        return self._steps

    def operating_point(self) -> dict[str, float]:
        """Return the threshold."""
        return {self.threshold_name: self.threshold}

    def state(self) -> PolicyState:
        """Return the exits and the threshold."""
        return PolicyState({"layers": list(self.layers), "threshold": self.threshold}, {})

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        return cls(depths, layers=state.settings["layers"], threshold=state.settings["threshold"])
