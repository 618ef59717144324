"""The early-exit and online systems on tables made by hand, and against loops written straight from their equations."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize, minimize_scalar

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Depths, Method, Step, Tier, softmax
from dimec.costs.model import CostModel
from dimec.policies import POLICIES, Calibration, Policy, named
from dimec.policies.adaee import AdaEe
from dimec.policies.bandit import Bandit
from dimec.policies.beem import Beem
from dimec.policies.berxit import Berxit
from dimec.policies.cascade import DimecCascade
from dimec.policies.cde import Cde, calibrate, fit_temperature
from dimec.policies.deebert import DeeBert, entropy
from dimec.policies.early_exit import EarlyExit
from dimec.policies.guarded import DimecGuarded
from dimec.policies.lee import VARIATION
from dimec.policies.pabee import Pabee
from dimec.policies.reliability import N_FEATURES, features, fit_reliability, reliability
from dimec.policies.replay import replay
from dimec.policies.splitee import SplitEe, SplitEeS
from dimec.policies.uat import Uat
from dimec.runs.exit_table import Dynamics, ExitTable, TierTables
from tests.unit.tables import DEPTHS, outcomes, random_table, table_of

MOBILE, EDGE, CLOUD = Tier
LAYERS = (1, 2, 3, 4, 5, 6)
COSTS = CostModel()
PRICE = 0.09
UNIT = PRICE / 9  # the full model on mobile costs 1.5 * 6 = 9 lambda

SURE_AT_1, SURE_AT_3, NEVER = [0.95] * 6, [0.6, 0.6, 0.95, 0.6, 0.6, 0.6], [0.6] * 6


def calibration(table: ExitTable, *, price: float = PRICE) -> Calibration:
    return Calibration(table, DEPTHS, costs=COSTS, price=price)


# --- DeeBERT, Early-Exit ------------------------------------------------------------------------------------------


TABLE = table_of([SURE_AT_1, SURE_AT_3, NEVER], labels=[1, 1, 1])
SURE = float(TABLE.confidence[0, 0])


@pytest.mark.parametrize(
    "policy",
    [
        # entropies in nats: 0.95 has 0.199, 0.6 has 0.673
        DeeBert(DEPTHS["ee"], layers=LAYERS, threshold=0.3),
        # only the confidence counts: the certainty of 0.95 is 0.95, that of 0.6 is 0.6
        Berxit(DEPTHS["ee"], layers=LAYERS, threshold=0.9, weights=(0, 1, 0, 0, 0)),
        EarlyExit(DEPTHS["ee"], layers=LAYERS, threshold=SURE),  # with just that it leaves
    ],
    ids=lambda policy: policy.name,
)
def test_a_sample_leaves_at_its_first_sure_exit(policy: Policy) -> None:
    tier, sent, layer = (MOBILE, 0, 1.5) if isinstance(policy, EarlyExit) else (CLOUD, 3, 1)
    found = outcomes(replay(policy, TABLE, costs=COSTS))
    assert found == [(tier, last, sent + layer * last) for last in (1, 3, 6)]


def test_entropy_is_in_nats_and_s_itself_does_not_leave() -> None:
    table = table_of([[0.5, 0.8, 0.9]], labels=[1], layers=(1, 2, 3))
    nats = entropy(table.probabilities)[0]
    assert nats[0] == pytest.approx(math.log(2))
    assert nats[1] == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=1e-6)
    assert entropy(np.array([1.0, 0.0])) == 0
    depths = Depths(1, 2, 3)
    at, above = (
        DeeBert(depths, layers=(1, 2, 3), threshold=threshold)
        for threshold in (nats[1], np.nextafter(nats[1], 1))
    )
    assert replay(at, table, costs=COSTS).layers.tolist() == [3]
    assert replay(above, table, costs=COSTS).layers.tolist() == [2]


def test_deebert_searches_s_by_the_common_reward() -> None:
    # exit 1 is as sure as the last: waiting costs and gains nothing
    early = table_of([[0.9, 0.9, 0.9]] * 4, labels=[1] * 4, layers=(1, 2, 3))
    depths: dict[Method, Depths] = {"dc": Depths(1, 2, 3), "ee": Depths(1, 2, 3)}
    policy = DeeBert.fit(Calibration(early, depths, costs=COSTS, price=0.1))
    assert set(replay(policy, early, costs=COSTS).layers.tolist()) == {1}
    # only the last exit knows anything, and confidence is worth far more than layers
    late = table_of([[0.55, 0.55, 0.99]] * 4, labels=[1] * 4, layers=(1, 2, 3))
    policy = DeeBert.fit(Calibration(late, depths, costs=COSTS, price=0.01))
    assert set(replay(policy, late, costs=COSTS).layers.tolist()) == {3}
    assert policy.search is not None
    assert policy.search.point[0] == policy.threshold == policy.operating_point()["S"]


def test_early_exit_searches_paper_2s_grid() -> None:
    policy = EarlyExit.fit(calibration(random_table(200, n_classes=3)))
    assert policy.search is not None
    assert policy.search.grids[0] == pytest.approx(np.linspace(1 / 3, 1, 10))


def test_pabee_counts_agreements_in_a_row() -> None:
    # answers 1 1 0 0 0 1: agreements in a row 0 1 0 1 2 0
    wavering = [0.6, 0.7, 0.4, 0.3, 0.2, 0.9]
    table = table_of([SURE_AT_1, wavering], labels=[1, 1])
    at = {
        patience: outcomes(
            replay(Pabee(DEPTHS["ee"], layers=LAYERS, threshold=patience), table, costs=COSTS)
        )
        for patience in (1.0, 2.0, 3.0, 6.0)
    }
    assert at[1.0] == [(CLOUD, 2, 3.0 + 2), (CLOUD, 2, 3.0 + 2)]
    assert at[2.0] == [(CLOUD, 3, 3.0 + 3), (CLOUD, 5, 3.0 + 5)]
    assert at[3.0] == [(CLOUD, 4, 3.0 + 4), (CLOUD, 6, 3.0 + 6)]
    assert at[6.0] == [(CLOUD, 6, 3.0 + 6)] * 2
    policy = Pabee.fit(calibration(table))
    assert policy.search is not None and policy.search.grids == ((1, 2, 3, 4, 5, 6),)


def test_beem_adds_weighted_confidence_while_exits_agree() -> None:
    # answers 1 1 0 0 1 1, confidences .6 .7 .8 .9 .6 .7, weights 1 .5 .5 .5 .5 1
    table = table_of([[0.6, 0.7, 0.2, 0.1, 0.6, 0.7]], labels=[1])
    weights = (1.0, 0.5, 0.5, 0.5, 0.5, 1.0)
    # S: .6, .6 + .35 = .95, .4 (disagrees), .4 + .45 = .85, .3 (disagrees), the last
    policy = Beem(DEPTHS["ee"], layers=LAYERS, threshold=0.9, weights=weights)
    labels, confidence = table.predictions[0], table.confidence[0]
    scores = [policy.evidence(labels[:end], confidence[:end]) for end in range(1, 6)]
    assert scores == pytest.approx([0.6, 0.95, 0.4, 0.85, 0.3], abs=1e-6)
    layers = {}
    for alpha in (0.5, 0.9, 1.0):
        policy.threshold = alpha
        layers[alpha] = replay(policy, table, costs=COSTS).layers.tolist()
    assert layers == {0.5: [1], 0.9: [2], 1.0: [6]}


def test_beem_weighs_exits_by_their_accuracy_on_validation() -> None:
    table = table_of([[0.9, 0.1, 0.9], [0.1, 0.1, 0.9]], labels=[1, 1], layers=(1, 2, 6))
    assert Beem.at(calibration(table), 0.5).weights == [0.5, 0.0, 1.0]


def test_a_reliability_is_the_sigmoid_of_its_features() -> None:
    said = np.array([0.2, 0.8])
    logit, nats = math.log(0.8 / 0.2), -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert features(said, 0.5) == pytest.approx([1, logit, nats, 0.5, 0.5 * logit])
    weights = (0.1, 1.0, -1.0, 2.0, 0.5)
    score = 0.1 + logit - nats + 1.0 + 0.25 * logit
    assert reliability(said, 0.5, weights) == pytest.approx(1 / (1 + math.exp(-score)))


def test_the_reliability_has_the_least_squared_error() -> None:
    table = random_table(800, seed=3)
    found = np.array(fit_reliability(table))

    def error(weights: NDArray[np.float64]) -> float:
        g = [
            reliability(table.probabilities[:, place], layer / 6, weights.tolist())
            for place, layer in enumerate(LAYERS)
        ]
        squared = (np.stack(g, axis=1) - table.right) ** 2
        return float(squared.mean() + 1e-4 * weights @ weights)

    best = minimize(error, np.zeros(N_FEATURES), method="BFGS")
    assert error(found) == pytest.approx(best.fun, abs=1e-6)
    assert error(found) < table.right.mean() * (1 - table.right.mean())  # better than a constant


def test_berxits_deeper_exits_may_be_certain_whatever_they_say() -> None:
    # w = (-9, 0, 0, 18, 0) is 0 at half of the depth
    policy = Berxit(DEPTHS["ee"], layers=LAYERS, threshold=0.6, weights=(-9, 0, 0, 18, 0))
    assert replay(policy, TABLE, costs=COSTS).layers.tolist() == [4, 4, 4]


def test_a_module_with_too_few_weights_is_refused() -> None:
    with pytest.raises(ContractError):
        Berxit(DEPTHS["ee"], layers=LAYERS, threshold=0.9, weights=(1.0,))
    with pytest.raises(ContractError):
        Beem(DEPTHS["ee"], layers=LAYERS, threshold=0.9, weights=(1.0,))


def test_the_searched_rewards_are_those_of_replay() -> None:
    table = random_table(300, seed=5)
    for kind in (DeeBert, EarlyExit, Cde, Pabee, Berxit, Beem):
        policy = kind.fit(calibration(table))
        assert policy.search is not None
        played = replay(policy, table, costs=COSTS)
        earned = played.confidence.mean() - UNIT * played.costs.mean()
        assert policy.search.rewards.max() == pytest.approx(earned)
    # A bandit's are those of its best arm at each threshold: here of splits after layer 2, where half of all leave.
    exits = [[0.5, sure, 0.55, 0.55, 0.55, 0.99] for sure in (0.99, 0.55) * 20]
    table = table_of(exits, labels=[1] * 40)
    splits = SplitEe.fit(calibration(table))
    assert splits.search is not None
    best = []
    for alpha in splits.search.grids[0]:
        splits.alpha = alpha
        arms = [replay(arm, table, costs=COSTS) for arm in splits.arms().values()]
        best.append(max(each.confidence.mean() - UNIT * each.costs.mean() for each in arms))
    assert splits.search.rewards == pytest.approx(best)


@pytest.mark.parametrize(
    "name",
    [
        "deebert",
        "early-exit",
        "pabee",
        "berxit",
        "beem",
        "cde",
        "splitee",
        "splitee-s",
        "uee-ucb",
        "dee",
    ],
)
def test_a_higher_price_buys_less(name: str) -> None:
    validation, test = random_table(600, seed=7), random_table(2000, seed=8)
    spent = [
        replay(POLICIES[name].fit(calibration(validation, price=price)), test, costs=COSTS).costs
        for price in (0.001, 0.3, 3.0)
    ]
    means = [each.mean() for each in spent]
    assert means[0] > means[1] > means[2]


# --- CDE ----------------------------------------------------------------------------------------------------------


def test_the_temperature_is_the_most_likely_one() -> None:
    table = random_table(800, seed=3, n_classes=3)
    for position in (0, 3, 5):
        logits = 2.5 * table.logits[:, position].astype(np.float64)  # surer than it should be
        found = fit_temperature(softmax(logits), table.labels)

        def loss(temperature: float, logits: NDArray[np.float64] = logits) -> float:
            true = softmax(logits / temperature)[np.arange(len(table)), table.labels]
            return float(-np.log(true).mean())

        best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8})
        assert found == pytest.approx(best.x, rel=1e-3)
        assert found > 1


def test_calibrating_keeps_the_winner_and_moves_the_confidence() -> None:
    probabilities = softmax(np.array([[2.0, 0.0], [0.0, 1.0]]))
    cooler = calibrate(probabilities, 2.0)
    assert cooler == pytest.approx(softmax(np.array([[1.0, 0.0], [0.0, 0.5]])))
    assert calibrate(probabilities, 1.0) == pytest.approx(probabilities)


def test_cde_offloads_below_its_target_and_the_surer_one_answers() -> None:
    table = table_of(
        [
            [0.5, 0.9, 0.5, 0.5, 0.5, 0.1],  # meets the target on mobile: the cloud is not asked
            [0.5, 0.7, 0.5, 0.5, 0.5, 0.1],  # the cloud is surer
            [0.5, 0.7, 0.5, 0.5, 0.5, 0.4],  # the cloud is less sure: mobile answers, both are paid
        ],
        labels=[1, 0, 1],
    )
    policy = Cde(DEPTHS["dc"], target=0.8, temperatures={"mobile": 1.0, "cloud": 1.0})
    played = replay(policy, table, costs=COSTS)
    both = 3.0 + 3.0 + 6
    assert outcomes(played) == [(MOBILE, 2, 3.0), (CLOUD, 6, both), (MOBILE, 2, both)]
    assert played.predictions.tolist() == [1, 0, 1]
    # a mobile exit known to be overconfident: 0.9 is worth softmax(logit / 4), which misses the target
    humble = Cde(DEPTHS["dc"], target=0.8, temperatures={"mobile": 4.0, "cloud": 1.0})
    assert outcomes(replay(humble, table, costs=COSTS))[0] == (CLOUD, 6, both)


# --- the bandits, against loops written from their equations --------------------------------------------------------


def ucb(sums: NDArray[np.float64], counts: NDArray[np.float64], rounds: int) -> int:
    if (counts == 0).any():
        return int(np.flatnonzero(counts == 0)[0])
    return int(np.argmax(sums / counts + np.sqrt(np.log(rounds) / counts)))


def adaee_by_hand(table: ExitTable) -> list[tuple[Tier, int, float]]:
    overhead = UNIT * (3 + 6)
    sums, counts, found = np.zeros(11), np.zeros(11), []
    for row in range(len(table)):
        arm = ucb(sums, counts, row)
        mobile, cloud = table.confidence[row, 1], table.confidence[row, 5]
        reward = 0.0
        if mobile >= arm / 10 - 1e-12:
            found.append((MOBILE, 2, 3.0))
        else:
            reward = max(cloud, mobile) - mobile - overhead
            found.append((CLOUD, 6, 12.0) if cloud > mobile else (MOBILE, 2, 12.0))
        sums[arm] += reward
        counts[arm] += 1
    return found


def splitee_by_hand(
    table: ExitTable, alpha: float, *, side_observations: bool
) -> list[tuple[Tier, int, float]]:
    sums, counts, found = np.zeros(6), np.zeros(6), []
    for row in range(len(table)):
        arm = ucb(sums, counts, row)
        confidence = table.confidence[row]
        leaves = [confidence[each] >= alpha or each == 5 for each in range(6)]
        offload = [3 + 6 - (each + 1) for each in range(6)]  # o_c and the cloud's remaining layers
        layer = arm + 1
        if leaves[arm]:
            final = confidence[arm]
            found.append((MOBILE, layer, 1.5 * layer))
        else:
            final = confidence[5]
            found.append((CLOUD, 6, 1.5 * layer + offload[arm]))
        for each in range(arm + 1) if side_observations else [arm]:
            local = UNIT * 1.5 * (each + 1)
            if leaves[each]:
                sums[each] += confidence[each] - local
            else:
                sums[each] += final - (local + UNIT * offload[each])
            counts[each] += 1
    return found


def uee_by_hand(table: ExitTable) -> list[tuple[Tier, int, float]]:
    observed, disagreed, found = np.zeros(6), np.zeros(6), []
    cost = UNIT * 1.5 * np.arange(1, 7)
    for row in range(len(table)):
        if row == 0:
            arm = 5
        else:
            gain = disagreed / observed + cost[0] - cost
            arm = int(np.argmax(gain + np.sqrt(np.log(row + 1) / observed)))
        labels = table.predictions[row]
        observed[: arm + 1] += 1
        disagreed[: arm + 1] += labels[: arm + 1] != labels[0]
        found.append((MOBILE, arm + 1, 1.5 * (arm + 1)))
    return found


def lee_by_hand(table: ExitTable, seed: int) -> list[tuple[Tier, int, float]]:
    draws = random.Random(seed)
    rewards, durations, counts, found = np.zeros(6), np.zeros(6), np.zeros(6), []
    for row in range(len(table)):
        if (counts == 0).any():
            arm = int(np.flatnonzero(counts == 0)[0])
        else:
            bound = rewards / counts + np.sqrt(np.log(row) / counts)
            arm = int(np.argmax(bound / (durations / counts)))
        cost = 1.5 * (arm + 1)
        rewards[arm] += table.confidence[row, arm] - UNIT * cost
        durations[arm] += cost * draws.gammavariate(VARIATION**-2, VARIATION**2)
        counts[arm] += 1
        found.append((MOBILE, arm + 1, cost))
    return found


def dee_by_hand(table: ExitTable) -> list[tuple[Tier, int, float]]:
    """LinUCB as its paper writes it, with matrices: an action's A and b at each of the first five exits."""
    a = np.tile(np.eye(2), (5, 2, 1, 1))
    b = np.zeros((5, 2, 2))
    found = []
    for row in range(len(table)):
        exit_ = 5
        for at in range(5):
            x = np.array([1.0, table.confidence[row, at]])
            bounds = []
            for action in (0, 1):  # stop, go on
                inverse = np.linalg.inv(a[at, action])
                bounds.append(inverse @ b[at, action] @ x + math.sqrt(x @ inverse @ x))
            if bounds[0] >= bounds[1]:
                exit_ = at
                break
        reward = table.confidence[row, exit_] - UNIT * 1.5 * (exit_ + 1)
        for at in range(min(exit_ + 1, 5)):
            x = np.array([1.0, table.confidence[row, at]])
            action = 0 if at == exit_ else 1
            a[at, action] += np.outer(x, x)
            b[at, action] += reward * x
        found.append((MOBILE, exit_ + 1, 1.5 * (exit_ + 1)))
    return found


