"""A promise about one corpus: how often it is broken, counted over all samples that there are."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimec.core.tiers import Tier
from dimec.deploying.corpus import (
    DOUBTS,
    all_cloud,
    last_passing,
    most_differing,
    operating_points,
    sample_size,
)
from dimec.policies import Calibration
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from tests.unit.tables import DEPTHS, random_table

N = 11


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, N - 1)), min_size=1, max_size=6),
    st.integers(1, N - 1),
    st.integers(0, 4),
    st.sampled_from([0.5, 0.8, 0.95]),
)
def test_over_all_samples_it_is_broken_no_more_often_than_promised(
    points: list[set[int]], n: int, allowed: int, assurance: float
) -> None:
    differs = np.array([[row in each for row in range(N)] for each in points])
    most = most_differing(N, n, max_drop=allowed / N, assurance=assurance)
    broken = 0
    for drawn in combinations(range(N), n):
        last = last_passing(differs[:, drawn], most)
        broken += last is not None and len(points[last] - set(drawn)) > allowed
    assert broken / math.comb(N, n) <= 1 - assurance + 1e-9


def test_the_level_is_used_up() -> None:
    # All of the first 18 texts differ and 17 may: it is broken where the sample of 130 of 855 has none of them.
    none = math.comb(855 - 18, 130) / math.comb(855, 130)
    assert most_differing(855, 130, max_drop=0.02, assurance=1 - none - 1e-6) == 0
    assert most_differing(855, 130, max_drop=0.02, assurance=1 - none + 1e-6) == -1


@pytest.mark.parametrize(("n_rows", "drop"), [(50, 0.0), (1_000, 0.005), (1_000_000, 0.005)])
def test_a_sample_is_the_smallest_that_passes_as_much(n_rows: int, drop: float) -> None:
    n = sample_size(n_rows, max_drop=drop, assurance=0.95)
    most, with_one_less = (
        most_differing(n_rows, each, max_drop=drop, assurance=0.95) for each in (n, n - 1)
    )
    assert 0 <= most > with_one_less


def test_where_more_than_the_rest_may_differ_everything_passes() -> None:
    assert most_differing(100, 40, max_drop=0.6, assurance=0.99) == 40


def test_operating_points_go_from_all_cloud_to_the_device() -> None:
    table = random_table(600, seed=3, n_classes=3)
    cascade = DimecCascade.fit(Calibration(table, DEPTHS, price=0.3))
    costs = Calibration(table, DEPTHS).costs
    played = [replay(each, table, costs=costs) for each in operating_points(cascade)]
    differs = [(each.predictions != table.predictions[:, -1]).mean() for each in played]
    cloud = [(each.tiers == 2).mean() for each in played]
    assert len(played) == len(DOUBTS)
    assert differs[0] < 0.02 < 0.2 < differs[-1]
    assert cloud == sorted(cloud, reverse=True) and cloud[0] > 0.9 > 0.1 > cloud[-1]
    alone = replay(all_cloud(cascade), table, costs=costs)
    assert (alone.predictions == table.predictions[:, -1]).all() and set(alone.tiers) == {
        list(Tier).index(Tier.CLOUD)
    }


def test_an_operating_point_passes_only_after_all_before_it() -> None:
    differs = np.array([[0, 0, 0, 1], [0, 0, 1, 0], [1, 1, 0, 0]], dtype=bool)
    assert [last_passing(differs, most) for most in (-1, 0, 1, 2, 3, 4)] == [None, None, 0, 1, 1, 2]
