"""DeeBERT: the whole encoder in the cloud, leaving at the first exit with an entropy below S (Xin et al., ACL 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Reading, Tier
from dimec.policies.base import Calibration, GroupReading
from dimec.policies.first_exit import N_QUANTILES, FirstExit


def entropy(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of probabilities [..., classes], in nats: [...]."""
    logs = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    nats: NDArray[np.float64] = -(probabilities * logs).sum(axis=-1)
    return nats


class DeeBert(FirstExit):
    """Search S over quantiles of the validation split's own entropies; nothing leaves early at 0."""

    name = "deebert"
    tier = Tier.CLOUD
    threshold_name = "S"

    @classmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return 0, quantiles of the early exits' entropies, and a value above all of them."""
        found = entropy(calibration.table.probabilities[:, :-1])
        quantiles = np.quantile(found, np.linspace(0, 1, N_QUANTILES + 1)[1:])
        above = np.nextafter(np.log(calibration.table.n_classes), np.inf)
        return [0.0, *np.unique(quantiles).tolist(), float(max(above, quantiles[-1] + 1e-9))]

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Hold the entropy against S."""
        sure: NDArray[np.bool_] = entropy(reading.probabilities) < self.threshold
        return sure