def uat_by_hand(table: ExitTable, policy: Uat) -> list[tuple[Tier, int, float]]:
    arms = np.linspace(0.5, 1, 10)
    sums, counts = np.zeros(10), np.zeros(10)
    g = [
        reliability(table.probabilities[:, exit_], (exit_ + 1) / 6, policy.weights)
        for exit_ in range(6)
    ]
    trust = table.confidence * np.stack(g, axis=1)
    found = []
    for row in range(len(table)):
        arm = ucb(sums, counts, row)
        sure = np.flatnonzero(trust[row, :5] >= arms[arm])
        exit_ = int(sure[0]) if len(sure) else 5
        sums[arm] += trust[row, exit_] - UNIT * (3 + exit_ + 1)
        counts[arm] += 1
        found.append((CLOUD, exit_ + 1, 3.0 + exit_ + 1))
    return found


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "name", ["adaee", "splitee", "splitee-s", "i-splitee", "uee-ucb", "lee", "dee", "uat"]
)
def test_a_bandit_plays_as_its_equations_say(name: str, seed: int) -> None:
    table = random_table(1500, seed=seed)
    policy = POLICIES[name].fit(calibration(random_table(300, seed=9)))
    alpha = policy.operating_point().get("alpha", 0.0)
    by_hand: dict[str, Callable[[], list[tuple[Tier, int, float]]]] = {
        "adaee": lambda: adaee_by_hand(table),
        "splitee": lambda: splitee_by_hand(table, alpha, side_observations=False),
        "splitee-s": lambda: splitee_by_hand(table, alpha, side_observations=True),
        "i-splitee": lambda: splitee_by_hand(table, alpha, side_observations=True),
        "uee-ucb": lambda: uee_by_hand(table),
        "lee": lambda: lee_by_hand(table, seed=0),
        "dee": lambda: dee_by_hand(table),
        "uat": lambda: uat_by_hand(table, cast(Uat, policy)),
    }
    found, expected = outcomes(replay(policy, table, costs=COSTS)), by_hand[name]()
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert [each[2] for each in found] == pytest.approx([each[2] for each in expected])


