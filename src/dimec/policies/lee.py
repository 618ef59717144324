"""LEE: a bandit over the exits that maximises reward per time where times are random (Ju et al., CCGrid 2021).

Inferred from the paper's abstract (docs/reference/systems/lee.md). An exit table holds no times, so the
duration of a sample is drawn: the number of its layers times a gamma variate of mean 1.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Self

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths
from dimec.policies.bandit import LayerBandit, played, priced_layers
from dimec.policies.base import Calibration, PolicyState, View

VARIATION = 0.25  # coefficient of variation of a duration


class Lee(LayerBandit):
    """Answer on the device at the exit with the largest (mean reward + bound) / mean duration.

    The reward of an exit is C_j - lambda_m j, a confidence less what its latency is worth.
    """

    name = "lee"
    learnt = (*LayerBandit.learnt, "spent")

    def __init__(
        self, depths: Depths, *, layers: Sequence[int], processing: Sequence[float], seed: int
    ) -> None:
        super().__init__(depths, layers=layers, processing=processing)
        self.seed = seed
        self.spent = [0.0] * len(self.layers)
        self._draws = random.Random(seed)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the layers; rewards and durations are learnt on the stream."""
        depths = calibration.depths[cls.method]
        return cls(depths, **priced_layers(calibration), seed=calibration.seed)

    def index(self, arm: int, log_rounds: float) -> float:
        """Return the reward rate of an exit."""
        return (self.sums[arm] + math.sqrt(log_rounds * self.counts[arm])) / self.spent[arm]

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return the played exit's reward."""
        return ((arm, view.readings[-1].confidence - self.processing[arm]),)

    def learn(self, view: View) -> None:
        """Take the reward, and draw how long it took."""
        super().learn(view)
        shape = VARIATION**-2
        arm = played(view)
        self.spent[arm] += self.layers[arm] * self._draws.gammavariate(shape, 1 / shape)

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy, which draws from the start."""
        policy = super().from_state(depths, state)
        times = zip(policy.spent, policy.counts, strict=True)
        if any(spent <= 0 for spent, count in times if count):
            raise ContractError("an arm that was played took no time")
        return policy
