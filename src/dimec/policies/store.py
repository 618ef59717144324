"""Fitted policies on disk: ``router.json`` for what people read, ``router.safetensors`` for the arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.numpy import save_file

from dimec.core.errors import RunError
from dimec.core.files import write_atomically, write_json
from dimec.core.tensors import read_arrays
from dimec.core.tiers import Depths
from dimec.core.untrusted import read_json, trusting_nothing
from dimec.policies.base import Calibration, Policy, PolicyState
from dimec.policies.rehearsal import rehearse

FORMAT = 1
STEM = "router"


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
                "alphas": search.alphas,
                "betas": search.betas,
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
            if any(type(each) is not int for each in (depths.mobile, depths.edge, depths.cloud)):
                raise ValueError("depths must be whole numbers")
            own = {
                key.removeprefix(f"{name}/"): array
                for key, array in arrays.items()
                if key.startswith(f"{name}/")
            }
            policy = registry[name].from_state(depths, PolicyState(entry["settings"], own))
            rehearse(policy)
            found[name] = policy
    return found
