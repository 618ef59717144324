"""One text on its way, moved on by hand: what it asks for, and what it makes of each outcome, to the second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from tests.bundles import Relay, always, with_tails
from tests.misbehaving import dead_url

from dimec.bundle import Bundle
from dimec.core import tracing
from dimec.core.errors import ContractError, DataError
from dimec.core.tiers import Answer, Reading, Step, Tier, softmax
from dimec.policies import Policy, View
from dimec.runtime.device import sample as module
from dimec.runtime.device.client import Ask, Outcome
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.resilience import Failure, Fault
from dimec.runtime.device.sample import Sample, Text

MOBILE, EDGE, CLOUD = Tier
TEXT = "a gripping film"
TO_EDGE, TO_CLOUD = Step(EDGE, 2), Step(CLOUD, 4)
SURE, UNSURE = np.array([0.25, 0.75]), np.array([0.5625, 0.4375])
SETTINGS = DeviceSettings(threads=1, deadline_ms=20_000)


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 100.0

    def perf_counter(self) -> float:
        return self.now


@dataclass
class Rig:
    """A device whose policy takes the steps of a test, a second for each decision; nothing is ever sent."""

    bundle: Bundle
    clock: Clock
    opened: list[Device] = field(default_factory=list)

    def device(self, *way: Step, leaves: Mapping[int, float] | None = None, **urls: Any) -> Device:
        policy = Slow(self.bundle.mobile.manifest.depths, way, self.clock, leaves or {})
        self.opened.append(Device(self.bundle, policy=policy, settings=SETTINGS, **urls))
        return self.opened[-1]

    def cost(self, *steps: Step) -> float:
        return self.bundle.mobile.manifest.costs.of(steps)


class Slow(Relay):
    """Take the steps of a test, and keep what the policy was shown."""

    def __init__(
        self, depths: Any, way: tuple[Step, ...], clock: Clock, leaves: Mapping[int, float]
    ) -> None:
        super().__init__(depths, way)
        self.clock, self.leaves = clock, leaves
        self.readings: list[Reading] = []
        self.unseen: list[float] = []
        self.asked: list[Step] = []

    def decide(self, view: View) -> Step | None:
        self.clock.now += 1
        self.readings = list(view.readings)
        self.unseen.append(view.unseen)
        return super().decide(view)

    def endpoints(self) -> tuple[Step, ...]:
        return *Policy.endpoints(self), *self.way

    def exit_thresholds(self, view: View, step: Step) -> Mapping[int, float]:
        self.asked.append(step)
        return self.leaves

    def alarm(self) -> str:
        return "careful"


@pytest.fixture
def rig(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    rig = Rig(tiny_bundle, Clock())
    monkeypatch.setattr(module, "time", rig.clock)
    yield rig
    for device in rig.opened:
        device.close()


def begun(device: Device, text: Text = TEXT) -> Sample:
    return Sample(device, 7, text, request_id="text-7")


def said(exits: dict[int, NDArray[np.float64]], elapsed_s: float = 0.0) -> Outcome:
    return Outcome(exits, (), 1, elapsed_s)


def failed(*faults: Fault) -> Outcome:
    return Outcome(None, tuple(map(Failure, faults)), len(faults), 0.0)


def ask(advanced: Ask | Answer) -> Ask:
    assert isinstance(advanced, Ask)
    return advanced


def answer(advanced: Ask | Answer) -> Answer:
    assert isinstance(advanced, Answer)
    return advanced


def troubles(device: Device) -> dict[tuple[str, ...], float]:
    """Return how many answers went wrong, by tier and reason."""
    return {
        (sample.labels["tier"], sample.labels["reason"]): sample.value
        for family in device.metrics.collect()
        for sample in family.samples
        if sample.name == "dimec_device_degraded_total"
    }


def test_time_is_what_was_worked_or_waited_for_a_tier(rig: Rig) -> None:
    sample = begun(rig.device(TO_EDGE, TO_CLOUD, edge=dead_url(), cloud=dead_url()))
    first = ask(sample.advance(None))
    rig.clock.now += 1_000  # other texts have their turn
    second = ask(sample.advance(said({2: SURE}, 5.0)))
    found = answer(sample.advance(said({4: UNSURE}, 4.0)))
    assert [first.budget_s, second.budget_s] == [(20 - 1) / 2, (20 - 1 - 5 - 1) / 2]
    assert found.latency_ms == 1_000 * (1 + 5 + 1 + 4 + 1)
    assert [first.request_id, found.request_id, found.index] == ["text-7", "text-7", 7]
    names = rig.bundle.mobile.manifest.label_names
    assert (found.label, found.confidence) == (names[0], 0.5625)
    assert (found.tier, found.layer, found.degraded, found.alarm) == (CLOUD, 4, None, "careful")
    assert found.cost == pytest.approx(rig.cost(TO_EDGE, TO_CLOUD))


@pytest.mark.parametrize(("waited_s", "budget_s"), [(17.5, 0.25), (18, None)])
def test_nobody_is_asked_when_no_time_is_left(
    rig: Rig, waited_s: float, budget_s: float | None
) -> None:
    device = rig.device(TO_EDGE, TO_CLOUD, edge=dead_url(), cloud=dead_url())
    sample = begun(device)
    sample.advance(None)
    found = sample.advance(said({2: SURE}, waited_s))
    if budget_s is not None:
        assert ask(found).budget_s == budget_s
        return
    assert (
        answer(found).degraded
        == "no time was left to ask the cloud tier, so the edge tier answered"
    )
    assert (answer(found).tier, answer(found).layer) == (EDGE, 2)
    assert answer(found).cost == pytest.approx(rig.cost(TO_EDGE))
    assert troubles(device) == {("cloud", "no_time"): 1}


def test_a_span_tells_what_its_answer_does(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr(tracing, "_tracer", lambda: provider.get_tracer("test"))
    sample = begun(rig.device(TO_EDGE, edge=dead_url()))
    sample.advance(None)
    found = answer(sample.advance(failed(Fault.SLOW)))
    (span,) = kept.get_finished_spans()
    assert dict(span.attributes or {}) == {
        "dimec.tier": str(found.tier),
        "dimec.layer": found.layer,
        "dimec.cost": found.cost,
        "dimec.degraded": found.degraded,
        "dimec.alarm": "careful",
        "dimec.request_id": "text-7",
    }


def test_what_is_asked(rig: Rig) -> None:
    device = rig.device(Step(EDGE, 1), leaves={1: 0.6}, edge=dead_url())
    asked = ask(begun(device).advance(None))
    tokens = device.tokenizer.encode_one(TEXT)[0].named()
    assert {name: each.tolist() for name, each in asked.inputs.items()} == {
        name: each.tolist() for name, each in tokens.items()
    }
    assert (asked.tier, asked.layer, asked.exit_thresholds) == (EDGE, 1, {1: 0.6})
    assert asked.resumes is None
    with pytest.raises(DataError):  # both texts are read, by a model of single ones
        begun(device, (TEXT, TEXT)).advance(None)


@pytest.mark.parametrize("side", [False, True])
def test_a_policy_sees_the_exits_that_it_asked_for(rig: Rig, side: bool) -> None:
    device = rig.device(Step(EDGE, 2, side_readings=side), edge=dead_url())
    sample = begun(device)
    sample.advance(None)
    answer(sample.advance(said({1: UNSURE, 2: SURE})))
    policy: Any = device.policy
    readings = [(each.tier, each.layer, each.label, each.confidence) for each in policy.readings]
    assert readings == [(EDGE, 1, 0, 0.5625), (EDGE, 2, 1, 0.75)][not side :]
    assert policy.readings[-1].probabilities is SURE


def test_exit_zero_is_read_on_the_device(rig: Rig) -> None:
    device = rig.device(Step(MOBILE, 0))
    found = answer(begun(device).advance(None))
    logits, unseen = device.exit_zero.read(device.tokenizer.encode_one(TEXT)[1])
    assert (found.tier, found.layer) == (MOBILE, 0)
    assert found.confidence == pytest.approx(softmax(logits).max())
    assert found.cost == pytest.approx(rig.cost(Step(MOBILE, 0)))
    policy: Any = device.policy
    assert policy.unseen == pytest.approx([np.nan, unseen], nan_ok=True)


def test_attempts_that_failed_are_told_and_charged(rig: Rig) -> None:
    device = rig.device(TO_EDGE, TO_CLOUD, edge=dead_url(), cloud=dead_url())
    sample = begun(device)
    sample.advance(None)
    late = (Failure(Fault.OVERLOADED), Failure(Fault.UNREACHABLE))
    sample.advance(Outcome({2: SURE}, late, 3, 0.0))
    found = answer(sample.advance(failed(Fault.UNREACHABLE, Fault.SLOW)))
    assert found.degraded == (
        "the edge tier was overloaded at first, and answered at attempt 3, "
        "the cloud tier did not answer in time in 2 attempts, so the edge tier answered"
    )
    assert troubles(device) == {("edge", "overloaded"): 1}  # what went wrong first
    assert found.cost == pytest.approx(3 * rig.cost(TO_EDGE) + 2 * rig.cost(TO_CLOUD))


@pytest.mark.parametrize("way", [(TO_CLOUD,), (Step(EDGE, 1), TO_CLOUD)])
def test_mobile_is_the_last_that_stands_in(rig: Rig, way: tuple[Step, ...]) -> None:
    device = rig.device(*way, edge=dead_url(), cloud=dead_url())
    sample = begun(device)
    sample.advance(None)
    if len(way) == 2:
        sample.advance(said({1: UNSURE}))
    asked = ask(sample.advance(failed(Fault.SLOW)))
    assert (asked.tier, asked.layer) == (EDGE, 2)
    found = answer(sample.advance(failed(Fault.SLOW)))
    assert (found.tier, found.layer) == (MOBILE, 1)  # what the edge once read is no answer
    run = rig.cost(*way[:-1], Step(MOBILE, 1))
    assert found.cost == pytest.approx(run + rig.cost(TO_CLOUD) + rig.cost(TO_EDGE))


@pytest.mark.parametrize(("leave_at", "layer"), [(0.75, 1), (0.7501, 2)])
def test_what_stands_in_leaves_where_the_policy_would(
    rig: Rig, leave_at: float, layer: int
) -> None:
    device = rig.device(
        Step(CLOUD, 4, arm=7), leaves={1: leave_at}, edge=dead_url(), cloud=dead_url()
    )
    sample = begun(device)
    sample.advance(None)
    asked = ask(sample.advance(failed(Fault.SLOW)))
    # Its first exit may be enough.
    assert (asked.layer, asked.exit_thresholds) == (1, {1: leave_at})
    found = answer(sample.advance(said({1: SURE, 2: UNSURE})))
    policy: Any = device.policy
    assert policy.asked == [Step(CLOUD, 4, arm=7), Step(EDGE, 2, arm=7)]
    assert (found.tier, found.layer, found.confidence) == (EDGE, layer, (0.75, 0.5625)[layer - 1])
    assert found.cost == pytest.approx(rig.cost(Step(EDGE, layer)) + rig.cost(TO_CLOUD))


@pytest.mark.parametrize(("leave_at", "layer"), [(0.5, 1), (1.1, 2)])
def test_what_stands_in_on_the_device_runs_no_further(
    rig: Rig, leave_at: float, layer: int
) -> None:
    device = rig.device(TO_CLOUD, leaves={1: leave_at}, cloud=dead_url())
    sample = begun(device)
    sample.advance(None)
    found = answer(sample.advance(failed(Fault.SLOW)))
    own = device.engines[EDGE].infer(device.tokenizer.encode_one(TEXT)[0])
    assert (found.tier, found.layer) == (EDGE, layer)
    assert found.confidence == pytest.approx(softmax(own[0, layer - 1]).max())


def test_a_text_that_was_run_up_to_a_view_goes_on(rig: Rig) -> None:
    device = rig.device(TO_EDGE, TO_CLOUD, edge=dead_url(), cloud=dead_url())
    sample = begun(device)
    embedding = np.zeros(32, dtype=np.float32)
    reading = Reading(EDGE, 2, 1, 0.75, SURE)
    view = View(steps=[TO_EDGE], readings=[reading], embedding=embedding, unseen=0.5)
    batch, whole = device.tokenizer.encode_one(TEXT)
    sample.go_on(view, TO_CLOUD, batch, whole, spent_s=8.0)
    asked = ask(sample.advance(None))
    assert (asked.tier, asked.budget_s) == (
        CLOUD,
        6.0,
    )  # decided already, which took a second of the 8
    found = answer(sample.advance(failed(Fault.SLOW)))
    assert (found.tier, found.layer, found.confidence) == (EDGE, 2, 0.75)
    assert found.latency_ms == 8_000


def test_a_policy_without_end_is_stopped(rig: Rig) -> None:
    there_and_back = (Step(MOBILE, 1), Step(EDGE, 1)) * 7
    found = answer(begun(rig.device(*there_and_back[:13])).advance(None))
    assert found.cost == pytest.approx(rig.cost(*there_and_back[:13]))
    with pytest.raises(ContractError, match="13 steps"):
        begun(rig.device(*there_and_back)).advance(None)


def test_a_state_goes_to_a_server_in_half_precision(rig: Rig, tmp_path: Path) -> None:
    rig.bundle = with_tails(rig.bundle, tmp_path / "tails", always(MOBILE, rig.bundle))
    last = Step(CLOUD, 4, resumes=True)
    device = rig.device(Step(MOBILE, 1), last, cloud=dead_url())
    sample = begun(device)
    asked = ask(sample.advance(None))
    batch = device.tokenizer.encode_one(TEXT)[0]
    engine = device.engines[MOBILE]
    hidden, _ = engine.segment(1, engine.embed(batch)[0], batch.attention_mask)
    assert asked.resumes is not None
    assert (asked.resumes.name, asked.resumes.from_layer) == ("hidden", 1)
    np.testing.assert_array_equal(asked.resumes.state, hidden.astype(np.float16))
    assert asked.resumes.state.dtype == np.float16
    found = answer(sample.advance(failed(Fault.SLOW)))
    # An attempt ships the state and runs three layers; the edge begins with the tokens.
    attempt = rig.cost(Step(MOBILE, 1), last) - rig.cost(Step(MOBILE, 1))
    assert (found.tier, found.layer) == (EDGE, 2)
    assert found.cost == pytest.approx(rig.cost(Step(MOBILE, 1), TO_EDGE) + attempt)


def test_a_state_that_is_elsewhere_cannot_be_sent(rig: Rig, tmp_path: Path) -> None:
    rig.bundle = with_tails(rig.bundle, tmp_path / "tails", always(MOBILE, rig.bundle))
    way = (TO_EDGE, Step(CLOUD, 4, resumes=True))
    device = rig.device(*way, edge=dead_url(), cloud=dead_url())
    sample = begun(device)
    sample.advance(None)
    found = answer(sample.advance(said({2: SURE})))
    assert (found.tier, found.layer) == (EDGE, 2)
    assert found.degraded == (
        "the hidden state of the edge tier is not on this device, so that the cloud tier cannot go on from it, "
        "so the edge tier answered"
    )
    assert troubles(device) == {("cloud", "no_state"): 1}


def test_a_tier_that_is_nowhere(rig: Rig) -> None:
    rig.bundle = Bundle(rig.bundle.folder, rig.bundle.mobile, None, None)
    device = rig.device(TO_CLOUD)
    found = answer(begun(device).advance(None))
    assert found.degraded == (
        "there is no cloud tier, since the bundle lacks it and no URL of a server is given, "
        "so the mobile tier answered"
    )
    assert troubles(device) == {("cloud", "no_tier"): 1}
    assert found.cost == pytest.approx(rig.cost(Step(MOBILE, 1)))
