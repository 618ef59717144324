"""Fitted policies on disk: ``router.json`` for what people read, ``router.safetensors`` for the arrays.

A policy that was read is played through before a text comes, so that what is wrong with it shows here. The readings
are made up: exits that are sure, unsure and anything between, on texts of known and of unknown words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from dimec.core.errors import ContractError, RunError
from dimec.core.files import write_atomically, write_json
from dimec.core.tensors import read_arrays
from dimec.core.tiers import Depths, Tier
from dimec.core.untrusted import read_json, trusting_nothing
from dimec.costs.model import CostModel
from dimec.policies.base import Calibration, Policy, PolicyState
from dimec.policies.centroids import CentroidPolicy
from dimec.policies.replay import walk_groups, walk_rows
from dimec.runs.exit_table import ExitTable, TierTables

FORMAT = 1
STEM = "router"

_SURE = (0.5, 0.6, 0.8, 0.95, 1.0)
_UNSEEN = (None, 0.0, 1.0)
_TEXTS = 8
_DEEPEST = 1024


def save_policies(
    folder: Path, policies: Mapping[str, Policy], calibration: Calibration, *, stem: str = STEM
) -> None:
    """Write policies fitted from a calibration, with the whole grid of every threshold search.

    ``stem`` names the two files; a bundle has its own name for them.
    """
    arrays, described = {}, {}
    for name, policy in policies.items():
        state, search = policy.state(), policy.search
        arrays.update({f"{name}/{key}": array for key, array in state.arrays.items()})
        described[name] = {
            "depths": asdict(policy.depths),
            "operating_point": policy.operating_point(),
            "settings": state.settings,
            "search": search
            and {
                "alphas": search.grids[0],
                "betas": search.grids[1] if len(search.grids) > 1 else (),
                "rewards": search.rewards.tolist(),
                "costs": search.costs.tolist(),
            },
        }
    write_atomically(folder / f"{stem}.safetensors", lambda path: save_file(arrays, path))
    document = {
        "format": FORMAT,
        "price": calibration.price,
        "costs": asdict(calibration.costs),
        "policies": described,
    }
    write_json(folder / f"{stem}.json", document)


def load_policies(
    folder: Path, registry: Mapping[str, type[Policy]], *, stem: str = STEM
) -> dict[str, Policy]:
    """Read every policy of a folder that the registry knows, and play each through before a text comes.

    Raises:
        RunError: If a file is missing, damaged or of a newer format.
    """
    path = folder / f"{stem}.json"
    missing = "it holds the fitted policies: fit the run again"
    found = {}
    with trusting_nothing(path, RunError, remedy="fit the run again", missing=missing):
        document = read_json(path, known=FORMAT)
        _, arrays = read_arrays(folder / f"{stem}.safetensors")
        for name, entry in document["policies"].items():
            if name not in registry:
                continue
            depths = Depths(**entry["depths"])
            if [type(each) for each in astuple(depths)] != [int, int, int, bool]:
                raise ValueError("depths must be whole numbers, and cloud_model true or false")
            own = {
                key.removeprefix(f"{name}/"): array
                for key, array in arrays.items()
                if key.startswith(f"{name}/")
            }
            policy = registry[name].from_state(depths, PolicyState(entry["settings"], own))
            rehearse(policy)
            found[name] = policy
    return found


def rehearse(policy: Policy, *, mobile_layers: Sequence[int] | None = None) -> None:
    """Play a policy and its arms; the policy itself is not changed.

    Args:
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
