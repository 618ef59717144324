"""Cuts: which is best where, chosen by rows that did not fit, and by the choosing half alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dimec.core.tiers import Depths
from dimec.costs.model import CostModel, Use
from dimec.deploying.ladder import build_ladder, halve
from dimec.deploying.planning import make_plan
from dimec.deploying.promise import Assurance
from dimec.evaluation.cuts import Cut, best_cuts, compare_cuts, cross_fit, fit_cascades
from dimec.policies import Calibration
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from tests.notes import Notes
from tests.unit.tables import random_table

PRICES = (0.01, 0.1, 1.0)


def cut_at(mobile: int, edge: int) -> Cut:
    return {"dc": Depths(mobile, edge, 6), "ee": Depths(mobile, edge, 6)}


def blind_until(layer: int, n: int) -> ExitTable:
    """Build a table whose exits before a layer know nothing."""
    table = random_table(n, seed=3)
    logits = np.array(table.logits)
    logits[:, : layer - 1] = np.random.default_rng(0).normal(size=logits[:, : layer - 1].shape)
    return replace(table, logits=logits, exit_zero=None, unseen=None)


def test_a_device_is_cut_behind_the_first_exit_that_knows_something() -> None:
    cuts = [cut_at(1, 2), cut_at(2, 3), cut_at(3, 4)]
    calibration = Calibration(blind_until(3, 1_500), cuts[0])
    assert best_cuts(calibration, cuts, (0.1, 0.3)) == [cuts[2]] * 2
    # So dear that no more than a layer is run.
    assert best_cuts(calibration, cuts, (2.0,)) == [cuts[0]]


def test_every_row_is_answered_by_cascades_that_it_did_not_fit() -> None:
    table = random_table(600, seed=1)
    calibration = Calibration(table, cut_at(2, 3))
    crossed = cross_fit(calibration, [calibration.depths], PRICES)[0]
    assert crossed.labels.shape == crossed.costs.shape == (3, 600)
    # A fifth's own labels cannot matter: with the opposite of all of them, it is answered as before.
    fifth = np.random.default_rng([calibration.seed, 0xC075]).permutation(600) % 5 == 0
    labels = np.where(fifth, 1 - table.labels, table.labels)
    other = cross_fit(
        replace(calibration, table=replace(table, labels=labels)), [calibration.depths], PRICES
    )[0]
    np.testing.assert_array_equal(other.labels[:, fifth], crossed.labels[:, fifth])
    np.testing.assert_array_equal(other.costs[:, fifth], crossed.costs[:, fifth])
    assert (other.labels[:, ~fifth] != crossed.labels[:, ~fifth]).any()
    cloud = table.predictions[:, -1]
    alike = cross_fit(calibration, [calibration.depths], PRICES, like=cloud)[0]
    assert ((alike.labels != cloud).mean(axis=1) < (crossed.labels != cloud).mean(axis=1)).all()
    fitted = DimecCascade.fit(replace(calibration, price=PRICES[1]))
    flattered = (replay(fitted, table, costs=calibration.costs).predictions == table.labels).mean()
    assert 0.5 < (crossed.labels[1] == table.labels).mean() <= flattered + 0.01


def test_answers_unlike_those_wanted_count_where_cuts_are_compared() -> None:
    table = random_table(300, seed=4)
    cuts, prices = [cut_at(1, 2), cut_at(4, 5)], (0.2, 0.7)
    calibration, like = Calibration(table, cuts[0]), table.predictions[:, -1]
    losses = np.empty((len(cuts), len(prices)))
    unlike = np.empty_like(losses)
    crossed = [cross_fit(calibration, [cut], prices, like=like)[0] for cut in cuts]
    for row, alone in enumerate(crossed):
        for place, price in enumerate(prices):
            spent = price / 9 * alone.costs[place].mean()  # all six layers on mobile cost 9
            losses[row, place] = (alone.labels[place] != table.labels).mean() + spent
            unlike[row, place] = (alone.labels[place] != like).mean()
    told = Notes()
    best, said = compare_cuts(calibration, cuts, prices, like=like, progress=told)
    rows = (losses + unlike).argmin(axis=0)
    assert best == [cuts[row] for row in rows]
    assert best != [cuts[row] for row in losses.argmin(axis=0)]  # else this would say nothing
    assert told.bars == {"Comparing cuts": [10, 10]}
    assert said.labels.dtype == np.int64
    for place, row in enumerate(rows):
        for name in ("labels", "costs", "uses"):
            expected = getattr(crossed[row], name)[place]
            np.testing.assert_allclose(getattr(said, name)[place], expected)
        spent = CostModel().of_use(Use(*said.uses[place].tolist()))
        assert spent == pytest.approx(said.costs[place].mean())
    told.bars.clear()
    assert best_cuts(calibration, cuts, prices, like=like, progress=told) == best
    assert told.bars


def test_one_cut_is_not_tried_and_the_first_of_equals_is_taken() -> None:
    calibration = Calibration(random_table(300), cut_at(2, 3))
    only = cut_at(1, 2)
    assert best_cuts(calibration, [only], PRICES) == [only] * 3
    same = [cut_at(2, 3), cut_at(2, 3)]
    assert all(cut is same[0] for cut in best_cuts(calibration, same, PRICES))


def test_each_cascade_is_fitted_at_its_own_cut() -> None:
    calibration, told = Calibration(random_table(300, seed=2), cut_at(2, 3)), Notes()
    cuts = [cut_at(2, 3), cut_at(4, 5)]
    chosen = [cuts[1], cuts[0], cuts[1]]
    for like in (None, calibration.table.predictions[:, -1]):
        cascades = fit_cascades(calibration, chosen, PRICES, like=like, progress=told)
        assert told.bars == {"Fitting cascades": [3, 3]}
        for price, cut, cascade in zip(PRICES, chosen, cascades, strict=True):
            assert cascade.depths == cut["ee"]
            own = replace(calibration, depths=cut)
            assert cascade.points == next(DimecCascade.fit_at([price], own, like=like)).points


def test_the_certifying_half_chooses_no_cut() -> None:
    table = random_table(1_000, seed=4)
    calibration = Calibration(table, cut_at(2, 3))
    _, certifying = halve(table, seed=0)
    labels = table.labels.copy()
    labels[certifying] = np.random.default_rng(0).permutation(labels[certifying])
    cuts = [cut_at(2, 3), cut_at(3, 4), cut_at(4, 5)]
    ladder, other = (
        build_ladder(replace(calibration, table=each), cuts=cuts, prices=PRICES)
        for each in (table, replace(table, labels=labels))
    )
    assert [rung.policy.points for rung in ladder.rungs] == [
        rung.policy.points for rung in other.rungs
    ]
    assert [rung.outcomes for rung in ladder.rungs] != [rung.outcomes for rung in other.rungs]


@pytest.mark.parametrize("points", [2, 40])
def test_an_offer_says_where_it_cuts(points: float) -> None:
    calibration = Calibration(blind_until(3, 3_000), cut_at(2, 3))
    cuts = [cut_at(2, 3), cut_at(4, 5)]
    ladder = build_ladder(calibration, cuts=cuts, prices=PRICES)
    plan = make_plan(ladder, task="t", max_drops=(points,))
    (offer,) = plan.offers
    rung = ladder.certified(points, Assurance())[-1]
    assert plan.n_cuts == 2
    depths = rung.policy.depths
    assert (offer.mobile_layers, offer.edge_layers) == (depths.mobile, depths.edge)
    (cloud,) = make_plan(ladder, task="t", budget=1.0).offers
    assert (cloud.mobile_layers, cloud.edge_layers) == (None, None)
    alone = make_plan(build_ladder(calibration, prices=PRICES), task="t", max_drops=(points,))
    assert alone.n_cuts == 1
