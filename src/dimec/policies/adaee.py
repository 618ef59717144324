"""AdaEE: a bandit over the confidence below which the device offloads to the cloud (Pacheco et al., ICC 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Reading, Step, Tier
from dimec.policies.bandit import Bandit
from dimec.policies.base import Calibration, GroupReading, View

THRESHOLDS = tuple(round(0.1 * each, 1) for each in range(11))


class AdaEe(Bandit):
    """Run mobile; offload where C_m is below the arm, and answer with the more confident of the two.

    The reward is 0 for a sample that stays, else max(C_cloud, C_m) - C_m - o: what offloading gained in confidence,
    less what it cost.
    """

    name = "adaee"
    answers_with = "most confident"
    any_model = True

    def __init__(
        self, depths: Depths, *, overhead: float, thresholds: Sequence[float] = THRESHOLDS
    ) -> None:
        """Take what offloading a sample costs, o, in units of confidence, and the arms."""
        self.thresholds = [float(each) for each in thresholds]
        way = (Step(Tier.MOBILE, depths.mobile), Step(Tier.CLOUD, depths.cloud))
        super().__init__(depths, ways=[way] * len(self.thresholds))
        self.overhead = overhead

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the overhead; the arms are learnt on the stream."""
        depths, costs = calibration.depths["dc"], calibration.costs
        mobile = Step(Tier.MOBILE, depths.mobile)
        extra = costs.of([mobile, Step(Tier.CLOUD, depths.cloud)]) - costs.of([mobile])
        return cls(depths, overhead=calibration.unit * extra)

    def arm_name(self, arm: int) -> str:
        """Name the threshold."""
        return f"alpha = {self.thresholds[arm]:g}"

    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Stay from the threshold on."""
        return reading.confidence >= self.thresholds[arm]

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return the played arm's reward."""
        mobile = view.readings[0].confidence
        if len(view.readings) == 1:
            return ((arm, 0.0),)
        gain = max(view.readings[1].confidence, mobile) - mobile
        return ((arm, gain - self.overhead),)
