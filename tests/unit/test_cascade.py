"""The cascade: what exits say together, where the borders lie, and what it does on tables made by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from dimec.core.errors import ContractError
from dimec.core.tiers import EXIT_ZERO, Depths, Method, Step, Tier, check_step
from dimec.costs.model import CostModel
from dimec.policies import Calibration, View, cascade_fit
from dimec.policies.base import PolicyState
from dimec.policies.cascade import DimecCascade, plain_point
from dimec.policies.cascade_fit import Point, PointTree
from dimec.policies.consensus import consensus, consensus_of_one, fit_consensus, log_opinions
from dimec.policies.replay import Replay, replay
from dimec.runs.exit_table import ExitTable, TierTables
from tests.unit.tables import DEPTHS, meet, random_table, table_of

MOBILE, EDGE, CLOUD = Tier


class TestConsensus:
    # One exit alone is temperature scaling.
    @pytest.mark.parametrize(("n_classes", "exits"), [(2, 3), (4, 3), (2, 1)])
    def test_the_weights_are_those_that_scipy_finds(self, n_classes: int, exits: int) -> None:
        table = random_table(1_500, seed=2, n_classes=n_classes)
        opinions = log_opinions(table.probabilities[:, :exits])

        def loss(weights: NDArray[np.float64]) -> float:
            pooled = consensus(opinions, weights)
            told = pooled[np.arange(len(table)), table.labels]
            return float(-np.log(told).mean() + 1e-4 * ((weights - 1 / exits) ** 2).sum())

        found = minimize(loss, np.full(exits, 0.5), method="Nelder-Mead", options={"xatol": 1e-6})
        np.testing.assert_allclose(fit_consensus(opinions, table.labels), found.x, atol=2e-3)

    def test_an_exit_that_says_the_opposite_is_not_heard(self) -> None:
        table = random_table(1_000, seed=3)
        said = table.probabilities[:, [0, 5]].copy()
        said[:, 0] = said[:, 1, ::-1]  # nothing but the last exit's opposite
        weights = fit_consensus(log_opinions(said), table.labels)
        assert weights[0] == 0
        assert weights[1] > 0

    def test_two_that_agree_are_surer_and_two_that_do_not_doubt(self) -> None:
        agree, differ = np.array([[0.2, 0.8], [0.3, 0.7]]), np.array([[0.2, 0.8], [0.7, 0.3]])
        pooled = consensus(log_opinions(np.stack([agree, differ])), np.ones(2))
        assert pooled[0, 1] == pytest.approx(0.8 * 0.7 / (0.8 * 0.7 + 0.2 * 0.3))
        assert pooled[1, 1] == pytest.approx(0.8 * 0.3 / (0.8 * 0.3 + 0.2 * 0.7))

    @given(st.integers(1, 5), st.integers(2, 5), st.integers(0, 2**32 - 1))
    def test_one_sample_is_pooled_like_many(self, exits: int, classes: int, seed: int) -> None:
        draws = np.random.default_rng(seed)
        said = draws.dirichlet(np.full(classes, 0.3), size=(4, exits))
        weights = draws.uniform(0, 3, exits)
        together = consensus(log_opinions(said), weights)
        for row, pooled in zip(said, together, strict=True):
            alone = consensus_of_one(list(row), weights.tolist())
            np.testing.assert_allclose(alone, pooled, rtol=1e-9, atol=1e-300)


def best_borders(
    confidence: NDArray[np.float64], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the borders between options at one worth of lambda, of samples in any order."""
    order = np.argsort(confidence, kind="stable")
    everybody = np.ones((1, len(order)), dtype=bool)
    found = cascade_fit.best_borders(confidence[order], losses[:, None, order], everybody)
    return found.ravel()


