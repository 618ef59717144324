from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linprog
from scipy.stats import bootstrap
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    roc_auc_score,
)

from dimec.core.errors import ContractError, OptionError
from dimec.core.metrics import (
    METRICS,
    Metric,
    auc,
    average_precision,
    bootstrap_interval,
    confusion,
    f1_of,
    metric_words,
    score,
)
from dimec.core.tiers import EXIT_ZERO, Depths, Method, Step, Tier
from dimec.costs.model import CostModel
from dimec.evaluation.classes import MOST_CLASSES, class_details
from dimec.evaluation.controls import (
    Mixture,
    SingleExit,
    majority,
    oracle,
    oracle_at_cost,
    random_at_cost,
    single_exit,
)
from dimec.evaluation.results import Evaluation, Row
from dimec.evaluation.rows import Lineup, evaluate
from dimec.policies import POLICIES, Calibration, Policy, View, fit_policies
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcAdaptive
from dimec.policies.early_exit import EarlyExit
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable, TierTables
from tests.unit.tables import DEPTHS, random_table, restored_of, table_of

MOBILE, EDGE, CLOUD = Tier
CALIBRATION, TABLE = Calibration(random_table(500, seed=1), DEPTHS), random_table(2000, seed=2)


@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_scores_are_those_of_scikit_learn(seed: int, n_classes: int) -> None:
    draws = np.random.default_rng(seed)
    labels, guesses = draws.integers(0, n_classes, (2, 40))
    matrix = confusion(labels, guesses, n_classes=n_classes)
    assert score("accuracy", matrix) == pytest.approx(accuracy_score(labels, guesses))
    assert score("matthews", matrix) == pytest.approx(matthews_corrcoef(labels, guesses))
    average = "binary" if n_classes == 2 else "macro"
    f1 = f1_score(
        labels, guesses, labels=list(range(n_classes)), average=average, zero_division=0.0
    )
    assert score("f1", matrix) == pytest.approx(f1)
    for positive in range(n_classes):
        of_class = f1_score(labels, guesses, labels=[positive], average="macro", zero_division=0.0)
        assert score(f1_of(positive), matrix) == pytest.approx(of_class)


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
def test_means_over_classes_leave_out_absent_ones_as_scikit_learn_does(
    seed: int, n_labels: int, n_answers: int
) -> None:
    draws = np.random.default_rng(seed)
    labels, guesses = draws.integers(0, n_labels, 20), draws.integers(0, n_answers, 20)
    matrix = confusion(labels, guesses, n_classes=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of classes without labels
        recall = balanced_accuracy_score(labels, guesses)
    assert score("balanced-accuracy", matrix) == pytest.approx(recall)
    assert score("macro-f1", matrix) == pytest.approx(f1_score(labels, guesses, average="macro"))


def test_the_f1_of_a_class_is_named_by_its_class() -> None:
    assert metric_words(f1_of(1), ("ok", "fraud")) == "f1 of fraud"
    assert metric_words("matthews", ("ok", "fraud")) == "matthews"
    with pytest.raises(OptionError, match="f1:2"):
        score(f1_of(2), np.eye(2))


def test_the_figures_of_each_class_are_those_of_scikit_learn() -> None:
    table = random_table(60, n_classes=4)
    own = table.predictions[:, 0] % 3  # one class is never answered
    found = class_details(table, own)
    for answers, matrix, name in (
        (table.predictions[:, -1], found.full_model_confusion, "full_model"),
        (own, found.recommended_confusion, "recommended"),
    ):
        assert matrix == confusion_matrix(table.labels, answers, labels=range(4)).tolist()
        expected = precision_recall_fscore_support(
            table.labels, answers, labels=range(4), zero_division=0.0
        )
        for row, figures in zip(found.rows, zip(*expected, strict=True), strict=True):
            scores = getattr(row, name)
            assert (scores.precision, scores.recall, scores.f1, row.support) == pytest.approx(
                figures
            )
    assert class_details(table).rows[0].recommended is None
    many = random_table(60, n_classes=MOST_CLASSES + 1)
    assert class_details(many).full_model_confusion is None


def test_average_precision_is_that_of_scikit_learn() -> None:
    draws = np.random.default_rng(0)
    for _ in range(20):
        ranking, positive = draws.integers(0, 9, 40) / 8, draws.random(40) < 0.3
        found = average_precision(ranking, positive)
        assert found == pytest.approx(average_precision_score(positive, ranking))
    assert average_precision(ranking, positive & False) is None


def test_two_classes_are_ranked_by_confidence() -> None:
    table = random_table(300)
    own = table.predictions[:, 2]
    found = class_details(table, own, confidence=table.confidence[:, 2])
    for label, row in enumerate(found.rows):
        for place, scores in ((-1, row.full_model), (2, row.recommended)):
            ranking = table.probabilities[:, place, label]
            assert scores is not None
            assert scores.average_precision == pytest.approx(
                average_precision_score(table.labels == label, ranking)
            )
    assert class_details(random_table(60, n_classes=3)).rows[0].full_model.average_precision is None


@given(st.lists(st.integers(0, 5), min_size=2, max_size=30), st.integers(0, 2**32 - 1))
def test_auc_is_that_of_scikit_learn(ranking: list[int], seed: int) -> None:
    positive = np.random.default_rng(seed).random(len(ranking)) < 0.5
    found = auc(np.array(ranking), positive)
    if positive.all() or not positive.any():
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score(positive, ranking))


