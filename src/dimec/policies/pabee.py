"""PABEE: leave once so many exits in a row have agreed with the one before (Zhou et al., NeurIPS 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from dimec.policies.base import Calibration
from dimec.policies.first_exit import ManyExits


class Pabee(ManyExits):
    """Search the patience over 1 to the number of exits; with the largest no sample leaves early."""

    name = "pabee"
    threshold_name = "patience"

    @classmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return every patience."""
        return [float(each) for each in range(1, len(calibration.table.layers) + 1)]

    def evidence(
        self, labels: NDArray[np.int64], confidence: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return how many exits in a row, up to the last one read, agreed with the one before."""
        patience = np.zeros(labels.shape[1:])
        for before, after in pairwise(labels):
            patience = np.where(before == after, patience + 1, 0.0)
        return patience
