"""CDE, calibrated early exit: the device answers where its calibrated confidence meets a target, else the cloud does.

Our reading of a name that paper 1 lists among its related work and does not describe (docs/reference/systems/cde.md).
"""

from __future__ import annotations

from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Reading, Step, Tier, softmax
from dimec.costs.model import Use
from dimec.policies.base import (
    Calibration,
    Choices,
    Group,
    GroupReading,
    PolicyState,
    Searched,
    View,
)
from dimec.policies.thresholds import ThresholdSearch, confidence_grid, search_thresholds

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


class Cde(Searched):
    """Run mobile; below the target run the cloud too and answer with the more confident of the two."""

    name = "cde"
    answers_with = "most confident"
    any_model = True

    def __init__(self, depths: Depths, *, target: float, temperatures: dict[str, float]) -> None:
        """Take the target and the temperatures of the mobile and the cloud exit, by tier."""
        super().__init__(depths)
        self.target = target
        self.temperatures = dict(temperatures)
        if not all(each > 0 for each in self.temperatures.values()):
            raise ContractError(f"temperatures must be above 0, not {self.temperatures}")
        self._mobile = Step(Tier.MOBILE, depths.mobile)
        self._cloud = Step(Tier.CLOUD, depths.cloud)

    @classmethod
    def search_in(cls, calibration: Calibration) -> ThresholdSearch:
        """Search the target."""
        tables, depths = calibration.tables, calibration.depths["dc"]
        temperatures = cls._temperatures(calibration)
        raw, sure = {}, {}
        for tier in (Tier.MOBILE, Tier.CLOUD):
            table = tables.of(tier)
            position = table.exit(depths.of(tier))
            raw[tier] = table.confidence[:, position]
            probabilities = table.probabilities[:, position]
            sure[tier] = calibrate(probabilities, temperatures[str(tier)]).max(axis=1)
        mobile, cloud = Step(Tier.MOBILE, depths.mobile), Step(Tier.CLOUD, depths.cloud)
        use = np.array([Use.of([mobile]).vector, Use.of([mobile, cloud]).vector])
        by_cloud = sure[Tier.CLOUD] > sure[Tier.MOBILE]

        def answer(target: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            offloaded = sure[Tier.MOBILE] < target
            confidence = np.where(offloaded & by_cloud, raw[Tier.CLOUD], raw[Tier.MOBILE])
            return confidence, use[offloaded.astype(np.intp)]

        grid = confidence_grid(calibration.table.n_classes)
        return search_thresholds(grid, answer, costs=calibration.costs, unit=calibration.unit)

    @classmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Fit the temperatures on the validation split and take the target."""
        (target,) = thresholds
        temperatures = cls._temperatures(calibration)
        return cls(calibration.depths["dc"], target=target, temperatures=temperatures)

    @staticmethod
    def _temperatures(calibration: Calibration) -> dict[str, float]:
        tables, depths = calibration.tables, calibration.depths["dc"]
        found = {}
        for tier in (Tier.MOBILE, Tier.CLOUD):
            table = tables.of(tier)
            probabilities = table.probabilities[:, table.exit(depths.of(tier))]
            found[str(tier)] = fit_temperature(probabilities, table.labels)
        return found

    def confidence_of(self, reading: Reading | GroupReading) -> float | NDArray[np.float64]:
        """Return the calibrated confidence."""
        sure = calibrate(reading.probabilities, self.temperatures[str(reading.tier)]).max(axis=-1)
        return float(sure) if isinstance(reading, Reading) else sure

    def decide(self, view: View) -> Step | None:
        """Offload what misses the target on mobile."""
        if not view.steps:
            return self._mobile
        offloads = len(view.steps) == 1 and self.confidence_of(view.readings[0]) < self.target
        return self._cloud if offloads else None

    def decide_group(self, group: Group) -> Choices:
        """Decide for a group at once."""
        if len(group.steps) == 1:
            offloads = np.asarray(self.confidence_of(group.readings[0]) < self.target)
            return Choices((None, self._cloud), offloads.astype(np.intp))
        only = None if group.steps else self._mobile
        return Choices((only,), np.zeros(len(group), dtype=np.intp))

    def endpoints(self) -> tuple[Step, ...]:
        """Return the mobile and the cloud tier's last exits."""
        return (self._mobile, self._cloud)

    def operating_point(self) -> dict[str, float]:
        """Return the target and the temperatures."""
        temperatures = {f"T_{tier}": value for tier, value in self.temperatures.items()}
        return {"target": self.target, **temperatures}

    def state(self) -> PolicyState:
        """Return the target and the temperatures."""
        return PolicyState({"target": self.target, "temperatures": self.temperatures}, {})

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        return cls(depths, **state.settings)