def test_adaee_may_have_fewer_arms() -> None:
    table = table_of([[0.6] * 6], labels=[1])
    policy = AdaEe(DEPTHS["dc"], overhead=0.1, thresholds=(0.0, 0.5, 0.7))
    arms = policy.arms()
    assert list(arms) == ["alpha = 0", "alpha = 0.5", "alpha = 0.7"]
    where = [replay(arm, table, costs=COSTS).traces[0][-1].tier for arm in arms.values()]
    assert where == [MOBILE, MOBILE, CLOUD]
    again = AdaEe(policy.depths, **policy.settings())
    assert again.thresholds == policy.thresholds


def test_the_cloud_resumes_where_the_split_was() -> None:
    table = table_of([NEVER], labels=[1])
    for kind in (SplitEe, SplitEeS):
        policy = kind.fit(calibration(table))
        policy.alpha = 0.9
        third = policy.arms()["layer 3"]
        # 1.5 * 3 on the device, 3 for the way, the cloud's layers 4 to 6
        assert outcomes(replay(third, table, costs=COSTS)) == [(CLOUD, 6, 4.5 + 3 + 3)]
        policy.alpha = float(table.confidence[0, 2])  # with just that it leaves
        assert outcomes(replay(policy.arms()["layer 3"], table, costs=COSTS)) == [(MOBILE, 3, 4.5)]
        last = policy.arms()["layer 6"]
        assert outcomes(replay(last, table, costs=COSTS)) == [(MOBILE, 6, 9.0)]


