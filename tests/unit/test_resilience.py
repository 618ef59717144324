"""When a tier is asked again or left alone, and which one stands in: with a clock that the test turns."""

from __future__ import annotations

import pytest

from dimec.core.tiers import Step, Tier
from dimec.runtime.device.resilience import (
    OPENS_AT_ONCE,
    RETRIED,
    WORDS,
    Breaker,
    Failure,
    Fault,
    Pass,
    backoff_s,
    stand_ins,
)

MOBILE, EDGE, CLOUD = Tier
BROKEN = Failure(Fault.BROKEN)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def breaker(clock: Clock) -> Breaker:
    return Breaker(opens_after=3, open_s=2.0, max_open_s=5.0, clock=clock, draw=lambda: 1.0)


def opened() -> tuple[Clock, Breaker]:
    clock = Clock()
    each = breaker(clock)
    fail(each, 3)
    return clock, each


def admitted(which: Breaker) -> Pass:
    given = which.admit()
    assert given is not None
    return given


def fail(which: Breaker, times: int = 1, failure: Failure = BROKEN) -> None:
    for _ in range(times):
        which.failed(admitted(which), failure)


def test_a_breaker_opens_after_failures_in_a_row() -> None:
    each = breaker(Clock())
    fail(each, 2)
    each.succeeded(admitted(each))
    fail(each, 2)
    fail(each)
    assert each.admit() is None
    assert each.last == BROKEN


@pytest.mark.parametrize("fault", sorted(OPENS_AT_ONCE))
def test_what_will_not_pass_opens_it_at_once(fault: Fault) -> None:
    each = breaker(Clock())
    fail(each, failure=Failure(fault))
    assert each.admit() is None


def test_one_request_probes_when_the_time_is_over_and_closes_it() -> None:
    clock, each = opened()
    clock.now = 2.0
    probe = admitted(each)
    assert probe.probes
    assert each.admit() is None
    each.succeeded(probe)
    assert not admitted(each).probes


def test_a_failed_probe_doubles_the_time_up_to_its_limit() -> None:
    clock, each = opened()
    for pause in (2.0, 4.0, 5.0, 5.0):
        clock.now += pause - 0.01
        assert each.admit() is None
        clock.now += 0.01
        fail(each)
    clock.now += 5.0
    each.succeeded(admitted(each))
    fail(each, 3)
    clock.now += 2.0  # the first pause is short again
    assert admitted(each).probes


def test_a_probe_that_is_given_up_leaves_the_way_to_another() -> None:
    clock, each = opened()
    clock.now = 2.0
    each.left(admitted(each))
    assert admitted(each).probes


def test_outcomes_from_before_a_change_do_not_count() -> None:
    clock = Clock()
    each = breaker(clock)
    old = [admitted(each) for _ in range(4)]
    fail(each, 3)
    each.succeeded(old[0])
    assert each.admit() is None
    clock.now = 2.0
    probe = admitted(each)
    each.failed(old[1], BROKEN)
    each.succeeded(probe)
    for given in old:
        each.failed(given, BROKEN)
    assert not admitted(each).probes


def test_waits_double_and_are_dispersed() -> None:
    waits = [backoff_s(attempt, first_ms=100, draw=lambda: 1.0) for attempt in (1, 2, 3)]
    assert waits == pytest.approx([0.1, 0.2, 0.4])
    assert backoff_s(1, first_ms=100, draw=lambda: 0.0) == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("step", "last", "expected"),
    [
        (Step(EDGE, 3), (2, 3, 6), [MOBILE]),
        (Step(CLOUD, 6), (2, 3, 6), [EDGE, MOBILE]),
        (Step(EDGE, 6), (4, 6, 12), [MOBILE]),
        (Step(EDGE, 5), (1, 5, 6), [CLOUD, MOBILE]),
        (Step(EDGE, 4), (2, 4, 6), [MOBILE]),  # equally near: the one nearer to the device
        (Step(CLOUD, 1), (2, 3, 6), [MOBILE]),
    ],
)
def test_the_nearest_in_depth_stands_in_and_mobile_ends_it(
    step: Step, last: tuple[int, int, int], expected: list[Tier]
) -> None:
    assert list(stand_ins(step, last=dict(zip(Tier, last, strict=True)))) == expected


def test_a_tier_that_nobody_has_does_not_stand_in() -> None:
    assert stand_ins(Step(CLOUD, 6), last={MOBILE: 2, CLOUD: 6}) == (MOBILE,)


def test_every_fault_has_words_and_none_is_both_retried_and_final() -> None:
    assert set(WORDS) == set(Fault)
    assert not RETRIED & OPENS_AT_ONCE
    assert Failure(Fault.SLOW, "after 2 s").words(EDGE, 2) == (
        "the edge tier did not answer in time in 2 attempts (after 2 s)"
    )