def test_a_score_without_anything_to_divide_by_is_zero() -> None:
    only_one_class = confusion(np.zeros(5, dtype=int), np.zeros(5, dtype=int), n_classes=2)
    assert score("matthews", only_one_class) == 0
    assert score("f1", only_one_class) == 0
    assert score("accuracy", only_one_class) == 1
    with pytest.raises(OptionError, match="balanced-accuracy"):
        score("recall", only_one_class)


@pytest.mark.parametrize("metric", METRICS)
def test_the_bootstrap_is_that_of_scipy(metric: Metric) -> None:
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 500)
    guesses = np.where(draws.random(500) < 0.8, labels, 1 - labels)
    ours = bootstrap_interval(
        metric, confusion(labels, guesses, n_classes=2), rng=np.random.default_rng(1), n=20_000
    )

    def statistic(rows: np.ndarray) -> float:
        return float(score(metric, confusion(labels[rows], guesses[rows], n_classes=2)))

    theirs = bootstrap(
        (np.arange(500),), statistic, n_resamples=4000, method="percentile", vectorized=False,
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.006)


def singles(*pairs: tuple[list[int], float]) -> list[SingleExit]:
    return [SingleExit(np.array(predictions), cost) for predictions, cost in pairs]


LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
EIGHT = table_of([[0.5]] * 8, labels=LABELS.tolist())
HALF = [1, 1, 0, 0, 0, 0, 1, 1]
MOST = [1, 1, 1, 0, 0, 0, 0, 0]


def mix(exits: list[SingleExit], cost: float, metric: Metric = "accuracy") -> float:
    mixture = random_at_cost(exits, cost, metric=metric, table=EIGHT)
    return mixture.expected_score(metric, EIGHT)


def test_chance_at_a_cost_lies_on_the_upper_hull() -> None:
    exits = singles((HALF, 2.0), (HALF, 4.0), (MOST, 6.0))
    assert mix(exits, 2.0) == pytest.approx(0.5)
    # the exit at 4 lies below the line from 2 to 6, so nobody uses it
    assert mix(exits, 4.0) == pytest.approx((0.5 + 0.875) / 2)
    assert mix(exits, 6.0) == pytest.approx(0.875)
    assert mix(exits, 60.0) == pytest.approx(0.875)  # dearer than the dearest
    assert mix(exits, 0.5) == pytest.approx(0.5)  # cheaper than the cheapest


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 2**32 - 1))
def test_chance_never_falls_with_the_cost(metric: Metric, seed: int) -> None:
    draws = np.random.default_rng(seed)
    exits = [SingleExit(draws.integers(0, 2, 8), float(cost)) for cost in (1, 3, 4, 9)]
    along = [mix(exits, cost, metric) for cost in np.linspace(1, 9, 41)]
    assert np.diff(along).min() > -2e-3  # what lies between two of the shares that are tried


