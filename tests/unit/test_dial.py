"""The dial: the cheapest way within a tolerance, an honest drop, and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dimec.core.errors import OptionError
from dimec.core.metrics import drops, effective_size, paired_differences
from dimec.core.options import Options, checked
from dimec.core.tiers import Depths, Step, Tier
from dimec.costs.model import CostModel, Use
from dimec.deploying.options import ExportOptions
from dimec.evaluation.cuts import Cut, cross_fit
from dimec.evaluation.dial import CARES, Candidate, Choice, choose, decide, find_candidates, fit
from dimec.evaluation.options import EvaluateOptions
from dimec.evaluation.recommendation import recommend, sentence
from dimec.policies import Calibration
from dimec.policies.cascade import DimecCascade
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from tests.notes import Notes
from tests.unit.tables import random_table, table_of

CUT: Cut = {"dc": Depths(2, 3, 6), "ee": Depths(2, 3, 6)}
PRICES = (0.02, 0.1, 0.5)
DEVICE: Cut = {"dc": Depths(6, 6, 6), "ee": Depths(6, 6, 6)}


def chosen(table: ExitTable, max_drop: float, *cuts: Cut, cascades_only: bool = False) -> Choice:
    return choose(
        Calibration(table, CUT),
        cuts or (CUT,),
        metric="accuracy",
        max_drop=max_drop,
        prices=PRICES,
        cascades_only=cascades_only,
    )


def with_words(table: ExitTable, right: np.ndarray) -> ExitTable:
    """Let exit zero be right on some rows, and equally sure of all."""
    said = np.where(right, table.labels, 1 - table.labels)
    logits = np.eye(2)[said].astype(np.float32)
    return replace(table, exit_zero=logits, unseen=np.zeros(len(table), np.float32))


def test_a_wider_tolerance_costs_no_more() -> None:
    table = random_table(800, seed=2)
    found = [chosen(table, points).candidate for points in (0.0, 0.5, 2.0, 10.0)]
    costs = [each.cost for each in found]
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < costs[0]
    for each, points in zip(found, (0.0, 0.5, 2.0, 10.0), strict=True):
        assert each.way == "all-cloud" or each.drop <= points + 1e-9


def test_words_alone_are_chosen_where_they_are_as_good_as_the_cloud() -> None:
    table = random_table(600, seed=1)
    right = np.ones(600, bool)
    choice = chosen(with_words(table, right), 0.5)
    assert choice.candidate.way == "words-only"
    played = replay(choice.policy, with_words(table, right), costs=CostModel())
    assert (played.layers == 0).all()
    assert choice.expected_drop < 0  # words are always right here, the cloud is not
    # A guard needs a cascade.
    assert chosen(with_words(table, right), 0.5, cascades_only=True).candidate.way != "words-only"


def test_the_edge_alone_is_chosen_where_it_equals_the_cloud_and_no_other_exit_knows_anything() -> (
    None
):
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 500)
    knows = np.where(labels == 1, 0.9, 0.1)
    blind = draws.uniform(0.4, 0.6, 500)
    exits = np.stack([blind, blind, knows, knows, knows, knows], axis=1)
    choice = chosen(table_of(exits.tolist(), labels=labels.tolist()), 0.5)
    assert choice.candidate.drop == 0
    assert choice.policy.depths == choice.candidate.depths == CUT["ee"]
    played = replay(
        choice.policy, table_of(exits.tolist(), labels=labels.tolist()), costs=CostModel()
    )
    assert (played.tiers == 1).all()
    assert choice.candidate.cost == CostModel().of([Step(Tier.EDGE, 3)])


def test_the_whole_encoder_on_the_device_asks_no_server() -> None:
    table = random_table(500, seed=3)
    found = find_candidates(Calibration(table, CUT), [DEVICE], metric="accuracy", prices=PRICES)
    cascades = [each for each in found if each.way == "dimec-cascade"]
    assert cascades
    choice = chosen(table, 2.0, DEVICE, cascades_only=True)
    assert choice.candidate.depths == Depths(6, 6, 6)
    assert (replay(choice.policy, table, costs=CostModel()).tiers == 0).all()


def test_few_rows_cannot_tell() -> None:
    """The edge and the cloud are each wrong once: that these 40 rows show no drop may be luck."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 40)
    blind = draws.uniform(0.45, 0.55, 40)
    edge, cloud = (np.where(labels == 1, 0.9, 0.1) for _ in range(2))
    edge[0], cloud[1] = 1 - edge[0], 1 - cloud[1]
    exits = np.stack([blind, blind, edge, blind, blind, cloud], axis=1)
    table = table_of(exits.tolist(), labels=labels.tolist())
    choice = chosen(table, 0.0)
    assert choice.candidate.way == "all-cloud"
    assert choice.undecided
    assert choice.expected_drop == 0
    told = recommend(choice, table, metric="accuracy", max_drop=0.0, costs=CostModel())
    assert told.undecided
    assert told.test_drop_points == 0
    assert "40" in sentence(told)


