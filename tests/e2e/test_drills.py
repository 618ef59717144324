"""Drills with real processes: what an operator would try on a staging system before trusting it."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
from tests.bundles import always, with_policy
from tests.forked import SERVES
from tests.misbehaving import free_port
from tests.servers import PATIENCE_S, tier_server, wait_for

from dimec.bundle import Bundle
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.tiers import Answer, Tier
from dimec.data import reviews
from dimec.policies.dimee import DimeeAdaptive, DimeeFixed
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.state import LearntState
from dimec.runtime.wire import InferRequest, decode_response, encode_request

N_TEXTS, N_KILLS = 4_000, 6
TEXTS = list(reviews(60, seed=3).first)
SETTINGS = DeviceSettings(
    deadline_ms=2_000, backoff_ms=5, opens_after=3, open_s=0.1, max_open_s=0.5, in_flight=8
)
LONE = DeviceSettings(threads=1, in_flight=1)


class Tiers:
    """Edge and cloud as servers, each on a port that it keeps when it is killed and started again."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._ports = {tier: free_port() for tier in (Tier.EDGE, Tier.CLOUD)}
        self._running = {tier: contextlib.ExitStack() for tier in self._ports}
        self.kills = 0

    def url(self, tier: Tier) -> str:
        return f"http://127.0.0.1:{self._ports[tier]}"

    def start(self, tier: Tier) -> None:
        port = str(self._ports[tier])
        self._running[tier].enter_context(
            tier_server(str(tier), self._bundle.folder, "--port", port)
        )

    def kill(self, tier: Tier) -> None:
        self._running[tier].close()

    def kill_in_turn(self, times: int) -> None:
        """Kill a tier and start it again, then the other: each as soon as the last is ready again."""
        for tier in itertools.islice(itertools.cycle(self._ports), times):
            self.kill(tier)
            self.kills += 1
            self.start(tier)

    def __enter__(self) -> Tiers:
        for tier in self._ports:
            self.start(tier)
        return self

    def __exit__(self, *fault: object) -> None:
        for tier in self._ports:
            self.kill(tier)


def test_thousands_of_texts_while_tiers_are_killed_and_started_again(tiny_bundle: Bundle) -> None:
    with Device(tiny_bundle, settings=SETTINGS) as alone:
        expected = alone.classify(TEXTS)
    assert {answer.tier for answer in expected} == set(Tier)
    over = threading.Event()

    def texts() -> Iterator[str]:
        """Go on for as many texts as were promised, and until the last tier is back."""
        for number in itertools.count():
            if number >= N_TEXTS and over.is_set():
                return
            yield TEXTS[number % len(TEXTS)]

    answers: list[Answer] = []
    with (
        Tiers(tiny_bundle) as tiers,
        ThreadPoolExecutor(1) as operator,
        Device(
            tiny_bundle, edge=tiers.url(Tier.EDGE), cloud=tiers.url(Tier.CLOUD), settings=SETTINGS
        ) as device,
    ):
        killing = operator.submit(tiers.kill_in_turn, N_KILLS)
        killing.add_done_callback(lambda done: over.set())
        answers.extend(device.stream(texts()))
        killing.result()
        assert tiers.kills == N_KILLS
        # all tiers are back: nothing is degraded for good
        afterwards = device.classify(TEXTS * 20)
    assert len(answers) >= N_TEXTS
    assert [answer.index for answer in answers] == list(range(len(answers)))
    assert len({answer.request_id for answer in answers}) == len(answers)
    for answer in answers:
        wanted = expected[answer.index % len(TEXTS)]
        if answer.degraded is None:
            assert (answer.label, answer.tier, answer.layer) == (
                wanted.label, wanted.tier, wanted.layer,
            )  # fmt: skip
            assert answer.cost == wanted.cost
        else:
            assert wanted.tier is not Tier.MOBILE
    assert any(answer.degraded for answer in answers)
    assert not afterwards[-1].degraded


