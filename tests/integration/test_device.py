"""The device does what replay does: in-process, over real servers, from many threads."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from tests.bundles import Counted, check_replay, check_same, save_dense_exit_zero, table_of
from tests.servers import TierServer, client_of, metric, tier_server
from tests.unit.tables import restored_of

import dimec
from dimec.bundle import Bundle, TierBundle, file_info
from dimec.core.errors import DataError, OptionError
from dimec.core.guard_settings import GuardSettings
from dimec.core.tiers import TIERS, Answer, Depths, Step, Tier
from dimec.costs.model import CostModel
from dimec.data import reviews
from dimec.policies import POLICIES, Calibration, Policy, fit_policies
from dimec.policies.cascade import DimecCascade
from dimec.policies.cascade_fit import Point
from dimec.policies.guarded import DimecGuarded, Rung
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.exit_zero import EXIT_ZERO_FILE
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings

TEXTS = list(reviews(80, seed=7).first)
ONE_THREAD = DeviceSettings(threads=1, deadline_ms=60_000)


@pytest.fixture(scope="module")
def bundle(tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a bundle whose mobile tier holds every exit and all of exit zero: every policy finds its own there."""
    cloud = tiny_bundle.cloud
    assert cloud is not None
    folder = shutil.copytree(cloud.folder, tmp_path_factory.mktemp("whole") / "mobile")
    save_dense_exit_zero(tiny_bundle.mobile, folder / EXIT_ZERO_FILE)
    files = {**cloud.manifest.files, EXIT_ZERO_FILE: file_info(folder / EXIT_ZERO_FILE)}
    manifest = cloud.manifest.model_copy(update={"files": files})
    return replace(tiny_bundle, mobile=TierBundle(folder, manifest))


@pytest.fixture(scope="module")
def servers(bundle: Bundle) -> Iterator[dict[Tier, TierServer]]:
    with (
        tier_server("edge", bundle.folder) as edge,
        tier_server("cloud", bundle.folder) as cloud,
    ):
        yield {Tier.EDGE: edge, Tier.CLOUD: cloud}


@pytest.fixture(scope="module")
def urls(servers: dict[Tier, TierServer]) -> dict[str, Any]:
    return {str(tier): server.url for tier, server in servers.items()}


@pytest.fixture(scope="module")
def table(bundle: Bundle) -> ExitTable:
    return table_of(bundle, TEXTS)


@pytest.fixture(scope="module")
def policies(tiny_run: Run) -> dict[str, Policy]:
    calibration = Calibration(tiny_run.validation, tiny_run.config.depths, price=0.01, seed=5)
    behind = {
        name: replace(calibration, restored=restored_of(tiny_run.validation, name))
        for name, policy in POLICIES.items()
        if policy.bottleneck is not None
    }
    fitted = [fit_policies(each, [name]) for name, each in behind.items()]
    return fit_policies(calibration) | {name: one[name] for one in fitted for name in one}


@pytest.mark.parametrize("name", POLICIES)
def test_the_device_does_what_replay_does_in_process_and_over_servers(
    name: str, policies: dict[str, Policy], table: ExitTable, bundle: Bundle, urls: dict[str, Any]
) -> None:
    policy = policies[name]
    if any(step.resumes for step in policy.endpoints()):
        # test_split_live.py and test_bottleneck_live.py have bundles with tails
        with pytest.raises(OptionError, match="ships hidden states"):
            Device(bundle, policy=policy.fresh())
        return
    with Device(bundle, policy=policy.fresh(), settings=ONE_THREAD) as device:
        check_replay(device.classify(TEXTS), policy, table, bundle)
    with Device(bundle, policy=policy.fresh(), settings=ONE_THREAD, **urls) as device:
        answers = device.classify(TEXTS)
        check_replay(answers, policy, table, bundle)
        asked = sum(traffic.requests for traffic in device.traffic.values())
        away = sum(answer.tier is not Tier.MOBILE for answer in answers)
        assert away <= asked <= len(TEXTS)