def test_the_last_confidence_of_a_sample_that_stayed_is_not_used() -> None:
    table = random_table(1200, seed=4)
    policy = SplitEeS.fit(calibration(random_table(300, seed=9)))
    played = replay(policy, table, costs=COSTS)
    stayed = (played.tiers == 0) & (played.layers < 6)
    logits = table.logits.copy()
    logits[stayed, 5] = 0.0
    altered = replace(table, logits=logits)
    np.testing.assert_array_equal(replay(policy, altered, costs=COSTS).layers, played.layers)
    assert stayed.any()


@pytest.mark.parametrize("name", ["splitee", "splitee-s", "i-splitee", "uee-ucb"])
def test_a_bandit_finds_the_one_good_arm(name: str) -> None:
    # every exit from 2 on says the same, exit 1 knows nothing: layer 2 is the only right place to stop
    draws = np.random.default_rng(0)
    labels = draws.integers(0, 2, 6000)
    knows = np.where(labels == 1, 0.97, 0.03)
    guess = np.where(draws.random(6000) < 0.5, 0.55, 0.45)
    table = table_of(np.stack([guess, *[knows] * 5], axis=1).tolist(), labels=labels.tolist())
    policy = POLICIES[name].fit(calibration(table, price=1.0))
    played = replay(policy, table, costs=COSTS)
    late = played.layers[-2000:]
    assert (late == 2).mean() > 0.8
    assert isinstance(policy, Bandit)
    arms = {key: replay(arm, table, costs=COSTS) for key, arm in policy.arms().items()}
    earned = {key: (each.confidence - each.costs / 9).mean() for key, each in arms.items()}
    assert max(earned, key=lambda key: earned[key]) == "layer 2"


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].learns])
def test_an_arm_is_decided_alike_alone_and_in_groups(name: str) -> None:
    table = random_table(200, seed=6)
    policy = POLICIES[name].fit(calibration(random_table(300, seed=9)))
    for arm in policy.arms().values():
        together = replay(arm, table, costs=COSTS)
        alone = arm.fresh()
        alone.learns = True  # replayed one by one, as on a device
        one_by_one = replay(alone, table, costs=COSTS)
        assert outcomes(together) == outcomes(one_by_one)
    fixed = {"dimec-dc-adaptive", "dimee-adaptive", "dimec-guarded"}
    assert bool(policy.arms()) == (name not in fixed)


