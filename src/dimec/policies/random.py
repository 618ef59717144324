"""Random: every sample goes to one of the three tiers with equal chance, as we read the papers' baseline."""

from __future__ import annotations

from typing import Self

import numpy as np

from dimec.core.tiers import TIERS, Depths, Step
from dimec.policies.base import Calibration, Choices, Group, Policy, View


class Random(Policy):
    """Draw the tier; it answers with its last exit."""

    name = "random"
    any_model = True

    def __init__(self, depths: Depths, *, seed: int) -> None:
        """Take the seed of the draws; a rebuilt policy draws from the start."""
        super().__init__(depths)
        self.seed = seed
        self._draws = np.random.default_rng(seed)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Take the seed; there is nothing to tune."""
        return cls(calibration.depths["dc"], seed=calibration.seed)

    def decide(self, view: View) -> Step | None:
        """Draw a tier for a new sample."""
        if view.steps:
            return None
        tier = TIERS[int(self._draws.random() * len(TIERS))]
        return Step(tier, self.depths.of(tier))

    def decide_group(self, group: Group) -> Choices:
        """Draw for a group, in its order: the same tiers as one by one."""
        if group.steps:
            return Choices.same(None, group)
        picks = (self._draws.random(len(group)) * len(TIERS)).astype(np.intp)
        return Choices(self.endpoints(), picks)
