"""Playing a policy that was read from a file through, before a text comes: what is wrong with it shows here.

The readings are made up: exits that are sure, unsure, and anything between, on texts of known and of unknown words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dimec.core.errors import ContractError
from dimec.core.tiers import EXIT_ZERO, TIERS, Reading, Step, Tier, check_step, layers_done
from dimec.policies.base import Group, Policy, View
from dimec.policies.centroid import CentroidPolicy

_SURE = (0.5, 0.6, 0.8, 0.95, 1.0)
_UNSEEN = (math.nan, 0.0, 1.0)
_TEXTS = 24

Exits = Mapping[Tier, Sequence[int]]


def rehearse(policy: Policy, *, exits: Exits | None = None) -> None:
    """Play a policy and its arms.

    Args:
        policy: It; not changed.
        exits: The layers of each tier's exits, as far as they are known; by default every layer has one.

    Raises:
        ContractError: If it takes an illegal step, answers nothing, or does not come to an end.
        Exception: Whatever else it does wrong.
    """
    every = range(policy.depths.cloud + 1)
    allowed = {tier: (exits or {}).get(tier, every) for tier in TIERS}
    for step in policy.endpoints():
        if type(step.layer) is not int or step.layer not in (0, *allowed[step.tier]):
            raise ContractError(f"{step} has no exit to read")
    if not all(math.isfinite(value) for value in policy.operating_point().values()):
        raise ContractError("its operating point is not finite")
    draws = np.random.default_rng(0)
    width = policy.centroids.means.shape[1] if isinstance(policy, CentroidPolicy) else 1
    stream = draws.normal(size=(_TEXTS, width)).astype(np.float32)
    for each in (policy.fresh(), *policy.arms().values()):
        each.alarm()
        each.health()
        if not each.learns:
            each.decide_group(Group(stream, np.arange(_TEXTS), (), ()))
        for text in range(_TEXTS):
            # First each confidence throughout, then mixtures of them.
            sure = _SURE[text : text + 1] or _SURE
            drawn = draws.choice(sure, size=policy.depths.cloud + 1).tolist()
            view = View(embedding=stream[text])
            _play(each, view, drawn, unseen=_UNSEEN[text % len(_UNSEEN)], allowed=allowed)
        each.alarm()
        each.health()


def _play(
    policy: Policy, view: View, sure: Sequence[float], *, unseen: float, allowed: Exits
) -> None:
    while (step := policy.decide(view)) is not None:
        exits = (0, *allowed[step.tier]) if step.tier is Tier.MOBILE else allowed[step.tier]
        check_step(view.steps, step, exits=exits)
        policy.exit_thresholds(view, step)
        passed = layers_done(view.steps, step) if step.side_readings else step.layer - 1
        view.steps.append(step)
        if step == EXIT_ZERO:
            view.unseen = unseen
        for layer in range(passed + 1, step.layer + 1):
            if layer == step.layer or layer in exits:
                view.readings.append(_reading(step, layer, sure[layer]))
        if len(view.steps) > len(TIERS) * policy.depths.cloud:
            raise ContractError("it does not come to an end")
    policy.answer(view)
    policy.learn(view)


def _reading(step: Step, layer: int, sure: float) -> Reading:
    return Reading(step.tier, layer, 0, sure, np.array([sure, 1.0 - sure]))
