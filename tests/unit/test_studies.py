"""What studies compute from rows: averages over seeds, rulings, and tables at other prices."""

from __future__ import annotations

import pkgutil
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap

import dimec
from dimec.core.metrics import confusion, interval, paired_differences, score
from dimec.core.tiers import EXIT_ZERO, Depths, Step, Tier
from dimec.costs.model import CostModel, Use
from dimec.policies import Calibration, replay
from dimec.policies.pabee import Pabee
from dimec.policies.uat import Uat
from dimec.studies.base import Findings, catalogue
from dimec.studies.layers import ONE_MACHINE, Way, fewest, goal, play, ratio_interval
from dimec.studies.measures import over_seeds
from dimec.studies.running import STUDIES
from dimec.studies.sweeps import compare
from dimec.studies.verdicts import (
    cost_claims,
    main_claims,
    over_prices,
    pool_claims,
    ruling_of,
    tiers_alone,
)
from tests.unit.tables import DEPTHS, random_table, table_of


def measured(**values: Any) -> dict[str, Any]:
    return {"policy": "a", "score": 0.8, "cost": 2.0, "n": 10, "auc": None, **values}


def test_over_seeds_averages_numbers_and_keeps_words() -> None:
    first = measured(mobile=0.5, oracle=0.9, beats=True)
    second = measured(score=0.6, cost=4.0, n=12, mobile=0.7, oracle=None, beats=False)
    (row,) = over_seeds([[first], [second]])
    assert row["policy"] == "a"
    assert row["score"] == pytest.approx(0.7)
    assert row["score_sd"] == pytest.approx(np.std([0.8, 0.6], ddof=1))
    assert row["cost_sd"] == pytest.approx(np.std([2, 4], ddof=1))
    assert (row["mobile"], row["n"], row["seeds"]) == (pytest.approx(0.6), 11, 2)
    assert (row["auc"], row["oracle"], row["beats"]) == (None, None, False)
    (row,) = over_seeds([[first]])
    assert (row["score"], row["score_sd"], row["cost_sd"], row["seeds"]) == (0.8, None, None, 1)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_the_paired_interval_is_that_of_scipy(metric: Any) -> None:
    draws = np.random.default_rng(3)
    labels = draws.integers(0, 2, 300)
    first = np.where(draws.random(300) < 0.85, labels, 1 - labels)
    second = np.where(draws.random(300) < 0.3, first, labels)

    def difference(rows: Any) -> float:
        both = [
            float(score(metric, confusion(labels[rows], each[rows], n_classes=2)))
            for each in (first, second)
        ]
        return both[0] - both[1]

    how: dict[str, Any] = {"vectorized": False, "method": "percentile"}
    rng = np.random.default_rng(1)
    theirs = bootstrap((np.arange(300),), difference, n_resamples=2000, rng=rng, **how)
    ours = paired_differences(
        metric, labels, [first], second, n_classes=2, rng=np.random.default_rng(2), n=4000
    )
    assert interval(ours) == pytest.approx(tuple(theirs.confidence_interval), abs=0.01)


def test_a_cost_is_what_is_used_times_what_it_costs() -> None:
    steps = [EXIT_ZERO, Step(Tier.MOBILE, 2), Step(Tier.EDGE, 3), Step(Tier.CLOUD, 6, resumes=True)]
    used = Use.of(steps)
    layers = {"mobile_layers": 2, "edge_layers": 3, "cloud_layers": 3}
    assert used == Use(**layers, to_edge=1, to_cloud=1, exit_zero=1, states_to_cloud=1)
    costs = CostModel(cloud_request=0.5, edge_work=2.0)
    by_hand = 0.04 + 2 * 1.5 + 2.5 + 3 * 2.0 + 3.5 + 3
    assert costs.of(steps) == pytest.approx(by_hand)
    assert float(costs.prices.vector @ used.vector) == pytest.approx(by_hand)


def test_a_claim_about_all_needs_all() -> None:
    assert ruling_of(3, of=3) == "holds"
    assert ruling_of(1, of=3) == "holds in part"
    assert ruling_of(0, of=3) == "does not hold here"
    assert ruling_of(0, of=0) == "could not be tested"


