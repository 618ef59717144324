"""Fitted policies on disk: ``router.json`` for what people read, ``router.safetensors`` for the arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dimec.errors import DimecError, RunError
from dimec.files import check_format, write_atomically, write_json
from dimec.policies.base import Calibration, Policy, PolicyState
from dimec.tiers import Depths

FORMAT = 1
STEM = "router"


def save_policies(
    folder: Path, policies: Mapping[str, Policy], calibration: Calibration, *, stem: str = STEM
) -> None:
    """Write policies fitted from a calibration, with the whole grid of every threshold search.

    ``stem`` names the two files; a bundle has its own name for them.
    """
    arrays = {}
    described = {}
    for name, policy in policies.items():
        state = policy.state()
        arrays.update({f"{name}/{key}": array for key, array in state.arrays.items()})
        described[name] = {
            "depths": asdict(policy.depths),
            "operating_point": policy.operating_point(),
            "settings": state.settings,
            "search": _search(policy),
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
    """Read every policy of a folder that the registry knows.

    Raises:
        RunError: If a file is missing, damaged or of a newer format.
    """
    path = folder / f"{stem}.json"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        arrays = load_file(folder / f"{stem}.safetensors")
        check_format(path, document["format"], known=FORMAT)
        return {
            name: registry[name].from_state(
                Depths(**entry["depths"]), PolicyState(entry["settings"], _own(arrays, name))
            )
            for name, entry in document["policies"].items()
            if name in registry
        }
    except RunError:
        raise
    except FileNotFoundError as exc:
        raise RunError(f"{folder} holds no fitted policies: fit the run again") from exc
    except (DimecError, SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
        raise RunError(f"{path} is damaged ({exc}): fit the run again") from exc


def _own(arrays: Mapping[str, Any], name: str) -> dict[str, Any]:
    prefix = f"{name}/"
    return {
        key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)
    }


def _search(policy: Policy) -> dict[str, Any] | None:
    if policy.search is None:
        return None
    return {
        "alphas": policy.search.alphas,
        "betas": policy.search.betas,
        "rewards": policy.search.rewards.tolist(),
        "costs": policy.search.costs.tolist(),
    }