@given(st.integers(0, 2**32 - 1))
def test_the_hull_is_the_best_over_all_mixtures(seed: int) -> None:
    draws = np.random.default_rng(seed)
    exits = [SingleExit(draws.integers(0, 2, 8), float(cost)) for cost in draws.integers(1, 9, 4)]
    cost = draws.uniform(min(e.cost for e in exits), 1 + max(e.cost for e in exits))
    accuracies = [(each.predictions == LABELS).mean() for each in exits]
    costs = [each.cost for each in exits]
    best = linprog(-np.array(accuracies), A_eq=[np.ones(4)], b_eq=[1], A_ub=[costs], b_ub=[cost])
    assert mix(exits, cost) == pytest.approx(-best.fun)


def test_shuffles_keep_their_shares_and_centre_on_the_expectation() -> None:
    exits = tuple(singles((HALF, 1.0), (MOST, 2.0), ([1] * 8, 3.0)))
    mixture = Mixture(exits, (0.5, 0.25, 0.25))
    drawn = mixture.draw_scores("accuracy", EIGHT, rng=np.random.default_rng(0), n=20_000)
    # against shuffling for real
    which = np.random.default_rng(1).permuted([[0, 0, 0, 0, 1, 1, 2, 2]] * 20_000, axis=1)
    predictions = np.stack([each.predictions for each in exits])
    real = (predictions[which, np.arange(8)] == LABELS).mean(axis=1)
    assert drawn.mean() == pytest.approx(real.mean(), abs=0.005)
    assert drawn.std() == pytest.approx(real.std(), rel=0.03)
    expected = mixture.expected_score("accuracy", EIGHT)
    assert expected == pytest.approx(0.5 * 0.5 + 0.25 * 0.875 + 0.25 * 0.5)
    assert drawn.mean() == pytest.approx(expected, abs=0.005)


@given(st.integers(0, 2**32 - 1))
def test_the_oracle_at_a_cost_is_the_best_assignment(seed: int) -> None:
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, 5)
    exits = [SingleExit(draws.integers(0, 2, 5), cost) for cost in (1.0, 2.0, 4.0)]
    cost = draws.uniform(1, 4)
    # Shares of each sample over the exits, so that the last one may be made right in part.
    best = linprog(
        np.concatenate([each.predictions == labels for each in exits]) / -5,
        A_ub=np.repeat([each.cost / 5 for each in exits], 5)[None],
        b_ub=[cost],
        A_eq=np.tile(np.eye(5), 3),
        b_eq=np.ones(5),
    )
    assert oracle_at_cost(exits, cost, labels=labels) == pytest.approx(-best.fun)


def test_the_oracle_takes_the_cheapest_tier_that_is_right() -> None:
    right, wrong = 0.9, 0.1
    table = table_of(
        [
            [right] * 6,
            [wrong, wrong, right, wrong, wrong, right],
            [wrong, wrong, wrong, wrong, wrong, right],
            [wrong] * 6,
            [wrong, right, wrong, wrong, wrong, wrong],
        ],
        labels=[1] * 5,
    )
    assert oracle(table, DEPTHS["dc"], costs=CostModel()).tolist() == [0, 1, 2, 0, 0]
    dear_edge = CostModel(to_edge=10.0)
    assert oracle(table, DEPTHS["dc"], costs=dear_edge).tolist() == [0, 2, 2, 0, 0]


def test_the_majority_class() -> None:
    table = table_of([[0.9] * 6] * 3, labels=[0, 1, 0])
    assert majority(table).predictions.tolist() == [0, 0, 0]
    assert majority(table).cost == 0


