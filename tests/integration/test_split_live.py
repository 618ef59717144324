"""Split computing live: a device runs to the split, ships the hidden state, and a tier goes on from there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundles import Relay, check_replay, table_of, with_tails
from tests.inputs import write_rows
from tests.misbehaving import BadServer, Honest, dead_url, with_logits
from tests.servers import tier_server

from dimec import api
from dimec.bundle import Bundle, TierBundle, load_bundle
from dimec.bundle.hidden import Tails
from dimec.cli.export import show
from dimec.core.errors import OptionError
from dimec.core.tiers import Answer, Step, Tier
from dimec.data import reviews
from dimec.deploying.export_report import ExportReport
from dimec.policies import Calibration, Policy
from dimec.policies.replay import replay
from dimec.policies.splitee import ISplitEe, SplitEe, SplitEeS
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.wire import FROM_LAYER, decode_request, encode_hidden

MOBILE, EDGE, CLOUD = Tier
TEXTS = list(reviews(80, seed=7).first)
ONE_THREAD = DeviceSettings(threads=1, deadline_ms=60_000)
EXACT = ONE_THREAD.model_copy(update={"hidden_type": "FP32"})
HALF_PRECISION = 2e-3
"""How far a state that travelled in FP16 may move a confidence of this model."""
QUICK = DeviceSettings(threads=1, deadline_ms=20_000, backoff_ms=1, open_s=30)
TO_CLOUD = Step(CLOUD, 4, resumes=True)
RELAY = (Step(MOBILE, 1), Step(EDGE, 2, resumes=True), TO_CLOUD)


@dataclass(frozen=True)
class Rig:
    """A bundle in which the edge resumes too, what its graphs say of the texts, and policies."""

    bundle: Bundle
    policies: dict[str, Policy]

    @cached_property
    def table(self) -> ExitTable:
        return table_of(self.bundle, TEXTS)

    @property
    def cloud(self) -> TierBundle:
        assert self.bundle.cloud is not None
        return self.bundle.cloud

    def device(
        self,
        policy: Policy | None = None,
        settings: DeviceSettings = QUICK,
        *,
        edge: str | None = None,
        cloud: str | None = None,
    ) -> Device:
        return Device(self.bundle, policy=policy, settings=settings, edge=edge, cloud=cloud)

    def check(self, device: Device, n: int = len(TEXTS), *, of: Policy) -> list[Answer]:
        """Hold the answers to the first ``n`` texts against a replay."""
        answers = device.classify(TEXTS[:n])
        check_replay(answers, of, self.table.take(np.arange(n)), self.bundle)
        return answers

    def split_at(self, layer: int) -> Policy:
        """Make a policy that runs to one layer and sends everything on from there."""
        policy: Any = self.bundle.mobile.policy()
        policy.alpha = 1.1
        pinned: Policy = policy.arms()[f"layer {layer}"]
        return pinned


@pytest.fixture(scope="module")
def rig(tiny_run: Run, tiny_export: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """Fit the policies; so small a model would keep or send everything, so that alpha is set by hand."""
    table = tiny_run.validation
    found: dict[str, Policy] = {}
    for kind in (SplitEe, SplitEeS, ISplitEe):
        policy = kind.fit(Calibration(table, tiny_run.config.depths, price=0.01))
        policy.alpha = float(np.median(table.confidence))
        found[policy.name] = policy
    folder = tmp_path_factory.mktemp("bundles") / "split"
    return Rig(with_tails(tiny_export, folder, found["splitee"]), found)


@pytest.fixture(scope="module")
def exported(
    tiny_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, ExportReport]:
    """Give an export of split computing, in 8 bits."""
    folder = tmp_path_factory.mktemp("bundles") / "exported"
    report = api.export(tiny_run, out=folder, policy="splitee", quantize="all", tails=True)
    return load_bundle(folder), report


@pytest.fixture(scope="module")
def edge(rig: Rig) -> Iterator[str]:
    with tier_server("edge", rig.bundle.folder) as server:
        yield server.url


@pytest.fixture(scope="module")
def cloud(rig: Rig) -> Iterator[str]:
    with tier_server("cloud", rig.bundle.folder) as server:
        yield server.url


# --- what is written


def test_the_manifests_say_what_is_shipped_and_resumed(
    exported: tuple[Bundle, ExportReport], tiny_export: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, report = exported
    assert bundle.edge is not None and bundle.cloud is not None
    for tier in (bundle.mobile, bundle.cloud):
        assert tier.manifest.tails == Tails(layers=(1, 2, 3), width=32, datatype="FP16")
        assert tier.layers == (1, 2, 3, 4)
    assert bundle.edge.manifest.tails is None  # splitee has nothing to do with the edge
    assert tiny_export.mobile.manifest.tails is None
    assert report.tails is not None
    files = bundle.mobile.manifest.files
    beyond = [f"segment-{layer}.onnx" for layer in report.tails.mobile_layers_added]
    assert beyond == ["segment-2.onnx", "segment-3.onnx", "segment-4.onnx"]
    assert report.tails.bytes_added == sum(files[name].bytes for name in beyond)
    assert report.tails.bytes_per_token == 64
    show(report)
    printed = " ".join(capsys.readouterr().out.split())
    assert "cloud resumes after layers 1, 2, 3; mobile holds layers 2 to 4 too" in printed


def test_a_state_beyond_half_precision_travels_whole() -> None:
    state = np.full((1, 2, 3), 0.1, dtype=np.float32)
    assert encode_hidden(state, "FP16").dtype == np.float16
    state[0, 1, 2] = 1e6
    sent = encode_hidden(state, "FP16")
    assert sent.dtype == np.float32
    np.testing.assert_array_equal(sent, state)


# --- the device does what replay does


@pytest.mark.parametrize("name", ["splitee", "splitee-s", "i-splitee"])
def test_in_process_and_over_servers_with_states_in_single_precision(
    name: str, rig: Rig, edge: str, cloud: str
) -> None:
    policy = rig.policies[name]
    with rig.device(policy.fresh()) as device:
        rig.check(device, of=policy)
    with rig.device(policy.fresh(), EXACT, edge=edge, cloud=cloud) as device:
        answers = rig.check(device, of=policy)
        away = sum(answer.tier is CLOUD for answer in answers)
        assert device.traffic[CLOUD].requests == away
        assert device.traffic[EDGE].requests == 0
    assert {answer.tier for answer in answers} == {MOBILE, CLOUD}  # else this would say little


def test_over_servers_with_states_in_half_precision(rig: Rig, cloud: str) -> None:
    # A learner's next split may hang on the last digits of a reward, so that no learner is held to replay here.
    table, sent = rig.table, {}
    for layer in (1, 2, 3):
        played = replay(rig.split_at(layer), table, costs=rig.bundle.mobile.manifest.costs)
        with rig.device(rig.split_at(layer), ONE_THREAD, cloud=cloud) as device:
            answers = device.classify(TEXTS)
            sent[layer] = device.traffic[CLOUD].sent_bytes
        assert {(each.tier, each.layer, each.degraded) for each in answers} == {(CLOUD, 4, None)}
        assert [each.cost for each in answers] == pytest.approx(played.costs.tolist())
        close = np.abs(table.probabilities[:, -1, 0] - 0.5) < HALF_PRECISION
        for answer, label, tie in zip(answers, played.predictions, close, strict=True):
            assert tie or answer.label == table.label_names[label]
        confidence = [each.confidence for each in answers]
        assert confidence == pytest.approx(played.confidence.tolist(), abs=HALF_PRECISION)
    with rig.device(rig.split_at(1), EXACT, cloud=cloud) as device:
        rig.check(device, of=rig.split_at(1))
        assert sent[1] < 0.7 * device.traffic[CLOUD].sent_bytes
    with rig.device(settings=ONE_THREAD, cloud=cloud) as device:
        assert {each.degraded for each in device.classify(TEXTS)} == {None}


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        # What another tier made of a state leaves the device where it stood.
        ((Step(MOBILE, 1), Step(EDGE, 2, resumes=True), Step(MOBILE, 2)), []),
        # The device has gone further than the state that is asked for: it is made again.
        ((Step(MOBILE, 3, side_readings=True), Step(EDGE, 2), Step(MOBILE, 1), TO_CLOUD), [1]),
    ],
)
@pytest.mark.parametrize("served", [False, True])
def test_a_state_is_sent_as_it_is_at_its_step(
    way: tuple[Step, ...], sent: list[int], served: bool, rig: Rig
) -> None:
    policy = Relay(rig.bundle.mobile.manifest.depths, way)
    with (
        BadServer(Honest(rig.cloud)) as server,
        rig.device(policy, EXACT, cloud=server.url if served else None) as device,
    ):
        rig.check(device, 10, of=policy)
    asked = [decode_request(each.headers, each.body).parameters for each in server.requests]
    assert [each[FROM_LAYER] for each in asked] == sent * 10 * served


def test_a_relay_over_all_tiers(rig: Rig, edge: str) -> None:
    policy = Relay(rig.bundle.mobile.manifest.depths, RELAY)
    with rig.device(policy) as device:
        rig.check(device, of=policy)
    # The edge takes the device's state; its own stays there, so that the cloud cannot go on from it.
    with rig.device(policy, edge=edge) as device:
        answers = device.classify(TEXTS[:3])
        assert device.traffic[EDGE].requests == 3
    for answer in answers:
        assert "hidden state of the edge tier is not on this device" in str(answer.degraded)
        assert str(answer.degraded).endswith("so the edge tier answered")
        assert (answer.tier, answer.layer) == (EDGE, 2)


def test_a_bundle_without_tails_refuses_the_policy(rig: Rig) -> None:
    bare = replace(rig.cloud, manifest=rig.cloud.manifest.model_copy(update={"tails": None}))
    with pytest.raises(OptionError, match=r"cloud tier of .* --tails"):
        Device(replace(rig.bundle, cloud=bare), policy=rig.policies["splitee"])


def test_a_quantised_bundle_splits_too(
    exported: tuple[Bundle, ExportReport], tmp_path: Path
) -> None:
    small = Rig(exported[0], {})
    policy: Any = small.bundle.mobile.policy()
    policy.alpha = float(np.median(small.table.confidence))
    with (
        tier_server("cloud", small.bundle.folder) as cloud,
        small.device(policy.fresh(), EXACT, cloud=cloud.url) as device,
    ):
        small.check(device, of=policy)
        assert device.traffic[CLOUD].requests > 0
    path = write_rows(tmp_path / "more.jsonl", reviews(80, seed=7))
    (row, *_) = api.evaluate(small.bundle.folder, data=path).rows
    assert row.policy == "splitee"


# --- drills


def test_a_cloud_that_is_killed_amid_a_stream(rig: Rig) -> None:
    costs = rig.bundle.mobile.manifest.costs
    settings = QUICK.model_copy(update={"in_flight": 1, "opens_after": 3})
    answers: list[Answer] = []
    with (
        tier_server("cloud", rig.bundle.folder) as cloud,
        rig.device(rig.split_at(2), settings, cloud=cloud.url) as device,
    ):
        for answer in device.stream(TEXTS[:20]):
            answers.append(answer)
            if len(answers) == 10:
                cloud.process.kill()
                cloud.process.wait()
    split, last = Step(MOBILE, 2), Step(CLOUD, 4, resumes=True)
    # The device holds every layer: what stands in says what the cloud would have said.
    said = [rig.table.label_names[label] for label in rig.table.predictions[:20, -1]]
    assert [each.label for each in answers] == said
    assert [(each.tier, each.degraded) for each in answers[:10]] == [(CLOUD, None)] * 10
    assert [each.cost for each in answers[:10]] == pytest.approx([costs.of([split, last])] * 10)
    for answer in answers[10:]:
        assert (answer.tier, answer.layer) == (MOBILE, 4)
        assert str(answer.degraded).endswith("so the mobile tier answered")
    local = costs.of([Step(MOBILE, 4)])
    # an attempt ships the state and runs two layers
    once = costs.of([split, last]) - costs.of([split])
    assert answers[10].cost == pytest.approx(local + QUICK.attempts * once)
    assert "in 3 attempts" in str(answers[10].degraded)
    assert answers[-1].cost == pytest.approx(local)
    assert "left alone" in str(answers[-1].degraded)


def test_a_learner_without_its_cloud_always_answers_and_learns_nothing_of_it(rig: Rig) -> None:
    policy: Any = rig.bundle.mobile.policy()
    policy.alpha = 1.1  # all but the last split ask the cloud
    with rig.device(policy, cloud=dead_url()) as device:
        answers = device.classify(TEXTS[:12])
        rounds = device.policy.state().arrays["rounds"]
    assert {each.tier for each in answers} == {MOBILE}
    assert int(rounds[0]) == sum(each.degraded is None for each in answers)


# What the answers to tokens are checked for too: test_device_faults.py.
LIES = {
    "only the exits that were run": with_logits(lambda logits: logits[:, 2:]),
    "not a number": with_logits(partial(np.full_like, fill_value=np.nan)),
    "the first exits alone": with_logits(
        lambda logits: np.where(np.isnan(logits), 1, np.nan).astype("f4")
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_cloud_is_not_believed(name: str, rig: Rig) -> None:
    with (
        BadServer(Honest(rig.cloud, LIES[name])) as server,
        rig.device(rig.split_at(2), cloud=server.url) as device,
    ):
        answers = list(device.stream(TEXTS[:2], in_flight=1))
    assert len(server.requests) == 1
    assert "gave an answer that cannot be trusted (" in str(answers[0].degraded)
    for answer, label in zip(answers, rig.table.predictions[:2, -1], strict=True):
        assert (answer.tier, answer.layer) == (MOBILE, 4)
        assert answer.label == rig.table.label_names[label]


def test_what_a_cloud_says_of_exits_that_it_did_not_run_counts_for_nothing(rig: Rig) -> None:
    boast = with_logits(lambda logits: np.nan_to_num(logits, nan=99.0))
    with (
        BadServer(Honest(rig.cloud, boast)) as server,
        rig.device(rig.split_at(2), EXACT, cloud=server.url) as device,
    ):
        (answer,) = device.classify(TEXTS[:1])
    assert (answer.tier, answer.layer, answer.degraded) == (CLOUD, 4, None)
    assert answer.confidence == pytest.approx(rig.table.confidence[0, -1], abs=1e-5)