def test_steps_remember_their_arm_without_becoming_different() -> None:
    assert Step(MOBILE, 2, arm=3) == Step(MOBILE, 2, arm=4) == Step(MOBILE, 2)
    assert hash(Step(MOBILE, 2, arm=3)) == hash(Step(MOBILE, 2))
    assert Step(MOBILE, 2, side_readings=True) != Step(MOBILE, 2)


def only_exits(table: ExitTable, layers: tuple[int, ...]) -> ExitTable:
    """Leave out all exits but those after some layers."""
    exits = [table.exit(layer) for layer in layers]
    assert table.dynamics is not None
    dynamics = Dynamics(
        table.dynamics.true_probability[:, :, exits], table.dynamics.correct[:, :, exits]
    )
    return replace(table, layers=layers, logits=table.logits[:, exits], dynamics=dynamics)


# --- what a policy needs --------------------------------------------------------------------------------------------


def test_systems_that_exit_after_every_layer_say_so_where_they_cannot() -> None:
    whole = random_table(100)
    sparse = only_exits(whole, (2, 3, 6))
    lacking = {
        name: lack
        for name, policy in named().items()
        if policy.bottleneck is None
        and (lack := policy.missing_input(calibration(sparse))) is not None
    }
    assert set(lacking) == {
        "deebert", "early-exit", "pabee", "berxit", "beem", "uat",
        "splitee", "splitee-s", "i-splitee", "uee-ucb", "lee", "dee",
    }  # fmt: skip
    assert {lack.option for lack in lacking.values()} == {("exits", "all")}
    lacking_still = {
        name for name, policy in named().items() if policy.missing_input(calibration(whole))
    }
    assert lacking_still == {"bottlenet", "bottlenet-pp", "bottlefit"}


