"""The pure parts of the studies of embeddings, shift and ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score, silhouette_samples

from dimec.core.metrics import Metric, interval, paired_differences
from dimec.policies.centroids import Centroids
from dimec.studies.ablation import TRANSFORMS, variants
from dimec.studies.embeddings import (
    auc_interval,
    distances,
    permuted,
    silhouette,
    silhouettes,
    to_own_centroid,
)
from dimec.studies.measures import mean_interval
from dimec.studies.shift import find_other, gains, in_order, routes
from tests.unit.tables import random_table, table_of

DRAWS = np.random.default_rng(0)
POINTS = DRAWS.normal(size=(60, 5)).astype(np.float32)
POOLS = DRAWS.integers(0, 3, 60)


def test_a_pool_of_one_has_no_silhouette() -> None:
    with_a_single = np.where(np.arange(60) == 7, 2, POOLS % 2)
    assert silhouettes(distances(POINTS), with_a_single)[7] == 0
    assert not silhouettes(distances(POINTS[:2]), np.arange(2)).any()


def test_silhouette_among_pools() -> None:
    apart = distances(POINTS)
    two = POOLS != 1
    expected = silhouette_samples(POINTS[two], POOLS[two]).mean()
    assert silhouette(apart, POOLS, among=(0, 2)) == pytest.approx(expected, abs=1e-4)
    assert silhouette(apart, np.zeros(60, dtype=np.int64)) is None
    far = POINTS + 50.0 * (POOLS == 2)[:, None]
    found = silhouette(distances(far), POOLS, among=(0, 2))
    assert found is not None and found > 0.9


def test_distances_to_centroids() -> None:
    means = [POINTS[pool == POOLS].mean(axis=0) for pool in range(3)]
    expected = np.stack([np.linalg.norm(POINTS - mean, axis=1) for mean in means], axis=1)
    own = to_own_centroid(POINTS, POOLS)
    np.testing.assert_allclose(own, expected[np.arange(60), POOLS], atol=1e-5)
    found = Centroids.of_pools(POINTS, POOLS).preference(POINTS)
    assert found is not None
    np.testing.assert_allclose(found, expected[:, 2] - expected[:, 0], atol=1e-5)
    assert Centroids.of_pools(POINTS, np.minimum(POOLS, 1)).preference(POINTS) is None


def test_intervals_hold_what_they_are_about() -> None:
    positive = DRAWS.random(200) < 0.6
    ranking = positive + DRAWS.normal(size=200)
    found = auc_interval(ranking, positive, rng=np.random.default_rng(1))
    assert found is not None
    assert found[0] < roc_auc_score(positive, ranking) < found[1]
    assert auc_interval(ranking, np.ones(200, dtype=np.bool_), rng=np.random.default_rng(1)) is None
    low, high = mean_interval(ranking, rng=np.random.default_rng(1))
    assert low < ranking.mean() < high
    orders = permuted(POOLS)
    assert all((np.bincount(order) == np.bincount(POOLS)).all() for order in orders)
    assert not (orders[0] == orders[1]).all()


def test_a_difference_over_several_replays_is_that_of_their_mean() -> None:
    table = random_table(300)
    first, second, third = (table.predictions[:, place] for place in (3, 1, 5))

    def found(metric: Metric, answers: list[NDArray[np.int64]], base: NDArray[np.int64]) -> Any:
        rng = np.random.default_rng(0)
        drawn = paired_differences(metric, table.labels, answers, base, n_classes=2, rng=rng)
        return interval(drawn)

    once, twice = (found("matthews", [first] * times, second) for times in (1, 2))
    np.testing.assert_allclose(once, twice, atol=1e-12)
    assert found("accuracy", [first, first], first) == (0.0, 0.0)
    # Held against itself and another, half of what the other alone has.
    alone, halved = (found("accuracy", answers, second) for answers in ([first], [first, second]))
    np.testing.assert_allclose(halved, np.array(alone) / 2)
    low, high = found("accuracy", [first, third], second)
    scores = table.right.mean(axis=0)
    assert low < (scores[3] + scores[5]) / 2 - scores[1] < high


def test_adapting_gains_only_beyond_both_intervals() -> None:
    case: dict[str, Any] = {"difference_low": 0.01, "cost_difference_low": -0.1}
    assert gains(case)
    assert not gains({**case, "difference_low": 0.0})
    assert not gains({**case, "cost_difference_low": 0.1})
    assert routes({"adaptive": 0.8, "random_at_cost": 0.8})
    assert not routes({"adaptive": 0.79, "random_at_cost": 0.8})


def test_sorted_labels_are_noticed() -> None:
    labels = np.repeat([0, 1], 200)
    said = in_order(labels)
    assert said is not None and "99.7%" in said and "50.0%" in said
    assert in_order(np.random.default_rng(0).permutation(labels)) is None
    assert in_order(labels[:1]) is None


def test_where_the_other_data_set_is_looked_for(tmp_path: Path) -> None:
    root = tmp_path / "glue"
    root.mkdir()
    assert find_other(root, "cr") is None
    inside = root / "shift" / "cr"
    inside.mkdir(parents=True)
    assert find_other(root, "cr") == inside
    beside = tmp_path / "shift" / "cr"
    beside.mkdir(parents=True)
    assert find_other(root, "cr") == beside
    (root / "cr").mkdir()
    assert find_other(root, "cr") == root / "cr"


def test_transforms_are_fitted_once_and_keep_rows() -> None:
    others = np.random.default_rng(1).normal(size=(9, 5)).astype(np.float32)
    for name, transform in TRANSFORMS.items():
        change = transform(POINTS)
        assert change(others).shape[0] == 9 and change(others).dtype == np.float32, name
        np.testing.assert_allclose(change(others)[:3], change(others[:3]), atol=1e-6)
    white = TRANSFORMS["whitened, 64 components"](POINTS)(POINTS)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(5), atol=1e-4)
    unit = TRANSFORMS["normalised to length 1"](POINTS)(POINTS)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    flat = TRANSFORMS["whitened, 64 components"](table_of([[0.5]] * 3, labels=[0, 1, 0]).embeddings)
    assert flat(np.zeros((2, 2), dtype=np.float32)).shape[0] == 2


def test_every_group_of_variants_holds_the_usual_way_once() -> None:
    found = list(variants(0.1))
    groups = {each.group for each in found}
    assert len(groups) == 6
    for group in groups:
        assert sum("(usual)" in each.name for each in found if each.group == group) == 1
