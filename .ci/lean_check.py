"""What lean runs inside the environment without extras.

    lean_check.py rooms PYPROJECT    import every module of the device-side rooms
    lean_check.py run FOLDER         write a finished run of made-up exit tables, for `dimec evaluate`

The rooms are those of the import contract "device" in pyproject.toml, so that a room is named in one place.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
import tomllib
from pathlib import Path


def import_rooms(pyproject: Path) -> None:
    """Import them all, and stop where a library of an extra is installed."""
    contracts = tomllib.loads(pyproject.read_text())["tool"]["importlinter"]["contracts"]
    device = next(contract for contract in contracts if contract["id"] == "device")
    installed = [name for name in device["forbidden_modules"] if importlib.util.find_spec(name)]
    if installed:
        sys.exit(f"installed without extras: {', '.join(installed)}")
    package = importlib.import_module("dimec")
    if not Path(package.__file__ or "").is_relative_to(sys.prefix):
        sys.exit(f"imported from elsewhere: {package.__file__}")
    names = ["dimec"]
    # The verbs and the command line name training, but must load without it.
    for room in [*device["source_modules"], "dimec.api", "dimec.cli"]:
        module = importlib.import_module(room)
        names.append(room)
        for found in pkgutil.walk_packages(getattr(module, "__path__", []), f"{room}."):
            importlib.import_module(found.name)
            names.append(found.name)
    print(f"imported dimec {package.__version__}, {len(names)} modules: {' '.join(names)}")


def write_run(folder: Path) -> None:
    """Write exit tables in which deeper exits are right more often, and the config that goes with them."""
    import numpy as np

    from dimec.exits import Dynamics, ExitTable
    from dimec.files import write_atomically
    from dimec.runs import FORMAT, FitOptions, RunConfig, TaskInfo
    from dimec.tiers import method_depths

    rng = np.random.default_rng(0)
    n, layers, epochs = 600, (1, 2, 3, 4, 5, 6), 3
    for split in ("validation", "test"):
        labels = rng.integers(0, 2, size=n)
        signs = np.where(labels[:, None] == 1, 1.0, -1.0)
        margin = signs * rng.normal(np.linspace(0.4, 2.0, len(layers)), 1.0, (n, len(layers)))
        dynamics = rng.random((n, epochs, len(layers))).astype(np.float32)
        ExitTable(
            layers=layers,
            logits=np.stack([-margin, margin], axis=2).astype(np.float32),
            labels=labels.astype(np.int64),
            embeddings=rng.normal(size=(n, 8)).astype(np.float32),
            n_tokens=np.full(n, 16, dtype=np.int32),
            payload_bytes=np.full(n, 80, dtype=np.int32),
            row_ids=np.arange(n, dtype=np.int64),
            label_names=("negative", "positive"),
            dynamics=Dynamics(dynamics, dynamics > 0.5) if split == "validation" else None,
        ).save(folder / "exits" / f"{split}.safetensors")
    config = RunConfig(
        format=FORMAT,
        options=FitOptions(task="reviews"),
        task=TaskInfo(
            name="reviews", label_names=("negative", "positive"), metric="accuracy", pairs=False
        ),
        source="made up",
        data_fingerprint="",
        backbone_fingerprint="",
        n_layers=len(layers),
        exits=layers,
        depths={method: method_depths(method, len(layers)) for method in ("dc", "ee")},
        pooling="mean",
        device="none",
        precision="fp32",
        share_cut=0.0,
        versions={},
        code_revision=None,
    )
    document = config.model_dump_json(indent=2)
    write_atomically(folder / "config.json", lambda path: path.write_text(document))


if __name__ == "__main__":
    {"rooms": import_rooms, "run": write_run}[sys.argv[1]](Path(sys.argv[2]))
