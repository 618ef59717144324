"""The guarded cascade: what it audits, when it is alarmed, how it moves, and what it keeps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from dimec.core.errors import ContractError, OptionError
from dimec.core.guard_settings import GuardSettings, check_guarded
from dimec.core.tiers import Step, Tier
from dimec.costs.model import CostModel
from dimec.policies import Calibration, View
from dimec.policies.base import PolicyState
from dimec.policies.betting import DOWN, FRACTIONS, UP, bet, drifts, total, unchanged, wilson
from dimec.policies.cascade import DimecCascade
from dimec.policies.guarded import SCALES, DimecGuarded, _uniform
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable, TierTables
from tests.unit.tables import DEPTHS, meet, random_table

CLOUD = Tier.CLOUD
NEVER = float("inf")
VALIDATION, STREAM = random_table(2_000, seed=1), random_table(600, seed=8)


def guarded(table: ExitTable = VALIDATION, **settings: Any) -> DimecGuarded:
    return DimecGuarded.fit(Calibration(table, DEPTHS, guard=GuardSettings(**settings)))


def run(policy: DimecGuarded, table: ExitTable) -> list[View]:
    """Let the policy meet a stream and keep what it learns."""
    tables = TierTables(table).with_exit_zero
    return [meet(policy, tables, row) for row in range(len(table))]


def two_faced(table: ExitTable) -> ExitTable:
    """Turn around what everything before the cloud's exit says, no less sure of it."""
    logits = table.logits.copy()
    logits[:, :-1] = logits[:, :-1, ::-1]
    assert table.exit_zero is not None
    return replace(table, logits=logits, exit_zero=table.exit_zero[:, ::-1].copy())


def vague(table: ExitTable, *, times: float) -> ExitTable:
    assert table.exit_zero is not None
    return replace(table, logits=table.logits * times, exit_zero=table.exit_zero * times)


def new_words(table: ExitTable) -> ExitTable:
    assert table.unseen is not None
    return replace(table, unseen=np.sqrt(table.unseen))


class TestEvidence:
    def test_chance_stays_below_its_bound(self) -> None:
        draws = np.random.default_rng(0)
        ever = 0
        for _ in range(200):
            wealth = np.zeros(len(FRACTIONS))
            for value in draws.random(300) < 0.2:
                bet(wealth, float(value), 0.2, 0.2, top_up=False)
                if total(wealth) >= np.log(20):
                    ever += 1
                    break
        assert ever <= 200 / 20 + 5

    def test_one_bet_by_hand(self) -> None:
        wealth = np.full(len(FRACTIONS), -1.0)
        bet(wealth, 1.0, 0.2, 0.2, top_up=True)
        np.testing.assert_allclose(wealth, np.log(1 + FRACTIONS * 4))
        assert total(wealth) == pytest.approx(np.log((1 + FRACTIONS * 4).mean()))

    @pytest.mark.parametrize(("hits", "trials"), [(0, 10), (3, 10), (10, 10), (7, 2_000)])
    def test_wilson_is_scipys(self, hits: int, trials: int) -> None:
        theirs = binomtest(hits, trials).proportion_ci(method="wilson")
        assert wilson(hits, trials) == pytest.approx((theirs.low, theirs.high), abs=1e-4)

    def test_the_mean_is_unchanged_within_three_errors_and_half_a_point(self) -> None:
        # 400 values of mean 0.5 and mean square 0.34: a deviation of 0.3, and a standard error of 0.015
        low, high = unchanged(np.array([400.0, 200.0, 136.0]))
        assert (low, high) == pytest.approx((0.5 - 0.045 - 0.005, 0.5 + 0.045 + 0.005))

    def test_nothing_is_known_without_trials(self) -> None:
        assert wilson(0, 0) == (0.0, 1.0)


