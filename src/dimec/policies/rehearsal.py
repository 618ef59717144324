"""Playing a policy that was read from a file through before a text comes, so that what is wrong with it shows here.

The readings are made up: exits that are sure, unsure and anything between, on texts of known and of unknown words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from dimec.core.errors import ContractError
from dimec.core.tiers import Tier
from dimec.costs.model import CostModel
from dimec.policies.base import Policy
from dimec.policies.centroids import CentroidPolicy
from dimec.policies.walk import walk_groups, walk_rows
from dimec.runs.exit_table import ExitTable, TierTables

_SURE = (0.5, 0.6, 0.8, 0.95, 1.0)
_UNSEEN = (None, 0.0, 1.0)
_TEXTS = 8
_DEEPEST = 1024


def rehearse(policy: Policy, *, mobile_layers: Sequence[int] | None = None) -> None:
    """Play a policy and its arms; the policy itself is not changed.

    Args:
        policy: The policy.
        mobile_layers: The layers of the mobile tier's exits, where they are known; by default every layer has one.

    Raises:
        ContractError: If it takes an illegal step, answers nothing, or does not come to an end.
        Exception: Whatever else it does wrong.
    """
    if not math.isfinite(sum(policy.operating_point().values())):
        raise ContractError("its operating point is not finite")
    players = (policy.fresh(), *policy.arms().values())
    for tables in _imagined(policy, mobile_layers):
        for step in policy.endpoints():
            if type(step.layer) is not int or step.layer not in tables.of(step.tier).layers:
                raise ContractError(f"{step} has no exit to read")
        for each in players:
            each.alarm()
            each.health()
            if not each.learns:
                for stop in walk_groups(each, tables, CostModel()):
                    if len(stop.answered):
                        each.answer_group(stop.group)
            for _, view in walk_rows(each, tables, CostModel()):
                each.answer(view)
                for end, step in enumerate(view.steps):
                    each.exit_thresholds(view.up_to(end), step)
            each.alarm()
            each.health()


def _imagined(policy: Policy, mobile_layers: Sequence[int] | None) -> Iterator[TierTables]:
    """Make up what exits say: first each confidence throughout, then mixtures of them."""
    depth = policy.depths.cloud
    if not 0 < depth <= _DEEPEST:
        raise ContractError(f"no encoder has {depth} layers")
    draws = np.random.default_rng(0)
    width = policy.centroids.means.shape[1] if isinstance(policy, CentroidPolicy) else 1
    for unseen in _UNSEEN:
        rows = [
            draws.choice(_SURE[text : text + 1] or _SURE, size=depth + 1) for text in range(_TEXTS)
        ]
        sure = np.array(rows)[:, :, None]
        logits = np.log(np.maximum(np.concatenate([sure, 1 - sure], axis=2), 1e-30))
        table = ExitTable(
            layers=tuple(range(1, depth + 1)),
            logits=logits[:, 1:].astype(np.float32),
            labels=np.zeros(_TEXTS, dtype=np.int64),
            embeddings=draws.normal(size=(_TEXTS, width)).astype(np.float32),
            n_tokens=np.ones(_TEXTS, dtype=np.int32),
            payload_bytes=np.ones(_TEXTS, dtype=np.int32),
            row_ids=np.arange(_TEXTS),
            label_names=("0", "1"),
            exit_zero=logits[:, 0].astype(np.float32),
            unseen=None if unseen is None else np.full(_TEXTS, unseen, dtype=np.float32),
        )
        models = {}
        if mobile_layers is not None:
            places = [layer - 1 for layer in mobile_layers]
            own = replace(table, layers=tuple(mobile_layers), logits=table.logits[:, places])
            models[Tier.MOBILE] = own
        yield TierTables(table, models).with_exit_zero
