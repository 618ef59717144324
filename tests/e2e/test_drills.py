"""Drills with real processes: what an operator would try on a staging system before trusting it."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.servers import tier_server

from dimec.bundle import Bundle
from dimec.data import reviews
from dimec.runtime.device import Device
from dimec.runtime.options import DeviceSettings
from dimec.tiers import Answer, Tier

N_TEXTS, N_KILLS = 10_000, 10
TEXTS = list(reviews(60, seed=3).first)
SETTINGS = DeviceSettings(
    deadline_ms=2_000, backoff_ms=5, opens_after=3, open_s=0.1, max_open_s=0.5, in_flight=8
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


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


def test_ten_thousand_texts_while_tiers_are_killed_and_started_again(tiny_bundle: Bundle) -> None:
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