class TestAudits:
    def test_the_rate_is_kept_and_an_audit_is_paid_for(self) -> None:
        policy, table = guarded(audit_rate=0.05, drift_run=NEVER), random_table(4_000, seed=5)
        plain = replay(policy.rungs[0].cascade, table, costs=CostModel())
        views = run(policy, table)
        audited = np.array([view.steps[0].arm == 1 for view in views])
        assert audited.sum() == policy.health()["audits"]
        assert audited.mean() == pytest.approx(0.05, abs=0.01)
        # audits are drawn, not chosen: they cost as much as any sample before the cloud is added
        assert plain.costs[audited].mean() == pytest.approx(plain.costs.mean(), rel=0.25)
        costs = CostModel()
        for row in np.flatnonzero(audited):
            assert views[row].steps[-1] == Step(CLOUD, 6)
            taken = views[row].steps
            ways = [costs.of(taken[:end]) for end in range(1, len(taken) + 1)]
            assert pytest.approx(plain.costs[row]) in ways

    def test_the_estimate_is_what_the_cascade_would_have_got(self) -> None:
        policy = guarded(audit_rate=1.0, drift_run=NEVER, audit_run=NEVER)
        table = random_table(500, seed=5)
        alone = replay(policy.rungs[0].cascade, table, costs=CostModel())
        cloud = table.predictions[:, table.exit(6)]
        run(policy, table)
        differing = int((alone.predictions != cloud).sum())
        (found,) = policy.health()["estimates"]
        assert differing > 0
        assert (found["audits"], found["differing"]) == (500, differing)
        assert found["disagreement_ci95"] == wilson(differing, 500)
        drop = (cloud == table.labels).mean() - (alone.predictions == table.labels).mean()
        assert drop <= found["disagreement"]
        assert found["drop_ci95"][0] - 0.02 <= drop <= found["drop_ci95"][1] + 0.02

    def test_an_audited_sample_is_answered_by_the_cloud(self) -> None:
        policy = guarded(audit_rate=1.0, drift_run=NEVER, audit_run=NEVER)
        (view,) = run(policy, random_table(1, seed=5))
        answer = policy.answer(view)
        assert (answer.tier, answer.layer) == (CLOUD, 6)
        assert answer.label == view.readings[-1].label
        alone = View(view.steps[-1:], view.readings[-1:], embedding=view.embedding)
        assert answer.confidence == policy.rungs[-1].cascade.answer(alone).confidence

    def test_without_audits_and_drift_it_is_the_cascade(self) -> None:
        policy, table = guarded(audit_rate=0.0, drift_run=NEVER), random_table(500, seed=5)
        ours = replay(policy, table, costs=CostModel())
        alone = replay(policy.rungs[0].cascade, table, costs=CostModel())
        np.testing.assert_array_equal(ours.predictions, alone.predictions)
        np.testing.assert_allclose(ours.costs, alone.costs)


