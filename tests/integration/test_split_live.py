"""Split computing live: a device runs to the split, ships the hidden state, and a tier goes on from there."""

from __future__ import annotations

import asyncio
import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bundles import table_of, with_tails
from tests.misbehaving import BadServer, Honest, Request, free_port, http, with_logits
from tests.servers import TierServer, tier_server
from typer.testing import CliRunner

from dimec import api
from dimec.bundle import Bundle, load_bundle, load_tier
from dimec.bundle.engines import TierEngine
from dimec.bundle.hidden import Tails
from dimec.cli.app import app
from dimec.cli.export import show
from dimec.core.errors import BundleError, OptionError
from dimec.core.tiers import TIERS, Answer, Depths, Step, Tier
from dimec.data import reviews
from dimec.deploying.export_report import ExportReport
from dimec.evaluation import replay
from dimec.policies import Calibration, Policy, PolicyState, View
from dimec.policies.splitee import ISplitEe, SplitEe, SplitEeS
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.wire.extensions import FROM_LAYER, encode_hidden
from dimec.runtime.wire.messages import decode_request

MOBILE, EDGE, CLOUD = Tier
TEXTS = list(reviews(80, seed=7).first)
SPLIT = ("splitee", "splitee-s", "i-splitee")
ONE_THREAD = DeviceSettings(threads=1, deadline_ms=60_000)
EXACT = ONE_THREAD.model_copy(update={"hidden_type": "FP32"})
HALF_PRECISION = 2e-3
"""How far a state that travelled in FP16 may move a confidence of this model."""
QUICK = DeviceSettings(threads=1, deadline_ms=20_000, backoff_ms=1, open_s=30)
TO_CLOUD = Step(CLOUD, 4, resumes=True)


@pytest.fixture(scope="module")
def policies(tiny_run: Run) -> dict[str, Policy]:
    """Fit the policies; so small a model would keep or send everything, so that alpha is set by hand."""
    table = tiny_run.validation
    found: dict[str, Policy] = {}
    for kind in (SplitEe, SplitEeS, ISplitEe):
        policy = kind.fit(Calibration(table, tiny_run.config.depths, price=0.01))
        policy.alpha = float(np.median(table.confidence))
        found[policy.name] = policy
    return found