# --- another model on a tier ----------------------------------------------------------------------------------------


def test_a_tier_that_holds_another_model_reads_its_own_table() -> None:
    encoder = table_of(
        [[0.6, 0.7, 0.8]] * 2, labels=[1, 0], layers=(1, 2, 3), embeddings=[[0, 0]] * 2
    )
    model = table_of([[0.1, 0.05]] * 2, labels=[1, 0], layers=(1, 2), embeddings=[[7, 7]] * 2)
    tables = TierTables(encoder, {MOBILE: model})
    assert tables.embeddings.tolist() == [[7, 7]] * 2  # the device has that model's embedding layer
    at_once, sent_on = (
        replay(
            Cde(Depths(2, 2, 3), target=target, temperatures={"mobile": 1.0, "cloud": 1.0}),
            tables,
            costs=CostModel(mobile_work=0.5),
        )
        for target in (0.5, 1.0)
    )
    assert outcomes(at_once) == [(MOBILE, 2, 2 * 1.5 * 0.5)] * 2
    assert at_once.predictions.tolist() == [0, 0]
    assert at_once.confidence == pytest.approx([0.95, 0.95])
    assert outcomes(sent_on) == [(MOBILE, 2, 2 * 1.5 * 0.5 + 3 + 3)] * 2


# The cascade answers with what several exits say together: it has tests of its own.
MIXING = [
    name
    for name in POLICIES
    if POLICIES[name].any_model and not issubclass(POLICIES[name], (DimecCascade, DimecGuarded))
]