def lucky(seed: int, max_drop: float) -> tuple[float, float]:
    """Choose among forty ways that are wrong on 3 % of all rows; return the seen drop and the stated one."""
    labels = np.zeros(400, np.int64)
    table = table_of([[0.1] * 6] * 400, labels=labels.tolist())
    draws = np.random.default_rng(seed)
    ways = []
    for place in range(40):
        said = (draws.random(400) < 0.03).astype(np.int64)
        ways.append(
            Candidate("dimec-cascade", CUT, 0.1, said, float(place), 100 * said.mean(), 0.8, Use())
        )
    ways.append(Candidate("all-cloud", CUT, None, labels, 99.0, 0.0, 0.0, Use()))
    calibration = Calibration(table, CUT, seed=seed)
    place, stated, _ = decide(ways, calibration, metric="accuracy", max_drop=max_drop)
    return ways[place].drop, stated


def test_a_lucky_choice_among_many_is_not_believed() -> None:
    """The luckiest of the ways lose less than 2 %: taken for that, they would lose 3 % in truth."""
    found = [lucky(seed, 2.0) for seed in range(6)]
    assert all(stated <= 2 for _, stated in found)
    assert sum(seen == 0 for seen, _ in found) >= 4  # all-cloud


def test_what_is_stated_lies_between_the_luck_and_the_truth() -> None:
    seen, stated = zip(*(lucky(seed, 2.9) for seed in range(6)), strict=True)
    taken = [place for place, each in enumerate(seen) if each > 0]
    assert len(taken) >= 3
    assert np.mean([seen[place] for place in taken]) < np.mean([stated[place] for place in taken])


def test_the_stated_drop_does_not_flatter() -> None:
    stated, shown = [], []
    new = random_table(4_000, seed=100)
    for seed in range(8):
        choice = chosen(random_table(250, seed=seed), 3.0)
        played = replay(choice.policy, new, costs=CostModel())
        lost = new.right[:, -1].mean() - (played.predictions == new.labels).mean()
        shown.append(100 * float(lost))
        stated.append(choice.expected_drop)
    assert np.mean(stated) > np.mean(shown) - 0.3


