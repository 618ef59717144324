"""LEE: a bandit over the exits that maximises reward per time where times are random (Ju et al., CCGrid 2021).

Inferred from the paper's abstract (docs/systems/lee.md). An exit table holds no times, so the duration of a sample is
drawn: its layers' cost times a gamma variate of mean 1.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.policies.bandit import EXPLORATION, Bandit, played
from dimec.policies.base import Calibration, GroupReading, Lack, PolicyState, View
from dimec.policies.first_exit import needs_every_exit
from dimec.tiers import Depths, Reading, Step, Tier

VARIATION = 0.25
"""Coefficient of variation of a duration."""


class Lee(Bandit):
    """Answer on the device at the exit with the largest (mean reward + bound) / mean duration.

    The reward of an exit is C_j - lambda_m j, a confidence less what its latency is worth.
    """

    name = "lee"
    method = "ee"
    picks = "exits"

    def __init__(
        self,
        depths: Depths,
        *,
        layers: Sequence[int],
        durations: Sequence[float],
        unit: float,
        seed: int,
    ) -> None:
        """Take the exits' layers, their mean durations in lambda, lambda in units of confidence, and a seed."""
        first = [Step(Tier.MOBILE, layer, arm=arm) for arm, layer in enumerate(layers)]
        super().__init__(depths, first=first)
        self.layers = tuple(layers)
        self.durations = list(durations)
        self.unit = unit
        self.seed = seed
        self.spent = [0.0] * len(first)
        self._draws = random.Random(seed)

    @classmethod
    def lacks(cls, calibration: Calibration) -> Lack | None:
        """Need an exit after every layer."""
        return needs_every_exit(calibration)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the exits; rewards and durations are learnt on the stream."""
        layers = calibration.table.layers
        return cls(
            calibration.depths[cls.method],
            layers=layers,
            durations=[calibration.costs.of([Step(Tier.MOBILE, layer)]) for layer in layers],
            unit=calibration.unit,
            seed=calibration.seed,
        )

    def choose(self) -> int:
        """Return the exit with the largest reward rate; the first that was never played before all."""
        log_rounds = EXPLORATION**2 * math.log(max(self.rounds, 1))
        best, best_rate = 0, -math.inf
        for arm, count in enumerate(self.counts):
            if count == 0:
                return arm
            rate = (self.sums[arm] + math.sqrt(log_rounds * count)) / self.spent[arm]
            if rate > best_rate:
                best, best_rate = arm, rate
        return best

    def arm_name(self, arm: int) -> str:
        """Name the exit."""
        return f"layer {self.layers[arm]}"

    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Answer at the exit that was played."""
        return True

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return the played exit's reward."""
        return ((arm, view.readings[-1].confidence - self.unit * self.durations[arm]),)

    def learn(self, view: View) -> None:
        """Take the reward, and draw how long it took."""
        super().learn(view)
        if self.pinned is None:
            shape = VARIATION**-2
            arm = played(view)
            self.spent[arm] += self.durations[arm] * self._draws.gammavariate(shape, 1 / shape)

    def settings(self) -> dict[str, object]:
        """Return the exits, their durations, lambda and the seed."""
        return {
            "layers": list(self.layers),
            "durations": self.durations,
            "unit": self.unit,
            "seed": self.seed,
        }

    def state(self) -> PolicyState:
        """Return the settings and what was learnt; a rebuilt policy draws from the start."""
        state = super().state()
        return PolicyState(state.settings, {**state.arrays, "spent": np.array(self.spent)})

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        policy = super().from_state(depths, state)
        policy.spent = state.arrays["spent"].tolist()
        return policy

    def fresh(self) -> Self:
        """Return a copy that learns and draws on its own, from the start of its draws."""
        twin = super().fresh()
        twin.spent = list(self.spent)
        twin._draws = random.Random(self.seed)
        return twin
