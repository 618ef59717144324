"""BEEM: exits are experts; their weighted confidence adds up while they agree (Bajpai and Hanawal, ICLR 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths
from dimec.policies.base import Calibration
from dimec.policies.first_exit import ManyExits, quantiles
from dimec.runs.exit_table import ExitTable


class Beem(ManyExits):
    """Leave where S_i >= alpha: S_i = S_{i-1} + w_i C_i where exit i agrees with the one before, else w_i C_i.

    The weights are the exits' accuracies on validation (BEEM-A).
    """

    name = "beem"
    threshold_name = "alpha"

    def __init__(
        self, depths: Depths, *, layers: Sequence[int], threshold: float, weights: Sequence[float]
    ) -> None:
        super().__init__(depths, layers=layers, threshold=threshold)
        if len(weights) != len(self.layers):
            raise ContractError(f"{len(self.layers)} exits have {len(weights)} weights")
        self.weights = list(map(float, weights))

    @classmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return quantiles of validation's own scores, and a value above all of them."""
        policy, table = cls.at(calibration, 0.0), calibration.table
        labels, confidence = table.predictions.T, table.confidence.T
        ends = range(1, len(labels))
        found = [policy.evidence(labels[:end], confidence[:end]) for end in ends]
        return quantiles(np.array(found))

    @classmethod
    def fitted(cls, table: ExitTable) -> dict[str, Any]:
        """Weigh the exits."""
        return {"weights": table.right.mean(axis=0).tolist()}

    def evidence(
        self, labels: NDArray[np.int64], confidence: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return S of the last exit read."""
        score: NDArray[np.float64] = self.weights[0] * confidence[0]
        for place in range(1, len(labels)):
            agreed = np.where(labels[place] == labels[place - 1], score, 0.0)
            score = agreed + self.weights[place] * confidence[place]
        return score