@given(st.integers(1, 4), st.integers(0, 12), st.integers(0, 2**32 - 1))
def test_no_other_borders_lose_less(options: int, n: int, seed: int) -> None:
    draws = np.random.default_rng(seed)
    confidence = draws.integers(0, 6, n) / 5  # with ties
    losses = draws.integers(0, 9, (options, n)).astype(float)
    borders = best_borders(confidence, losses)
    assert (np.diff(borders) >= 0).all()

    def lost(at: NDArray[np.float64]) -> float:
        picks = np.searchsorted(at, confidence, side="right")
        return float(losses[picks, np.arange(n)].sum())

    cuts = [0.0, *((np.unique(confidence)[1:] + np.unique(confidence)[:-1]) / 2), 2.0]
    every = combinations_with_replacement(cuts, options - 1)
    assert lost(borders) == min(lost(np.array(each)) for each in every)


def with_zero(table: ExitTable, probability_of_one: list[float]) -> ExitTable:
    ones = np.asarray(probability_of_one)
    logits = np.stack([np.log(1 - ones), np.log(ones)], axis=1).astype(np.float32)
    return replace(table, exit_zero=logits)


def one_by_one(policy: DimecCascade) -> DimecCascade:
    """Return a cascade that meets the samples of a replay one by one, as on a device."""
    twin = policy.fresh()
    twin.learns = True
    return twin


class TestDecisions:
    COSTS = CostModel(exit_zero=0.25)

    def cascade(self) -> DimecCascade:
        """Answer from 0.9 at exit zero and 0.8 at layer 2; below 0.6 go to the cloud at once."""
        zero, mobile, cloud = EXIT_ZERO, Step(MOBILE, 2), Step(CLOUD, 6)
        return DimecCascade(
            Depths(2, 3, 6),
            [
                Point((zero,), (1.0,), (cloud, mobile, None), (0.6, 0.9)),
                Point((zero, mobile), (0.0, 1.0), (cloud, None), (0.8,)),
                Point((zero, mobile, cloud), (0.0, 0.0, 1.0), (None,), ()),
                Point((zero, cloud), (1.0, 1.0), (None,), ()),
            ],
        )

    def test_answers_at_the_first_point_that_is_sure(self) -> None:
        said = [[0.5, 0.5, 0.5, 0.5, 0.5, 0.99]] * 4
        said[1] = [0.5, 0.85, 0.5, 0.5, 0.5, 0.99]
        table = with_zero(table_of(said, labels=[0, 1, 1, 1]), [0.05, 0.7, 0.7, 0.55])
        sure = [0.95, 0.85, 0.99, 0.55 * 0.99 / (0.55 * 0.99 + 0.45 * 0.01)]
        for policy in (self.cascade(), one_by_one(self.cascade())):
            played = replay(policy, table, costs=self.COSTS)
            assert played.layers.tolist() == [0, 2, 6, 6]
            assert played.tiers.tolist() == [0, 0, 2, 2]
            assert played.predictions.tolist() == [0, 1, 1, 1]
            assert played.costs == pytest.approx([0.25, 0.25 + 3, 0.25 + 3 + 9, 0.25 + 9])
            assert played.confidence == pytest.approx(sure)

    def test_it_leaves_the_cloud_at_its_first_exit_that_is_sure_by_itself(self) -> None:
        zero, middle, last = EXIT_ZERO, Step(CLOUD, 3), Step(CLOUD, 6)
        cascade = DimecCascade(
            Depths(2, 3, 6),
            [
                Point((zero,), (0.0,), (middle,), ()),
                Point((zero, middle), (9.0, 0.0), (last, None), (0.8,)),
                Point((zero, middle, last), (0.0, 0.0, 1.0), (None,), ()),
            ],
        )
        said = [[0.5, 0.5, third, 0.5, 0.5, 0.3] for third in (0.85, 0.75)]
        table = with_zero(table_of(said, labels=[1, 1]), [0.6, 0.6])
        for policy in (cascade, one_by_one(cascade)):
            played = replay(policy, table, costs=self.COSTS)
            assert played.layers.tolist() == [3, 6]
            # words alone decide the first, and none of the second
            assert played.predictions.tolist() == [1, 0]
            assert played.costs == pytest.approx([0.25 + 3 + 3, 0.25 + 3 + 6])
        view = View([zero], embedding=np.empty(0, dtype=np.float32))
        assert cascade.exit_thresholds(view, middle) == {3: 0.8}
        assert cascade.exit_thresholds(view, Step(CLOUD, 6)) == {}

    def test_the_last_exit_can_be_outvoted(self) -> None:
        mobile = Step(MOBILE, 2)
        cascade = DimecCascade(
            Depths(2, 3, 6),
            [
                Point((EXIT_ZERO,), (1.0,), (mobile,), ()),
                Point((EXIT_ZERO, mobile), (3.0, 1.0), (None,), ()),
            ],
        )
        table = with_zero(table_of([[0.5, 0.6, 0.5]], labels=[0]), [0.2])
        answer = cascade.answer(meet(cascade, TierTables(table).with_exit_zero, 0))
        assert (answer.label, answer.tier, answer.layer) == (0, MOBILE, 2)
        surely, hardly = 0.8**3 * 0.4, 0.2**3 * 0.6
        said = [surely / (surely + hardly), hardly / (surely + hardly)]
        assert answer.probabilities == pytest.approx(said, abs=1e-6)

    def test_exit_zero_is_read_first_and_on_the_device(self) -> None:
        exits = (0, 1, 2)
        check_step([], EXIT_ZERO, exits=exits)
        for steps, step in (([Step(MOBILE, 1)], EXIT_ZERO), ([], Step(CLOUD, 0))):
            with pytest.raises(ContractError):
                check_step(steps, step, exits=exits)