def judged(
    table: ExitTable, policies: Mapping[str, Policy], *, metric: Metric = "accuracy", **options: Any
) -> Evaluation:
    return evaluate(
        table,
        policies,
        task="made",
        source="by hand",
        metric=metric,
        costs=CostModel(),
        price=0.1,
        **options,
    )


@pytest.fixture(scope="module")
def policies() -> dict[str, Policy]:
    return fit_policies(CALIBRATION)


@pytest.fixture(scope="module")
def rows(policies: dict[str, Policy]) -> dict[str, Row]:
    evaluation = judged(TABLE, policies)
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation
    return {row.policy: row for row in evaluation.rows}


def test_every_routed_score_stands_beside_its_controls(rows: dict[str, Row]) -> None:
    assert [row.policy for row in rows.values() if row.kind == "control"] == [
        "all-mobile",
        "all-edge",
        "all-cloud",
        "oracle",
        "exit-zero",
        "bert-on-mobile",
        "majority",
    ]
    tiers = [rows[f"all-{tier}"] for tier in Tier]
    for row in rows.values():
        if row.kind == "control":
            assert row.random_at_shares is row.random_at_cost is row.gap_closed is None
            continue
        assert row.shares is not None
        shares = (row.shares.mobile, row.shares.edge, row.shares.cloud)
        assert sum(shares) == pytest.approx(1)
        if POLICIES[row.policy].picks == "tiers":
            expected = sum(share * tier.accuracy for share, tier in zip(shares, tiers, strict=True))
            assert row.random_at_shares == pytest.approx(expected)
        assert row.random_at_shares is not None and row.random_at_shares_ci95 is not None
        low, high = row.random_at_shares_ci95
        assert low <= row.random_at_shares <= high
        assert row.cost_change == pytest.approx(row.cost / 9 - 1)
        assert row.cost_vs_cloud == pytest.approx(row.cost / 9)
        assert row.score_ci95 is not None and row.score is not None
        assert row.score_ci95[0] <= row.score <= row.score_ci95[1]
        assert row.random_at_cost is not None and row.oracle_at_cost is not None
        assert row.random_at_cost <= row.oracle_at_cost
        if row.gap_closed is not None:
            closed = (row.accuracy - row.random_at_cost) / (row.oracle_at_cost - row.random_at_cost)
            assert row.gap_closed == pytest.approx(closed)
    assert rows["bert-on-mobile"].score == rows["all-cloud"].score
    assert rows["bert-on-mobile"].cost_change == 0
    assert rows["oracle"].accuracy >= max(tier.accuracy for tier in tiers)
    assert rows["random"].auc_mobile_right is None
    assert "auc_mobile_right" in rows["random"].null_because


def best_mixture(table: ExitTable, policy: Policy, cost: float) -> float:
    """Mix the answers that a policy may give and the majority class."""
    majority = np.bincount(table.labels).max() / len(table)
    scores, costs = [majority], [0.0]
    for step in policy.endpoints():
        at = table.with_exit_zero
        scores.append(float(at.right[:, at.exit(step.layer)].mean()))
        costs.append(CostModel().of([step]))
    best = linprog(-np.array(scores), A_eq=[np.ones(len(scores)), costs], b_eq=[1.0, cost])
    return -float(best.fun)


def test_random_at_a_cost_is_the_best_mixture_of_what_a_policy_may_use(
    policies: dict[str, Policy], rows: dict[str, Row]
) -> None:
    for name, policy in policies.items():
        expected = best_mixture(TABLE, policy, min(rows[name].cost, 9.0))
        assert rows[name].random_at_cost == pytest.approx(expected), name


