"""Early-Exit: the whole encoder on the device, leaving at the first exit with C_i >= alpha (paper 2, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Reading, Tier
from dimec.policies.base import Calibration, GroupReading
from dimec.policies.first_exit import FirstExit
from dimec.policies.thresholds import confidence_grid


class EarlyExit(FirstExit):
    """Search alpha over paper 2's ten values."""

    name = "early-exit"
    tier = Tier.MOBILE
    threshold_name = "alpha"

    @classmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return ten equidistant confidences from 1/classes to 1."""
        return confidence_grid(calibration.table.n_classes)

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Hold the confidence against alpha."""
        return reading.confidence >= self.threshold
