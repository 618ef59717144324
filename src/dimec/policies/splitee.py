"""SplitEE, SplitEE-S, I-SplitEE: a bandit over the layer at which the encoder is split between device and cloud.

The device runs to the split and answers where its exit is sure; else it ships the hidden state and the cloud resumes
(Bajpai et al., AIMLSystems 2023; Bajpai et al., ICC 2024). Costs are those of the common model: what the device runs to
layer i is lambda_i (gamma_i of I-SplitEE), what offloading there adds is o.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Reading, Step, Tier
from dimec.costs.model import Use
from dimec.policies.bandit import LayerBandit, priced, priced_layers
from dimec.policies.base import Calibration, GroupReading, View
from dimec.policies.thresholds import confidence_grid, search_thresholds


class SplitEe(LayerBandit):
    """Learn from the split that was played: r = C_i - lambda_i if it left there, else C_l - o - lambda_i."""

    name = "splitee"

    def __init__(
        self,
        depths: Depths,
        *,
        layers: Sequence[int],
        processing: Sequence[float],
        alpha: float,
        offloading: Sequence[float],
    ) -> None:
        """Take the splits' layers, the least confidence to leave with, and costs by split in units of confidence."""
        last = Step(Tier.CLOUD, depths.cloud, resumes=True)
        super().__init__(depths, last, layers=layers, processing=processing)
        self.alpha = alpha
        self.offloading = priced(self.layers, offloading)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Price the splits; choose the alpha whose best split earns most on validation. The split itself is learnt."""
        table, costs, unit = calibration.table, calibration.costs, calibration.unit
        last = Step(Tier.CLOUD, table.n_layers, resumes=True)
        mobile = [Step(Tier.MOBILE, layer) for layer in table.layers]
        traces = [[step] for step in mobile], [[step, last] for step in mobile[:-1]] + [mobile[-1:]]
        local, both = (np.array([costs.of(steps) for steps in each]) for each in traces)
        use = np.array([[Use.of(steps).vector for steps in each] for each in traces])

        def answer(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            leaves = table.confidence >= alpha
            leaves[:, -1] = True
            confidence = np.where(leaves, table.confidence, table.confidence[:, -1:])
            cost = np.where(leaves, local, both)
            best = (confidence - unit * cost).mean(axis=0).argmax()
            return confidence[:, best], np.where(leaves[:, best, None], *use[:, best])

        grid = confidence_grid(table.n_classes)
        search = search_thresholds(answer, grid, costs=costs, unit=unit)
        policy = cls(
            calibration.depths[cls.method],
            **priced_layers(calibration),
            alpha=search.point[0],
            offloading=(unit * (both - local)).tolist(),
        )
        policy.search = search
        return policy

    def leaves(self, arm: int, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Leave with C_i >= alpha; from the last layer there is nowhere to go."""
        return arm == len(self.layers) - 1 or reading.confidence >= self.alpha

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return the played split's reward."""
        offloaded = self.offloading[arm] if len(view.steps) > 1 else 0.0
        return ((arm, view.readings[-1].confidence - self.processing[arm] - offloaded),)

    def operating_point(self) -> dict[str, float]:
        """Return the confidence to leave with."""
        return {"alpha": self.alpha}


class SplitEeS(SplitEe):
    """Learn from every exit on the way to the split as well, as if the sample had been split there.

    Where an earlier exit would have offloaded and the cloud was not asked, the last confidence read stands in for C_l.
    """

    name = "splitee-s"
    side_readings = True

    def rewards(self, view: View, arm: int) -> Iterable[tuple[int, float]]:
        """Return the rewards of all splits up to the played one."""
        final = view.readings[-1].confidence
        rewards = []
        for each in range(arm + 1):
            sure = view.readings[each].confidence
            cost = self.processing[each]
            if not self.leaves(each, view.readings[each]):
                sure = final
                cost += self.offloading[each]
            rewards.append((each, sure - cost))
        return rewards


class ISplitEe(SplitEeS):
    """SplitEE-S with a factor mu on all costs; at mu = 1, the authors' own value, and on one price it is SplitEE-S."""

    name = "i-splitee"
