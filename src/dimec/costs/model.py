"""What a trace costs, in units of lambda (one edge layer on one sample), and what lambda is worth in confidence.

Whatever happens is charged: every layer on its tier, every transfer, failed attempts too. The prices of layers and
transfers are the papers' (paper 1 section 5.4, paper 2 section 2.4). Their cloud charge has no figure there: one
lambda per layer is inferred from the tier shares and the reduction that paper 1 prints for SST-2.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.tiers import Step, Tier, layers_done

DEFAULT_PRICE = 0.1


@dataclass(frozen=True, slots=True)
class Use:
    """What a trace uses, whatever that costs; or a price for each of these. A cost is the product of the two.

    Attributes:
        states_to_edge, states_to_cloud: Transfers that ship a hidden state in place of the tokens, which count as
            transfers too.
    """

    mobile_layers: float = 0.0
    edge_layers: float = 0.0
    cloud_layers: float = 0.0
    to_edge: float = 0.0
    to_cloud: float = 0.0
    exit_zero: float = 0.0
    states_to_edge: float = 0.0
    states_to_cloud: float = 0.0

    @classmethod
    def of(cls, steps: Sequence[Step]) -> Use:
        """Count what a trace uses.

        A change of tier takes a transfer and all layers from the tokens on, or those after the shipped hidden state.
        """
        used: Counter[str] = Counter()
        for index, step in enumerate(steps):
            before, tier = steps[:index], step.tier
            if not before or before[-1].tier is not tier:
                used[f"to_{tier}"] += 1
                used[f"states_to_{tier}"] += bool(before) and step.resumes
            used["exit_zero"] += step.layer == 0
            used[f"{tier}_layers"] += step.layer - layers_done(before, step)
        return cls(**{field.name: used[field.name] for field in fields(cls)})

    def __iter__(self) -> Iterator[float]:
        """Give the numbers in the order of the attributes."""
        for field in fields(self):
            yield getattr(self, field.name)

    @property
    def vector(self) -> NDArray[np.float64]:
        """[8], in the order of the attributes."""
        return np.array([*self], dtype=np.float64)


N_USED = len(fields(Use))


@dataclass(frozen=True, slots=True)
class CostModel:
    """Prices in units of lambda.

    >>> CostModel().of([Step(Tier.MOBILE, 2), Step(Tier.CLOUD, 6)])  # 2 * 1.5 + 3 + 6 * 1
    12.0

    Attributes:
        mobile_layer, edge_layer: One layer there, lambda_m and lambda_e, the unit.
        cloud_layer: The platform's charge for one layer in the cloud; the full model there is gamma.
        cloud_request: A flat charge for every sample sent to the cloud, on top.
        to_edge: Offloading from the device to the edge, o_e.
        to_cloud: Offloading from the device to the cloud, o_c; from the edge too, since the way leads through
            the device.
        exit_zero: Reading exit zero on the mobile device, by `benchmarks/bench_decision.py` against a layer there
            (0.025 for texts, 0.038 for pairs), rounded up.
        mobile_work, edge_work: Cost of a layer there relative to one of the encoder, where it holds another model.
        state_to_edge, state_to_cloud: Extra cost of shipping a hidden state in place of the tokens, none in the papers.
        held_against: Where the full model runs that costs are relative to: the device as in the papers, or the cloud
            in a unit in which computing on the device is free.
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
    state_to_edge: float = 0.0
    state_to_cloud: float = 0.0
    held_against: Tier = Tier.MOBILE

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "held_against":
                continue
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise OptionError(
                    f"the cost {field.name} is {value}: it must be a number from 0 up"
                )
        if self.held_against is not Tier.MOBILE:
            if self.reference(1) == 0:
                raise OptionError("the cloud costs nothing, and costs are relative to it")
        elif self.mobile_layer == 0:
            raise OptionError(
                "the cost mobile_layer is 0: it must be above 0, since costs are relative to it"
            )

    @property
    def prices(self) -> Use:
        """The price of one of each; coming back to the device is free."""
        return Use(
            mobile_layers=self.mobile_layer * self.mobile_work,
            edge_layers=self.edge_layer * self.edge_work,
            cloud_layers=self.cloud_layer,
            to_edge=self.to_edge,
            to_cloud=self.to_cloud + self.cloud_request,
            exit_zero=self.exit_zero,
            states_to_edge=self.state_to_edge,
            states_to_cloud=self.state_to_cloud,
        )

    @property
    def work(self) -> dict[Tier, float]:
        """What a layer takes on each tier, relative to one of the encoder."""
        return {Tier.MOBILE: self.mobile_work, Tier.EDGE: self.edge_work, Tier.CLOUD: 1.0}

    def of(self, steps: Sequence[Step]) -> float:
        """Return the cost of a trace, in lambda."""
        return _cost(self, tuple(steps))

    def of_use(self, use: Use) -> float:
        """Return the cost of what is used, in lambda."""
        return sum((price * used for price, used in zip(self.prices, use, strict=True)), 0.0)

    def reference(self, n_layers: int) -> float:
        """Return the cost of the full model on the mobile device, lambda_m * l, or in the cloud (`held_against`)."""
        if self.held_against is Tier.MOBILE:
            return self.mobile_layer * n_layers
        return self.of([Step(Tier.CLOUD, n_layers)])

    def unit_price(self, n_layers: int, *, price: float) -> float:
        """Return lambda in units of confidence: ``price`` is what the full model on the mobile device costs."""
        if not math.isfinite(price) or price < 0:
            raise OptionError(
                f"--price {price}: it must be a number from 0 up, such as {DEFAULT_PRICE}"
            )
        return price / self.reference(n_layers)


@lru_cache(maxsize=4096)
def _cost(costs: CostModel, steps: tuple[Step, ...]) -> float:
    """Price a trace; kept, since a policy takes few different ways and a device asks at every text."""
    return costs.of_use(Use.of(steps))