@pytest.mark.parametrize("metric", ["f1", "matthews"])
def test_the_drop_is_in_the_metric_of_the_task(metric: str) -> None:
    from sklearn.metrics import f1_score, matthews_corrcoef

    table = random_table(300, seed=6)
    scored = f1_score if metric == "f1" else matthews_corrcoef
    found = find_candidates(Calibration(table, CUT), [CUT], metric=metric, prices=PRICES)
    cloud = scored(table.labels, table.predictions[:, -1])
    for each in found[:: len(found) // 5]:
        assert each.drop == pytest.approx(100 * (cloud - scored(table.labels, each.labels)))


def test_a_recommendation_says_what_held_out_rows_show() -> None:
    table, new = random_table(800, seed=2), random_table(500, seed=9)
    choice = chosen(table, 2.0)
    told = recommend(choice, new, metric="accuracy", max_drop=2.0, costs=CostModel())
    played = replay(choice.policy, new, costs=CostModel())
    right = played.predictions == new.labels
    assert told.n_test == 500
    assert told.score == pytest.approx(right.mean())
    assert told.test_drop_points == pytest.approx(100 * (new.right[:, -1].mean() - right.mean()))
    low, high = told.test_drop_ci95
    assert low < told.test_drop_points < high
    assert told.cost_vs_cloud == pytest.approx(played.costs.mean() / 9)
    shares = (told.shares.mobile, told.shares.edge, told.shares.cloud)
    assert sum(shares) == pytest.approx(1)
    assert told.exit_zero_share == pytest.approx((played.layers == 0).mean())
    assert told.latency_ms < told.cloud_latency_ms


def test_a_class_that_pays_for_the_drop_is_named() -> None:
    draws = np.random.default_rng(0)
    labels = np.repeat([0, 1], [900, 100])
    knows = np.where(labels == 1, 0.95, 0.05)
    always_no = draws.uniform(0.02, 0.04, 1_000)
    exits = np.stack([always_no] * 5 + [knows], axis=1)
    table = table_of(exits.tolist(), labels=labels.tolist())
    choice = chosen(table, 15.0)
    told = recommend(choice, table, metric="accuracy", max_drop=15.0, costs=CostModel())
    assert told.falls == {"yes": pytest.approx(100)}
    assert "yes" in sentence(told)


def repeated(table: ExitTable, times: np.ndarray) -> ExitTable:
    return table.take(np.repeat(np.arange(len(table)), times))


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews"])
def test_a_row_of_weight_three_counts_like_three_rows(metric: str) -> None:
    table = replace(random_table(600, seed=4), exit_zero=None, unseen=None, dynamics=None)
    times = np.where(np.arange(600) % 5 == 0, 3, 1)
    thrice = repeated(table, times)
    lost = [
        drops(metric, each.labels, each.predictions.T, each.predictions[:, -1], n_classes=2, **own)
        for each, own in ((table, {"weights": times.astype(float)}), (thrice, {}))
    ]
    assert lost[0] == pytest.approx(lost[1])
    weighed = Calibration(table, CUT, weights=times / times.mean())
    one, other = (
        next(DimecCascade.fit_at([0.1], each, like=each.table.predictions[:, -1]))
        for each in (weighed, Calibration(thrice, CUT))
    )
    for point, same in zip(one.points, other.points, strict=True):
        assert point.weights == pytest.approx(same.weights, abs=1e-4)
    played, again = (replay(each, table, costs=CostModel()) for each in (one, other))
    assert (played.predictions == again.predictions).mean() > 0.99


def test_a_weighed_error_is_that_of_a_weighed_mean() -> None:
    table = random_table(900, seed=5)
    weights = np.random.default_rng(1).gamma(0.5, size=900)
    own, cloud = table.predictions[:, 1], table.predictions[:, -1]
    drawn = paired_differences(
        "accuracy",
        table.labels,
        [own],
        cloud,
        n_classes=2,
        rng=np.random.default_rng(0),
        weights=weights,
    )
    lost = (own == table.labels) * 1.0 - (cloud == table.labels)
    mean = np.average(lost, weights=weights)
    error = np.sqrt((weights**2 * (lost - mean) ** 2).sum()) / weights.sum()
    assert drawn.mean() == pytest.approx(mean, abs=error / 5)
    assert drawn.std() == pytest.approx(error, rel=0.1)
    assert effective_size(np.ones(900)) == 900
    assert effective_size(np.repeat([1.0, 0.0], [30, 70])) == 30


def test_the_rows_that_count_choose() -> None:
    """The edge alone equals the cloud on one half of the rows, and knows nothing of the other."""
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 800)
    easy = np.arange(800) < 400
    knows = np.where(labels == 1, 0.9, 0.1)
    guesses = draws.uniform(0.88, 0.92, 800)  # as sure as if it knew, and always of the same class
    edge = np.where(easy, knows, guesses)
    table = table_of(
        np.stack([edge, edge, edge, knows, knows, knows], axis=1).tolist(), labels=labels.tolist()
    )
    of_easy, of_hard = (np.where(easy == side, 1.98, 0.02) for side in (True, False))
    found = [
        choose(
            Calibration(table, CUT, weights=weights),
            (CUT,),
            metric="accuracy",
            max_drop=2.0,
            prices=PRICES,
        )
        for weights in (of_easy, of_hard)
    ]
    assert found[0].candidate.cost < found[1].candidate.cost
    assert found[1].candidate.drop <= 2.0 + 1e-9
    assert found[0].n_effective == pytest.approx(800 / (1.98**2 + 0.02**2) * 2, rel=1e-6)
    hard = table.take(np.flatnonzero(~easy))
    lost = [
        1 - (replay(each.policy, hard, costs=CostModel()).predictions == hard.labels).mean()
        for each in found
    ]
    assert lost[1] < 0.03 < 0.2 < lost[0]
    told = recommend(
        found[0], table, metric="accuracy", max_drop=2.0, costs=CostModel(), weights=of_hard
    )
    assert told.test_drop_like_points is not None
    assert told.test_drop_like_points > told.test_drop_points > 10
    assert told.n_effective == found[0].n_effective