@pytest.fixture(scope="module")
def bundle(
    tiny_export: Bundle, policies: dict[str, Policy], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """Give a bundle of split computing in which the edge resumes too."""
    folder = tmp_path_factory.mktemp("bundles") / "split"
    return with_tails(tiny_export, folder, policies["splitee"])


@pytest.fixture(scope="module")
def exported(
    tiny_run: Run, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Bundle, ExportReport]:
    """Give an export of split computing, in 8 bits."""
    folder = tmp_path_factory.mktemp("bundles") / "exported"
    report = api.export(tiny_run, out=folder, policy="splitee", quantize="all", tails=True)
    return load_bundle(folder), report


@pytest.fixture(scope="module")
def table(bundle: Bundle) -> ExitTable:
    return table_of(bundle, TEXTS)


@pytest.fixture(scope="module")
def servers(bundle: Bundle) -> Iterator[dict[Tier, TierServer]]:
    with (
        tier_server("edge", bundle.folder) as edge,
        tier_server("cloud", bundle.folder) as cloud,
    ):
        yield {EDGE: edge, CLOUD: cloud}


class Relay(Policy):
    """Run a layer on every tier, each going on from the one before it; or any other way."""

    name = "relay"
    way: tuple[Step, ...] = (
        Step(MOBILE, 1),
        Step(EDGE, 2, resumes=True),
        Step(CLOUD, 4, resumes=True),
    )

    def decide(self, view: View) -> Step | None:
        return self.way[len(view.steps)] if len(view.steps) < len(self.way) else None

    def endpoints(self) -> tuple[Step, ...]:
        return self.way

    @classmethod
    def fit(cls, calibration: Calibration) -> Relay:
        raise NotImplementedError

    def state(self) -> PolicyState:
        return PolicyState({}, {})

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Relay:
        return cls(depths)


def check(
    answers: list[Answer], policy: Policy, table: ExitTable, bundle: Bundle, *, within: float
) -> None:
    """Hold answers against a replay of the same policy."""
    played = replay(policy, table, costs=bundle.mobile.manifest.costs)
    assert [each.label for each in answers] == [
        table.label_names[label] for label in played.predictions
    ]
    assert [each.tier for each in answers] == [TIERS[tier] for tier in played.tiers]
    assert [each.layer for each in answers] == played.layers.tolist()
    assert [each.cost for each in answers] == pytest.approx(played.costs.tolist())
    confidence = [each.confidence for each in answers]
    assert confidence == pytest.approx(played.confidence.tolist(), abs=within)
    assert {each.degraded for each in answers} == {None}


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


def test_tails_that_cannot_be_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(bundle.folder / "cloud", tmp_path / "cloud")
    path = folder / "manifest.json"
    document = json.loads(path.read_text())
    tails = document["tails"]
    for changed in (
        {"tails": {**tails, "layers": [1, 4]}},  # nothing is left to run
        {"tails": {**tails, "layers": [2, 1]}},
        {"tails": {**tails, "layers": []}},
        {"tails": {**tails, "width": 0}},
        {"tails": {**tails, "datatype": "FP8"}},
        {"tails": {**tails, "other": 1}},
    ):
        path.write_text(json.dumps({**document, **changed}))
        with pytest.raises(BundleError, match=r"manifest\.json"):
            load_tier(folder)


def test_how_states_travel_is_checked_first(tiny_run: Run, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--hidden-type"):
        api.export(
            tiny_run, out=tmp_path / "bundle", policy="splitee", tails=True, hidden_type="int4"
        )
    command = [
        "export",
        str(tiny_run.folder),
        "--out",
        str(tmp_path / "b"),
        "--hidden-type",
        "fp32",
    ]
    refused = CliRunner().invoke(app, command)
    assert isinstance(refused.exception, OptionError)
    assert "give --tails too" in str(refused.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("from_layer", [1, 2, 3])
def test_a_tail_says_what_the_whole_tier_says(bundle: Bundle, from_layer: int) -> None:
    assert bundle.cloud is not None
    engine = TierEngine(bundle.cloud, threads=1)
    batch = bundle.cloud.tokenizer().encode(TEXTS[:12]).batch()
    hidden, _ = engine.embed(batch)
    for layer in range(1, from_layer + 1):
        hidden, _ = engine.segment(layer, hidden, batch.attention_mask)
    full = engine.infer(batch)
    said = engine.resume(hidden, batch.attention_mask, from_layer=from_layer)
    assert np.isnan(said[:, :from_layer]).all()
    np.testing.assert_allclose(said[:, from_layer:], full[:, from_layer:], atol=1e-5)
    early = engine.resume(hidden, batch.attention_mask, from_layer=from_layer, thresholds=0.0)
    np.testing.assert_allclose(early[:, from_layer], full[:, from_layer], atol=1e-5)
    assert np.isnan(early[:, from_layer + 1 :]).all()


def test_a_state_beyond_half_precision_travels_whole() -> None:
    small = np.full((1, 2, 3), 0.1, dtype=np.float32)
    assert encode_hidden(small, "FP16").dtype == np.float16
    large = small.copy()
    large[0, 1, 2] = 1e6
    sent = encode_hidden(large, "FP16")
    assert sent.dtype == np.float32
    np.testing.assert_array_equal(sent, large)


# --- the device does what replay does


@pytest.mark.parametrize("name", SPLIT)
def test_in_process(
    name: str, policies: dict[str, Policy], table: ExitTable, bundle: Bundle
) -> None:
    with Device(bundle, policy=policies[name].fresh(), settings=ONE_THREAD) as device:
        check(device.classify(TEXTS), policies[name], table, bundle, within=1e-5)


@pytest.mark.parametrize("name", SPLIT)
def test_over_servers_with_states_in_single_precision(
    name: str,
    policies: dict[str, Policy],
    table: ExitTable,
    bundle: Bundle,
    servers: dict[Tier, TierServer],
) -> None:
    urls = {"edge": servers[EDGE].url, "cloud": servers[CLOUD].url}
    with Device(bundle, policy=policies[name].fresh(), settings=EXACT, **urls) as device:
        answers = device.classify(TEXTS)
        check(answers, policies[name], table, bundle, within=1e-5)
        away = sum(answer.tier is CLOUD for answer in answers)
        assert device.traffic[CLOUD].requests == away
        assert device.traffic[EDGE].requests == 0
    tiers = {answer.tier for answer in answers}
    assert tiers == {MOBILE, CLOUD}  # else this would say little


def test_over_servers_with_states_in_half_precision(
    bundle: Bundle, table: ExitTable, servers: dict[Tier, TierServer]
) -> None:
    # A learner's next split may hang on the last digits of a reward, so that no learner is held to replay here.
    url, sent = servers[CLOUD].url, {}
    for layer in (1, 2, 3):
        policy = split_at(bundle, layer)
        played = replay(policy, table, costs=bundle.mobile.manifest.costs)
        with Device(bundle, policy=policy, cloud=url, settings=ONE_THREAD) as device:
            answers = device.classify(TEXTS)
            sent[layer] = device.traffic[CLOUD].sent_bytes
        assert {(each.tier, each.layer, each.degraded) for each in answers} == {(CLOUD, 4, None)}
        assert [each.cost for each in answers] == pytest.approx(played.costs.tolist())
        close = np.abs(table.probabilities[:, -1, 0] - 0.5) < HALF_PRECISION
        for answer, label, tie in zip(answers, played.predictions, close, strict=True):
            assert tie or answer.label == table.label_names[label]
        confidence = [each.confidence for each in answers]
        assert confidence == pytest.approx(played.confidence.tolist(), abs=HALF_PRECISION)
    with Device(bundle, policy=split_at(bundle, 1), cloud=url, settings=EXACT) as device:
        device.classify(TEXTS)
        assert sent[1] < 0.7 * device.traffic[CLOUD].sent_bytes
    with Device(bundle, cloud=url, settings=ONE_THREAD) as device:
        assert {each.degraded for each in device.classify(TEXTS)} == {None}


def test_every_split_alone(
    bundle: Bundle, table: ExitTable, servers: dict[Tier, TierServer]
) -> None:
    for policy in bundle.mobile.policy().arms().values():
        with Device(bundle, policy=policy, cloud=servers[CLOUD].url, settings=EXACT) as device:
            check(
                device.classify(TEXTS[:20]), policy, table.take(np.arange(20)), bundle, within=1e-5
            )


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        # What another tier made of a state leaves the device where it stood.
        ((Step(MOBILE, 1), Step(EDGE, 2, resumes=True), Step(MOBILE, 2), TO_CLOUD), [2]),
        # The device has gone further than the state that is asked for: it is made again.
        (
            (Step(MOBILE, 3, side_readings=True), Step(EDGE, 2), Step(MOBILE, 1), TO_CLOUD),
            [1],
        ),
    ],
)
@pytest.mark.parametrize("served", [False, True])
def test_a_state_is_sent_as_it_is_at_its_step(
    way: tuple[Step, ...], sent: list[int], served: bool, table: ExitTable, bundle: Bundle
) -> None:
    policy = Relay(bundle.mobile.manifest.depths)
    policy.way = way
    some = table.take(np.arange(10))
    assert bundle.cloud is not None
    with (
        BadServer(Honest(bundle.cloud)) as server,
        Device(
            bundle, policy=policy, settings=EXACT, cloud=server.url if served else None
        ) as device,
    ):
        check(device.classify(TEXTS[:10]), policy, some, bundle, within=1e-5)
    asked = [decode_request(each.headers, each.body).parameters for each in server.requests]
    assert [each[FROM_LAYER] for each in asked] == sent * 10 * served


def test_a_relay_over_all_tiers(
    bundle: Bundle, table: ExitTable, servers: dict[Tier, TierServer]
) -> None:
    policy = Relay(bundle.mobile.manifest.depths)
    with Device(bundle, policy=policy, settings=ONE_THREAD) as device:
        check(device.classify(TEXTS), policy, table, bundle, within=1e-5)
    # The edge takes the device's state; its own stays there, so that the cloud cannot go on from it.
    with Device(bundle, policy=policy, edge=servers[EDGE].url, settings=QUICK) as device:
        answers = device.classify(TEXTS[:3])
        assert device.traffic[EDGE].requests == 3
    for answer in answers:
        assert "hidden state of the edge tier is not on this device" in str(answer.degraded)
        assert str(answer.degraded).endswith("so the edge tier answered")
        assert (answer.tier, answer.layer) == (EDGE, 2)


def test_a_bundle_without_tails_refuses_the_policy(
    bundle: Bundle, policies: dict[str, Policy]
) -> None:
    assert bundle.cloud is not None
    bare = replace(bundle.cloud, manifest=bundle.cloud.manifest.model_copy(update={"tails": None}))
    with pytest.raises(
        OptionError, match=r"for which the cloud tier of .* export the run with --tails"
    ):
        Device(replace(bundle, cloud=bare), policy=policies["splitee"])


def test_a_quantised_bundle_splits_too(
    exported: tuple[Bundle, ExportReport], tmp_path: Path
) -> None:
    small, _ = exported
    policy: Any = small.mobile.policy()
    table = table_of(small, TEXTS)
    policy.alpha = float(np.median(table.confidence))
    with (
        tier_server("cloud", small.folder) as cloud,
        Device(small, policy=policy.fresh(), cloud=cloud.url, settings=EXACT) as device,
    ):
        check(device.classify(TEXTS), policy, table, small, within=1e-5)
        assert device.traffic[CLOUD].requests > 0
    path = tmp_path / "more.csv"
    with path.open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle)
        rows.writerow(["text", "label"])
        rows.writerows(
            [text, ("negative", "positive")[place % 2]] for place, text in enumerate(TEXTS)
        )
    (row, *_) = api.evaluate(small.folder, data=path).rows
    assert row.policy == "splitee"


