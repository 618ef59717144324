"""What the online systems share: a bandit picks a fixed rule, an *arm*, for every sample and learns from what it saw.

An arm says where a sample starts, when it leaves there and where it goes otherwise. The index of an arm is its mean
reward and an upper confidence bound, Q + c sqrt(ln t / N); every arm is played once first. No reward needs a label.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Reading, Step, Tier
from dimec.policies.base import Calibration, GroupReading, OneWay, Policy, PolicyState, View

EXPLORATION = 1.0


def played(view: View) -> int:
    """Return the arm that a sample was started by."""
    arm = view.steps[0].arm
    assert arm is not None  # every first step of a bandit carries its arm
    return arm


class Arm(OneWay):
    """An arm as a policy of its own, which always plays it and learns nothing."""

    name = "arm"

    def __init__(
        self,
        learner: Policy,
        way: tuple[Step, ...],
        leaves: Callable[[Reading | GroupReading], bool | NDArray[np.bool_]] = lambda _: False,
    ) -> None:
        """Take the policy that has the arm, its steps, and which readings are answered before the last of them."""
        super().__init__(learner.depths, way)
        self.answers_with = learner.answers_with
        self._ends = learner.endpoints()
        self._leaves = leaves

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Refuse: what learns to choose among arms makes them."""
        raise ContractError("an arm is made by the policy that plays it")

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Leave where the arm does."""
        return self._leaves(reading)

    def endpoints(self) -> tuple[Step, ...]:
        """Return every exit that some arm may answer from: where a tier stands in, it runs to its deepest one."""
        return self._ends


class Bandit(Policy):
    """Pick an arm by its upper confidence bound.

    A subclass gives the arms' ways, `arm_name`, `leaves` and `rewards`.
    """

    learns = True
    learnt: ClassVar[tuple[str, ...]] = ("counts", "sums", "rounds")

    def __init__(self, depths: Depths, *, ways: Sequence[tuple[Step, ...]]) -> None:
        """Take each arm's steps, in the order of the arms; a sample goes on until it leaves."""
        super().__init__(depths)
        self.ways = tuple((replace(way[0], arm=arm), *way[1:]) for arm, way in enumerate(ways))
        self.counts = [0] * len(self.ways)
        self.sums = [0.0] * len(self.ways)
        self.rounds = 0

    @abstractmethod
    def arm_name(self, arm: int) -> str:
        """Name an arm for people."""

    @abstractmethod
    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Tell whether samples with this reading are answered there, before the end of the arm's way."""

    @abstractmethod
    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return what an answered sample says about arms: the played one's reward, and side observations."""

    def choose(self) -> int:
        """Return the arm with the largest index; the first of equals, the first that was never played before all."""
        if 0 in self.counts:
            return self.counts.index(0)
        log_rounds = EXPLORATION**2 * math.log(max(self.rounds, 1))
        return max(range(len(self.counts)), key=lambda arm: self.index(arm, log_rounds))

    def index(self, arm: int, log_rounds: float) -> float:
        """Return the index of an arm that was played, after rounds with this c^2 ln t."""
        count = self.counts[arm]
        return self.sums[arm] / count + math.sqrt(log_rounds / count)

    def decide(self, view: View) -> Step | None:
        """Pick an arm for a new sample, then do what it says."""
        if not view.steps:
            return self.ways[self.choose()][0]
        arm, done = played(view), len(view.steps)
        if done == len(self.ways[arm]) or self.leaves(arm, view.readings[-1]):
            return None
        return self.ways[arm][done]

    def learn(self, view: View) -> None:
        """Add the rewards of a sample to the means of its arms."""
        self.rounds += 1
        for arm, reward in self.rewards(view, played(view)):
            self.counts[arm] += 1
            self.sums[arm] += reward

    def arms(self) -> Mapping[str, Policy]:
        """Return each arm as a policy of its own, which always plays it."""
        return {
            self.arm_name(arm): Arm(self, way, partial(self.leaves, arm))
            for arm, way in enumerate(self.ways)
        }

    def endpoints(self) -> tuple[Step, ...]:
        """Return the exits at the end of the arms' first steps, then those of the others."""
        onward = [step for way in self.ways for step in way[1:]]
        return tuple(dict.fromkeys([*(way[0] for way in self.ways), *onward]))

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        policy = super().from_state(depths, state)
        if min(policy.counts) < 0:
            raise ContractError("the count of an arm is negative")
        return policy


class LayerBandit(Bandit):
    """A bandit whose arms are layers of the encoder: the device runs to the layer and reads its exit.

    A subclass says in `rewards` what it learns from. One that sends samples ``onward`` says in `leaves` which stay.
    """

    method = "ee"
    picks = "exits"
    every_exit = True
    side_readings: ClassVar[bool] = False  # whether the exits on the way are read too

    def __init__(
        self, depths: Depths, *onward: Step, layers: Sequence[int], processing: Sequence[float]
    ) -> None:
        """Take the exits' layers and what the device pays to run to each, in units of confidence."""
        first = [Step(Tier.MOBILE, layer, side_readings=self.side_readings) for layer in layers]
        super().__init__(depths, ways=[(step, *onward) for step in first])
        self.layers = tuple(layers)
        self.processing = priced(self.layers, processing)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the layers; everything else is learnt on the stream."""
        return cls(calibration.depths[cls.method], **priced_layers(calibration))

    def arm_name(self, arm: int) -> str:
        """Name the layer."""
        return f"layer {self.layers[arm]}"

    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Answer at the layer that was played."""
        return True


def priced(layers: tuple[int, ...], costs: Sequence[float]) -> list[float]:
    """Check that there is a cost for each layer, and return the costs."""
    if not layers or len(costs) != len(layers):
        raise ContractError(f"{len(layers)} layers have {len(costs)} costs")
    return [float(each) for each in costs]


def priced_layers(calibration: Calibration, tier: Tier = Tier.MOBILE) -> dict[str, Any]:
    """Return the exits' layers, and what it costs to run a tier to each, as the arguments of policies that ask."""
    layers = calibration.table.layers
    costs = [calibration.costs.of([Step(tier, layer)]) for layer in layers]
    return {"layers": layers, "processing": [calibration.unit * cost for cost in costs]}
