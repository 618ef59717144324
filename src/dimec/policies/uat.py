"""UAT: a bandit over the threshold of early exits, paid in certainty times reliability (Bajpai and Hanawal, 2025).

Partly inferred (docs/reference/systems/uat.md): the authors' code was not to be had.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Reading, Step, Tier
from dimec.policies.bandit import Bandit, priced, priced_layers
from dimec.policies.base import Calibration, GroupReading, View
from dimec.policies.reliability import check_weights, fit_reliability, reliability
from dimec.policies.thresholds import confidence_grid


class Uat(Bandit):
    """Run the encoder in the cloud and leave at the first exit with C_i g_i >= alpha; a bandit picks alpha.

    g is a reliability fitted on validation. An answer at exit i earns C_i g_i less the cost of getting there.
    """

    name = "uat"
    method = "ee"
    picks = "exits"
    every_exit = True

    def __init__(
        self,
        depths: Depths,
        *,
        layers: Sequence[int],
        processing: Sequence[float],
        thresholds: Sequence[float],
        weights: Sequence[float],
    ) -> None:
        """Take the exits' layers, what running to each costs in confidence, the arms and the reliability's weights."""
        self.layers = tuple(layers)
        self.thresholds = [float(each) for each in thresholds]
        self.weights = check_weights(weights)
        self.processing = priced(self.layers, processing)
        way = tuple(Step(Tier.CLOUD, layer) for layer in self.layers)
        super().__init__(depths, ways=[way] * len(self.thresholds))

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Fit the reliability and price the exits; the threshold is learnt on the stream."""
        table = calibration.table
        return cls(
            calibration.depths[cls.method],
            **priced_layers(calibration, Tier.CLOUD),
            thresholds=confidence_grid(table.n_classes),
            weights=fit_reliability(table),
        )

    def arm_name(self, arm: int) -> str:
        """Name the threshold."""
        return f"alpha = {self.thresholds[arm]:.3g}"

    def trust(self, reading: Reading | GroupReading) -> NDArray[np.float64]:
        """Return C_i g_i."""
        depth = reading.layer / self.layers[-1]
        return reading.confidence * reliability(reading.probabilities, depth, self.weights)

    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Leave from the threshold on."""
        sure: NDArray[np.bool_] = self.trust(reading) >= self.thresholds[arm]
        return sure

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return the played arm's reward."""
        cost = self.processing[len(view.steps) - 1]
        return ((arm, float(self.trust(view.readings[-1])) - cost),)
