"""The test behind a promise: how often it errs, counted exactly, and what it says where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from dimec.core.errors import OptionError
from dimec.deploying.promise import (
    NUISANCE,
    Assurance,
    Outcomes,
    _score,
    last_kept,
    p_value,
    rows_for,
    upper_bound,
)


@pytest.fixture(autouse=True)
def _counts_afresh() -> None:
    """Keep nothing that a test before this one has computed."""
    p_value.cache_clear()


def error(n: int, *, p01: float, drop: float, allowed: float, promised: float) -> float:
    """Sum the probabilities of everything that would be promised although the drop is ``drop``."""
    p10 = p01 + drop
    total = 0.0
    for losses in range(int(stats.binom.ppf(1 - 1e-6, n, p10)) + 1):
        for gains in range(int(stats.binom.ppf(1 - 1e-6, n, p01)) + 1):
            if losses + gains > n:
                continue
            if p_value(Outcomes(n, losses, gains), promised) <= allowed:
                total += stats.multinomial.pmf(
                    [losses, gains, n - losses - gains], n, [p10, p01, 1 - p10 - p01]
                )
    return total


@pytest.mark.parametrize("allowed", [0.05, 0.2])
@pytest.mark.parametrize(
    ("n", "p01", "drop"),
    [
        (12, 0.2, 0.1),
        (12, 0.44, 0.1),  # nothing is answered alike
        (40, 0.01, 0.04),
        (700, 0.0, 0.005),
        (700, 0.0005, 0.005),
        (30, 0.05, 0.0),
    ],
)
def test_it_errs_no_more_often_than_allowed(
    n: int, p01: float, drop: float, allowed: float
) -> None:
    # On the border of what is promised, where it errs most often.
    assert error(n, p01=p01, drop=drop, allowed=allowed, promised=drop) <= allowed


@pytest.mark.parametrize(("n", "p01", "drop"), [(3_400, 0.004, 0.005), (1_500, 0.02, 0.01)])
def test_at_real_sizes_it_errs_as_often_as_allowed(n: int, p01: float, drop: float) -> None:
    draws = np.random.default_rng(0).multinomial(
        n, [p01 + drop, p01, 1 - 2 * p01 - drop], size=1_000
    )
    errs = [p_value(Outcomes(n, int(x), int(y)), drop) <= 0.05 for x, y, _ in draws]
    # Neither more nor much less: two standard errors are one point.
    assert 0.03 < np.mean(errs) < 0.065


def test_without_losses_some_600_rows_do_for_half_a_point() -> None:
    # (1 - 0.005)^n <= 0.05
    assert rows_for(0.005, Assurance()) in range(598, 605)
    assert p_value(Outcomes(600, 0, 0), 0.005) == pytest.approx(0.995**600 + NUISANCE, rel=1e-3)
    assert upper_bound(Outcomes(600, 0, 0), Assurance()) == pytest.approx(0.005, rel=0.01)


def test_more_losses_need_more_rows_and_too_many_are_never_enough() -> None:
    needed = [rows_for(0.005, Assurance(), loss_rate=rate) for rate in (0, 0.002, 0.004)]
    assert all(each is not None for each in needed)
    assert needed == sorted(needed, key=lambda each: each or 0)
    assert rows_for(0.005, Assurance(), loss_rate=0.006) is None
    assert rows_for(0.0, Assurance()) is None  # what is never better cannot be shown to be


def test_with_many_rows_it_is_the_normal_bound() -> None:
    seen = Outcomes(20_000, 400, 350)
    normal = seen.drop + stats.norm.ppf(0.95) * np.sqrt((750 / 20_000 - seen.drop**2) / seen.n)
    assert upper_bound(seen, Assurance()) == pytest.approx(normal, rel=0.01)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 400), st.data())
def test_a_bound_is_where_the_test_gives_in(n: int, data: st.DataObject) -> None:
    losses, sure = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.95, 0.8]))
    seen = Outcomes(n, losses, data.draw(st.integers(0, n - losses)))
    bound = upper_bound(seen, Assurance(sure))
    assert max(seen.drop, 0) <= bound <= 1
    if 0 < bound < 0.99:
        assert p_value(seen, bound) <= 1 - sure + 1e-9
        assert p_value(seen, max(bound - 1e-4, 0)) > 1 - sure - 1e-3


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 300), st.data())
def test_one_loss_more_is_never_better(n: int, data: st.DataObject) -> None:
    losses = data.draw(st.integers(0, n - 1))
    gains = data.draw(st.integers(0, n - 1 - losses))
    drop = data.draw(st.sampled_from([0.0, 0.005, 0.02, 0.1]))
    fewer, more = Outcomes(n, losses, gains), Outcomes(n, losses + 1, gains)
    assert p_value(fewer, drop) <= p_value(more, drop) + 1e-9


def test_no_rows_promise_nothing() -> None:
    assert p_value(Outcomes(0, 0, 0), 0.5) == 1
    assert upper_bound(Outcomes(0, 0, 0), Assurance()) == 1
    assert upper_bound(Outcomes(1, 1, 0), Assurance()) == 1


def test_it_stops_at_the_first_that_fails() -> None:
    good, bad = Outcomes(5_000, 5, 5), Outcomes(5_000, 100, 5)
    kept = [
        last_kept(trials, max_drop=0.005, assurance=Assurance())
        for trials in ([good, good, bad, good], [bad, good], [good], [])
    ]
    assert kept == [1, None, 0, None]


def test_the_next_samples_err_no_more_often_than_allowed_counted_exactly() -> None:
    # Of ten samples any six may come first: all draws of them, for all that they may hold.
    n, m, promised, allowed = 6, 4, 0.2, 0.3
    for losses in range(11):
        for gains in range(11 - losses):
            broken = 0.0
            for x in range(min(n, losses) + 1):
                for y in range(min(n - x, gains) + 1):
                    odds = stats.multivariate_hypergeom.pmf(
                        [x, y, n - x - y], [losses, gains, 10 - losses - gains], n
                    )
                    if odds > 0 and (losses - x) - (gains - y) > promised * m:
                        kept = p_value(Outcomes(n, x, y), promised, over=m) <= allowed
                        broken += odds * kept
            assert broken <= allowed


def test_a_sequence_of_policies_is_as_sure_as_one() -> None:
    # A ladder from good to bad whose answers hang together; the first that breaks its promise is never known ahead.
    n, m, promised, level, broken = 800, 1_600, 0.01, 0.8, 0
    rungs = np.linspace(0.001, 0.04, 24)
    draws = np.random.default_rng(4)
    for _ in range(150):
        lost = draws.random(n + m)[:, None] < rungs
        trials = [Outcomes(n, int(each), 0) for each in lost[:n].sum(axis=0)]
        last = last_kept(trials, max_drop=promised, assurance=Assurance(level, over=m))
        broken += last is not None and lost[n:, last].mean() > promised
    assert broken / 150 <= 1 - level + 0.03


def test_over_many_samples_it_is_the_long_run() -> None:
    for seen in (Outcomes(3_368, 20, 15), Outcomes(3_368, 5, 5), Outcomes(600, 0, 0)):
        for drop in (0.005, 0.01):
            long_run = p_value(seen, drop)
            assert p_value(seen, drop, over=1_000_000) == pytest.approx(long_run, abs=0.003)
            assert p_value(seen, drop, over=1_000) >= long_run - 0.003


def test_on_a_single_text_to_come_it_is_the_odds_of_losing_it() -> None:
    # The one loss among 20 may be any of them: that it is the last has a probability of 1 in 20.
    assert p_value(Outcomes(19, 0, 0), 0.5, over=1) == pytest.approx(1 / 20, abs=2 * NUISANCE)


@pytest.mark.parametrize(
    ("option", "name", "values"),
    [("--over", "over", [0, -3, 10**9]), ("--assurance", "level", [0.3, 1.0, float("nan")])],
)
def test_what_cannot_be_had(option: str, name: str, values: list[float]) -> None:
    for value in values:
        with pytest.raises(OptionError, match=option):
            Assurance(**{name: value})  # type: ignore[arg-type]


def test_outcomes_are_counted_in_pairs() -> None:
    cloud = np.array([True, True, True, False, False])
    policy = np.array([True, False, False, True, False])
    seen = Outcomes.of(cloud, policy)
    assert (seen.n, seen.losses, seen.gains) == (5, 2, 1)
    assert seen.drop == pytest.approx(0.2)


def score_of(n: int, losses: int, gains: int, drop: float) -> float:
    """Return the score statistic, with the likeliest p01 found by a search."""
    counts = np.array([losses, gains, n - losses - gains])

    def unlikely(q: float) -> float:
        odds = np.array([q + drop, q, 1 - 2 * q - drop])
        return -float(counts @ np.log(np.maximum(odds, 1e-300)))

    found = optimize.minimize_scalar(
        unlikely, bounds=(0, (1 - drop) / 2), method="bounded", options={"xatol": 1e-12}
    )
    scale = np.sqrt(n * (2 * found.x + drop - drop**2))
    return float((losses - gains - n * drop) / scale)


def test_the_score_is_that_of_the_likeliest_rates() -> None:
    for n, losses, gains, drop in ((12, 1, 2, 0.1), (10, 3, 1, 0.15), (40, 5, 7, 0.02)):
        found = _score(n, np.array([float(losses)]), np.array([float(gains)]), drop)
        assert found.tolist() == pytest.approx([score_of(n, losses, gains, drop)], rel=1e-4)
    assert _score(5, np.zeros(1), np.zeros(1), 0.0).tolist() == [0]


def as_good(seen: Outcomes, drop: float) -> list[list[int]]:
    """Return every outcome of as many samples that scores no higher: losses, gains and the others."""
    n = seen.n
    limit = score_of(n, seen.losses, seen.gains, drop) + 1e-6
    every = [[x, y, n - x - y] for x in range(n + 1) for y in range(n + 1 - x)]
    return [each for each in every if score_of(n, each[0], each[1], drop) <= limit]


@pytest.mark.parametrize(
    ("seen", "drop"),
    [
        (Outcomes(12, 1, 2), 0.1),
        (Outcomes(10, 3, 1), 0.15),
        (Outcomes(9, 0, 8), 0.1),
        (Outcomes(8, 0, 8), 0.3),
    ],
)
def test_in_the_long_run_it_is_the_sum_over_all_that_looks_as_good(
    seen: Outcomes, drop: float
) -> None:
    interval = stats.binomtest(seen.gains, seen.n).proportion_ci(1 - NUISANCE, method="exact")
    rates = np.linspace(interval.low, min(interval.high, (1 - drop) / 2), 300)
    odds = np.stack([rates + drop, rates, np.maximum(1 - 2 * rates - drop, 0)], axis=1)
    found = sum(stats.multinomial.pmf(each, seen.n, odds) for each in as_good(seen, drop))
    assert p_value(seen, drop) == pytest.approx(np.max(found) + NUISANCE, rel=2e-3)


@pytest.mark.parametrize(
    ("seen", "over", "drop"),
    [
        (Outcomes(8, 0, 1), 6, 0.2),
        (Outcomes(7, 1, 3), 9, 0.1),
        (Outcomes(7, 0, 5), 12, 0.25),
        (Outcomes(6, 1, 0), 14, 0.3),
        (Outcomes(9, 0, 9), 3, 0.1),
    ],
)
def test_over_the_next_samples_it_is_the_worst_draw_without_replacement(
    seen: Outcomes, over: int, drop: float
) -> None:
    total = seen.n + over
    fewest = next(net for net in range(over + 2) if net / over > drop + 1e-9)
    good, worst = as_good(seen, drop), 0.0
    for to_come in range((over - fewest) // 2 + 1):
        first = stats.hypergeom(total, seen.gains + to_come, seen.n)
        if min(first.cdf(seen.gains), first.sf(seen.gains - 1)) < NUISANCE / 2:
            continue
        lost, won = seen.losses + to_come + fewest, seen.gains + to_come
        drawn = stats.multivariate_hypergeom.pmf(good, [lost, won, total - lost - won], seen.n)
        worst = max(worst, float(np.sum(drawn)))
    found = p_value(seen, drop, over=over)
    assert found == pytest.approx(worst + NUISANCE, rel=1e-9)
    for limit in (found / 2, found):
        cut = p_value(seen, drop, over=over, limit=limit)
        assert cut == found or limit < cut < found


@pytest.mark.parametrize("drop", [0.95, 0.6, 0.3, 0.2])
def test_rows_are_counted_to_the_last_one(drop: float) -> None:
    for losses, gains in ((0.0, 0.0), (0.05, 0.0), (0.05, 0.1)):
        for assurance in (Assurance(0.5), Assurance(0.9)):
            found = rows_for(drop, assurance, loss_rate=losses, gain_rate=gains)
            assert found is not None
            seen = [Outcomes(n, round(n * losses), round(n * gains)) for n in range(1, found + 1)]
            kept = [assurance.allows(each, drop) for each in seen]
            assert kept.index(True) == found - 1


def test_the_ends_of_what_can_be_asked_for() -> None:
    assert [Assurance(level).level for level in (0.5, 0.999)] == [0.5, 0.999]
    assert [Assurance(over=over).over for over in (1, 1_000_000)] == [1, 1_000_000]
    assert Outcomes(0, 0, 0).drop == 0