# --- drills


def split_at(bundle: Bundle, layer: int) -> Policy:
    """Make a policy that runs to one layer and sends everything on from there."""
    policy: Any = bundle.mobile.policy()
    policy.alpha = 1.1
    pinned: Policy = policy.arms()[f"layer {layer}"]
    return pinned


def test_a_cloud_that_is_killed_amid_a_stream(bundle: Bundle, table: ExitTable) -> None:
    policy = split_at(bundle, 2)
    costs = bundle.mobile.manifest.costs
    settings = QUICK.model_copy(update={"in_flight": 1, "opens_after": 3})
    answers: list[Answer] = []
    with (
        tier_server("cloud", bundle.folder) as cloud,
        Device(bundle, policy=policy, cloud=cloud.url, settings=settings) as device,
    ):
        for answer in device.stream(TEXTS[:20]):
            answers.append(answer)
            if len(answers) == 10:
                cloud.process.kill()
                cloud.process.wait()
    split, last = Step(MOBILE, 2), Step(CLOUD, 4, resumes=True)
    names = table.label_names
    # The device holds every layer: what stands in says what the cloud would have said.
    assert [each.label for each in answers] == [
        names[label] for label in table.predictions[:20, -1]
    ]
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


def test_a_learner_without_its_cloud_always_answers_and_learns_nothing_of_it(
    bundle: Bundle,
) -> None:
    policy: Any = bundle.mobile.policy()
    policy.alpha = 1.1  # all but the last split ask the cloud
    dead = f"http://127.0.0.1:{free_port()}"
    with Device(bundle, policy=policy, cloud=dead, settings=QUICK) as device:
        answers = device.classify(TEXTS[:12])
        rounds = device.policy.state().arrays["rounds"]
    assert {each.tier for each in answers} == {MOBILE}
    assert int(rounds[0]) == sum(each.degraded is None for each in answers)


