"""Neurosurgeon: one layer at which every sample is cut between device and cloud (Kang et al., ASPLOS 2017).

It is chosen once, by what the cost model says of each cut: the layers before it on the device, the transfer, the layers
after it in the cloud. With a profile's cost model in milliseconds that is least latency, in joules least energy.
"""

from __future__ import annotations

from typing import Self

import numpy as np

from dimec.core.tiers import Depths, Step, Tier
from dimec.costs.model import CostModel
from dimec.policies.base import Calibration, OneWay

_TIE = 1e-12  # cuts whose costs differ by less than this share cost the same


class Neurosurgeon(OneWay):
    """Cut after layer j of 0..l: 0 sends the tokens, l sends nothing. The last exit always answers."""

    name = "neurosurgeon"
    method = "ee"
    picks = "exits"
    reads_embedding = False

    def __init__(self, depths: Depths, *, layer: int) -> None:
        super().__init__(depths, partition(layer, depths.cloud))
        self.layer = layer

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Take the cheapest cut; of equals the latest, which ships least."""
        table = calibration.table
        layer = best_partition(calibration.costs, (0, *table.layers))
        return cls(calibration.depths[cls.method], layer=layer)

    def endpoints(self) -> tuple[Step, ...]:
        """Return the last exit, where it runs."""
        return self.way[-1:]

    def operating_point(self) -> dict[str, float]:
        """Return the layer of the cut."""
        return {"layer": float(self.layer)}


def partition(layer: int, n_layers: int) -> tuple[Step, ...]:
    """Return the steps of a cut after ``layer``."""
    if layer == 0:
        return (Step(Tier.CLOUD, n_layers),)
    if layer == n_layers:
        return (Step(Tier.MOBILE, n_layers),)
    return (Step(Tier.MOBILE, layer), Step(Tier.CLOUD, n_layers, resumes=True))


def best_partition(costs: CostModel, layers: tuple[int, ...]) -> int:
    """Return the cut that costs least, among these with the encoder's depth last; of equals the latest."""
    spent = np.array([costs.of(partition(layer, layers[-1])) for layer in layers])
    equal = np.flatnonzero(spent <= spent.min() * (1 + _TIE))
    return layers[int(equal[-1])]