class TestAlarms:
    def test_there_is_none_on_a_stream_like_validation(self) -> None:
        policy = guarded(audit_rate=0.1)
        run(policy, random_table(4_000, seed=8))
        assert policy.alarm() is None
        health = policy.health()
        assert health["alarms_by_drift"] == health["alarms_by_audits"] == health["rung"] == 0

    def test_drift_is_sure_at_the_stated_limit(self) -> None:
        stream = vague(STREAM, times=0.8)
        watching = guarded(audit_rate=0.0, drift_run=NEVER)
        counts = watching.state().arrays["validation"][..., 0]
        watched = int((counts >= 100).sum(axis=1).max())
        evidence = []  # the most that any bet on the first rung has won after each sample
        for row in range(len(stream)):
            run(watching, stream.take(np.array([row])))
            wealth = np.exp(watching.state().arrays["drift"][0])
            evidence.append(float(np.log(wealth.mean(axis=-1)).max()))
        for drift_run in (2, 5, 10, 20, 50, 100):
            policy = guarded(audit_rate=0.0, drift_run=float(drift_run))
            limit = np.log(2 * watched * drift_run)  # up and down at each place that is watched
            first = int(np.argmax(np.array(evidence) >= limit))
            assert evidence[first] >= limit
            run(policy, stream.take(np.arange(first)))
            assert policy.rung == 0
            run(policy, stream.take(np.array([first])))
            assert policy.rung == 1

    @pytest.mark.parametrize(
        ("stream", "says"),
        [
            (vague(STREAM, times=0.4), "confidence at exit zero has drifted below"),
            (vague(STREAM, times=3.0), "confidence at exit zero has drifted above"),
            (new_words(STREAM), "more words are new to exit zero"),
        ],
    )
    def test_drift_moves_up_and_is_said(self, stream: ExitTable, says: str) -> None:
        policy = guarded(audit_rate=0.0)
        run(policy, stream)
        assert policy.rung == policy.health()["alarms_by_drift"] == 1
        assert str(policy.alarm()).startswith(says)

    @pytest.mark.parametrize(
        ("table", "stream"),
        [
            (VALIDATION, replace(random_table(1_500, seed=8), unseen=np.zeros(1_500, np.float32))),
            (VALIDATION, replace(STREAM, unseen=None)),
            (replace(VALIDATION, unseen=None), replace(STREAM, unseen=np.ones(600, np.float32))),
        ],
        ids=["fewer new words", "unknown in the stream", "unknown in validation"],
    )
    def test_words_that_endanger_nothing(self, table: ExitTable, stream: ExitTable) -> None:
        policy = guarded(table, audit_rate=0.0)
        run(policy, stream)
        assert policy.alarm() is None

    def test_replay_shows_the_words_that_a_device_shows(self) -> None:
        policy, stream = guarded(audit_rate=0.0), new_words(STREAM)
        played = replay(policy, stream, costs=CostModel())
        costs = [CostModel().of(view.steps) for view in run(policy, stream)]
        np.testing.assert_allclose(played.costs, costs)

    def test_audits_see_what_confidence_hides(self) -> None:
        policy = guarded(audit_rate=0.2, drift_run=NEVER)
        run(policy, two_faced(random_table(1_500, seed=8)))
        assert policy.rung == len(policy.rungs) - 1
        assert policy.health()["alarms_by_audits"] == policy.rung
        assert "audited answers differ from the cloud's" in str(policy.alarm())
        (view,) = run(policy, two_faced(random_table(1, seed=9)))
        assert view.steps[-1] == Step(CLOUD, 6)

    def test_it_comes_back_when_audits_have_shown_that_it_may(self) -> None:
        policy = guarded(audit_rate=0.5, drift_run=NEVER, slack=0.1)
        run(policy, two_faced(random_table(300, seed=8)))
        top = policy.rung
        assert top > 0
        run(policy, random_table(6_000, seed=9))
        assert policy.rung == 0, policy.health()
        assert policy.health()["returns"] >= top
        assert policy.alarm() is None

    def test_evidence_of_safety_is_never_topped_up(self) -> None:
        start = guarded(audit_rate=1.0, drift_run=NEVER, audit_run=NEVER, relief=1e-300)
        state = start.state()
        last = len(start.rungs) - 1
        state.arrays["rung"][0] = last
        policy = DimecGuarded.from_state(start.depths, state)
        table = random_table(60, seed=5)
        odd, even = two_faced(table).take(np.arange(0, 60, 7)), table.take(np.arange(1, 60, 7))
        below = policy.rungs[last - 1].cascade
        bets = np.zeros(len(FRACTIONS))
        for stream in (odd, even):  # first those that mostly differ from the cloud's
            alone = replay(below, stream, costs=CostModel())
            for differs in alone.predictions != stream.predictions[:, -1]:
                allowed = policy.allowed
                bets += np.log1p(FRACTIONS * (float(differs) - allowed) / (allowed - 1))
            run(policy, stream)
        assert policy.rung == last
        assert (bets < 0).all()
        np.testing.assert_allclose(policy.state().arrays["safety"][last - 1], bets)

    def test_a_long_calm_alone_brings_nothing_back(self) -> None:
        policy = guarded(audit_rate=0.0)
        run(policy, vague(STREAM, times=0.4))
        raised = policy.rung
        run(policy, random_table(1_500, seed=9))
        assert policy.rung >= raised

    def test_a_safer_rung_differs_less_and_the_last_one_never(self) -> None:
        differs = [rung.disagreement for rung in guarded().rungs]
        assert differs == sorted(differs, reverse=True)
        assert differs[-1] == 0.0