def test_pairs_of_texts_are_answered_over_servers_as_in_process(pair_bundle: Bundle) -> None:
    long = "word " * 3_000
    pairs = [*zip(TEXTS, reversed(TEXTS), strict=True)]
    pairs += [(long, "fine"), ("fine", long), (long, long)]
    pairs += [(TEXTS[0], text) for text in TEXTS[:8]]
    with Device(pair_bundle, settings=ONE_THREAD) as device:
        assert device.pairs
        alone = device.classify(pairs)
    with (
        tier_server("edge", pair_bundle.folder) as edge,
        tier_server("cloud", pair_bundle.folder) as cloud,
        Device(pair_bundle, edge=edge.url, cloud=cloud.url, settings=ONE_THREAD) as device,
    ):
        served = device.classify(pairs)
        assert all(traffic.requests for traffic in device.traffic.values())
    check_same(served, alone)
    assert {answer.degraded for answer in alone} == {None}
    assert {answer.tier for answer in alone} == set(TIERS)
    # the second text arrives: pairs that differ in it alone are not answered alike
    assert len({(each.tier, each.confidence) for each in served[-8:]}) == 8


def test_a_classifier_reads_pairs_however_they_are_held(pair_bundle: Bundle) -> None:
    frame = pd.DataFrame({"sentence1": TEXTS[:6], "sentence2": TEXTS[6:12]})
    pairs = list(frame.itertuples(index=False, name=None))
    dicts = [{"text": one, "text_pair": two} for one, two in pairs]
    with dimec.Classifier.from_pretrained(pair_bundle.folder, threads=1) as clf:
        [alone, also], first = (clf(pairs[0]), clf(dicts[0])), clf(pairs)[0]
        assert alone == also
        assert alone["label"] == first["label"]
        # Six pairs in a batch may round otherwise than one.
        assert alone["score"] == pytest.approx(first["score"], abs=1e-5)
        held: list[Any] = [frame, frame.to_numpy(), dicts, iter(dicts)]
        for each in held:
            np.testing.assert_allclose(clf.predict_proba(each), clf.predict_proba(pairs), atol=1e-5)


def test_policies_reach_every_tier(policies: dict[str, Policy], table: ExitTable) -> None:
    # else the tests above would say little
    tiers = {
        int(tier)
        for policy in policies.values()
        if not any(step.resumes for step in policy.endpoints())
        for tier in replay(policy, table, costs=CostModel()).tiers
    }
    assert tiers == {0, 1, 2}


@pytest.mark.parametrize("audited", [False, True])
def test_the_cloud_runs_no_further_than_the_exit_that_answers(
    audited: bool, bundle: Bundle, table: ExitTable, servers: dict[Tier, TierServer]
) -> None:
    first, *_, last = table.layers
    way = tuple(Step(Tier.CLOUD, layer) for layer in table.layers)
    border = float(np.median(table.confidence[:, 0]))
    points = [
        Point(
            way[:end],
            (*[0.0] * (end - 1), 1.0),
            (way[end], None) if end < len(way) else (None,),
            (border if end == 1 else 2.0,) if end < len(way) else (),
        )
        for end in range(1, len(way) + 1)
    ]
    cascade = DimecCascade(Depths(1, 2, last), points)
    policy: Policy = cascade
    if audited:
        whole = DimecCascade(cascade.depths, [Point(way[-1:], (1.0,), (None,), ())])
        policy = DimecGuarded(
            cascade.depths,
            rungs=[Rung(cascade, 0.0), Rung(whole, 0.0)],
            allowed=0.5,
            reference=np.zeros((2, len(points) + 1, 3)),
            own_scale=1.0,
            settings=GuardSettings(audit_rate=1.0),
        )
    server = servers[Tier.CLOUD]
    before = {layer: exits_taken(server, layer) for layer in table.layers}
    with Device(bundle, policy=policy.fresh(), cloud=server.url, settings=ONE_THREAD) as device:
        answers = device.classify(TEXTS)
        sent = device.traffic[Tier.CLOUD].requests
    check_replay(answers, policy, table, bundle)
    left = sum(answer.layer == first for answer in answers)
    taken = {layer: exits_taken(server, layer) - before[layer] for layer in table.layers}
    assert sent == len(TEXTS)
    assert taken[first] == left
    assert taken[last] == len(TEXTS) - left
    assert left == 0 if audited else 0 < left < len(TEXTS)


