"""Small copies of runs: what studies and evaluations read of them, so that nobody has to fit them again.

    python -m dimec.studies.evidence RUN ... evidence

A copy is a run folder with its configuration, its epochs and the exit tables of validation and test, in half precision.
Embeddings are projected onto the directions that decide between the centroids of both papers' pools, and onto the
first principal components of the rest. There is no text, no model and no path of the machine in it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DimecError, OutputError
from dimec.core.files import write_atomically, write_json
from dimec.policies.pools import cartography, cartography_pools, sure_exits
from dimec.policies.thresholds import ALPHAS, BETAS, confidence_grid
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run

WIDTH = 128  # how many directions of an embedding are kept; fewer where there are fewer


def keep(run: Run, root: Path) -> Path:
    """Write the small copy of a run into a folder of its own under ``root``, and return that.

    Raises:
        OutputError: If the folder is there.
        RunError: If the run cannot be read.
    """
    options = run.config.options
    layers = f"{run.config.n_layers}-layers"
    parts = [run.config.task.name, layers, *(["tiers"] if options.exits == "tiers" else [])]
    folder = root / "-".join([*parts, f"seed{options.seed}"])
    if folder.exists():
        raise OutputError(f"{folder} is there already: move it away, or give another folder")
    nowhere = dict.fromkeys(("data", "validation", "test"))
    own = options.model_copy(update={**nowhere, "backbone": Path(options.backbone).name})
    config = run.config.model_copy(update={"options": own, "source": run.config.task.name})
    project = projection(run.validation.embeddings, _pools_of(run))
    write_json(folder / "config.json", config.model_dump(mode="json"))
    epochs = (run.folder / "metrics.jsonl").read_bytes()
    write_atomically(folder / "metrics.jsonl", lambda path: path.write_bytes(epochs))
    for name in ("validation", "test"):
        table: ExitTable = getattr(run, name)
        small = replace(table, embeddings=(table.embeddings @ project).astype(np.float32))
        small.save(folder / "exits" / f"{name}.safetensors", small=True)
    return folder


def projection(
    embeddings: NDArray[np.float32], pools: Iterable[NDArray[np.int8]] = ()
) -> NDArray[np.float32]:
    """Return what projects embeddings [n, width] onto at most `WIDTH` directions: [width, kept].

    The first ones are those between the centroids of pools, [n] each, by which the nearest centroid is decided; the
    others are principal components of what is left.
    """
    rows = embeddings.astype(np.float64)
    between = []
    for each in pools:
        centroids = [rows[each == pool].mean(axis=0) for pool in np.unique(each)]
        between += [one - centroids[0] for one in centroids[1:]]
    basis = np.zeros((rows.shape[1], 0))
    if between:
        _, sizes, directions = np.linalg.svd(np.stack(between), full_matrices=False)
        basis = directions[sizes > 1e-9 * sizes[0]][:WIDTH].T
    centred = rows - rows.mean(axis=0)
    left = centred - centred @ basis @ basis.T
    _, sizes, components = np.linalg.svd(left, full_matrices=False)
    components = components[sizes > 1e-9 * max(sizes[0], 1e-300)][: WIDTH - basis.shape[1]]
    found = np.concatenate([basis, components.T], axis=1)
    return np.ascontiguousarray(found, dtype=np.float32)


def _pools_of(run: Run) -> Iterator[NDArray[np.int8]]:
    """Give the validation rows' pools at every point of both papers' searches."""
    table, depths = run.validation, run.config.depths
    if table.dynamics is not None:
        samples = cartography(table, layer=depths["dc"].mobile)
        for alpha, beta in product(ALPHAS, BETAS):
            yield cartography_pools(samples, alpha=alpha, beta=beta)
    for alpha in confidence_grid(table.n_classes):
        yield sure_exits(table, alpha=alpha, depths=depths["ee"])[0]


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit((__doc__ or "").strip())
    *given, out = map(Path, sys.argv[1:])
    try:
        for each in given:
            sys.stdout.write(f"{keep(Run.open(each), out)}\n")
    except DimecError as exc:
        sys.exit(str(exc))