class TestStrangeTexts:
    def strange(self, table: ExitTable) -> ExitTable:
        """Let exit zero be sure of the wrong class for every text, and know the words of half of them."""
        wrong = np.where(table.labels[:, None] == np.arange(2), -9.0, 9.0).astype(np.float32)
        unseen = np.where(np.arange(len(table)) % 2, 0.9, 0.0).astype(np.float32)
        return replace(table, exit_zero=wrong, unseen=unseen)

    def test_words_that_exit_zero_does_not_know_are_not_judged_by_it(self) -> None:
        home = random_table(3_000, seed=1)
        knows = np.where(home.labels[:, None] == np.arange(2), 5.0, -5.0).astype(np.float32)
        home = replace(home, exit_zero=knows, unseen=np.zeros(len(home), dtype=np.float32))
        policy = DimecCascade.fit(Calibration(home, DEPTHS))
        assert set(replay(policy, home, costs=CostModel()).layers.tolist()) == {0}
        away = self.strange(random_table(400, seed=2))
        played = replay(policy, away, costs=CostModel())
        assert set(played.layers[::2].tolist()) == {0}
        assert 0 not in played.layers[1::2]
        assert (played.predictions[::2] != away.labels[::2]).all()
        # nor does what answers the others hear it
        assert away.exit_zero is not None
        other = replay(policy, replace(away, exit_zero=-away.exit_zero), costs=CostModel())
        assert played.predictions[1::2].tolist() == other.predictions[1::2].tolist()
        assert played.confidence[1::2].tolist() == other.confidence[1::2].tolist()
        assert (played.predictions[::2] != other.predictions[::2]).all()

    def test_one_in_twenty_of_validation_is_strange(self) -> None:
        table = random_table(2_000, seed=3)
        policy = DimecCascade.fit(Calibration(table, DEPTHS, price=50))
        assert table.unseen is not None
        strange = table.unseen > policy.unseen_limit
        assert strange.mean() == pytest.approx(0.05, abs=0.002)
        played = replay(policy, table, costs=CostModel())
        assert ((played.layers > 0) == strange).all()

    def test_a_text_exactly_at_the_limit_is_usual_on_the_device_and_in_replay(self) -> None:
        mobile = Step(MOBILE, 2)
        policy = DimecCascade(
            Depths(2, 3, 6),
            [
                Point((EXIT_ZERO,), (1.0,), (None,), ()),
                Point((EXIT_ZERO,), (1.0,), (mobile,), (), strange=True),
                Point((EXIT_ZERO, mobile), (0.0, 1.0), (None,), (), strange=True),
            ],
            unseen_limit=0.25,
        )
        shares = np.array([0.0, 0.25, np.nextafter(np.float32(0.25), np.float32(1))], np.float32)
        table = replace(random_table(3), unseen=shares)
        assert replay(policy, table, costs=CostModel()).layers.tolist() == [0, 0, 2]
        assert replay(one_by_one(policy), table, costs=CostModel()).layers.tolist() == [0, 0, 2]

    def test_usual_and_strange_texts_may_be_answered_at_one_exit(self) -> None:
        points = [
            Point((EXIT_ZERO,), (weight,), (None,), (), strange)
            for weight, strange in ((1.0, False), (2.0, True))
        ]
        policy = DimecCascade(Depths(2, 3, 6), points, unseen_limit=0.25)
        table = with_zero(table_of([[0.5] * 6] * 3, labels=[1] * 3), [0.8] * 3)
        table = replace(table, unseen=np.array([0.0, 1.0, 0.0], np.float32))
        played = replay(policy, table, costs=CostModel())
        assert played.confidence == pytest.approx([0.8, 0.64 / 0.68, 0.8])
        assert played.predictions.tolist() == [1, 1, 1]

    def test_where_it_is_not_known_no_text_is(self) -> None:
        table = random_table(500, seed=4)
        policy = DimecCascade.fit(Calibration(table, DEPTHS))
        unknown = replace(table, unseen=None)
        familiar = replace(table, unseen=np.zeros(len(table), dtype=np.float32))
        without, with_none = (
            replay(policy, each, costs=CostModel()) for each in (unknown, familiar)
        )
        assert without.costs.tolist() == with_none.costs.tolist()

    def test_it_comes_back_from_its_state(self) -> None:
        policy = DimecCascade.fit(Calibration(random_table(500, seed=5), DEPTHS))
        assert math.isfinite(policy.unseen_limit)
        state = PolicyState(json.loads(json.dumps(policy.state().settings)), {})
        again = DimecCascade.from_state(policy.depths, state)
        assert again.points == policy.points
        assert again.unseen_limit == policy.unseen_limit
        before = DimecCascade.from_state(
            policy.depths,
            PolicyState({"points": [plain_point(p) for p in policy.points if not p.strange]}, {}),
        )
        assert before.unseen_limit == math.inf


