"""BERxiT: leave at the first exit that a learnt module holds to be right (Xin et al., EACL 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Reading, Tier
from dimec.policies.base import Calibration, GroupReading
from dimec.policies.first_exit import FirstExit, quantiles
from dimec.policies.reliability import check_weights, fit_reliability, reliability
from dimec.runs.exit_table import ExitTable


class Berxit(FirstExit):
    """Leave where the learning-to-exit module's certainty reaches tau."""

    name = "berxit"
    tier = Tier.CLOUD
    threshold_name = "tau"

    def __init__(
        self, depths: Depths, *, layers: Sequence[int], threshold: float, weights: Sequence[float]
    ) -> None:
        super().__init__(depths, layers=layers, threshold=threshold)
        self.weights = check_weights(weights)

    @classmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return quantiles of the certainties of validation's early exits, and a value above all of them."""
        policy, table = cls.at(calibration, 0.0), calibration.table
        found = [
            policy.certainty(table.probabilities[:, place], layer)
            for place, layer in enumerate(table.layers[:-1])
        ]
        return quantiles(np.array(found))

    @classmethod
    def fitted(cls, table: ExitTable) -> dict[str, Any]:
        """Fit the module."""
        return {"weights": fit_reliability(table)}

    def certainty(self, probabilities: NDArray[np.float64], layer: int) -> NDArray[np.float64]:
        """Return how certain the module is of what an exit said: [...] for probabilities [..., classes]."""
        return reliability(probabilities, layer / self.layers[-1], self.weights)

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Hold the certainty against tau."""
        sure: NDArray[np.bool_] = (
            self.certainty(reading.probabilities, reading.layer) >= self.threshold
        )
        return sure
