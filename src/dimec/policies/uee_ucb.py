"""UEE-UCB: a bandit over the exits that estimates their errors without a label (Hanawal et al., AIMLSystems 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.policies.bandit import EXPLORATION, Bandit
from dimec.policies.base import Calibration, GroupReading, Lack, View
from dimec.policies.first_exit import needs_every_exit
from dimec.tiers import Depths, Reading, Step, Tier


class UeeUcb(Bandit):
    """Answer on the device at the exit j with the largest P(Y_1 != Y_j) + c_1 - c_j + sqrt(ln(t + 1) / N_j).

    Under strong dominance (an exit that is right stays right further up) the disagreement with the first exit is what
    exit j gains on it. Playing j observes the exits 1 to j; the first sample plays the last exit.
    """

    name = "uee-ucb"
    method = "ee"
    picks = "exits"

    def __init__(
        self, depths: Depths, *, layers: Sequence[int], processing: Sequence[float]
    ) -> None:
        """Take the exits' layers and what running to each costs, c_j, in units of confidence."""
        first = [
            Step(Tier.MOBILE, layer, side_readings=True, arm=arm)
            for arm, layer in enumerate(layers)
        ]
        super().__init__(depths, first=first)
        self.layers = tuple(layers)
        self.processing = list(processing)

    @classmethod
    def lacks(cls, calibration: Calibration) -> Lack | None:
        """Need an exit after every layer."""
        return needs_every_exit(calibration)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the exits; everything else is learnt on the stream."""
        return cls(
            calibration.depths[cls.method],
            layers=calibration.table.layers,
            processing=[
                calibration.unit * calibration.costs.of([Step(Tier.MOBILE, layer)])
                for layer in calibration.table.layers
            ],
        )

    def choose(self) -> int:
        """Return the exit with the largest index; the last one while some exit was never read."""
        if not self.counts[-1]:
            return len(self.counts) - 1
        log_rounds = EXPLORATION**2 * math.log(self.rounds + 1)
        best, best_index = 0, -math.inf
        for exit_, (count, disagreed) in enumerate(zip(self.counts, self.sums, strict=True)):
            gain = disagreed / count - self.processing[exit_]
            index = gain + math.sqrt(log_rounds / count)
            if index > best_index:
                best, best_index = exit_, index
        return best

    def arm_name(self, arm: int) -> str:
        """Name the exit."""
        return f"layer {self.layers[arm]}"

    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Answer at the exit that was played."""
        return True

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return for every exit read whether it disagrees with the first one."""
        first = view.readings[0].label
        return [(each, float(view.readings[each].label != first)) for each in range(arm + 1)]

    def settings(self) -> dict[str, object]:
        """Return the exits and their costs."""
        return {"layers": list(self.layers), "processing": self.processing}
