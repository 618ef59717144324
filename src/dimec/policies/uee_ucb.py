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
        best, best_index = 0, -math.inf
        for exit_, (count, disagreed) in enumerate(zip(self.counts, self.sums, strict=True)):
            gain = disagreed / count - self.processing[exit_]
            index = gain + math.sqrt(log_rounds / count)
            if index > best_index:
                best, best_index = exit_, index
        return best

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return for every exit read whether it disagrees with the first one."""
        first = view.readings[0].label
        return [(each, float(view.readings[each].label != first)) for each in range(arm + 1)]