@pytest.mark.parametrize(
    ("record", "options"),
    [
        (EvaluateOptions, {"price": 0.1}),
        (ExportOptions, {"assurance": 0.9}),
        (ExportOptions, {"budget": 0.5}),
        (ExportOptions, {"policy": "dimec-guarded"}),
        (ExportOptions, {"price": 0.1}),
    ],
)
def test_only_a_drop_that_is_expected_is_of_weighed_rows(
    record: type[Options], options: dict[str, Any]
) -> None:
    with pytest.raises(OptionError, match="--like"):
        checked(record, {"like": "tomorrow.txt", **options})


def test_the_stated_drop_and_the_care_are_those_of_another_simulation() -> None:
    n = 100
    draws = np.random.default_rng(3)
    wrong = draws.random((20, n)) < 0.05
    table = table_of([[0.1] * 6] * n, labels=[0] * n)
    # How often each row is drawn, [draws, n], and what the ways lose on those drawn and on those left out.
    times = draws.multinomial(n, np.full(n, 1 / n), size=4_000)
    drawn = 100 * times @ wrong.T / n
    left = 100 * (times == 0) @ wrong.T / (times == 0).sum(axis=1)[:, None]
    for error, max_drop, care in ((1.5, 2.9, 1.5), (0.0, 1.3, None), (0.8, 5.1, 0.0)):
        ways = [
            Candidate("dimec-cascade", CUT, 0.1, each * 1, 1.0, 100 * each.mean(), error, Use())
            for each in wrong
        ]
        ways.append(Candidate("all-cloud", CUT, None, wrong[0] * 0, 9.0, 0.0, 0.0, Use()))
        stated = []
        for times_error in CARES:
            fits = drawn + times_error * error <= max_drop
            lost = left[np.arange(4_000), fits.argmax(axis=1)]
            stated.append(float(np.where(fits.any(axis=1), lost, 0).mean()))
        assert next((c for c, s in zip(CARES, stated, strict=True) if s <= max_drop), None) == care
        found = decide(ways, Calibration(table, CUT), metric="accuracy", max_drop=max_drop)
        seen = [place for place, each in enumerate(ways) if care == 0 and each.drop <= max_drop]
        place, shown = (seen[0], stated[0]) if seen else (20, 0)
        assert (found[0], found[2]) == (place, care)
        assert found[1] == pytest.approx(shown, abs=0.5)
    ways[0] = ways[-1]  # no more than nothing is lost
    assert decide(ways, Calibration(table, CUT), metric="accuracy", max_drop=0) == (0, 0, 0)
    # Wrong on every row that hardly counts.
    light = np.arange(n) < 20
    ways[0] = replace(ways[-1], labels=light * 1, price=0.1)
    weighed = Calibration(table, CUT, weights=np.where(light, 1e-6, 1.25))
    found = decide(ways, weighed, metric="accuracy", max_drop=30)
    assert (found[0], found[2]) == (0, 0)
    assert found[1] == pytest.approx(0, abs=0.01)


