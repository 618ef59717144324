"""Plans: halves, order, what is promised, too few rows, budgets."""

from __future__ import annotations

import numpy as np
import pytest

from dimec.core.errors import OptionError
from dimec.core.options import checked
from dimec.core.tiers import Step, Tier
from dimec.costs.billing import Billing
from dimec.costs.pricing import MS, Pricer, Texts
from dimec.costs.profiles import load_profile
from dimec.deploying.ladder import Certifying, Ladder, build_ladder, halve
from dimec.deploying.options import PlanOptions
from dimec.deploying.planning import make_plan
from dimec.deploying.promise import Assurance, p_value
from dimec.policies import Calibration
from dimec.runs.exit_table import TierTables
from tests.unit.tables import DEPTHS, random_table

PRICES = (0.001, 0.02, 0.1, 0.5, 1.0)


def ladder_of(n: int, *, seed: int = 5) -> Ladder:
    return build_ladder(Calibration(random_table(n, seed=seed), DEPTHS), prices=PRICES)


def test_halves_go_by_row_and_seed() -> None:
    table = random_table(101)
    choosing, certifying = halve(table, seed=3)
    assert sorted([*choosing, *certifying]) == list(range(101))
    order = np.random.default_rng(0).permutation(101)
    again, _ = halve(table.take(order), seed=3)
    assert set(table.row_ids[order][again]) == set(table.row_ids[choosing])
    assert set(halve(table, seed=4)[0]) != set(choosing)


def test_the_ladder_goes_from_dear_to_cheap_by_the_choosing_half() -> None:
    ladder = ladder_of(2_000)
    spent = [rung.chosen_cost for rung in ladder.rungs]
    assert spent == sorted(spent, reverse=True)
    assert all(each < ladder.cloud_cost for each in spent)
    assert ladder.n_choosing == len(ladder.cloud_right) == 1_000


def test_a_menu_gets_cheaper_and_keeps_its_promises() -> None:
    ladder = ladder_of(4_000)
    plan = make_plan(ladder, task="t", max_drops=(0.5, 2, 10, 40))
    spent = [offer.cost for offer in plan.offers]
    assert spent == sorted(spent, reverse=True)
    assert plan.offers[-1].policy == "dimec-cascade"
    for offer in plan.offers:
        assert offer.bound_points <= offer.max_drop_points + 1e-3
        shares = offer.shares
        assert shares.mobile + shares.edge + shares.cloud == pytest.approx(1)
        kept = ladder.certified(offer.max_drop_points, Assurance())
        assert (not kept) == (offer.policy == "all-cloud")
        if kept:
            assert p_value(kept[-1].outcomes, offer.max_drop_points / 100) <= 0.05 + 1e-9


def test_what_is_counted_on_few_texts_to_come_costs_more_to_promise() -> None:
    ladder = ladder_of(4_000)
    long_run, soon = (
        make_plan(ladder, task="t", max_drops=(2, 10), assurance=Assurance(over=over))
        for over in (None, 500)
    )
    assert (long_run.over, soon.over) == (None, 500)
    for either, counted in zip(long_run.offers, soon.offers, strict=True):
        assert counted.cost >= either.cost
        assert counted.bound_points <= counted.max_drop_points + 1e-3
    assert soon.offers[-1].bound_points > long_run.offers[-1].bound_points


def test_too_few_rows_say_how_many_would_do() -> None:
    (offer,) = make_plan(ladder_of(60), task="t", max_drops=(0.5,)).offers
    assert offer.policy == "all-cloud"
    assert offer.cost_vs_cloud == 1
    assert offer.shortage is not None
    assert offer.shortage.rows_without_losses in range(598, 605)
    assert offer.shortage.promisable_points > 0.5


def test_rows_that_are_short_are_counted_in_labelled_rows() -> None:
    calibration = Calibration(random_table(60, seed=5), DEPTHS)
    ladder = build_ladder(calibration, prices=PRICES, n_labelled=600)
    (offer,) = make_plan(ladder, task="t", max_drops=(0.5,)).offers
    assert offer.shortage is not None
    assert offer.shortage.rows_without_losses is not None
    # Half of validation certifies, and validation is a tenth.
    assert offer.shortage.labelled_without_losses == 20 * offer.shortage.rows_without_losses


def test_further_rows_certify_and_all_of_validation_chooses() -> None:
    calibration = Calibration(random_table(400, seed=5), DEPTHS)
    table = random_table(3_000, seed=6)
    certifying = Certifying(TierTables(table), table.predictions[:, -1])
    ladder = build_ladder(calibration, certifying=certifying, n_labelled=4_000, prices=PRICES)
    plan = make_plan(ladder, task="t", max_drops=(0.5, 40))
    assert (plan.n_choosing, plan.n_certifying) == (400, 3_000)
    assert plan.cloud_accuracy == pytest.approx(table.right[:, -1].mean())
    assert plan.offers[1].policy == "dimec-cascade"
    # A row more is one labelled row more.
    lack = ladder.shortage(0.5, Assurance())
    assert lack.labelled_without_losses == lack.rows_without_losses
    # Equal cascades, whatever certifies them.
    own = build_ladder(calibration.take(np.arange(400)), certifying=certifying, prices=PRICES)
    assert [rung.price for rung in own.rungs] == [rung.price for rung in ladder.rungs]


