"""The records every room shares: tiers, the depths of a method, steps, readings, traces.

They hold plain values and know nothing of models, costs or policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dimec.errors import ContractError, OptionError


class Tier(StrEnum):
    """Where layers run, from the nearest to the farthest."""

    MOBILE = "mobile"
    EDGE = "edge"
    CLOUD = "cloud"


TIERS = tuple(Tier)

Method = Literal["dc", "ee"]
"""Which paper a rule belongs to: data cartography (DIMEC-DC) or early exits (DIMEE)."""

_PAPER_DEPTHS: dict[tuple[Method, int], tuple[int, int]] = {
    ("dc", 6): (2, 3),
    ("ee", 6): (2, 3),
    ("dc", 12): (4, 6),
    ("ee", 12): (3, 6),
    ("dc", 24): (6, 12),
    ("ee", 24): (6, 12),
}


@dataclass(frozen=True, slots=True)
class Depths:
    """The last layer that each tier runs: m, n and l of the papers, m < n < l."""

    mobile: int
    edge: int
    cloud: int

    def __post_init__(self) -> None:
        """Refuse depths that do not grow from tier to tier."""
        if not 1 <= self.mobile < self.edge < self.cloud:
            raise OptionError(
                f"depths {self.mobile}, {self.edge}, {self.cloud} do not fit: they must grow from tier to "
                f"tier, 1 <= mobile < edge < {self.cloud}; choose --mobile-layers and --edge-layers accordingly"
            )

    def of(self, tier: Tier) -> int:
        """Return the last layer of a tier."""
        return (self.mobile, self.edge, self.cloud)[TIERS.index(tier)]


def method_depths(
    method: Method, n_layers: int, *, mobile: int | None = None, edge: int | None = None
) -> Depths:
    """Return a method's depths: the papers' for 6, 12 and 24 layers, their proportions for any other encoder.

    Args:
        method: Whose depths.
        n_layers: The encoder's depth.
        mobile: The mobile tier's last layer, where the user sets it.
        edge: The edge tier's last layer, where the user sets it.

    Raises:
        OptionError: If the encoder has fewer than three layers, or the depths do not grow from tier to tier.
    """
    if n_layers < 3:
        raise OptionError(
            f"an encoder of {n_layers} layers cannot be cut into three tiers: choose one of at least 3 layers"
        )
    proportions = (max(1, round(n_layers / (3 if method == "dc" else 4))), n_layers // 2)
    usual_mobile, usual_edge = _PAPER_DEPTHS.get((method, n_layers), proportions)
    mobile = mobile or usual_mobile
    return Depths(mobile, edge or max(usual_edge, min(mobile + 1, n_layers - 1)), n_layers)


@dataclass(frozen=True, slots=True)
class Step:
    """One run of layers on a tier, up to the exit after ``layer``.

    On the tier of the step before it goes on from there. On another tier it starts again from the tokens, unless
    it ``resumes`` from the hidden state of the step before, which is then shipped.
    """

    tier: Tier
    layer: int
    resumes: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one exit said about one sample.

    Attributes:
        layer: The layer of the exit.
        label: The most probable class.
        confidence: Its probability, C_i.
        probabilities: [classes] float64, read-only.
    """

    layer: int
    label: int
    confidence: float
    probabilities: NDArray[np.float64]


@dataclass(slots=True)
class Trace:
    """What was run for one sample, in order, and what was read there.

    Attributes:
        steps: The steps run so far.
        readings: What the exit at the end of each step said.
    """

    steps: list[Step] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Turn logits [..., classes] into probabilities in float64, the one way that replay and devices share."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= shifted.sum(axis=-1, keepdims=True)
    return shifted


def check_step(steps: Sequence[Step], step: Step, *, exits: Sequence[int]) -> None:
    """Check that ``step`` may follow ``steps`` where the model has exits after the layers ``exits``.

    Raises:
        ContractError: If there is no exit at its layer, if it would run no layer, or if it resumes from nothing.
    """
    if step.layer not in exits:
        raise ContractError(f"{step} has no exit to read: the exits are after layers {list(exits)}")
    last = steps[-1] if steps else None
    if step.resumes and (last is None or last.tier == step.tier):
        raise ContractError(f"{step} resumes, but no other tier has run before it")
    goes_on = last is not None and (step.resumes or last.tier == step.tier)
    if goes_on and last is not None and step.layer <= last.layer:
        raise ContractError(
            f"{step} would run no layer: the trace already stands at layer {last.layer}"
        )
