from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dimec.core.errors import ContractError
from dimec.core.tiers import Depths, Tier
from dimec.policies import Calibration, dimec_dc, dimee
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.policies.pools import (
    Cartography,
    cartography,
    cartography_pools,
    sure_exits,
)
from dimec.policies.thresholds import ThresholdSearch
from dimec.runs.exit_table import ExitTable, TierTables
from tests.unit.tables import random_table, table_of


def test_cartography_by_hand() -> None:
    table = table_of(
        [[0.9, 0.9, 0.9]] * 2,
        labels=[1, 1],
        dynamics=[[0.2, 0.4, 0.9], [0.7, 0.7, 0.7]],
    )
    samples = cartography(table, layer=1)
    assert samples.confidence == pytest.approx([0.5, 0.7])
    # deviations -0.3, -0.1, 0.4: squares 0.09 + 0.01 + 0.16 = 0.26 over three epochs
    assert samples.variability == pytest.approx([math.sqrt(0.26 / 3), 0], abs=1e-6)
    assert samples.correctness.tolist() == [1, 3]
    assert cartography(table, layer=1, spread="variance").variability[0] == pytest.approx(0.26 / 3)


def test_each_exit_has_its_own_map() -> None:
    table = table_of([[0.9, 0.9]], labels=[1], dynamics=[[[0.2, 0.8], [0.4, 1.0]]])
    assert cartography(table, layer=1).confidence == pytest.approx([0.3])
    assert cartography(table, layer=2).confidence == pytest.approx([0.9])


def test_cartography_needs_dynamics() -> None:
    with pytest.raises(ContractError):
        cartography(table_of([[0.9]], labels=[1]), layer=1)


def test_cartography_pools_at_the_thresholds() -> None:
    samples = Cartography(
        confidence=np.array([0.7, 0.7, 0.69, 0.9, 0.1]),
        variability=np.array([0.0, 0.1, 0.0, 0.2, 0.5]),
        correctness=np.zeros(5, dtype=np.int64),
    )
    # alpha counts from itself on, beta up to but not at itself
    assert cartography_pools(samples, alpha=0.7, beta=0.1).tolist() == [0, 1, 2, 1, 2]


def test_sure_exits_by_hand() -> None:
    confidence = np.array(
        [
            [0.9, 0.5, 0.5, 0.5],  # sure at 1, later no more: easy
            [0.5, 0.8, 0.5, 0.5],  # sure at m
            [0.5, 0.5, 0.8, 0.9],  # sure at n
            [0.5, 0.5, 0.5, 0.9],  # sure only beyond n: hard
        ]
    )
    table = table_of(confidence.tolist(), labels=[1] * 4)
    at_alpha = float(table.confidence[1, 1])  # alpha counts from itself on
    pools, layers = sure_exits(table, alpha=at_alpha, depths=Depths(2, 3, 4))
    assert pools.tolist() == [0, 0, 1, 2]
    assert layers.tolist() == [1, 2, 3, 4]


def test_each_tier_is_judged_by_the_model_that_it_holds() -> None:
    never, labels = [0.6, 0.6, 0.6], [1, 1, 1]
    encoder = table_of([[0.9] * 4] * 3, labels=labels)  # sure at once, and asked by nobody
    mobile = table_of([[0.6, 0.6], [0.6, 0.6], [0.6, 0.9]], labels=labels)
    edge = table_of([[0.9, 0.6, 0.6], never, never], labels=labels)
    tables = TierTables(encoder, {Tier.MOBILE: mobile, Tier.EDGE: edge})
    pools, layers = sure_exits(tables, alpha=0.8, depths=Depths(2, 3, 4))
    assert pools.tolist() == [1, 2, 0]
    assert layers.tolist() == [1, 4, 2]
    assert layers.dtype == np.int64


def test_an_exit_that_is_always_sure() -> None:
    table = table_of([[1.0] * 4] * 3, labels=[1] * 3)
    alpha = float(table.confidence.min())
    pools, _ = sure_exits(table, alpha=alpha, depths=Depths(2, 3, 4))
    assert pools.tolist() == [0] * 3