class TestFitting:
    def played(self, table: ExitTable, *, price: float, costs: CostModel | None = None) -> Replay:
        costs = costs or CostModel()
        policy = DimecCascade.fit(Calibration(table, DEPTHS, price=price, costs=costs))
        return replay(policy, table, costs=costs)

    def test_a_higher_price_buys_less(self) -> None:
        table = replace(random_table(3_000, seed=7), unseen=None)
        spent = [self.played(table, price=price).costs.mean() for price in (0, 0.05, 0.2, 1, 50)]
        assert spent == sorted(spent, reverse=True)
        assert spent[-1] == pytest.approx(CostModel().exit_zero)

    def test_no_fixed_exit_earns_more_on_the_rows_that_it_was_fitted_on(self) -> None:
        familiar = replace(random_table(3_000, seed=8), unseen=None)
        table = familiar.with_exit_zero
        unit = CostModel().unit_price(6, price=0.1)
        played = self.played(familiar, price=0.1)
        own = (played.predictions != table.labels).mean() + unit * played.costs.mean()
        for step in (EXIT_ZERO, Step(MOBILE, 1), Step(MOBILE, 2)):
            wrong = (~table.right[:, table.exit(step.layer)]).mean()
            read = [each for each in (EXIT_ZERO, Step(MOBILE, 1), step) if each.layer <= step.layer]
            assert own <= wrong + unit * CostModel().of(list(dict.fromkeys(read))) + 1e-9

    def test_free_transfers_send_more_away(self) -> None:
        table = random_table(3_000, seed=9)
        near = CostModel(to_edge=0, to_cloud=0)
        far = CostModel(to_edge=30, to_cloud=30)
        away = [
            (self.played(table, price=0.1, costs=costs).tiers > 0).mean() for costs in (near, far)
        ]
        assert away[0] > away[1]

    def test_the_cloud_is_left_early_where_its_last_layers_add_nothing(self) -> None:
        draws = np.random.default_rng(0)
        labels = draws.integers(0, 2, 3_000)
        knows = np.where(labels == 1, 0.97, 0.03)
        guesses = draws.uniform(0.4, 0.6, len(labels))
        said = np.stack([guesses, guesses, guesses, knows, knows, knows], axis=1)
        table = table_of(said.tolist(), labels=labels.tolist())
        played = self.played(table, price=0.1)
        assert set(played.layers.tolist()) == {4}
        assert (played.predictions == labels).all()

    def test_without_exit_zero_it_starts_at_the_first_mobile_exit(self) -> None:
        table = replace(random_table(500), exit_zero=None)
        policy = DimecCascade.fit(Calibration(table, DEPTHS))
        assert policy.points[0].steps == (Step(MOBILE, 1),)

    def test_tiers_with_models_of_their_own(self) -> None:
        encoder = random_table(800, seed=1)
        # the device's own model knows better than any exit of the encoder
        knows = np.where(encoder.labels, 0.999, 0.001)
        mobile = table_of(np.stack([knows, knows], axis=1).tolist(), labels=encoder.labels.tolist())
        mobile = replace(mobile, label_names=encoder.label_names)
        calibration = Calibration(encoder, DEPTHS, models={MOBILE: mobile})
        policy = DimecCascade.fit(calibration)
        played = replay(policy, TierTables(encoder, {MOBILE: mobile}), costs=CostModel())
        assert policy.points[0].steps == (Step(MOBILE, 1),)  # that model has no exit zero
        assert (played.predictions == encoder.labels).all()
        assert set(played.tiers.tolist()) == {0}
        assert set(played.layers.tolist()) == {1}


