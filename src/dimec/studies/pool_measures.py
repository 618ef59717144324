"""Measures of a run's pools as JSON values: sizes, spreads, silhouettes, a picture, and the AUC of its router.

An `EvaluationSetup` goes in. Every measure comes with that of pools shuffled over the samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.extras import needs_training
from dimec.core.metrics import auc
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import POLICIES, Calibration, Searched
from dimec.policies.pools import EASY, HARD, POOL_NAMES, cartography, cartography_pools, exit_pools
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.separation import (
    auc_interval,
    distances,
    mean_interval,
    permuted,
    preference,
    silhouette,
    silhouettes,
    to_own_centroid,
)

MOST_SAMPLES = 3000
PERPLEXITY = 30.0
METHODS = {"dc": "dimec-dc-fixed", "ee": "dimee-fixed"}


def pools_of(policy: Searched, calibration: Calibration) -> NDArray[np.int8]:
    """Return the validation samples' pools at a policy's operating point."""
    at = policy.operating_point()
    table, depths = calibration.table, calibration.depths
    if policy.method == "ee":
        return exit_pools(table, alpha=at["alpha"], depths=depths["ee"])
    samples = cartography(table, layer=depths["dc"].mobile, spread=calibration.spread)
    return cartography_pools(samples, alpha=at["alpha"], beta=at["beta"])


def separation_of(setup: EvaluationSetup, price: float) -> list[dict[str, Any]]:
    """Measure the pools of both methods at their operating points."""
    return [
        _separation(setup.run, policy, pools_of(policy, calibration))
        for policy, calibration in _fitted(setup, price)
    ]


def picture_of(setup: EvaluationSetup, price: float) -> list[dict[str, Any]]:
    """Lay out the validation embeddings, at most `MOST_SAMPLES` of them, with the pools of both methods."""
    table = setup.run.validation
    rows = drawn_rows(len(table))
    pools = {
        policy.method: pools_of(policy, calibration)
        for policy, calibration in _fitted(setup, price)
    }
    places = t_sne(table.embeddings[rows])
    places /= np.abs(places).max()  # a layout has no unit: every task fills its panel
    return [
        {
            "task": setup.run.config.task.name,
            "x": float(x),
            "y": float(y),
            "pool_dc": POOL_NAMES[pools["dc"][row]],
            "pool_ee": POOL_NAMES[pools["ee"][row]],
            "row_id": int(table.row_ids[row]),
            "label": table.label_names[table.labels[row]],
            "tokens": int(table.n_tokens[row]),
        }
        for row, (x, y) in zip(rows.tolist(), places, strict=True)
    ]


def drawn_rows(n: int) -> NDArray[np.int64]:
    """Return which of n samples are measured and drawn: all, or `MOST_SAMPLES` drawn with seed 0, in their order."""
    if n <= MOST_SAMPLES:
        return np.arange(n)
    return np.sort(np.random.default_rng(0).permutation(n)[:MOST_SAMPLES])


def t_sne(embeddings: NDArray[np.float32]) -> NDArray[np.float64]:
    """Lay embeddings [n, width] out in the plane: [n, 2].

    Raises:
        MissingExtraError: If scikit-learn is not installed.
    """
    with needs_training():
        from sklearn.manifold import TSNE
    perplexity = min(PERPLEXITY, (len(embeddings) - 1) / 3)
    places = TSNE(perplexity=perplexity, init="pca", random_state=0).fit_transform(embeddings)
    return np.asarray(places, dtype=np.float64)


def _fitted(setup: EvaluationSetup, price: float) -> Iterator[tuple[Searched, Calibration]]:
    calibration = setup.calibration(price)
    for name in METHODS.values():
        policy = POLICIES[name].fit(calibration)
        assert isinstance(policy, Searched)
        yield policy, calibration


def _separation(run: Run, policy: Searched, pools: NDArray[np.int8]) -> dict[str, Any]:
    table = run.validation
    rows = drawn_rows(len(table))
    apart = distances(table.embeddings[rows])
    chosen = pools[rows]
    shuffles = permuted(chosen)
    return {
        "task": run.config.task.name,
        "policy": policy.name,
        "seed": run.config.options.seed,
        "point": ", ".join(
            f"{name} = {value:.3g}" for name, value in policy.operating_point().items()
        ),
        "n": len(table),
        "n_measured": len(rows),
        "easy_hard": silhouette(apart, chosen, among=(EASY, HARD)),
        **_range(
            "easy_hard_shuffled",
            (silhouette(apart, shuffled, among=(EASY, HARD)) for shuffled in shuffles),
        ),
        "all_three": silhouette(apart, chosen),
        **_range("all_three_shuffled", (silhouette(apart, shuffled) for shuffled in shuffles)),
        "pools": _pools(table, pools, apart, chosen),
        **_router(run.test, table, policy, pools),
    }


def _pools(
    table: ExitTable,
    pools: NDArray[np.int8],
    apart: NDArray[np.float32],
    chosen: NDArray[np.int8],
) -> list[dict[str, Any]]:
    """Measure each pool: size, spread, silhouette, and distance to the other centroids."""
    spread = to_own_centroid(table.embeddings, pools)
    shuffled = [(order, to_own_centroid(table.embeddings, order)) for order in permuted(pools)]
    own = _by_pool(apart, chosen)
    own_shuffled = [_by_pool(apart, order) for order in permuted(chosen)]
    centroids = {
        pool: table.embeddings[pools == pool].mean(axis=0, dtype=np.float64)
        for pool in np.unique(pools).tolist()
    }
    found = []
    for pool, name in enumerate(POOL_NAMES):
        here = pools == pool
        row: dict[str, Any] = {
            "pool": name,
            "n": int(here.sum()),
            "share": float(here.mean()),
            **dict.fromkeys(("spread", "silhouette", *(f"to_{each}" for each in POOL_NAMES))),
            **_interval("spread", None),
            **_range("spread_shuffled", ()),
            **_range("silhouette_shuffled", ()),
        }
        if pool in centroids:
            values = spread[here]
            row["spread"] = float(values.mean())
            row |= _interval("spread", mean_interval(values, rng=np.random.default_rng(0)))
            row |= _range(
                "spread_shuffled", (float(each[order == pool].mean()) for order, each in shuffled)
            )
            if pool in own:
                row["silhouette"] = own[pool]
                row |= _range("silhouette_shuffled", (each[pool] for each in own_shuffled))
            for other, centroid in centroids.items():
                if other != pool:
                    gap = np.linalg.norm(centroids[pool] - centroid)
                    row[f"to_{POOL_NAMES[other]}"] = float(gap)
        found.append(row)
    return found


def _by_pool(apart: NDArray[np.float32], pools: NDArray[np.integer]) -> dict[int, float]:
    """Return each pool's mean silhouette among all pools; empty where there is a single pool."""
    names = np.unique(pools).tolist()
    if len(names) < 2:
        return {}
    each = silhouettes(apart, pools)
    return {pool: float(each[pools == pool].mean()) for pool in names}