def test_constant_ways_by_hand() -> None:
    table = random_table(50, n_classes=3)
    sure = np.random.default_rng(0).uniform(0.5, 3, 50).astype(np.float32)
    answers = np.zeros((50, 6), int)
    answers[:10] = 1
    answers[3:10, 5] = 0  # the cloud is wrong on three rows, the mobile exit on seven others too
    answers[:, 2] = answers[:, 5]
    answers[:3, 2] = 2  # the edge is wrong on the cloud's three, in another way
    table = replace(
        table,
        labels=np.zeros(50, int),
        logits=np.eye(3, dtype=np.float32)[answers] * sure[:, None, None],
        exit_zero=np.eye(3, dtype=np.float32)[answers[:, 5]] * sure[:, None],
    )
    calibration = Calibration(table, DEVICE)
    found = find_candidates(calibration, [CUT], metric="accuracy", prices=())
    assert [(each.way, each.cost, each.drop) for each in found] == [
        ("words-only", 0.04, 0),
        ("all-mobile", 3, pytest.approx(14)),
        ("all-edge", 2.5 + 3, 0),
        ("all-cloud", 9, 0),
    ]
    # The error of a share, 0 where all answers are the cloud's, and otherwise a row at least.
    deviation = 100 * (0.14 * 0.86 / 50) ** 0.5
    assert [each.error for each in found] == [0, pytest.approx(deviation, rel=0.2), 2, 0]
    assert [each.labels.tolist() for each in found[1:3]] == answers[:, 1:3].T.tolist()
    assert all(each.cut is CUT and each.price is None for each in found)
    assert found[1].use == Use(mobile_layers=2)
    # By the order of costs that are close together, and with the same draws.
    close = replace(calibration, costs=CostModel(mobile_layer=1.6, to_edge=0.1))
    again = find_candidates(close, [CUT], metric="accuracy", prices=())
    assert [each.way for each in again] == ["words-only", "all-edge", "all-mobile", "all-cloud"]
    assert sorted(each.error for each in again) == sorted(each.error for each in found)
    # All six layers on the device cost what the cloud costs.
    found = find_candidates(calibration, [DEVICE], metric="accuracy", prices=())
    assert [each.way for each in found] == ["words-only", "all-edge", "all-cloud"]


def test_a_choice_is_fitted_at_its_own_cut_and_price_to_be_like_the_cloud() -> None:
    table, told = random_table(120, seed=5), Notes()
    calibration = Calibration(table, DEVICE, price=0.7)
    choice = choose(
        calibration,
        (CUT, DEVICE),
        metric="accuracy",
        max_drop=100,
        prices=(0.3,),
        cascades_only=True,
        progress=told,
    )
    assert told.bars == {"Comparing cuts": [10, 10]}
    assert {each.way for each in choice.candidates} == {"dimec-cascade", "all-cloud"}
    best = choice.candidate
    assert best is choice.candidates[0]
    assert (choice.care, choice.undecided, choice.n, best.price) == (0, False, 120, 0.3)
    low, high = choice.ci95
    assert (low + high) / 2 == pytest.approx(choice.expected_drop)
    assert (high - low) / 2 == pytest.approx(1.96 * best.error)
    cloud = table.predictions[:, -1]
    crossed = cross_fit(calibration, (CUT, DEVICE), (0.3,), like=cloud)
    assert best.labels.tolist() in [each.labels[0].tolist() for each in crossed]
    for like, policy in (
        (cloud, choice.policy),
        (1 - cloud, fit(best, calibration, like=1 - cloud)),
    ):
        own = replace(calibration, depths=best.cut)
        assert policy.points == next(DimecCascade.fit_at([0.3], own, like=like)).points
    assert choice.policy.points != policy.points