class TestRecalibration:
    def test_confidence_that_promises_too_much_is_scaled_down(self) -> None:
        policy = guarded(audit_rate=0.3, recalibrates=True, drift_run=NEVER, audit_run=NEVER)
        table = random_table(1_500, seed=8)
        noise = np.random.default_rng(0).normal(size=(1_500, 2)).astype(np.float32) * 3
        assert table.exit_zero is not None
        run(policy, replace(table, exit_zero=table.exit_zero + noise))
        assert policy.scale < 0.8

    def test_it_never_makes_bolder(self) -> None:
        policy = guarded(audit_rate=0.3, recalibrates=True, drift_run=NEVER)
        run(policy, random_table(1_500, seed=8))
        assert 0.7 <= policy.scale <= 1.0


class TestKeeping:
    @pytest.mark.parametrize("recalibrates", [False, True])
    def test_a_restart_changes_nothing(self, recalibrates: bool) -> None:
        stream = vague(random_table(1_200, seed=8), times=0.6)
        whole = guarded(audit_rate=0.2, recalibrates=recalibrates)
        start = whole.fresh()
        told = [policy_step.arm for view in run(whole, stream) for policy_step in view.steps[:1]]
        first = start.fresh()
        again = [view.steps[0].arm for view in run(first, stream.take(np.arange(700)))]
        state = first.state()
        second = DimecGuarded.from_state(first.depths, PolicyState(state.settings, state.arrays))
        again += [view.steps[0].arm for view in run(second, stream.take(np.arange(700, 1_200)))]
        assert again == told
        assert second.health() == whole.health()
        assert start.health()["samples"] == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"audit_rate": 1.5}, "--audit-rate 1.5"),
        ({"boost": 0.5}, "boost"),
        ({"slack": -0.1}, "--slack -10:"),
        ({"audit_run": 0}, "audit_run"),
        ({"relief": 0.0}, "relief"),
        ({"ladder": ()}, "ladder"),
    ],
)
def test_settings_that_mean_nothing(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        GuardSettings(**settings)


def test_settings_at_the_ends_of_their_ranges() -> None:
    ends: list[dict[str, Any]] = [
        {"audit_rate": 0.0, "boost": 1.0, "slack": 0.0, "ladder": (0.0,)},
        {"audit_rate": 1.0, "drift_run": 1.0, "audit_run": 1.0},
    ]
    for settings in ends:
        made = GuardSettings(**settings)
        assert {name: getattr(made, name) for name in settings} == settings
    beyond: list[dict[str, Any]] = [
        {"audit_rate": -0.1},
        {"slack": 1.0},
        {"relief": 1.0},
        {"drift_run": 0.9},
        {"ladder": (1.0, -0.1)},
    ]
    for settings in beyond:
        with pytest.raises(OptionError):
            GuardSettings(**settings)


def test_settings_of_a_guard_need_a_guarded_policy() -> None:
    check_guarded(None, ["random"])
    check_guarded(GuardSettings(), ["random", "dimec-guarded"])
    with pytest.raises(OptionError, match="dimec-guarded"):
        check_guarded(GuardSettings(), ["random"])


class TestDrift:
    # 400 values of mean 0.5 and a deviation of 0.3: unchanged from 0.45 to 0.55.
    REFERENCE = (400.0, 200.0, 136.0)

    @pytest.mark.parametrize(("value", "side"), [(1.0, UP), (0.0, DOWN)])
    def test_it_is_sure_once_bets_from_now_on_have_won_the_limit(
        self, value: float, side: int
    ) -> None:
        reference, wealth = np.array(self.REFERENCE), np.zeros((2, len(FRACTIONS)))
        low, high = unchanged(reference)
        bound, room = (high, high) if side == UP else (low, low - 1)
        won = np.zeros(len(FRACTIONS))
        for _ in range(30):
            won += np.log1p(FRACTIONS * ((value - bound) / room))
        limit = total(won)

        def told(value: float) -> int | None:
            return drifts(value, reference, wealth, validation=400, limit=limit, falls=True)

        # What was lost while nothing had drifted is forgotten.
        assert [told(0.5) for _ in range(50)] == [None] * 50
        assert (wealth < 0).all()
        assert [told(value) for _ in range(30)] == [None] * 29 + [side]
        np.testing.assert_allclose(wealth[side], won)
        assert reference.tolist() == [*self.REFERENCE]

    def test_a_fall_is_not_looked_for_where_it_endangers_nothing(self) -> None:
        reference, wealth = np.array(self.REFERENCE), np.zeros((2, len(FRACTIONS)))
        for _ in range(100):
            found = drifts(0.0, reference, wealth, validation=400, limit=3.0, falls=False)
            assert found is None
        assert not wealth[DOWN].any()

    @pytest.mark.parametrize(("validation", "wanted"), [(100, 100), (10_000, 500)])
    def test_an_emptied_reference_is_filled_first(self, validation: int, wanted: int) -> None:
        reference, wealth = np.zeros(3), np.zeros((2, len(FRACTIONS)))
        for turn in range(600):
            value = (turn % 2) / 2  # 0 and 0.5: a mean of 0.25 and a mean square of 0.125
            found = drifts(value, reference, wealth, validation=validation, limit=9.0, falls=True)
            assert found is None
            assert reference[0] == min(turn + 1, wanted)
            assert wealth.any() == (turn >= wanted)
        assert reference.tolist() == [wanted, wanted / 4, wanted / 8]

    def test_a_place_that_validation_hardly_had_is_not_watched(self) -> None:
        reference, wealth = np.zeros(3), np.zeros((2, len(FRACTIONS)))
        assert drifts(1.0, reference, wealth, validation=99, limit=0.0, falls=True) is None
        assert not reference.any()
        assert not wealth.any()

    @pytest.mark.parametrize("value", [0.0, 1.0])
    def test_a_mean_at_an_end_cannot_leave_it_on_that_side(self, value: float) -> None:
        reference = np.array([400.0, 400 * value, 400 * value])
        wealth = np.zeros((2, len(FRACTIONS)))
        assert drifts(value, reference, wealth, validation=400, limit=9.0, falls=True) is None
        assert not wealth[UP if value else DOWN].any()
        assert wealth[DOWN if value else UP].all()


@pytest.fixture(scope="module")
def start() -> DimecGuarded:
    return guarded(audit_rate=1.0, drift_run=NEVER, audit_run=20, relief=1e-300)


class TestByHand:
    @staticmethod
    def rebuilt(policy: DimecGuarded, **changes: Any) -> DimecGuarded:
        """Return the policy with other arrays in its state, or other settings of its guard."""
        state = policy.state()
        arrays = {name: each for name, each in changes.items() if name in state.arrays}
        guard = {name: each for name, each in changes.items() if name not in arrays}
        settings = {**state.settings, "guard": {**state.settings["guard"], **guard}}
        kept = {name: np.array(each) for name, each in (state.arrays | arrays).items()}
        return DimecGuarded.from_state(policy.depths, PolicyState(settings, kept))

    def test_draws_are_those_of_splitmix64(self) -> None:
        # The published generator's first outputs from a state of 0.
        outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC]
        drawn = [_uniform(0, place) for place in range(4)]
        assert drawn == [each // 2**11 / 2**53 for each in outputs]
        many = [_uniform(seed, place) for seed in (1, 2, 3) for place in range(300)]
        assert len(set(many)) == 900
        assert np.mean(many) == pytest.approx(0.5, abs=0.05)

    def test_every_second_audit_asks_about_the_rung_below(self, start: DimecGuarded) -> None:
        last = len(start.rungs) - 1
        assert last >= 2
        for rung in range(last + 1):
            policy = self.rebuilt(start, rung=[rung], audit_run=NEVER)
            arms = [view.steps[0].arm for view in run(policy, random_table(80, seed=5))]
            lowest = [_uniform(0, place) < 0.5 for place in range(80)]
            below = lowest if 0 < rung < last else [rung > 0] * 80
            assert arms == [2 * rung + 1 - 2 * each for each in below]

    def test_audits_are_more_frequent_while_drift_is_suspected(self, start: DimecGuarded) -> None:
        policy = self.rebuilt(start, suspicion=[20], audit_rate=0.02, boost=10.0, audit_run=NEVER)
        views = run(policy, random_table(300, seed=5))
        audited = [view.steps[0].arm in (1, 3, 5) for view in views]
        until = [place for place, each in enumerate(audited) if each][19]  # the twentieth
        rates = [0.2 if place <= until else 0.02 for place in range(300)]
        assert audited == [_uniform(0, place) < rate for place, rate in enumerate(rates)]
        assert not policy.health()["suspects"]

    def test_health(self, start: DimecGuarded) -> None:
        n = len(start.rungs)
        policy = self.rebuilt(
            start,
            audits=[[100, 7], *[[0, 0]] * (n - 1)],
            loss=[[5.0, 2.0], *[[0.0, 0.0]] * (n - 1)],
            audited=[120, 9],
            seen=[4_000],
            alarms=[3, 2, 1],
            suspicion=[1],
        )
        health = policy.health()
        reach = 1.96 * math.sqrt((2.0 / 100 - 0.05**2) / 100)
        assert health.pop("estimates") == [
            {
                "rung": 0,
                "audits": 100,
                "differing": 7,
                "disagreement": 0.07,
                "disagreement_ci95": wilson(7, 100),
                "drop": 0.05,
                "drop_ci95": pytest.approx((0.05 - reach, 0.05 + reach)),
            }
        ]
        assert health == {
            "samples": 4_000,
            "rung": 0,
            "rungs": n,
            "alarm": None,
            "alarms_by_drift": 3,
            "alarms_by_audits": 2,
            "returns": 1,
            "suspects": True,
            "allowed_disagreement": start.allowed,
            "scale": 1.0,
            "audits": 120,
            "differing": 9,
        }

    def test_the_ladder_and_what_it_allows(self) -> None:
        table = random_table(600, seed=1)
        guard = GuardSettings(ladder=(1.0, 0.2), slack=0.03)
        given = Calibration(table, DEPTHS, price=0.3, guard=guard)
        policy = DimecGuarded.fit(given)
        cascades = [*DimecCascade.fit_at([0.3, 0.06], given)]
        assert [each.cascade.points for each in policy.rungs[:2]] == [
            each.points for each in cascades
        ]
        played = replay(cascades[0], table, costs=CostModel())
        differs = (played.predictions != table.predictions[:, -1]).mean()
        assert policy.rungs[0].disagreement == pytest.approx(differs)
        assert policy.allowed == pytest.approx(differs + 0.03)
        point = policy.operating_point()
        assert point.items() >= cascades[0].operating_point().items()
        assert (point["allowed"], point["audit_rate"]) == (policy.allowed, 0.02)
        ends = {end for each in policy.rungs for end in each.cascade.endpoints()}
        assert set(policy.endpoints()) == ends
        assert len(policy.endpoints()) == len(ends)

    def test_a_state_that_cannot_be_is_refused(self, start: DimecGuarded) -> None:
        n, arrays = len(start.rungs), start.state().arrays
        assert {name for name, each in arrays.items() if each.dtype.kind == "i"} == {
            *("alarms", "audited", "audits", "cause", "rung", "seen", "started", "suspicion")
        }
        assert self.rebuilt(start, rung=[n - 1]).rung == n - 1
        changes: list[dict[str, Any]] = [{"rung": [-1]}, {"rung": [n]}]
        for name in ("started", "seen", "alarms", "suspicion", "audits"):
            negative = arrays[name].copy()
            negative.flat[-1] = -1
            changes.append({name: negative})
        changes.append({"drift": arrays["drift"][:, 1:]})
        changes.append({"validation": arrays["validation"][:, 1:]})
        for change in changes:
            with pytest.raises(ContractError):
                self.rebuilt(start, **change)

    def test_only_evidence_that_the_rung_below_is_safe_moves_down(
        self, start: DimecGuarded
    ) -> None:
        safety = np.full_like(start.state().arrays["safety"], 1_000.0)
        own: dict[str, Any] = {"safety": safety, "audit_run": NEVER, "alarms": [1, 1, 1]}
        stays = self.rebuilt(start, **own)
        run(stays, random_table(3, seed=5))
        assert (stays.health()["returns"], stays.state().arrays["audits"][0, 0]) == (1, 3)
        policy = self.rebuilt(start, rung=[1], cause=[1, 0, 0, 0, 0], suspicion=[9], **own)
        stream = random_table(20, seed=5)
        views = [run(policy, stream.take(np.array([row])))[0] for row in range(20)]
        below = [view.steps[0].arm for view in views].index(1)  # the first that asks about rung 0
        after = policy.state().arrays
        assert (policy.rung, after["suspicion"].tolist()) == (0, [0])
        assert after["alarms"].tolist() == [1, 1, 2]
        assert not after["cause"].any()
        assert after["audits"][:2, 0].tolist() == [19 - below, below]

    def test_drift_at_a_point_is_noted_and_told(self, start: DimecGuarded) -> None:
        won = np.zeros_like(start.state().arrays["drift"])
        won[0, 0, DOWN] = 1_000
        policy = self.rebuilt(start, drift=won, alarms=[1] * 3, audit_rate=0.0, drift_run=100.0)
        run(policy, STREAM.take(np.arange(1)))
        after = policy.state().arrays
        assert after["cause"].tolist() == [1, 0, DOWN, 0, 0]
        assert (after["rung"].tolist(), after["suspicion"].tolist()) == ([1], [500])
        assert after["alarms"].tolist() == [2, 1, 1]
        words = won.shape[1] - 1
        last = [steps[-1] for steps in start.rungs[0].cascade.stands]
        assert last[0].layer == 0
        for cause, told in (
            ([1, 0, DOWN, 0, 0], ["exit zero", "below"]),
            ([1, 1, UP, 0, 0], [f"{last[1].tier} exit {last[1].layer}", "above"]),
            ([1, words, UP, 0, 0], ["new to exit zero"]),
            ([2, 0, 0, 40, 7], ["7 of 40"]),
        ):
            alarm = str(self.rebuilt(start, rung=[1], cause=cause).alarm())
            assert all(each in alarm for each in [*told, "rung 1"])

    def test_the_scale_that_fits_best_is_played_at_up_to_that_of_validation(
        self, start: DimecGuarded
    ) -> None:
        own = start.state().settings["own_scale"]
        down = int((own > SCALES).sum()) - 2  # two scales below validation's
        fits = np.eye(len(SCALES)) * -1e6
        found = [self.rebuilt(start, fit=fit, recalibrates=True).scale for fit in fits]
        assert found == pytest.approx(np.minimum(SCALES / own, 1))
        # Weak evidence changes nothing; nor does any where that is not wanted.
        weak = np.where(own >= SCALES, -0.1, 1_000)
        assert self.rebuilt(start, fit=weak, recalibrates=True).scale == 1
        assert self.rebuilt(start, fit=fits[down]).scale == 1
        guard = {"recalibrates": True, "audit_rate": 0.0}
        policy = self.rebuilt(start, fit=fits[down], **guard)
        first = start.rungs[0].cascade
        points = [
            replace(point, weights=tuple(policy.scale * each for each in point.weights))
            for point in first.points
        ]
        scaled = DimecCascade(first.depths, points, unseen_limit=first.unseen_limit)
        costs = [replay(each, STREAM, costs=CostModel()).costs for each in (policy, scaled, first)]
        np.testing.assert_array_equal(costs[0], costs[1])
        assert (costs[1] != costs[2]).any()

    def test_a_move_by_audits_starts_afresh(self, start: DimecGuarded) -> None:
        policy = self.rebuilt(start, alarms=[1, 1, 1])
        stream = two_faced(random_table(200, seed=8))
        row = 0
        while not policy.rung:
            before = policy.state().arrays
            run(policy, stream.take(np.array([row])))
            row += 1
        after = policy.state().arrays
        n, differing = before["audits"][0].tolist()
        assert after["cause"].tolist() == [2, 0, 0, n + 1, differing + 1]
        for name in ("drift", "danger", "safety", "audits", "loss"):
            assert not after[name][:2].any()
        assert after["reference"][0].any()
        assert not after["reference"][1].any()
        assert after["alarms"].tolist() == [1, 2, 1]
        assert after["audited"].tolist() == [row, before["audited"][1] + 1]