def test_ten_times_more_than_a_server_takes(tiny_bundle: Bundle) -> None:
    """Ten times as many callers as the queue has places, without pause; a device among them, and after them."""
    queue, callers = 4, 40
    enough = 10 * callers
    policy = always(Tier.EDGE, tiny_bundle)
    by_tier: dict[Tier, list[Answer]] = {}
    for tier in (Tier.EDGE, Tier.MOBILE):
        with Device(tiny_bundle, policy=always(tier, tiny_bundle), settings=SETTINGS) as device:
            by_tier[tier] = device.classify(TEXTS)
    # A batch waits for others so long that the engine is idle: the queue is what is short, on any machine.
    options = ("--queue", str(queue), "--max-wait-ms", "50")
    assert tiny_bundle.edge is not None
    tokens = tiny_bundle.mobile.tokenizer().encode(TEXTS[:1]).batch().named()
    wanted = TierEngine(tiny_bundle.edge, threads=1).infer(TokenBatch.of(tokens))
    headers, body = encode_request(InferRequest(tokens, {}, binary_output=True), binary=True)
    over = threading.Event()
    with (
        tier_server("edge", tiny_bundle.folder, *options) as server,
        Device(tiny_bundle, edge=server.url, policy=policy, settings=SETTINGS) as device,
        httpx.Client(
            base_url=server.url, timeout=PATIENCE_S, limits=httpx.Limits(max_connections=callers)
        ) as client,
        ThreadPoolExecutor(callers) as crowd,
    ):

        def insist() -> Counter[int]:
            """Ask until it is over; whatever is asked is answered, and rightly or with a refusal that says when."""
            statuses: Counter[int] = Counter()
            while not over.is_set() or not statuses:
                response = client.post("/v2/models/edge/infer", content=body, headers=headers)
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    logits = decode_response(response.headers, response.content).outputs["logits"]
                    np.testing.assert_allclose(logits, wanted, atol=1e-5)
                else:
                    assert response.status_code == 429
                    assert int(response.headers["Retry-After"]) >= 1
            return statuses

        asked = [crowd.submit(insist) for _ in range(callers)]
        during = device.classify(TEXTS * 5)
        wait_for(lambda: len(server.logged("request", status=429)) >= enough, "many refusals")
        over.set()
        statuses = sum((each.result() for each in asked), Counter[int]())
        assert statuses[200] and statuses[429] >= enough - device.traffic[Tier.EDGE].requests
        # one at a time again, and once the time is over that it was told to wait, the device finds it as before
        answer = wait_for(
            lambda: [a for a in device.classify(TEXTS[:1]) if a.tier is Tier.EDGE], "the edge again"
        )[0]
        assert answer.degraded is None
        afterwards = list(device.stream(TEXTS, in_flight=1))

        def lines(*, of_device: bool) -> list[str]:
            asked = server.logged("request", path="/v2/models/edge/infer")
            ids = [str(line["request_id"]) for line in asked]
            return [each for each in ids if (".edge." in each) is of_device]

        wait_for(lambda: len(lines(of_device=False)) == statuses.total(), "a line for each")
        assert server.stop() == 0
        sent = lines(of_device=True)
    assert len(set(sent)) == len(sent)
    # What the device gave up on, since it had no time left, may not have come as far as the server.
    given_up = sum("did not answer in time" in str(each.degraded) for each in during)
    assert 0 <= device.traffic[Tier.EDGE].requests - len(sent) <= given_up
    assert [each.index for each in during] == list(range(5 * len(TEXTS)))
    for each in during:
        assert each.label == by_tier[each.tier][each.index % len(TEXTS)].label
        assert each.tier is Tier.EDGE or str(each.degraded).startswith("the edge tier ")
    assert any("overloaded" in str(each.degraded) for each in during)
    for each, alone in zip(afterwards, by_tier[Tier.EDGE], strict=True):
        assert (each.tier, each.label, each.degraded) == (Tier.EDGE, alone.label, None)


def adaptive(bundle: Bundle, folder: Path) -> Bundle:
    """Copy a bundle and let its policy learn."""
    fixed = bundle.mobile.policy()
    assert isinstance(fixed, DimeeFixed)
    policy = DimeeAdaptive(fixed.depths, fixed.centroids, **fixed.settings())
    return with_policy(bundle, folder, policy)


def test_a_device_that_is_killed_goes_on_with_what_it_learnt(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    bundle = adaptive(tiny_bundle, tmp_path / "bundle")
    texts, out, state = tmp_path / "texts.txt", tmp_path / "answers.jsonl", tmp_path / "state"
    n = 1_200
    texts.write_text("".join(f"{text}\n" for text in reviews(n, seed=23).first))
    most_lost = DeviceSettings().snapshot_updates
    start = bundle.mobile.policy().state().arrays["counts"].sum()
    with Tiers(bundle) as tiers:
        command = (
            "classify", bundle.folder, "--file", texts, "--out", out, "--state", state,
            "--edge", tiers.url(Tier.EDGE), "--cloud", tiers.url(Tier.CLOUD),
        )  # fmt: skip
        kept = written = 0
        for _ in range(3):
            device, reached = SERVES.start(*command), written + 150
            wait_for(lambda: lines_of(out) >= reached or device.poll() is not None, "answers")  # noqa: B023
            device.kill()
            device.wait()
            more, written = lines_of(out) - written, lines_of(out)
            learnt = LearntState.load(state)
            # what this process answered it has learnt, but for the last snapshot; what was kept before is all there
            assert kept + more - most_lost <= learnt.updates <= kept + more + 1
            kept = learnt.updates
            assert learnt.arrays["counts"].sum() == start + kept
        assert written < n
        assert SERVES.start(*command).wait(PATIENCE_S) == 0
    assert [json.loads(line)["index"] for line in out.read_text().splitlines()] == list(range(n))
    learnt = LearntState.load(state)
    assert learnt.updates == kept + n - written


def lines_of(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.exists() else 0