def exits_taken(server: TierServer, layer: int) -> float:
    with client_of(server) as client:
        try:
            return metric(client, f'dimec_exits_total{{layer="{layer}"}}')
        except StopIteration:
            return 0.0  # none so far


def test_an_alarm_is_in_answers_and_log(
    bundle: Bundle, table: ExitTable, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # a first rung that says on the device what the cloud mostly does not
    last = table.layers[-1]
    first, cloud = Step(Tier.MOBILE, 1), Step(Tier.CLOUD, last)
    agree = (table.predictions[:, table.exit(1)] == table.predictions[:, -1]).mean()
    contrary = DimecCascade(
        Depths(1, 2, last),
        [
            Point((first,), (-1.0 if agree > 0.5 else 1.0,), (cloud, None), (0.0,)),
            Point((first, cloud), (0.0, 1.0), (None,), ()),
        ],
    )
    safe = DimecCascade(contrary.depths, [Point((cloud,), (1.0,), (None,), ())])
    policy = DimecGuarded(
        contrary.depths,
        rungs=[Rung(contrary, 0.05), Rung(safe, 0.0)],
        allowed=0.05,
        reference=np.zeros((2, 3, 3)),
        own_scale=1.0,
        settings=GuardSettings(audit_rate=0.5),
    )
    with (
        Device(bundle, policy=policy.fresh(), state=tmp_path, settings=ONE_THREAD) as device,
        caplog.at_level("WARNING", logger="dimec.device"),
    ):
        answers = device.classify(TEXTS)
        check_replay(answers, policy, table, bundle)
        guard = device.guard
    said = [answer.alarm for answer in answers]
    begins = next(place for place, alarm in enumerate(said) if alarm is not None)
    assert 0 < begins < len(TEXTS) - 1
    assert None not in said[begins:]
    assert {answer.tier for answer in answers[begins + 1 :]} >= {Tier.CLOUD}
    assert "audited answers differ from the cloud's" in str(said[-1])
    assert [record.getMessage() for record in caplog.records] == list(dict.fromkeys(said[begins:]))
    assert guard["alarm"] == said[-1]
    assert guard["audits"] > 0
    with Device(bundle, policy=policy.fresh(), state=tmp_path, settings=ONE_THREAD) as device:
        assert device.guard == guard  # an alarm outlives a restart


def test_graphs_are_opened_when_a_text_first_needs_them(
    bundle: Bundle, policies: dict[str, Policy]
) -> None:
    policy = policies["dimec-cascade"]
    with (
        Device(bundle, policy=policy) as opened,
        Device(bundle, policy=policy, at_need=True) as at_need,
    ):
        assert all(engine._sessions for engine in opened.engines.values())
        assert not any(engine._sessions for engine in at_need.engines.values())
        ours, theirs = (device.classify(TEXTS) for device in (at_need, opened))
    for one, other in zip(ours, theirs, strict=True):
        assert (one.label, one.tier, one.layer, one.cost) == (
            *(other.label, other.tier, other.layer, other.cost),
        )
        assert one.probabilities == other.probabilities


def test_many_threads_and_tasks_share_a_device(
    bundle: Bundle, policies: dict[str, Policy], table: ExitTable, servers: dict[Tier, TierServer]
) -> None:
    policy = policies["cde"]
    found: list[list[Answer]] = []
    url = servers[Tier.CLOUD].url
    with Device(bundle, policy=policy.fresh(), cloud=url, settings=ONE_THREAD) as device:
        threads = [
            threading.Thread(target=lambda: found.append(device.classify(TEXTS))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)

        async def together() -> list[list[Answer]]:
            return list(await asyncio.gather(*(device.aclassify(TEXTS) for _ in range(3))))

        found += asyncio.run(together())
    assert len(found) == 6
    for answers in found:
        check_replay(answers, policy, table, bundle)
    ids = [answer.request_id for answers in found for answer in answers]
    assert len(set(ids)) == len(ids)


def test_a_stream_takes_no_more_texts_than_may_be_in_flight(
    bundle: Bundle, policies: dict[str, Policy], servers: dict[Tier, TierServer]
) -> None:
    texts = Counted(TEXTS)
    policy, url = policies["deebert"].fresh(), servers[Tier.CLOUD].url
    with Device(bundle, policy=policy, cloud=url, settings=ONE_THREAD) as device:
        for place, answer in enumerate(device.stream(texts, in_flight=4)):
            assert answer.index == place
            assert texts.taken <= place + 1 + 4
        early = device.stream(texts, in_flight=4)
        assert isinstance(early, Generator)
        next(early)
        early.close()  # a caller that has seen enough leaves nothing hanging
    assert texts.taken <= len(TEXTS) + 5


def test_what_is_learnt_is_kept(
    policies: dict[str, Policy], bundle: Bundle, tmp_path: Path
) -> None:
    policy = policies["dimec-dc-adaptive"]
    with Device(bundle, policy=policy.fresh(), settings=ONE_THREAD) as device:
        whole = device.classify(TEXTS)
    halves = []
    for texts in (TEXTS[:40], TEXTS[40:]):
        with Device(bundle, policy=policy.fresh(), state=tmp_path, settings=ONE_THREAD) as device:
            halves += device.classify(texts)
    assert [answer.tier for answer in halves] == [answer.tier for answer in whole]
    with Device(bundle, policy=policies["random"].fresh(), state=tmp_path, settings=ONE_THREAD):
        pass  # a policy that learns nothing has no state


@pytest.fixture(scope="module")
def loaded(tiny_bundle: Bundle) -> Iterator[Device]:
    with dimec.Classifier.from_pretrained(tiny_bundle.folder, threads=1) as clf:
        yield clf.device


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ("a text", "give a list"),
        ([1], "takes single texts"),
        ([("a", "b")], "takes single texts"),
        (["fine", "\ud800"], "text 1 holds half a character"),
        (pd.DataFrame({"text": ["x" * 200], "id": [1]}), "a DataFrame is given"),
        (pa.table({"text": ["fine"]}), "a Table is given"),
        ({"text": "fine"}, "a dict is given"),
        (MappingProxyType({"text": "fine"}), "a mappingproxy is given"),
        ({"fine"}, "a set is given"),
        (b"fine", "a bytes is given"),
        (bytearray(b"fine"), "a bytearray is given"),
        (Path("texts.txt"), "give a list"),
        (None, "give a list"),
        (np.array([["fine", "good"]]), "a ndarray is given"),
        ([["fine", "good"]], "takes single texts"),
        ([pd.DataFrame({"text": ["x" * 200]})], "text 0 is a DataFrame"),
        (pd.Series(["fine", None]), "text 1 is"),
    ],
)
def test_what_is_no_text_is_refused(loaded: Device, texts: Any, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        loaded.classify(texts)
    assert len(str(caught.value)) < 140
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=words):
        asyncio.run(loaded.aclassify(texts))
    with pytest.raises(DataError, match=words):
        list(loaded.stream(texts))