def pair(policy: str, against: str, difference: float, width: float, cost: float) -> dict[str, Any]:
    interval = {"low": difference - width, "high": difference + width}
    found = {"difference": difference, "cost_difference": cost, **interval}
    return {"task": "cola", "n": 855, "policy": policy, "against": against, **found}


def row(policy: str, change: float) -> dict[str, Any]:
    controls = {"random_at_cost": 0.5, "random_at_cost_high": 0.51}
    return {
        "task": "cola",
        "n": 855,
        "policy": policy,
        "score": 0.55,
        "cost_change": change,
        **controls,
    }


METHODS = [f"{name}-{kind}" for name in ("dimec-dc", "dimee") for kind in ("fixed", "adaptive")]
YES, NO, PART = "holds", "does not hold here", "holds in part"


@pytest.mark.parametrize(
    ("drop", "width", "change", "gain", "expected"),
    [
        # Beyond the intervals. One above the full model is enough for "sometimes", and proves it of no other.
        (-0.02, 0.01, -0.5, 0.02, [YES, YES, YES, YES, YES, PART]),
        (0.02, 0.01, -0.5, -0.02, [NO] * 6),
        # 0.4 points and half of the cost: within paper 1's half a point, beyond paper 2's 0.3.
        (0.004, 0.02, -0.5, 0.01, [YES, NO, YES, NO, NO, NO]),
        # A saving needs both the cost and the score.
        (0.001, 0.02, -0.4, 0.0, [NO, NO, YES, NO, NO, NO]),
    ],
)
def test_rulings_on_methods_that_are_all_alike(
    drop: float, width: float, change: float, gain: float, expected: list[str]
) -> None:
    """All lose ``drop``, save ``change``, and gain ``gain`` on their rivals."""
    rows = [row(name, change) for name in METHODS]
    pairs = [pair(name, "all-cloud", -drop, width, -3.0) for name in METHODS]
    pairs += [pair(f"{n}-adaptive", f"{n}-fixed", gain, width, -0.1) for n in ("dimec-dc", "dimee")]
    pairs += [pair(name, "random", gain, width, -0.5) for name in METHODS]
    assert [each.ruling for each in main_claims(rows, pairs)] == expected


def test_a_pair_that_answers_alike_is_unmoved_and_not_counted() -> None:
    rows = [row(name, -0.5) for name in METHODS]
    still = [{**pair(name, "all-cloud", 0.0, 0.0, 0.0)} for name in METHODS]
    still += [pair(f"{n}-adaptive", f"{n}-fixed", 0.0, 0.0, 0.0) for n in ("dimec-dc", "dimee")]
    drop, adaptive = main_claims(rows, still)[2:4]
    assert (drop.ruling, adaptive.ruling) == ("unmoved", "unmoved")
    assert main_claims(rows, still)[-1].ruling == "unmoved"
    moved = pair("dimee-adaptive", "dimee-fixed", 0.02, 0.01, -1.0)
    assert main_claims(rows, [*still[:-1], moved])[3].ruling == YES


def test_the_tiers_order_is_by_task_and_the_costs_are_compared() -> None:
    costs = {Tier.MOBILE: 3.0, Tier.EDGE: 5.5, Tier.CLOUD: 9.0}
    rows = [
        {"task": task, "policy": f"all-{tier}", "score": value, "n": 100, "cost": costs[tier]}
        for task, values in (("cola", (0.1, 0.2, 0.3)), ("mrpc", (0.8, 0.9, 0.85)))
        for tier, value in zip(Tier, values, strict=True)
    ]
    order, dearest = tiers_alone(rows)
    assert (order.ruling, dearest.ruling) == (PART, YES)
    assert "not in this order" in order.cases[-1]
    rows[-1]["cost"] = 5.5  # as dear as the edge is not dearer
    assert tiers_alone(rows)[1].ruling == PART


def test_overthinking_is_where_less_is_mended_than_undone() -> None:
    def counted(task: str, undone: int, mended: int) -> dict[str, Any]:
        of = {"task": task, "policy": "edge", "undone_by_any": 9, "n": 100}
        return {**of, "undone": undone, "mended": mended}

    two = [counted("cola", 4, 3), counted("qqp", 3, 3)]
    assert tiers_alone([], two)[2].ruling == PART
    assert tiers_alone([], two[1:])[2].ruling == NO


