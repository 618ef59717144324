"""Split computing behind a learned bottleneck: BottleNet, BottleNet++ and BottleFit.

They differ in what is trained (`dimec compress`), not in what is decided: every sample runs on the device to the
split, ships its compressed hidden state, and is answered by the last layer in the cloud.
"""

from __future__ import annotations

from typing import Self

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.base import Calibration, MissingInput, OneWay


class Bottlenecked(OneWay):
    """Run to the split on the device, then resume in the cloud from what the bottleneck restores."""

    method = "ee"
    picks = "exits"
    reads_embedding = False

    def __init__(self, depths: Depths, *, layer: int, width: int) -> None:
        last = Step(Tier.CLOUD, depths.cloud, resumes=True)
        super().__init__(depths, (Step(Tier.MOBILE, layer), last))
        self.layer = layer
        self.width = width

    @classmethod
    def missing_input(cls, calibration: Calibration) -> MissingInput | None:
        """Need a bottleneck of this kind."""
        restored = calibration.restored
        if restored is not None and restored.kind == cls.bottleneck:
            return None
        return MissingInput("a learned bottleneck", ("kind", cls.name), command="compress")

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Take the bottleneck's split; nothing is chosen on validation.

        Raises:
            ContractError: If the calibration lacks the bottleneck.
        """
        restored = calibration.restored
        if restored is None or restored.kind != cls.bottleneck:
            raise ContractError(f"{cls.name} is fitted from a calibration with its bottleneck")
        depths = calibration.depths[cls.method]
        return cls(depths, layer=restored.after, width=restored.width)

    def endpoints(self) -> tuple[Step, ...]:
        """Return the device's exit at the split, the cloud's behind the bottleneck, and the cloud's from the tokens.

        The last one is no answer of this policy, but what sending the text instead of its hidden state gives: random
        at its cost has to have it, or the hidden state would be held against nothing.
        """
        return (*self.way, Step(Tier.CLOUD, self.depths.cloud))

    def operating_point(self) -> dict[str, float]:
        """Return the split and the width."""
        return {"layer": self.layer, "width": self.width}


class BottleNet(Bottlenecked):
    """A reduction, eight bits and a lossy code, trained through the code (Eshratifar et al., ISLPED 2019)."""

    name = bottleneck = "bottlenet"


class BottleNetPp(Bottlenecked):
    """An encoder and a decoder around a noisy or erasing channel (Shao and Zhang, ICC Workshops 2020)."""

    name = bottleneck = "bottlenet-pp"


class BottleFit(Bottlenecked):
    """First the teacher's hidden states, then distillation from its logits (Matsubara et al., WoWMoM 2022)."""

    name = bottleneck = "bottlefit"
