"""The records every room shares: tiers, the depths of a method, steps, readings, traces, answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError, OptionError


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
    """The last layer that each tier runs: m, n and l of the papers, m < n < l while all of them hold one encoder.

    Attributes:
        cloud_model: Whether the cloud holds another model, whose answer is its only exit, beyond the encoder's last.
    """

    mobile: int
    edge: int
    cloud: int
    cloud_model: bool = False

    @property
    def device_alone(self) -> bool:
        """Whether the device holds the whole encoder, so that a cascade asks no server."""
        return self.mobile == self.cloud

    def of(self, tier: Tier) -> int:
        """Return the last layer of a tier."""
        return (self.mobile, self.edge, self.cloud)[TIERS.index(tier)]


def method_depths(
    method: Method, n_layers: int, *, mobile: int | None = None, edge: int | None = None
) -> Depths:
    """Return a method's depths: the papers' for 6, 12 and 24 layers, their proportions for any other encoder.

    ``mobile`` and ``edge`` are those tiers' last layers, where the user sets them.

    Raises:
        OptionError: If the encoder has fewer than three layers, or the depths do not grow from tier to tier.
    """
    if n_layers < 3:
        raise OptionError(
            f"an encoder of {n_layers} layers cannot be cut into three tiers: choose one of at least 3 layers"
        )
    proportions = (max(1, round(n_layers / (3 if method == "dc" else 4))), n_layers // 2)
    usual_mobile, usual_edge = _PAPER_DEPTHS.get((method, n_layers), proportions)
    mobile = usual_mobile if mobile is None else mobile
    if edge is None:
        edge = max(usual_edge, min(mobile + 1, n_layers - 1))
    if not 1 <= mobile < edge < n_layers:
        raise OptionError(
            f"depths {mobile}, {edge}, {n_layers} do not fit: they must grow from tier to "
            f"tier, 1 <= mobile < edge < {n_layers}; choose --mobile-layers and --edge-layers, or --cuts, accordingly"
        )
    return Depths(mobile, edge, n_layers)


@dataclass(frozen=True, slots=True)
class Step:
    """One run of layers on a tier, up to the exit after ``layer``.

    On the tier of the step before it goes on from there. On another tier it starts again from the tokens, unless
    it ``resumes`` from the hidden state of the step before, which is then shipped.

    Attributes:
        layer: The layer of the exit that it ends with; 0 is exit zero, which runs no layer.
        resumes: Whether it goes on from a shipped hidden state.
        side_readings: Whether the exits that it passes are read too: a bandit's side observations.
        arm: Which arm of a bandit took it; a note of the policy to itself, in which equal steps may differ.
    """

    tier: Tier
    layer: int
    resumes: bool = False
    side_readings: bool = False
    arm: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """What one exit said about one sample.

    Attributes:
        label: The most probable class.
        confidence: Its probability, C_i.
        probabilities: [classes] float64, read-only.
    """

    tier: Tier
    layer: int
    label: int
    confidence: float
    probabilities: NDArray[np.float64]


@dataclass(slots=True)
class Trace:
    """What was run for one sample, in order, and what was read there.

    Attributes:
        readings: What was read: of each step the exit at its end, after those that it passed where it has side
            readings.
    """

    steps: list[Step] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a device says about one text.

    Attributes:
        index: The text's place in the call or stream, from 0.
        label: The class's name.
        confidence: Its probability, the largest of ``probabilities``.
        layer: The layer of the exit that answered.
        cost: What all of it cost, failed attempts included, in lambda.
        latency_ms: How long this text was worked on or waited for a tier; of a batch's time its share.
        degraded: What did not go as the policy wanted, and why; None where everything did.
        request_id: What the servers' logs call it.
        probabilities: Those of all classes, in the order of the device's ``label_names``; where a policy pools the
            exits that it has read, the pooled ones.
        alarm: Which danger to its promise the policy plays it safe for; None where there is none.
    """

    index: int
    label: str
    confidence: float
    tier: Tier
    layer: int
    cost: float
    latency_ms: float
    degraded: str | None
    request_id: str
    probabilities: tuple[float, ...] = field(repr=False)
    alarm: str | None = None


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Turn logits [..., classes] into probabilities in float64, the one way that replay and devices share."""
    shifted = logits.astype(np.float64)
    # The ufuncs' own reductions: the methods of arrays add more than these take, and a device does this for every exit.
    shifted -= np.maximum.reduce(shifted, axis=-1, keepdims=True)
    np.exp(shifted, out=shifted)
    shifted /= np.add.reduce(shifted, axis=-1, keepdims=True)
    return shifted


def layers_done(steps: Sequence[Step], step: Step) -> int:
    """Return how many layers ``step`` need not run, since its tier stands there or the hidden state was shipped."""
    last = steps[-1] if steps else None
    return last.layer if last is not None and (step.resumes or last.tier is step.tier) else 0


def check_step(steps: Sequence[Step], step: Step, *, exits: Sequence[int]) -> None:
    """Check that ``step`` may follow ``steps`` where its tier has exits after the layers ``exits``.

    Raises:
        ContractError: If there is no exit at its layer, if it would run no layer, or if it resumes from nothing.
    """
    if step.layer == 0 and (steps or step.tier is not Tier.MOBILE):
        raise ContractError(f"{step} reads exit zero, which is read first and on the device")
    if step.layer not in exits:
        raise ContractError(f"{step} has no exit to read: the exits are after layers {list(exits)}")
    last = steps[-1] if steps else None
    if step.resumes and (last is None or last.tier == step.tier):
        raise ContractError(f"{step} resumes, but no other tier has run before it")
    done = layers_done(steps, step)
    if step.layer <= done and step.layer > 0:
        raise ContractError(f"{step} would run no layer: the trace already stands at layer {done}")


EXIT_ZERO = Step(Tier.MOBILE, 0)
"""Reading exit zero."""
