"""What a trace costs, in units of lambda (one edge layer on one sample), and what lambda is worth in confidence.

Whatever happens is charged: every layer on its tier, every transfer, failed attempts too. The prices of layers and
transfers are the papers' (paper 1 section 5.4, paper 2 section 2.4). Their cloud charge has no figure there: one
lambda per layer is inferred from the tier shares and the reduction that paper 1 prints for SST-2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from dimec.errors import OptionError
from dimec.tiers import Step, Tier, layers_done

DEFAULT_PRICE = 0.1


@dataclass(frozen=True, slots=True)
class CostModel:
    """Prices in units of lambda.

    Attributes:
        mobile_layer: One layer on the mobile device, lambda_m.
        edge_layer: One layer on the edge, lambda_e, the unit.
        cloud_layer: The platform's charge for one layer in the cloud; the full model there is gamma.
        cloud_request: A flat charge for every sample sent to the cloud, on top.
        to_edge: Offloading from the device to the edge, o_e.
        to_cloud: Offloading from the device to the cloud, o_c; from the edge too, since the way leads through
            the device.
        exit_zero: Reading exit zero on the mobile device: its time against a layer's there, as
            `benchmarks/bench_decision.py` measures it with onnxruntime (0.025 for texts, 0.038 for pairs), rounded up.
        mobile_work: What a layer on the mobile device takes, relative to one of the encoder: other than 1 where it
            holds another model.
        edge_work: The same for the edge.
    """

    mobile_layer: float = 1.5
    edge_layer: float = 1.0
    cloud_layer: float = 1.0
    cloud_request: float = 0.0
    to_edge: float = 2.5
    to_cloud: float = 3.0
    exit_zero: float = 0.04
    mobile_work: float = 1.0
    edge_work: float = 1.0

    def __post_init__(self) -> None:
        """Refuse prices that are negative or not finite, and a free mobile layer, which every cost is held against."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise OptionError(
                    f"the cost {field.name} is {value}: it must be a number from 0 up"
                )
        if self.mobile_layer == 0:
            raise OptionError(
                "the cost mobile_layer is 0: it must be above 0, since costs are relative to it"
            )

    def layers(self, tier: Tier, count: int) -> float:
        """Return what ``count`` layers cost on a tier."""
        if tier is Tier.MOBILE:
            return self.mobile_layer * self.mobile_work * count
        if tier is Tier.EDGE:
            return self.edge_layer * self.edge_work * count
        return self.cloud_layer * count

    def transfer(self, tier: Tier) -> float:
        """Return what sending one sample to a tier costs; coming back to the device is free."""
        if tier is Tier.MOBILE:
            return 0.0
        return self.to_edge if tier is Tier.EDGE else self.to_cloud + self.cloud_request

    def of(self, steps: Sequence[Step]) -> float:
        """Return the cost of a trace, in lambda.

        Layers that a tier has just run are not run again; a change of tier is charged with its transfer and with
        all layers from the tokens on, or with those after the shipped hidden state where the step resumes.
        """
        total = 0.0
        for index, step in enumerate(steps):
            before = steps[:index]
            if not before or before[-1].tier is not step.tier:
                total += self.transfer(step.tier)
            if step.layer == 0:
                total += self.exit_zero
            total += self.layers(step.tier, step.layer - layers_done(before, step))
        return total

    def reference(self, n_layers: int) -> float:
        """Return the cost of the full model on the mobile device, lambda_m * l: 1.00 in the papers' tables."""
        return self.mobile_layer * n_layers

    def unit_price(self, n_layers: int, *, price: float) -> float:
        """Return lambda in units of confidence: ``price`` is what the full model on the mobile device costs."""
        if not math.isfinite(price) or price < 0:
            raise OptionError(
                f"--price {price}: it must be a number from 0 up, such as {DEFAULT_PRICE}"
            )
        return price / self.reference(n_layers)