def test_centroids_by_hand() -> None:
    embeddings = np.array([[0, 0], [2, 0], [10, 0], [0, 9]], dtype=np.float32)
    centroids = Centroids.of_pools(embeddings, np.array([0, 0, 1, 2]))
    assert centroids.means.tolist() == [[1, 0], [10, 0], [0, 9]]
    assert centroids.counts.tolist() == [2, 1, 1]
    point = np.array([1, 3], dtype=np.float32)
    assert centroids.distances(point) == pytest.approx([3, math.sqrt(90), math.sqrt(37)])
    assert centroids.nearest(point) == 0
    # eq. 5: (2 * [1, 0] + [1, 3]) / 3
    centroids.update(0, point)
    assert centroids.means[0] == pytest.approx([1, 1])
    assert centroids.counts.tolist() == [3, 1, 1]


def test_centroids_are_computed_in_double_precision() -> None:
    wide = np.array([[2.0**25], [1.0], [1.0]], dtype=np.float32)
    centroids = Centroids.of_pools(wide, np.zeros(3, dtype=np.int8))
    assert centroids.sums.tolist() == [[2.0**25 + 2], [0], [0]]
    assert centroids.counts.tolist() == [3, 0, 0]
    centroids.update(0, np.array([1.0], dtype=np.float32))
    assert centroids.sums.tolist() == [[2.0**25 + 3], [0], [0]]
    far = Centroids(np.array([[4000.0, 3000.0]] * 3), np.ones(3, dtype=np.int32))
    assert far.counts.dtype == np.int64
    point = np.array([4000.5, 3000.25], dtype=np.float32)
    assert far.distances(point) == pytest.approx([math.hypot(0.5, 0.25)] * 3)


def test_a_tie_goes_to_the_nearer_tier() -> None:
    centroids = Centroids(np.array([[1, 0], [-1, 0], [0, 1]]), np.array([1, 1, 1]))
    origin = np.zeros(2, dtype=np.float32)
    assert centroids.nearest(origin) == 0
    assert centroids.nearest_of(np.stack([origin, [-0.1, 0.1]])).tolist() == [0, 1]


def test_an_empty_pool_is_never_chosen() -> None:
    centroids = Centroids.of_pools(np.array([[5.0, 5.0], [9.0, 9.0]]), np.array([1, 2]))
    assert centroids.nearest(np.zeros(2)) == 1
    assert centroids.distances(np.zeros(2))[0] == np.inf
    assert centroids.nearest_of(np.zeros((3, 2))).tolist() == [1, 1, 1]
    centroids.update(0, np.zeros(2))
    assert centroids.nearest(np.zeros(2)) == 0


def test_centroids_need_a_sample() -> None:
    with pytest.raises(ContractError):
        Centroids(np.zeros((3, 2)), np.zeros(3, dtype=np.int64))
    with pytest.raises(ContractError):
        Centroids(np.zeros((3, 2)), np.ones(2, dtype=np.int64))


@given(st.integers(0, 2**32 - 1))
def test_one_and_many_route_alike(seed: int) -> None:
    draws = np.random.default_rng(seed)
    centroids = Centroids.of_pools(draws.normal(size=(9, 5)), np.arange(9) % 3)
    points = draws.normal(size=(30, 5)).astype(np.float32)
    one_by_one = [centroids.nearest(point) for point in points]
    assert centroids.nearest_of(points).tolist() == one_by_one
    assert centroids.distances(points).argmin(axis=1).tolist() == one_by_one


DEPTHS = Depths(1, 2, 3)


def calibration(table: ExitTable, depths: Depths = DEPTHS, *, price: float = 0.1) -> Calibration:
    return Calibration(table, {"dc": depths, "ee": depths}, price=price)


def test_cartography_reward_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Two samples; at (0.6, 0.1) the first is easy (answered on mobile), the second hard (in the cloud).
    table = table_of(
        [[0.9, 0.9, 0.9], [0.6, 0.7, 0.8]], labels=[1, 1], dynamics=[[0.9, 0.9], [0.3, 0.5]]
    )
    given = calibration(table, price=0.45)
    monkeypatch.setattr(dimec_dc, "ALPHAS", (0.3, 0.6))
    monkeypatch.setattr(dimec_dc, "BETAS", (0.05, 0.1, 0.2))
    search = DimecDcFixed.search_in(given)
    unit = 0.45 / 4.5  # lambda in confidence: the reference is 1.5 * 3 layers
    mobile, edge, cloud = 1.5, 2.5 + 2, 3 + 3
    easy_and_hard = ((0.9 - unit * mobile) + (0.8 - unit * cloud)) / 2
    both_easy = ((0.9 - unit * mobile) + (0.6 - unit * mobile)) / 2
    easy_and_medium = ((0.9 - unit * mobile) + (0.7 - unit * edge)) / 2
    # alpha 0.3 makes the second sample sure; its spread of 0.1 lies between the betas (float32: just below 0.1)
    assert search.rewards[0] == pytest.approx([easy_and_medium, both_easy, both_easy], abs=1e-6)
    assert search.rewards[1] == pytest.approx([easy_and_hard] * 3, abs=1e-6)
    assert search.point == (0.3, 0.1)