class TestLikeAllCloud:
    PRICES = (0.02, 0.1, 0.4)
    TABLE, OTHERS = random_table(3_000, seed=6), random_table(3_000, seed=7)

    def fitted(self, like: NDArray[np.int64] | None) -> list[DimecCascade]:
        return list(DimecCascade.fit_at(self.PRICES, Calibration(self.TABLE, DEPTHS), like=like))

    def test_fewer_answers_differ_from_it(self) -> None:
        plain, like = (
            [replay(each, self.OTHERS, costs=CostModel()) for each in self.fitted(said)]
            for said in (None, self.TABLE.predictions[:, -1])
        )
        cloud = self.OTHERS.predictions[:, -1]
        for one, other in zip(plain, like, strict=True):
            assert (other.predictions != cloud).mean() < (one.predictions != cloud).mean()
            assert other.costs.mean() > one.costs.mean()

    def test_after_the_whole_encoder_its_last_exit_answers_alone(self) -> None:
        (_, cascade, _) = self.fitted(self.TABLE.predictions[:, -1])
        usual = [point for point in cascade.points if not point.strange]
        whole = [point for point in usual if point.steps[-1] == Step(CLOUD, 6)]
        assert whole
        for point in whole:
            assert point.weights[-1] > 0
            assert not any(point.weights[:-1])
        played = replay(cascade, self.OTHERS, costs=CostModel())
        assert self.OTHERS.unseen is not None
        familiar = self.OTHERS.unseen <= cascade.unseen_limit
        last = (played.tiers == 2) & (played.layers == 6) & familiar
        assert 0 < last.sum() < len(last)
        np.testing.assert_array_equal(played.predictions[last], self.OTHERS.predictions[last, -1])
        (_, plain, _) = self.fitted(None)
        assert any(any(point.weights[:-1]) for point in plain.points if len(point.steps) > 1)

    def test_strange_texts_are_not_saved_on(self) -> None:
        strange = replace(self.OTHERS, unseen=np.ones(len(self.OTHERS), dtype=np.float32))
        (_, cascade, _), (_, plain, _) = (
            self.fitted(like) for like in (self.TABLE.predictions[:, -1], None)
        )
        careful, usual, home = (
            replay(each, table, costs=CostModel())
            for each, table in ((cascade, strange), (plain, strange), (cascade, self.OTHERS))
        )
        assert careful.costs.mean() > max(usual.costs.mean(), home.costs.mean())
        right = [(each.predictions == strange.labels).mean() for each in (careful, usual, home)]
        assert right[0] > max(right[1:])


