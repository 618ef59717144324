"""DEE: a contextual bandit that at each exit stops or goes on (Ju et al., CIKM 2021).

Inferred from the paper's abstract (docs/reference/systems/dee.md): at exit i the context is the confidence C_i; what
exit i cost is the same for all samples and goes into the constant term. Each exit has a ridge regression per action
(LinUCB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.bandit import EXPLORATION, Arm, priced, priced_layers
from dimec.policies.base import Calibration, Policy, PolicyState, View

Sums = list[float]
"""A ridge regression of the reward r on (1, C), with penalty 1: the sums of 1, C, C^2, r and C r."""


def bound(sums: Sums, confidence: float) -> float:
    """Return the upper confidence bound of the reward at a confidence: theta.x + c sqrt(x' A^-1 x)."""
    n, c, cc, r, cr = sums
    top, bottom = n + 1.0, cc + 1.0  # A = [[n + 1, c], [c, cc + 1]]
    determinant = top * bottom - c * c
    constant, slope = bottom * r - c * cr, top * cr - c * r
    spread = bottom - 2.0 * c * confidence + top * confidence * confidence
    return (constant + slope * confidence) / determinant + EXPLORATION * math.sqrt(
        spread / determinant
    )


def add(sums: Sums, confidence: float, reward: float) -> None:
    """Take note of one outcome."""
    for index, value in enumerate(
        (1.0, confidence, confidence * confidence, reward, confidence * reward)
    ):
        sums[index] += value


class Dee(Policy):
    """Go through the encoder on the device, at each exit stopping or going on, whichever bound is larger.

    The reward of both is that of the answer, C_j - lambda_m j: going on at exit i is paid by what came of it later.
    """

    name = "dee"
    method = "ee"
    picks = "exits"
    every_exit = True
    learns = True
    learnt = ("stop", "go_on")

    def __init__(
        self, depths: Depths, *, layers: Sequence[int], processing: Sequence[float]
    ) -> None:
        """Take the exits' layers and what running to each costs, in units of confidence."""
        super().__init__(depths)
        self.layers = tuple(layers)
        self.processing = priced(self.layers, processing)
        self.stop: list[Sums] = [[0.0] * 5 for _ in self.layers[:-1]]
        self.go_on: list[Sums] = [[0.0] * 5 for _ in self.layers[:-1]]
        self._steps = tuple(Step(Tier.MOBILE, layer) for layer in self.layers)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the exits; everything else is learnt on the stream."""
        return cls(calibration.depths[cls.method], **priced_layers(calibration))

    def decide(self, view: View) -> Step | None:
        """Run to the first exit; then stop where that promises at least as much as going on."""
        at = len(view.steps) - 1
        if at == len(self._steps) - 1:
            return None
        if at >= 0:
            confidence = view.readings[-1].confidence
            if bound(self.stop[at], confidence) >= bound(self.go_on[at], confidence):
                return None
        return self._steps[at + 1]

    def learn(self, view: View) -> None:
        """Credit the answer's reward to every decision that led to it."""
        last = len(view.steps) - 1
        reward = view.readings[last].confidence - self.processing[last]
        for at in range(last):
            add(self.go_on[at], view.readings[at].confidence, reward)
        if last < len(self.stop):
            add(self.stop[last], view.readings[last].confidence, reward)

    def arms(self) -> Mapping[str, Policy]:
        """Return the policies that always stop at one exit."""
        return {
            f"layer {layer}": Arm(self, self._steps[: at + 1])
            for at, layer in enumerate(self.layers)
        }

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit, on the device."""
        return self._steps

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        policy = super().from_state(depths, state)
        for n, c, cc, _, _ in (*policy.stop, *policy.go_on):
            # What confidences there are have no other sums, and `bound` takes a root of these.
            if n < 0 or not 0 <= c * c <= n * cc * (1 + 1e-9) + 1e-9:
                raise ContractError(f"no confidences have the sums {n:g}, {c:g} and {cc:g}")
        return policy