def search_over(alphas: tuple[float, ...], given: Calibration) -> ThresholdSearch:
    """Search DIMEE's alpha over a grid of one's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dimee, "confidence_grid", lambda n_classes: alphas)
        return DimeeFixed.search_in(given)


def test_exit_reward_by_hand() -> None:
    table = table_of([[0.7, 0.9, 0.8], [0.6, 0.6, 0.95]], labels=[1, 1])
    given = calibration(table, price=0.045)
    search = search_over((0.5, 0.65, 0.85, 1.0), given)
    unit = 0.045 / 4.5
    mobile, edge, cloud = 1.5, 2.5 + 2, 3 + 3
    expected = [
        ((0.7 - unit * mobile) + (0.6 - unit * mobile)) / 2,
        ((0.7 - unit * mobile) + (0.95 - unit * cloud)) / 2,
        ((0.9 - unit * edge) + (0.95 - unit * cloud)) / 2,
        ((0.8 - unit * cloud) + (0.95 - unit * cloud)) / 2,
    ]
    assert search.rewards == pytest.approx(expected, abs=1e-6)
    assert search.point == ((0.5, 0.65, 0.85, 1.0)[int(np.argmax(expected))],)


def test_the_exit_grid_starts_at_chance() -> None:
    table = random_table(30, n_classes=3)
    search = DimeeFixed.search_in(calibration(table, Depths(2, 3, 6)))
    (alphas,) = search.grids
    assert len(alphas) == 10
    assert alphas[0] == pytest.approx(1 / 3)
    assert alphas[-1] == 1.0
    assert np.diff(alphas) == pytest.approx([2 / 27] * 9)


def test_the_cheapest_of_equals_wins() -> None:
    # At price 0 and with one confidence everywhere, every point earns the same. The spread is 0.1: beside the edge at
    # the first two betas, the device at the others.
    table = table_of([[0.9, 0.9, 0.9]], labels=[1], dynamics=[[0.8, 1.0]])
    search = DimecDcFixed.search_in(calibration(table, price=0.0))
    assert search.rewards.shape == (5, 5)
    assert search.point == (0.55, 0.11)


@pytest.mark.parametrize(("sure_at", "cost"), [(1, 1.5), (2, 3.0), (3, 2.5 + 3), (4, 3.0 + 4)])
def test_a_sample_is_charged_up_to_the_exit_that_it_leaves_at(sure_at: int, cost: float) -> None:
    said = [0.9 if layer >= sure_at else 0.6 for layer in (1, 2, 3, 4)]
    given = calibration(table_of([said], labels=[1]), Depths(2, 3, 4))
    search = search_over((0.8,), given)
    assert search.costs == pytest.approx([cost])


def test_a_search_charges_and_believes_the_model_that_each_tier_holds() -> None:
    labels = [1, 1, 1]
    encoder = table_of([[0.55, 0.55, 0.55, 0.95]] * 3, labels=labels)
    mobile = table_of([[0.6, 0.6], [0.6, 0.6], [0.6, 0.9]], labels=labels)
    edge = table_of([[0.6, 0.85], [0.6, 0.6], [0.6, 0.6]], labels=labels, layers=(1, 3))
    models = {Tier.MOBILE: mobile, Tier.EDGE: edge}
    given = replace(calibration(encoder, Depths(2, 3, 4)), models=models)
    search = search_over((0.8,), given)
    # The edge's second exit, after its third layer; the cloud's last; the device's second.
    assert search.confidence == pytest.approx([(0.85 + 0.95 + 0.9) / 3])
    assert search.costs == pytest.approx([((2.5 + 3) + (3 + 4) + 2 * 1.5) / 3])


def test_a_price_that_hurts_keeps_everything_on_the_device() -> None:
    table = random_table(200)
    free, dear = (
        DimecDcFixed.search_in(calibration(table, Depths(2, 3, 6), price=price))
        for price in (0.0, 5.0)
    )
    chosen_cost = [each.costs.flat[each.points.index(each.point)] for each in (dear, free)]
    assert chosen_cost[0] < chosen_cost[1]