def moved(varied: str, factor: float, value: float, cloud: float = 0.5) -> dict[str, Any]:
    of = {"task": "cola", "policy": "dimee-fixed", "varied": varied, "cost_change": -0.3}
    shares = {"mobile": 0.5 - cloud / 2, "edge": 0.5 - cloud / 2, "cloud": cloud}
    interval = {"moved_low": value - 0.52, "moved_high": value - 0.48}
    return {**of, **shares, **interval, "score": value, "factor": factor, "value": factor}


VARIED = ("λ_m", "λ_e", "o_c")


def rulings(rows: list[dict[str, Any]]) -> list[str]:
    return [each.ruling for each in cost_claims(rows)]


def test_costs_are_robust_while_the_score_stays_within_a_point() -> None:
    rows = [moved(v, f, 0.5 + 0.002 * f) for v in VARIED for f in (0.5, 1.0, 4.0)]
    assert rulings(rows) == [YES, YES, YES, NO]
    rows.append(moved("λ_m", 2.0, 0.6))
    assert rulings(rows)[0] == NO


def test_a_trend_that_does_not_move_is_neither_held_nor_refuted() -> None:
    still = [moved(v, f, 0.5) for v in VARIED for f in (0.5, 1.0, 4.0)]
    assert rulings(still) == ["unmoved"] * 4
    other = [
        {**moved(v, f, 0.5 + 0.002 * f), "policy": "dimee-adaptive"}
        for v in VARIED
        for f in (0.5, 1.0, 4.0)
    ]
    # one of two rows rises, the other does nothing
    assert rulings([*still, *other]) == [YES, PART, PART, NO]


def test_rulings_that_differ_depend_on_the_price() -> None:
    up, down, still = (
        cost_claims([moved(v, f, 0.5 + by * f) for v in VARIED for f in (0.5, 1.0, 4.0)])
        for by in (0.002, -0.002, 0.0)
    )
    found = over_prices({0.1: up, 0.5: down}, own=0.1)
    assert [each.ruling for each in found] == [YES, *["depends on the price"] * 3]
    assert found[1].cases == up[1].cases
    prices = [line for line in found[1].evidence if line.startswith("Price")]
    assert [line.split(":")[0] for line in prices] == ["Price 0.1, holds", f"Price 0.5, {NO}"]
    # prices at which nothing moves have no say
    found = over_prices({0.02: still, 0.1: up}, own=0.02)
    assert [each.ruling for each in found] == [YES, YES, YES, NO]
    assert {each.ruling for each in over_prices({0.02: still}, own=0.02)} == {"unmoved"}


def test_hard_pools_are_ranked_over_tasks_and_a_bell_has_its_top_in_the_middle() -> None:
    hard = {"rte": 0.6, "mrpc": 0.5, "qnli": 0.2, "sst2": 0.3}
    of = {"policy": "dimee-fixed", "what": "pools of validation rows", "medium": 0.0}
    rows = [{**of, "task": task, "hard": h, "easy": 1 - h} for task, h in hard.items()]
    assert [each.ruling for each in pool_claims(rows)] == [YES, NO]
    assert pool_claims(rows[1:])[0].ruling == "could not be tested"
    bell = {"easy": 0.2, "medium": 0.5, "hard": 0.3}
    assert pool_claims([{**row, **bell} for row in rows])[1].ruling == YES


def test_the_other_seeds_oracle_takes_no_luck_of_its_own() -> None:
    depths, costs = Depths(1, 2, 3), CostModel()
    # rows 0 and 1: only the mobile exit is right here, by luck; rows 2 and 3: all are right
    lucky = table_of([[0.9, 0.1, 0.1]] * 2 + [[0.9] * 3] * 2, labels=[1] * 4)
    # the other network is right on the first two rows in the cloud alone, and on the last two everywhere
    guide = table_of([[0.1, 0.1, 0.9]] * 2 + [[0.9] * 3] * 2, labels=[1] * 4)
    found = compare(lucky, guide, depths, costs)
    assert found is not None
    assert (found["oracle"], found["across"], found["cloud"]) == (1.0, 0.5, 0.5)
    cloud = costs.of([Step(Tier.CLOUD, 3)])
    assert found["oracle_cost"] == 1.5
    assert found["across_cost"] == pytest.approx((1.5 + cloud) / 2)
    assert compare(lucky, lucky, depths, costs)["across"] == 1.0  # type: ignore[index]
    elsewhere = replace(guide, row_ids=guide.row_ids + 100)
    assert compare(lucky, elsewhere, depths, costs) is None