class TestPoints:
    SECOND, THIRD, LAST = Step(MOBILE, 2), Step(CLOUD, 3), Step(CLOUD, 6)
    ALONE = Point((EXIT_ZERO,), (1.0,), (None,), ())
    AFTER = Point((EXIT_ZERO, LAST), (1.0, 1.0), (None,), ())

    @pytest.mark.parametrize(
        ("points", "unseen_limit"),
        [
            ([ALONE, Point((SECOND,), (1.0,), (None,), ())], math.inf),
            ([ALONE, Point((), (), (None,), ())], math.inf),
            ([Point((EXIT_ZERO,), (1.0, 1.0), (None,), ())], math.inf),
            ([Point((EXIT_ZERO,), (1.0,), (None,), (0.5,))], math.inf),
            ([Point((EXIT_ZERO,), (1.0,), (LAST, None), (0.5,))], math.inf),
            ([Point((EXIT_ZERO,), (1.0,), (LAST, LAST, None), (0.9, 0.6)), AFTER], math.inf),
            ([Point((EXIT_ZERO,), (1.0,), (None, LAST), (0.6,)), AFTER], math.inf),
            # Strange texts need points of their own, from the first to the last.
            ([ALONE], 0.5),
            ([ALONE, Point((EXIT_ZERO,), (1.0,), (LAST,), (), strange=True), AFTER], 0.5),
        ],
    )
    def test_points_among_which_a_sample_gets_lost_are_refused(
        self, points: list[Point], unseen_limit: float
    ) -> None:
        with pytest.raises(ContractError):
            DimecCascade(Depths(2, 3, 6), points, unseen_limit=unseen_limit)

    def test_it_tells_where_it_answers_and_comes_back_as_it_was(self) -> None:
        zero, second, third, last = EXIT_ZERO, self.SECOND, self.THIRD, self.LAST
        usual = [
            Point((zero,), (0.5,), (third, second, None), (0.6, 0.9)),
            Point((zero, second), (0.25, 1.0), (third, None), (0.8,)),
            Point((zero, second, third), (0.0, 0.0, 1.0), (None,), ()),
            Point((zero, third), (0.5, 1.0), (last, None), (0.7,)),
            Point((zero, third, last), (0.0, 0.0, 1.0), (None,), ()),
        ]
        strange = [
            Point((zero,), (0.0,), (third,), (), strange=True),
            Point((zero, third), (0.0, 2.0), (last, None), (0.95,), strange=True),
            Point((zero, third, last), (0.0, 0.0, 1.0), (None,), (), strange=True),
        ]
        policy = DimecCascade(Depths(2, 3, 6), [*usual, *strange], unseen_limit=0.25)
        thresholds = {"mobile_0": 0.9, "mobile_2": 0.8, "cloud_3": 0.7}
        assert policy.operating_point() == {**thresholds, "unseen": 0.25}
        assert policy.endpoints() == (zero, second, third, last)
        assert policy.stands == tuple(point.steps for point in usual)
        onward = [policy.toward_cloud(steps) for steps in policy.stands]
        assert onward == [third, third, None, last, None]
        sample = View([zero], embedding=np.empty(0, dtype=np.float32))
        for unseen, border in ((0.25, 0.7), (0.3, 0.95)):
            sample.unseen = unseen
            assert policy.exit_thresholds(sample, third) == {3: border}
        settings = json.loads(json.dumps(policy.settings()))
        again = DimecCascade.from_state(policy.depths, PolicyState(settings, {}))
        assert (again.points, again.unseen_limit) == (policy.points, 0.25)
        alone = DimecCascade(Depths(2, 3, 6), usual)
        assert alone.operating_point() == thresholds
        assert list(alone.settings()) == ["points"]