@pytest.mark.parametrize("name", MIXING)
def test_policies_run_with_other_models_on_tiers(name: str) -> None:
    def drawn(seed: int) -> tuple[ExitTable, dict[Tier, ExitTable]]:
        encoder, mobile, edge = (random_table(300, seed=seed + more) for more in (0, 50, 90))
        models = {MOBILE: only_exits(mobile, (1, 2)), EDGE: only_exits(edge, (4,))}
        return encoder, {
            tier: replace(each, labels=encoder.labels) for tier, each in models.items()
        }

    encoder, models = drawn(1)
    depths: dict[Method, Depths] = {"dc": Depths(2, 4, 6), "ee": Depths(2, 4, 6)}
    policy: Policy = POLICIES[name].fit(Calibration(encoder, depths, models=models))
    test, held = drawn(2)
    played = replay(policy, TierTables(test, held), costs=COSTS)
    for tier, table in ((MOBILE, held[MOBILE]), (EDGE, held[EDGE]), (CLOUD, test)):
        rows = np.flatnonzero(played.tiers == TIERS.index(tier))
        exits = np.searchsorted(table.layers, played.layers[rows])
        np.testing.assert_array_equal(played.predictions[rows], table.predictions[rows, exits])
    assert set(played.layers[played.tiers == 1].tolist()) <= {4}
    assert len(set(played.tiers.tolist())) > 1
