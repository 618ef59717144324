"""CDE, calibrated early exit: the device answers where its calibrated confidence meets a target, else the cloud does.

Our reading of a name that paper 1 lists among its related work and does not describe (docs/reference/systems/cde.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Reading, Step, Tier, softmax
from dimec.policies.base import Calibration, GroupReading
from dimec.policies.first_exit import ThresholdPolicy
from dimec.policies.thresholds import confidence_grid

_TIERS = (Tier.MOBILE, Tier.CLOUD)
_LEAST, _MOST = 0.05, 20.0


def calibrate(probabilities: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Return softmax(logits / T) for probabilities [..., classes] of softmax(logits)."""
    return softmax(np.log(np.maximum(probabilities, np.finfo(np.float64).tiny)) / temperature)


def fit_temperature(probabilities: NDArray[np.float64], labels: NDArray[np.integer]) -> float:
    """Return the T in 0.05 .. 20 that makes labels [n] most likely under probabilities [n, classes] (Guo et al. 2017).

    The negative log-likelihood is convex in 1/T; its slope there, the mean of the expected less the true logit, is
    bisected. An exit that is never wrong on these samples, or hardly better than chance, ends at a bound.
    """
    logits = np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
    true = logits[np.arange(len(labels)), labels]
    low, high = 1 / _MOST, 1 / _LEAST
    for _ in range(50):
        inverse = (low * high) ** 0.5
        expected = (softmax(logits * inverse) * logits).sum(axis=1)
        if (expected - true).mean() < 0:
            low = inverse
        else:
            high = inverse
    return float((low * high) ** -0.5)


class Cde(ThresholdPolicy):
    """Run mobile; below the target run the cloud too and answer with the more confident of the two."""

    name = "cde"
    answers_with = "most confident"
    any_model = True

    def __init__(self, depths: Depths, *, target: float, temperatures: dict[str, float]) -> None:
        """Take the target and the temperatures of the mobile and the cloud exit, by tier."""
        super().__init__(depths, tuple(Step(tier, depths.of(tier)) for tier in _TIERS))
        self.threshold = target
        self.temperatures = dict(temperatures)
        if not all(each > 0 for each in self.temperatures.values()):
            raise ContractError(f"temperatures must be above 0, not {self.temperatures}")

    @classmethod
    def grid(cls, calibration: Calibration) -> Sequence[float]:
        """Return ten equidistant confidences from 1/classes to 1."""
        return confidence_grid(calibration.table.n_classes)

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Fit the temperatures on the validation split and take the target."""
        (target,) = thresholds
        tables, depths = calibration.tables, calibration.depths[cls.method]
        temperatures = {}
        for tier in _TIERS:
            table = tables.of(tier)
            probabilities = table.probabilities[:, table.exit(depths.of(tier))]
            temperatures[str(tier)] = fit_temperature(probabilities, table.labels)
        return cls(depths, target=target, temperatures=temperatures)

    def confidence_of(self, reading: Reading | GroupReading) -> float | NDArray[np.float64]:
        """Return the calibrated confidence."""
        sure = calibrate(reading.probabilities, self.temperatures[str(reading.tier)]).max(axis=-1)
        return float(sure) if isinstance(reading, Reading) else sure

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Hold the calibrated confidence against the target."""
        return self.confidence_of(reading) >= self.threshold

    def operating_point(self) -> dict[str, float]:
        """Return the target and the temperatures."""
        temperatures = {f"T_{tier}": value for tier, value in self.temperatures.items()}
        return {"target": self.threshold, **temperatures}

    def settings(self) -> dict[str, Any]:
        """Return the target and the temperatures."""
        return {"target": self.threshold, "temperatures": self.temperatures}