def test_no_texts_and_series_of_texts_of_any_kind_are_answered(loaded: Device) -> None:
    assert loaded.classify([]) == []
    texts = ["fine food", "never again"]
    labels = [answer.label for answer in loaded.classify(texts)]
    for series in (tuple(texts), pd.Series(texts), np.array(texts), iter(texts), deque(texts)):
        assert [answer.label for answer in loaded.classify(series)] == labels
    (answer,) = loaded.classify(["word " * 5_000])  # it is cut
    assert answer.degraded is None


@pytest.mark.parametrize("number", [0, -1])
@pytest.mark.parametrize("name", ["in_flight", "ahead"])
def test_a_stream_of_no_texts_at_once_is_refused(loaded: Device, name: str, number: int) -> None:
    with pytest.raises(OptionError, match=name):
        loaded.stream(TEXTS, **{name: number})


def test_a_closed_device_says_so(tiny_bundle: Bundle) -> None:
    device = Device(tiny_bundle, settings=ONE_THREAD, edge="http://127.0.0.1:9")
    device.close()
    device.close()
    with pytest.raises(OptionError, match="is closed"):
        device.classify(["a text"])


def test_an_option_that_is_none_is_told(tiny_bundle: Bundle) -> None:
    wrong: dict[str, Any] = {"deadlin_ms": 1}
    with pytest.raises(OptionError, match=r"deadlin_ms.*deadline_ms"):
        dimec.Classifier.from_pretrained(tiny_bundle.folder, **wrong)
