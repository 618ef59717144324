"""UEE-UCB: a bandit over the exits that estimates their errors without a label (Hanawal et al., AIMLSystems 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from dimec.policies.bandit import EXPLORATION, LayerBandit
from dimec.policies.base import View


class UeeUcb(LayerBandit):
    """Answer on the device at the exit j with the largest P(Y_1 != Y_j) + c_1 - c_j + sqrt(ln(t + 1) / N_j).

    Under strong dominance (an exit that is right stays right further up) the disagreement with the first exit is what
    exit j gains on it. Playing j observes the exits 1 to j; the first sample plays the last exit.
    """

    name = "uee-ucb"
    side_readings = True

    def choose(self) -> int:
        """Return the exit with the largest index; the last one while some exit was never read."""
        if not self.counts[-1]:
            return len(self.counts) - 1
        log_rounds = EXPLORATION**2 * math.log(self.rounds + 1)
        return max(range(len(self.counts)), key=lambda each: self.index(each, log_rounds))

    def index(self, arm: int, log_rounds: float) -> float:
        """Return the gain on the first exit, less the cost, and the bound."""
        count = self.counts[arm]
        return self.sums[arm] / count - self.processing[arm] + math.sqrt(log_rounds / count)

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return for every exit read whether it disagrees with the first one."""
        first = view.readings[0].label
        return [(each, float(view.readings[each].label != first)) for each in range(arm + 1)]
