"""How far apart pools of embeddings are: silhouettes, spreads and distances of centroids, in plain numpy.

A silhouette compares a sample's mean distance to its own pool with that to the nearest other one: 1 is a pool of its
own, 0 lies between two, below 0 is nearer to another. Of a structure one speaks from 0.25 on (Kaufman and Rousseeuw).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import auc, interval
from dimec.policies.centroids import Centroids

N_SHUFFLES = 20
N_RESAMPLES = 500
STRUCTURE = 0.25
"""The least silhouette that counts as a structure."""


def distances(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return the L2 distance of every two points: [n, n] for [n, width]."""
    centred = points.astype(np.float64) - points.mean(axis=0)
    squares = np.einsum("ij,ij->i", centred, centred)
    found = squares[:, None] + squares - 2.0 * (centred @ centred.T)
    np.maximum(found, 0.0, out=found)
    np.sqrt(found, out=found)
    np.fill_diagonal(found, 0.0)
    single: NDArray[np.float32] = found.astype(np.float32)
    return single


def silhouettes(apart: NDArray[np.floating], pools: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return each sample's silhouette [n] from distances [n, n] and pools [n]; 0 for a pool's only sample."""
    names, place, counts = np.unique(pools, return_inverse=True, return_counts=True)
    member = np.eye(len(names), dtype=np.float32)[place]
    sums = (apart @ member).astype(np.float64)
    rows = np.arange(len(pools))
    own_count = counts[place]
    own = sums[rows, place] / np.maximum(own_count - 1, 1)
    means = sums / counts
    means[rows, place] = np.inf
    nearest = means.min(axis=1)
    widest = np.maximum(own, nearest)
    value = np.divide(nearest - own, widest, out=np.zeros(len(pools)), where=widest > 0)
    return np.where(own_count > 1, value, 0.0)


def silhouette(
    apart: NDArray[np.floating],
    pools: NDArray[np.integer],
    *,
    among: tuple[int, ...] = (0, 1, 2),
) -> float | None:
    """Return the mean silhouette of some pools' samples among one another; None with fewer than two pools."""
    rows = np.flatnonzero(np.isin(pools, among))
    if len(np.unique(pools[rows])) < 2:
        return None
    return float(silhouettes(apart[np.ix_(rows, rows)], pools[rows]).mean())


def to_own_centroid(
    embeddings: NDArray[np.floating], pools: NDArray[np.integer]
) -> NDArray[np.float64]:
    """Return each sample's distance to the centroid of its own pool: [n]."""
    apart = Centroids.of_pools(embeddings, pools).distances(embeddings)
    return np.take_along_axis(apart, pools[:, None].astype(np.intp), axis=1)[:, 0]


def auc_interval(
    ranking: NDArray[np.floating], positive: NDArray[np.bool_], *, rng: np.random.Generator
) -> tuple[float, float] | None:
    """Return the 95 % percentile bootstrap interval of an AUC over resampled samples; None without both kinds."""
    if positive.all() or not positive.any():
        return None
    draws = (rng.integers(0, len(ranking), len(ranking)) for _ in range(N_RESAMPLES))
    found = [auc(ranking[rows], positive[rows]) for rows in draws]
    return interval(np.array([each for each in found if each is not None]))


def mean_interval(values: NDArray[np.floating], *, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean."""
    picks = rng.integers(0, len(values), (N_RESAMPLES, len(values)))
    return interval(values[picks].mean(axis=1).astype(np.float64))


def permuted(pools: NDArray[np.integer]) -> list[NDArray[np.integer]]:
    """Return pools shuffled over the samples, to compare with."""
    rng = np.random.default_rng(0)
    return [rng.permutation(pools) for _ in range(N_SHUFFLES)]