def test_every_table_and_figure_of_the_catalogue_can_be_added() -> None:
    named = re.findall(r"\{(\w+)\}", str(catalogue()))
    for study in (*STUDIES, "run"):
        found = Findings(study)
        for name in catalogue()[study]["tables"]:
            found.add(name, [{"task": "x"}], **dict.fromkeys(named, "x"))
        assert len(found.figures) == len(catalogue()[study].get("figures", {}))
        assert len({figure.name for figure in found.figures}) == len(found.figures)


def test_no_room_hides_a_verb() -> None:
    """A submodule becomes an attribute of the package once it is imported, whatever was there."""
    rooms = {module.name for module in pkgutil.iter_modules(dimec.__path__)}
    assert not rooms & set(dimec.__all__)


# --- layers -------------------------------------------------------------------------------------------------------


def way(drop: float, layers_run: float) -> Way:
    policy = Pabee(Depths(1, 2, 6), layers=(1, 2, 6), threshold=1.0)
    return Way(policy, 1.0, drop, layers_run)


def test_the_fewest_layers_within_the_drop_are_chosen() -> None:
    ways = [way(0.0, 6.0), way(2.0, 3.0), way(1.0, 4.0), way(2.5, 1.0)]
    assert fewest(ways, 2.0).layers == 3
    assert fewest(ways, 1.5).layers == 4
    assert fewest(ways[1:], 0.5).layers == 4  # none keeps it: the one that loses least


def test_the_interval_of_a_ratio_is_paired() -> None:
    theirs = np.random.default_rng(0).integers(1, 13, 500).astype(float)
    # half of each row's layers is half of all, whichever rows are drawn
    assert ratio_interval(theirs / 2, theirs) == pytest.approx((0.5, 0.5))
    low, high = ratio_interval(np.random.default_rng(1).permutation(theirs), theirs)
    assert low < 1 < high


def test_a_bandit_is_played_in_several_orders_and_its_rows_put_back() -> None:
    table = random_table(60)
    calibration = Calibration(random_table(200, seed=1), DEPTHS, costs=ONE_MACHINE)
    played = play(Uat.fit(calibration), table)
    assert len(played.answers) == 5
    once = play(Pabee.fit(calibration), table)
    policy = Pabee.fit(calibration)
    np.testing.assert_array_equal(
        once.answers[0], replay(policy, table, costs=ONE_MACHINE).predictions
    )
    # every answer of an exit is one that some exit gave that very row
    for answers in played.answers:
        assert (table.predictions == answers[:, None]).any(axis=1).all()


@pytest.mark.parametrize(
    ("ratio", "gain_high", "n", "expected"),
    [
        (0.8, 0.0, 2000, "holds"),
        (0.81, 0.5, 2000, "does not hold here"),
        (0.5, -0.001, 2000, "does not hold here"),
        (0.5, 0.0, 1999, "could not be tested"),
    ],
)
def test_the_goal_is_held_against_the_best_rule(
    ratio: float, gain_high: float, n: int, expected: str
) -> None:
    of = {"task": "sst2", "allowed": 2.0, "change": 0.0, "layers": 6.0, "speedup": 2.0, "n": n}
    interval = {"ratio_low": 0.1, "ratio_high": 0.9, "gain": 0.0, "gain_low": -0.1}
    interval |= {"alone_gain": 0.0, "alone_gain_low": -0.1, "alone_gain_high": 0.1}
    interval |= {"alone": 0.7, "alone_low": 0.6, "alone_high": 0.8}
    best = {**of, **interval, "policy": "beem", "validation_layers": 5.0, "ratio": ratio}
    other = {**best, "policy": "pabee", "validation_layers": 6.0, "ratio": 0.1}
    rows = [{**each, "gain_high": gain_high} for each in (best, other)]
    found = goal(rows)
    assert found.ruling == expected
    assert found.evidence[0].endswith(f"on {int(n >= 2000)}.")