def options_by_way(policy: DimecCascade, *, strange: bool = False) -> dict[object, object]:
    return {point.steps: point.options for point in policy.points if point.strange is strange}


SHALLOW: dict[Method, Depths] = {"dc": Depths(1, 2, 3), "ee": Depths(1, 2, 3)}


class TestWays:
    def test_of_one_encoder(self) -> None:
        table = random_table(200, exits=3)
        policy = DimecCascade.fit(Calibration(table, SHALLOW))
        zero, mobile, edge = EXIT_ZERO, Step(MOBILE, 1), Step(EDGE, 2)
        first, second, last = (Step(CLOUD, layer) for layer in (1, 2, 3))
        ways = {
            (zero,): (first, edge, mobile, None),
            (zero, first): (second, None),
            (zero, first, second): (last, None),
            (zero, first, second, last): (None,),
            (zero, edge): (last, None),
            (zero, edge, last): (None,),
            (zero, mobile): (second, edge, None),
            (zero, mobile, second): (last, None),
            (zero, mobile, second, last): (None,),
            (zero, mobile, edge): (last, None),
            (zero, mobile, edge, last): (None,),
        }
        assert options_by_way(policy) == options_by_way(policy, strange=True) == ways
        alone = Depths(3, 3, 3)
        device = DimecCascade.fit(Calibration(table, {"dc": alone, "ee": alone}))
        way = (zero, *(Step(MOBILE, layer) for layer in (1, 2, 3)))
        onward = {way[:end]: (way[end], None) for end in (1, 2, 3)}
        assert options_by_way(device) == {**onward, way: (None,)}
        read = table.with_exit_zero
        for point in policy.points:
            places = [read.exit(each.layer) for each in point.steps]
            opinions = log_opinions(read.probabilities[:, places])
            # For strange texts exit zero is read and not heard.
            heard = fit_consensus(opinions[:, int(point.strange) :], table.labels)
            assert point.weights == pytest.approx([*[0.0] * point.strange, *heard])

    def test_of_an_edge_that_ends_before_the_device_does(self) -> None:
        encoder = random_table(200, exits=3)
        small = replace(encoder, dynamics=None, exit_zero=None, unseen=None)
        models = {
            MOBILE: replace(small, layers=(1, 2), logits=small.logits[:, :2]),
            EDGE: replace(small, layers=(1,), logits=small.logits[:, 2:]),
        }
        depths = Depths(2, 1, 3)
        given = Calibration(encoder, {"dc": depths, "ee": depths}, models=models)
        one, two, over = Step(MOBILE, 1), Step(MOBILE, 2), Step(EDGE, 1)
        second, last = Step(CLOUD, 2), Step(CLOUD, 3)
        assert options_by_way(DimecCascade.fit(given)) == {
            (one,): (second, over, two, None),
            (one, second): (last, None),
            (one, second, last): (None,),
            (one, over): (second, None),
            (one, over, second): (last, None),
            (one, over, second, last): (None,),
            (one, two): (last, over, None),
            (one, two, last): (None,),
            (one, two, over): (second, None),
            (one, two, over, second): (last, None),
            (one, two, over, second, last): (None,),
        }

    def test_strange_are_the_last_twentieth_by_what_the_device_holds(self) -> None:
        encoder = random_table(100, exits=3)
        shares = (np.arange(100)[::-1] / 100).astype(np.float32)
        models = {MOBILE: replace(encoder, unseen=shares, dynamics=None)}
        policy = DimecCascade.fit(Calibration(encoder, SHALLOW, models=models))
        assert policy.unseen_limit == np.float32(0.95)

    @pytest.mark.parametrize(("alike", "share"), [(False, 1.0), (True, 0.1)])
    def test_strange_texts_are_cheaper_where_answers_are_to_be_alike(
        self, alike: bool, share: float
    ) -> None:
        table = random_table(200, exits=3)
        like = table.predictions[:, -1] if alike else None
        calibration = Calibration(table, SHALLOW)
        (policy,) = DimecCascade.fit_at([0.3], calibration, like=like)
        unit = 0.3 / 4.5  # three layers on the device cost 4.5
        usual, strange = (
            PointTree(calibration, SHALLOW["ee"], like=like, strange=strange)
            for strange in (False, True)
        )
        assert policy.points == (*usual.points([unit])[0], *strange.points([share * unit])[0])
        assert strange.points([unit]) != strange.points([0.1 * unit])  # else this would say nothing

    @pytest.mark.parametrize("n", [25, 400])
    def test_the_rows_that_come_choose_the_border_and_all_where_few_do(self, n: int) -> None:
        table, unit = replace(random_table(n, exits=3), unseen=None), 0.02 / 4.5
        tree = PointTree(Calibration(table, SHALLOW), SHALLOW["ee"], like=None)
        points, _ = tree.points([unit, 3 * unit])  # two at once, to which other rows come
        by_steps = {point.steps: point for point in points}
        read = table.with_exit_zero
        played = replay(DimecCascade(SHALLOW["ee"], points), table, costs=CostModel())
        ways = [played.traces[took] for took in played.took]

        def said(point: Point) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
            places = [read.exit(step.layer) for step in point.steps]
            pooled = consensus(log_opinions(read.probabilities[:, places]), np.array(point.weights))
            sure = pooled.max(axis=1)
            return sure, ((pooled.argmax(axis=1) != table.labels) + 1 - sure) / 2

        more = []
        for steps, point in by_steps.items():
            step = point.options[0]
            if len(point.options) != 2 or step is None or len(by_steps[*steps, step].options) > 1:
                continue
            sure, wrong = said(point)
            if steps[-1].tier is CLOUD:
                sure = read.confidence[:, read.exit(steps[-1].layer)]
            cost = CostModel().of([*steps, step]) - CostModel().of(steps)
            losses = np.stack([said(by_steps[*steps, step])[1] + unit * cost, wrong])
            who = np.array([tuple(way[: len(steps)]) == steps for way in ways])
            if n < 30:
                who[:] = True
            elif who.sum() < 30:
                continue
            best = best_borders(sure[who], losses[:, who])
            own, least, of_all = (
                np.where(sure >= border, losses[1], losses[0])[who].mean()
                for (border,) in (point.borders, best, best_borders(sure, losses))
            )
            assert own == pytest.approx(least, abs=1e-9)
            more.append(of_all - least)
        assert len(more) >= 3
        assert (max(more) > 1e-3) == (n > 30)  # else the larger case would say nothing

    @pytest.mark.parametrize("price", [0.02, 0.2])
    def test_no_other_border_of_the_first_point_loses_less(self, price: float) -> None:
        table = replace(random_table(400, exits=3, seed=3), unseen=None)
        unit = CostModel().unit_price(3, price=price)
        policy = DimecCascade.fit(Calibration(table, SHALLOW, price=price))

        def lost(points: Sequence[Point]) -> float:
            played = replay(DimecCascade(policy.depths, points), table, costs=CostModel())
            wrong = ((played.predictions != table.labels) + 1 - played.confidence) / 2
            return float((wrong + unit * played.costs).mean())

        first, *others = policy.points
        least = lost(policy.points)
        moved = []
        for place in range(len(first.borders)):
            for border in np.linspace(0.5, 1, 12):
                before, after = first.borders[:place], first.borders[place + 1 :]
                borders = tuple(sorted([*before, float(border), *after]))
                moved.append(lost([replace(first, borders=borders), *others]))
        assert min(moved) >= least - 1e-9
        assert max(moved) > least