def test_a_policy_dearer_than_all_cloud_meets_chance_at_all_clouds_cost() -> None:
    labels = np.arange(200) % 2
    said = np.where(np.arange(200) // 2 % 2, 0.9, 0.1)[:, None].repeat(12, axis=1)  # half right
    said[:, 11] = np.where(labels, 0.9, 0.1)  # only the last exit knows
    table = table_of(said.tolist(), labels=labels.tolist())
    policy = EarlyExit(Depths(4, 6, 12), layers=table.layers, threshold=1.1)  # all on the device
    row = judged(table, {policy.name: policy}).rows[0]
    assert row.cost == 18
    # 15 lambda mix the majority class (0 lambda, half right) with the last exit on the device (18, always right)
    assert row.random_at_cost == pytest.approx(0.5 + 0.5 * 15 / 18)


def test_the_gap_is_on_accuracy_whatever_the_metric() -> None:
    policies = fit_policies(
        Calibration(random_table(300, seed=1), DEPTHS), ["dimec-dc-fixed", "dimec-cascade"]
    )
    table = random_table(500, seed=2)
    few = table.take((table.labels == 0) | (np.arange(500) % 6 == 0))  # F1 is not like accuracy
    rows: dict[str, dict[str, Row]] = {}
    for metric in METRICS:
        found = judged(few, policies, metric=metric)
        rows[metric] = {row.policy: row for row in found.rows}
    for name in policies:
        row = rows["accuracy"][name]
        assert row.gap_closed is not None
        for metric in ("f1", "matthews"):
            assert rows[metric][name].gap_closed == pytest.approx(row.gap_closed)
            assert rows[metric][name].random_at_cost != pytest.approx(row.random_at_cost)


def test_a_router_that_knows_is_seen_to_know(rows: dict[str, Row]) -> None:
    # random_table's embeddings hint at how hard a sample is, so centroids must beat chance here
    row = rows["dimec-dc-fixed"]
    assert row.auc_mobile_right is not None and row.auc_mobile_right > 0.6
    assert row.random_at_shares_ci95 is not None and row.score is not None
    assert row.score > row.random_at_shares_ci95[1]
    assert row.gap_closed is not None and row.gap_closed > 0


def test_chance_at_the_shares_of_exits_shuffles_exits(
    policies: dict[str, Policy], rows: dict[str, Row]
) -> None:
    played, row = replay(policies["early-exit"], TABLE, costs=CostModel()), rows["early-exit"]
    expected = sum(
        (played.layers == layer).mean() * TABLE.right[:, TABLE.exit(layer)].mean()
        for layer in TABLE.layers
    )
    assert row.random_at_shares == pytest.approx(expected)
    assert row.shares is not None and row.shares.mobile == 1


def test_bandits_are_averaged_over_shuffles_and_held_against_their_best_arm(
    policies: dict[str, Policy], rows: dict[str, Row]
) -> None:
    table, costs, unit = TABLE, CALIBRATION.costs, CALIBRATION.unit
    for name in ("adaee", "uee-ucb", "dee"):
        policy, row = policies[name], rows[name]
        assert row.learning is not None and row.learning.shuffles == 5
        accuracies, spent, rewards = [], [], []
        for shuffle in range(5):
            order = np.random.default_rng([0, shuffle]).permutation(len(table))
            played = replay(policy, table.take(order), costs=costs)
            accuracies.append((played.predictions == table.labels[order]).mean())
            spent.append(played.costs.mean())
            rewards.append((played.confidence - unit * played.costs).mean())
        assert row.accuracy == pytest.approx(np.mean(accuracies))
        assert row.score == row.accuracy
        assert row.cost == pytest.approx(np.mean(spent))
        assert row.learning.accuracy_sd == pytest.approx(np.std(accuracies))
        assert row.learning.cost_sd == pytest.approx(np.std(spent))
        assert row.learning.reward == pytest.approx(np.mean(rewards))
        arms = {key: replay(arm, table, costs=costs) for key, arm in policy.arms().items()}
        earned = {key: (each.confidence - unit * each.costs).mean() for key, each in arms.items()}
        assert row.learning.best_arm_reward == pytest.approx(max(earned.values()))
        assert earned[row.learning.best_arm] == pytest.approx(max(earned.values()))
        regret = 2000 * (max(earned.values()) - np.mean(rewards))
        assert row.learning.regret == pytest.approx(regret)
        assert row.score_ci95 is not None and row.score is not None
        assert row.score_ci95[0] < row.score < row.score_ci95[1]
    others = {name for name, row in rows.items() if row.learning is None}
    assert {"dimec-dc-adaptive", "random", "cde", "all-cloud"} <= others
    played = replay(policies["dimec-dc-adaptive"], table, costs=costs)  # once, in order
    assert rows["dimec-dc-adaptive"].cost == pytest.approx(played.costs.mean())


def test_other_models_on_tiers_have_rows_and_controls_of_their_own() -> None:
    validation, table = random_table(400, seed=1), random_table(500, seed=2)
    # a model of two layers that is always right on the device, at half the work a layer
    knowing = {
        split: replace(
            each,
            layers=(1, 2),
            logits=np.repeat((np.eye(2)[each.labels] * 9)[:, None], 2, axis=1).astype(np.float32),
            dynamics=None,
        )
        for split, each in (("validation", validation), ("test", table))
    }
    held = Calibration(
        validation,
        DEPTHS,
        costs=CostModel(mobile_work=0.5),
        models={MOBILE: knowing["validation"]},
    )
    names = ["cde", "random"]
    result = judged(
        table,
        fit_policies(Calibration(validation, DEPTHS), names),
        lineups=[
            Lineup(
                TierTables(table, {MOBILE: knowing["test"]}),
                fit_policies(held, names),
                held.costs,
                mark="+models",
            )
        ],
    )
    rows = {row.policy: row for row in result.rows}
    assert list(rows) == [
        "cde", "random", "cde+models", "random+models",
        "all-mobile", "all-edge", "all-cloud", "oracle",
        "all-mobile+models", "oracle+models",
        "exit-zero", "bert-on-mobile", "majority",
    ]  # fmt: skip
    assert rows["all-mobile+models"].accuracy == 1
    assert rows["all-mobile"].accuracy < 1
    assert (rows["all-mobile"].cost, rows["all-mobile+models"].cost) == (3.0, 1.5)
    assert rows["all-mobile+models"].cost_change == pytest.approx(1.5 / 9 - 1)
    assert rows["cde+models"].accuracy == 1
    assert rows["oracle+models"].cost == pytest.approx(1.5)


def test_what_cannot_be_evaluated() -> None:
    table = random_table(50)
    policies = fit_policies(Calibration(random_table(100), DEPTHS), ["adaee"])
    with pytest.raises(OptionError, match="--shuffles"):
        judged(table, policies, shuffles=0)
    for rows, named in ((table, {}), (table.take(np.arange(0)), policies)):
        with pytest.raises(OptionError):
            judged(rows, named)


def test_tables_of_tiers_must_be_of_the_same_samples() -> None:
    table = random_table(20)
    for models in (
        {MOBILE: random_table(20, seed=5)},
        {CLOUD: table},
        {MOBILE: replace(random_table(20, n_classes=3), labels=table.labels)},
    ):
        with pytest.raises(ContractError):
            TierTables(table, models)


def test_depths_that_differ_have_their_own_controls() -> None:
    depths: dict[Method, Depths] = {"dc": Depths(3, 4, 6), "ee": Depths(2, 4, 6)}
    calibration = Calibration(random_table(300, seed=1), depths)
    result = judged(random_table(300), fit_policies(calibration), metric="f1")
    mobile = [row for row in result.rows if row.policy == "all-mobile"]
    assert [row.depths for row in mobile] == [Depths(3, 4, 6), Depths(2, 4, 6)]
    oracle_row = next(row for row in result.rows if row.policy == "oracle")
    assert oracle_row.score is None and "f1" in oracle_row.null_because["score"]


class Restless(Policy):
    """Never comes to an end."""

    name = "restless"

    @classmethod
    def fit(cls, calibration: Calibration) -> Restless:
        return cls(calibration.depths["dc"])

    def decide(self, view: View) -> Step | None:
        return Step(MOBILE if len(view.steps) % 2 else EDGE, 2)


class Silent(Restless):
    """Answers without looking."""

    name = "silent"

    def decide(self, view: View) -> Step | None:
        return None


class MostConfident(Restless):
    """Runs mobile and edge, then answers with the more confident of the two."""

    name = "most-confident"
    answers_with = "most confident"

    def decide(self, view: View) -> Step | None:
        return (Step(MOBILE, 2), Step(EDGE, 3), None)[len(view.steps)]


@pytest.mark.parametrize("learns", [False, True])
def test_policies_that_break_the_contract(learns: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restless, "learns", learns)
    for kind in (Restless, Silent):
        with pytest.raises(ContractError):
            replay(kind(DEPTHS["dc"]), random_table(5), costs=CostModel())


@pytest.mark.parametrize("learns", [False, True])
def test_the_most_confident_reading_may_answer(
    learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MostConfident, "learns", learns)
    table = table_of(
        [[0.5, 0.9, 0.2, 0.5, 0.5, 0.5], [0.5, 0.6, 0.1, 0.5, 0.5, 0.5]], labels=[1, 0]
    )
    played = replay(MostConfident(DEPTHS["dc"]), table, costs=CostModel())
    assert played.layers.tolist() == [2, 3]
    assert played.tiers.tolist() == [0, 1]
    assert played.predictions.tolist() == [1, 0]
    assert played.costs.tolist() == [8.5, 8.5]


def test_a_single_exit_behind_a_bottleneck_is_read_from_what_was_restored() -> None:
    table = random_table(200)
    restored = restored_of(table, "bottlenet", after=2)
    tables, resumed = TierTables(table, restored=restored), Step(CLOUD, 6, resumes=True)
    behind = single_exit(tables, resumed, costs=CostModel())
    assert behind.predictions.tolist() == restored.table.predictions[:, -1].tolist()
    assert behind.cost == 2 * 1.5 + 3 + 4
    # From the tokens the cloud runs the encoder, whatever bottleneck there is.
    plain = single_exit(tables, Step(CLOUD, 6), costs=CostModel())
    assert plain.predictions.tolist() == table.predictions[:, -1].tolist()
    assert plain.predictions.tolist() != behind.predictions.tolist()
    assert plain.cost == 3 + 6
    zero = single_exit(table, EXIT_ZERO, costs=CostModel())
    assert table.exit_zero is not None
    assert zero.predictions.tolist() == table.exit_zero.argmax(axis=1).tolist()
    assert zero.cost == 0.04


@pytest.mark.parametrize("name", ["splitee", "cde"])
def test_the_mean_use_of_a_replay_costs_what_its_samples_cost(name: str) -> None:
    policy = fit_policies(Calibration(random_table(300, seed=1), DEPTHS), [name])[name]
    played = replay(policy, random_table(200, seed=2), costs=CostModel())
    assert len(played.traces) > 1
    cost = np.dot(played.use.vector, CostModel().prices.vector)
    assert cost == pytest.approx(played.costs.mean())
    assert played.routing_scores is None


def test_a_replay_of_no_samples_is_empty() -> None:
    for name in ("dimec-dc-fixed", "dimec-dc-adaptive"):
        policy = fit_policies(Calibration(random_table(100), DEPTHS), [name])[name]
        played = replay(policy, random_table(5).take(np.arange(0)), costs=CostModel())
        columns = (played.predictions, played.layers, played.tiers, played.costs)
        assert [each.shape for each in columns] == [(0,)] * 4
        assert [each.dtype for each in columns] == [np.int64, np.int64, np.int8, np.float64]


def test_an_adaptive_router_scores_a_sample_before_it_learns_it() -> None:
    centroids = Centroids(np.array([[0.0], [10.0], [20.0]]), np.array([1, 1, 1]))
    policy = DimecDcAdaptive(DEPTHS["dc"], centroids, alpha=0.5, beta=0.1)
    stream = table_of([[0.6] * 6] * 2, labels=[1] * 2, embeddings=[[4.0], [1.0]])
    played = replay(policy, stream, costs=CostModel())
    # |4 - 20| - |4 - 0|; 4 then moves easy to 2: |1 - 20| - |1 - 2|
    assert played.routing_scores == pytest.approx([12.0, 18.0])