EMPTY = with_logits(partial(np.full_like, fill_value=np.nan))
LIES = {
    "a row too many": with_logits(lambda logits: np.repeat(logits, 2, axis=0)),
    "only the exits that were run": with_logits(lambda logits: logits[:, 2:]),
    "a class too many": with_logits(lambda logits: np.repeat(logits, 2, axis=2)),
    "not a number": EMPTY,
    "infinite": with_logits(partial(np.full_like, fill_value=np.inf)),
    "the first exits alone": with_logits(
        lambda logits: np.where(np.isnan(logits), 1, np.nan).astype("f4")
    ),
    "another request": lambda response, request: replace(response, id="somebody-else.1"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_cloud_is_not_believed(name: str, bundle: Bundle, table: ExitTable) -> None:
    assert bundle.cloud is not None
    with (
        BadServer(Honest(bundle.cloud, LIES[name])) as server,
        Device(bundle, policy=split_at(bundle, 2), cloud=server.url, settings=QUICK) as device,
    ):
        answers = list(device.stream(TEXTS[:2], in_flight=1))
    assert len(server.requests) == 1
    assert "gave an answer that cannot be trusted (" in str(answers[0].degraded)
    for answer, label in zip(answers, table.predictions[:2, -1], strict=True):
        assert (answer.tier, answer.layer) == (MOBILE, 4)
        assert answer.label == table.label_names[label]


def test_what_a_cloud_says_of_exits_that_it_did_not_run_counts_for_nothing(
    bundle: Bundle, table: ExitTable
) -> None:
    assert bundle.cloud is not None
    boast = with_logits(lambda logits: np.nan_to_num(logits, nan=99.0))
    with (
        BadServer(Honest(bundle.cloud, boast)) as server,
        Device(bundle, policy=split_at(bundle, 2), cloud=server.url, settings=EXACT) as device,
    ):
        (answer,) = device.classify(TEXTS[:1])
    assert (answer.tier, answer.layer, answer.degraded) == (CLOUD, 4, None)
    assert answer.confidence == pytest.approx(table.confidence[0, -1], abs=1e-5)


def test_a_server_that_takes_no_states_costs_no_answer(bundle: Bundle) -> None:
    async def old(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(http(400, b'{"error": "the inputs are attention_mask, hidden"}'))

    with (
        BadServer(old) as server,
        Device(bundle, policy=split_at(bundle, 3), cloud=server.url, settings=QUICK) as device,
    ):
        (answer,) = device.classify(TEXTS[:1])
    assert "the cloud tier refused the request (HTTP 400" in str(answer.degraded)
    assert (answer.tier, answer.layer) == (MOBILE, 4)