def test_an_offer_says_where_the_tests_stopped() -> None:
    ladder = ladder_of(4_000)
    plan = make_plan(ladder, task="t", max_drops=(2, 10, 99))
    for offer in plan.offers:
        kept = ladder.certified(offer.max_drop_points, Assurance())
        assert (offer.stopped is None) == (len(kept) == len(ladder.rungs))
        if offer.stopped is not None:
            assert offer.stopped.price == ladder.rungs[len(kept)].price
            assert offer.stopped.bound_points > offer.max_drop_points
    assert plan.offers[-1].stopped is None


def test_a_budget_asks_the_other_way_round() -> None:
    ladder = ladder_of(4_000)
    share = ladder.rungs[1].chosen_cost / ladder.cloud_cost
    (offer,) = make_plan(ladder, task="t", budget=share).offers
    assert offer.price == ladder.rungs[1].price
    assert offer.max_drop_points == offer.bound_points
    (free,) = make_plan(ladder, task="t", budget=1.0).offers
    assert (free.policy, free.max_drop_points) == ("all-cloud", 0)


@pytest.mark.parametrize("profile", [None, "raspberry-pi"])
def test_latency_is_what_the_certifying_texts_take_by_a_profile(profile: str | None) -> None:
    ladder = ladder_of(4_000)
    billing = Billing.of(profile, "lambda")
    plan = make_plan(ladder, task="t", max_drops=(40,), billing=billing)
    assert plan.latency_profile == (profile or "phone-4g")
    (cheap,) = plan.offers
    (cloud,) = make_plan(ladder, task="t", budget=1.0, billing=billing).offers
    assert (cloud.policy, cheap.policy) == ("all-cloud", "dimec-cascade")
    table = ladder.certifying.encoder
    pricer = Pricer(
        load_profile(plan.latency_profile), width=table.embeddings.shape[1], n_classes=2
    )
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    assert len(texts) == plan.n_certifying
    assert cloud.latency_ms == pytest.approx(pricer.trace([Step(Tier.CLOUD, 6)], texts)[MS].mean())
    rung = ladder.certified(40, Assurance())[-1]
    one_by_one = [
        float(pricer.trace(rung.played.traces[took], texts.take(np.array([row])))[MS, 0])
        for row, took in enumerate(rung.played.took)
    ]
    assert cheap.latency_ms == pytest.approx(np.mean(one_by_one))


@pytest.mark.parametrize("points", [-1, 100, float("nan"), (0.5, 100)])
def test_what_is_no_tolerance(points: object) -> None:
    with pytest.raises(OptionError, match="--max-drop"):
        checked(PlanOptions, {"max_drop": points})


@pytest.mark.parametrize("budget", [0, 1e-6])
def test_what_is_no_budget(budget: float) -> None:
    with pytest.raises(OptionError, match="--budget"):
        make_plan(ladder_of(60), task="t", budget=budget)


def test_quantised_tables_are_held_against_the_float_cloud() -> None:
    table = random_table(400)
    calibration = Calibration(table, DEPTHS)
    ladder = build_ladder(calibration, cloud_predictions=table.labels, prices=PRICES)
    assert ladder.cloud_right.all()
    assert all(rung.outcomes.gains == 0 for rung in ladder.rungs)


def test_a_rate_takes_what_its_texts_compute_and_send() -> None:
    ladder, profile = ladder_of(4_000), load_profile("laptop")
    billing = Billing(profile, "lambda")
    plan = make_plan(ladder, task="t", max_drops=(0, 40), billing=billing, rate=1_000)
    table = ladder.certifying.encoder
    pricer = Pricer(profile, table.embeddings.shape[1], table.n_classes)
    texts = Texts.of(table.n_tokens, table.payload_bytes)
    all_cloud = plan.cloud_capacity
    assert all_cloud is not None and (all_cloud.mobile, all_cloud.edge) == (0, 0)
    computing = (
        pricer.embedding(Tier.CLOUD, texts) + pricer.layer(Tier.CLOUD, texts) * table.n_layers
    )
    assert all_cloud.cloud == pytest.approx(computing[MS].mean())  # 1,000 a second
    assert all_cloud.cloud_requests_s == 1_000
    sent = texts.payload_bytes.mean() + profile.to_cloud.request_bytes
    assert all_cloud.cloud_mbit_s == pytest.approx(
        1_000 * 8e-6 * sent / (1 - profile.to_cloud.loss)
    )
    second = profile.money.cloud_second
    assert all_cloud.money_hour == pytest.approx(3_600 * all_cloud.cloud * second)
    took = plan.offers[-1].capacity
    assert took is not None and plan.offers[-1].policy == "dimec-cascade"
    assert 0 < took.cloud < all_cloud.cloud and took.mobile > 0
    assert took.money_hour == pytest.approx(3_600 * took.cloud * second)
    twice = make_plan(ladder, task="t", max_drops=(40,), billing=billing, rate=2_000).offers[0]
    assert twice.capacity is not None and twice.capacity.edge == pytest.approx(2 * took.edge)


def test_a_rate_needs_a_profile_and_has_to_be_one() -> None:
    with pytest.raises(OptionError, match="--profile"):
        checked(PlanOptions, {"rate": 10})
    for rate in (0, -1, float("nan"), 1e10):
        with pytest.raises(OptionError, match="--rate"):
            checked(PlanOptions, {"rate": rate, "profile": "laptop"})
