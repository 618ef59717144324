"""DEE: a contextual bandit that at each exit stops or goes on (Ju et al., CIKM 2021).

Inferred from the paper's abstract (docs/reference/systems/dee.md): at exit i the context is the confidence C_i; what
exit i cost is the same for all samples and goes into the constant term. Each exit has a ridge regression per action
(LinUCB).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.bandit import EXPLORATION, priced, priced_layers
from dimec.policies.base import (
    Calibration,
    Choices,
    Group,
    Policy,
    PolicyState,
    View,
)


class Ridge:
    """A ridge regression of the reward on (1, C), with penalty 1, kept as sums."""

    __slots__ = ("sums",)

    def __init__(self, sums: Sequence[float] = (0.0, 0.0, 0.0, 0.0, 0.0)) -> None:
        """Take n, sum of C, sum of C^2, sum of r, sum of C r."""
        n, c, cc, _, _ = self.sums = list(sums)
        # What confidences there are have no other sums, and `bound` takes a root of these.
        if n < 0 or not 0 <= c * c <= n * cc * (1 + 1e-9) + 1e-9:
            raise ContractError(f"no confidences have the sums {n:g}, {c:g} and {cc:g}")

    def bound(self, confidence: float) -> float:
        """Return the upper confidence bound of the reward at a confidence: theta.x + c sqrt(x' A^-1 x)."""
        n, c, cc, r, cr = self.sums
        top, bottom = n + 1.0, cc + 1.0  # A = [[n + 1, c], [c, cc + 1]]
        determinant = top * bottom - c * c
        constant, slope = bottom * r - c * cr, top * cr - c * r
        spread = bottom - 2.0 * c * confidence + top * confidence * confidence
        return (constant + slope * confidence) / determinant + EXPLORATION * math.sqrt(
            spread / determinant
        )

    def add(self, confidence: float, reward: float) -> None:
        """Take note of one outcome."""
        for index, value in enumerate(
            (1.0, confidence, confidence * confidence, reward, confidence * reward)
        ):
            self.sums[index] += value


class Dee(Policy):
    """Go through the encoder on the device, at each exit stopping or going on, whichever bound is larger.

    The reward of both is that of the answer, C_j - lambda_m j: going on at exit i is paid by what came of it later.
    """

    name = "dee"
    method = "ee"
    picks = "exits"
    every_exit = True
    learns = True
    pinned: int | None = None
    """The exit at which every sample stops, where this is an arm of its own: it then learns nothing."""

    def __init__(
        self, depths: Depths, *, layers: Sequence[int], processing: Sequence[float]
    ) -> None:
        """Take the exits' layers and what running to each costs, in units of confidence."""
        super().__init__(depths)
        self.layers = tuple(layers)
        self.processing = priced(self.layers, processing)
        self.stop = [Ridge() for _ in self.layers[:-1]]
        self.go_on = [Ridge() for _ in self.layers[:-1]]
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
            stops = (
                self.stop[at].bound(confidence) >= self.go_on[at].bound(confidence)
                if self.pinned is None
                else at == self.pinned
            )
            if stops:
                return None
        return self._steps[at + 1]

    def decide_group(self, group: Group) -> Choices:
        """Do what a pinned exit says, for a group at once; samples that are learnt from come one by one."""
        if self.pinned is None:
            return super().decide_group(group)
        at = len(group.steps) - 1
        step = None if at == self.pinned else self._steps[at + 1]
        return Choices.same(step, group)

    def learn(self, view: View) -> None:
        """Credit the answer's reward to every decision that led to it."""
        if self.pinned is not None:
            return
        last = len(view.steps) - 1
        reward = view.readings[last].confidence - self.processing[last]
        for at in range(last):
            self.go_on[at].add(view.readings[at].confidence, reward)
        if last < len(self.stop):
            self.stop[last].add(view.readings[last].confidence, reward)

    def arms(self) -> Mapping[str, Policy]:
        """Return the policies that always stop at one exit."""
        return {f"layer {layer}": self._pin(at) for at, layer in enumerate(self.layers)}

    def _pin(self, exit_: int) -> Self:
        twin = self.fresh()
        twin.pinned, twin.learns = exit_, False
        return twin

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit, on the device."""
        return self._steps

    def state(self) -> PolicyState:
        """Return the exits, their costs and what was learnt."""
        learnt = {
            name: np.array([ridge.sums for ridge in ridges])
            for name, ridges in (("stop", self.stop), ("go_on", self.go_on))
        }
        return PolicyState({"layers": list(self.layers), "processing": self.processing}, learnt)

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        policy = cls(depths, **state.settings)
        policy.stop, policy.go_on = (
            [Ridge(sums) for sums in state.arrays[name].tolist()] for name in ("stop", "go_on")
        )
        if {len(policy.stop), len(policy.go_on)} != {len(policy.layers) - 1}:
            raise ContractError("what it learnt is not of its exits")
        return policy