def _router(
    test: ExitTable, validation: ExitTable, policy: Searched, pools: NDArray[np.int8]
) -> dict[str, Any]:
    """Measure how well the router ranks the test samples that the mobile exit gets right."""
    exit_ = test.exit(policy.depths.mobile)
    right = test.right[:, exit_]
    ranking = policy.routing_score(test.embeddings)
    rng = np.random.default_rng(0)
    shuffled = (
        preference(validation.embeddings, order, test.embeddings) for order in permuted(pools)
    )
    confidence = test.confidence[:, exit_]
    return {
        "n_test": len(test),
        "auc": None if ranking is None else auc(ranking, right),
        **_interval("auc", None if ranking is None else auc_interval(ranking, right, rng=rng)),
        **_range("auc_shuffled", (None if each is None else auc(each, right) for each in shuffled)),
        "auc_confidence": auc(confidence, right),
        **_interval("auc_confidence", auc_interval(confidence, right, rng=rng)),
    }


def _interval(name: str, found: tuple[float, float] | None) -> dict[str, float | None]:
    low, high = found or (None, None)
    return {f"{name}_low": low, f"{name}_high": high}


def _range(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """Return the mean of values with the smallest and the largest; None where one of them is missing."""
    found = list(values)
    known = [value for value in found if value is not None]
    if len(known) < len(found) or not known:
        return {name: None, **_interval(name, None)}
    return {name: float(np.mean(known)), **_interval(name, (min(known), max(known)))}
