"""A tier that fails, lies or is gone costs accuracy or cost, never an answer: with real servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from tests.bundles import always
from tests.misbehaving import (
    BadServer,
    Behaviour,
    Honest,
    Request,
    dead_url,
    dripping,
    endless,
    free_port,
    http,
    never,
    with_logits,
    with_parameters,
    writes,
)
from tests.servers import tier_server

from dimec.bundle import Bundle, load_bundle
from dimec.core.tiers import Answer, Step, Tier
from dimec.data import reviews
from dimec.policies import Policy
from dimec.policies.dimec_dc import DimecDcAdaptive
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.wire import DEADLINE_MS, decode_request

TEXTS = list(reviews(60, seed=3).first)
MOBILE, EDGE, CLOUD = Tier
QUICK = DeviceSettings(threads=1, deadline_ms=20_000, backoff_ms=1, open_s=30, in_flight=1)


class Rig:
    """The bundle's tiers, what each costs, and devices that send everything to the edge unless told otherwise."""

    def __init__(self, bundle: Bundle) -> None:
        assert bundle.edge is not None and bundle.cloud is not None
        self.bundle, self.edge, self.cloud = bundle, bundle.edge, bundle.cloud
        self.depths, costs = bundle.mobile.manifest.depths, bundle.mobile.manifest.costs
        self.price = {tier: costs.of([Step(tier, getattr(self.depths, tier))]) for tier in Tier}

    def device(
        self,
        edge: str | None = None,
        *,
        to: Tier = EDGE,
        policy: Policy | None = None,
        bundle: Bundle | None = None,
        cloud: str | None = None,
        token: str | None = None,
        **options: Any,
    ) -> Device:
        return Device(
            bundle or self.bundle,
            edge=edge,
            cloud=cloud,
            token=token,
            policy=policy or always(to, self.bundle),
            settings=QUICK.model_copy(update=options),
        )


@pytest.fixture
def rig(tiny_bundle: Bundle) -> Rig:
    return Rig(tiny_bundle)


NAN, INFINITE = (with_logits(partial(np.full_like, fill_value=value)) for value in (np.nan, np.inf))
SPOILT = {
    "a row too many": with_logits(lambda logits: np.repeat(logits, 2, axis=0)),
    "an exit too few": with_logits(lambda logits: logits[:, :-1]),
    "a class too many": with_logits(lambda logits: np.repeat(logits, 2, axis=2)),
    "no dimension": with_logits(lambda logits: logits.ravel()),
    "doubles": with_logits(lambda logits: logits.astype(np.float64)),
    "integers": with_logits(lambda logits: logits.astype(np.int32)),
    "not a number": NAN,
    "infinite": INFINITE,
    "another model": with_parameters(model_fingerprint="sha256:" + "0" * 64),
    "other layers": with_parameters(layers="[1, 9]"),
    "layers that are none": with_parameters(layers="rubbish"),
    "another request": lambda response, request: replace(response, id="somebody-else.1"),
    "no request": lambda response, request: replace(response, id=""),
    "another tensor": lambda response, request: replace(response, outputs={"other": np.ones(3)}),
}
LIES: dict[str, Behaviour] = {
    "no HTTP": writes(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", close=True),
    "binary rubbish": writes(bytes(range(256)) * 4, close=True),
    "no JSON": writes(http(200, b"<html>hello</html>")),
    "empty": writes(http(200)),
    "null": writes(http(200, b"null")),
    "deep": writes(http(200, b"[" * 100_000)),
    "a wrong length": writes(http(200, b"{}", Inference_Header_Content_Length="99999")),
    "compressed": writes(http(200, b"\x1f\x8b" + bytes(50), content_encoding="gzip")),
    "a redirect": writes(http(302, location="http://127.0.0.1:1/elsewhere")),
    "endless": endless,
    "endless headers": writes(b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000, close=True),
}


@pytest.mark.parametrize("name", [*SPOILT, *LIES])
def test_a_lying_tier_is_not_believed_and_not_asked_again(rig: Rig, name: str) -> None:
    behaviour = LIES.get(name) or Honest(rig.edge, SPOILT[name])
    with BadServer(behaviour) as server, rig.device(server.url) as device:
        answers = device.classify(TEXTS[:3])
    with rig.device(to=MOBILE) as device:
        alone = device.classify(TEXTS[:3])
    for answer, expected in zip(answers, alone, strict=True):
        assert (answer.tier, answer.label, answer.layer) == (MOBILE, expected.label, expected.layer)
        assert str(answer.degraded).endswith("so the mobile tier answered")
    assert "the edge tier gave an answer that cannot be trusted (" in str(answers[0].degraded)
    assert "the edge tier was left alone after failures (wrong, " in str(answers[1].degraded)
    assert len(server.requests) == 1
    costs = [rig.price[EDGE] + rig.price[MOBILE], rig.price[MOBILE], rig.price[MOBILE]]
    assert [answer.cost for answer in answers] == pytest.approx(costs)


REFUSALS: dict[str, tuple[Behaviour, str, int]] = {
    "unauthorised": (writes(http(401, b'{"error": "who are you"}')), "refused the token", 1),
    "forbidden": (writes(http(403)), "refused the token or certificate", 1),
    "bad request": (
        writes(http(400, b'{"error": "no\x1b[31m"}')),
        "refused the request (HTTP 400",
        1,
    ),
    "not found": (writes(http(404)), "refused the request (HTTP 404)", 1),
    "too large": (writes(http(413)), "refused the request (HTTP 413)", 1),
    "too late": (writes(http(504)), "did not answer in time (HTTP 504)", 1),
    "fault": (writes(http(500, b'{"error": "oops"}')), "failed in 3 attempts (HTTP 500: oops)", 3),
    "bad gateway": (writes(http(502, b"<html>")), "failed in 3 attempts (HTTP 502)", 3),
    "draining": (writes(http(503, Retry_After="0")), "failed in 3 attempts (HTTP 503)", 3),
    "overloaded": (writes(http(429)), "was overloaded in 3 attempts (HTTP 429)", 3),
    "overloaded for long": (writes(http(429, Retry_After="50")), "was overloaded (HTTP 429)", 1),
    "hangs up": (writes(close=True), "could not be reached in 3 attempts", 3),
    "hangs up halfway": (
        writes(b"HTTP/1.1 200 OK\r\ncontent-length: 90\r\n\r\n{", close=True),
        "could not be reached in 3 attempts",
        3,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_tier_that_refuses_or_fails(rig: Rig, name: str) -> None:
    behaviour, words, attempts = REFUSALS[name]
    with BadServer(behaviour) as server, rig.device(server.url) as device:
        (answer,) = device.classify(TEXTS[:1])
    assert answer.degraded is not None and words in answer.degraded
    assert answer.degraded.isprintable()
    assert len(server.requests) == attempts
    assert answer.cost == pytest.approx(attempts * rig.price[EDGE] + rig.price[MOBILE])


@pytest.mark.parametrize("behaviour", [never, dripping])
def test_a_slow_tier_is_waited_for_half_the_deadline(rig: Rig, behaviour: Behaviour) -> None:
    with (
        BadServer(behaviour) as server,
        rig.device(server.url, deadline_ms=400, opens_after=2) as device,
    ):
        answers = device.classify(TEXTS[:5])
    assert "the edge tier did not answer in time (after 0." in str(answers[0].degraded)
    # then the breaker is open; on a busy machine the time may be over before a request was read
    assert len(server.requests) <= 2
    assert "left alone after failures (slow, " in str(answers[2].degraded)
    assert {answer.tier for answer in answers} == {MOBILE}


def test_a_tier_is_given_half_of_the_time_that_is_left(rig: Rig) -> None:
    # An hour and more, so that what the device itself takes is next to nothing.
    with BadServer(Honest(rig.edge)) as server, rig.device(server.url, deadline_ms=1e7) as device:
        device.classify(TEXTS[:1])
    (request,) = server.requests
    asked = decode_request(request.headers, request.body)
    assert asked.parameters[DEADLINE_MS] == pytest.approx(5e6, rel=0.1)


def test_what_a_server_was_is_forgotten_after_a_wrong_answer(rig: Rig, tmp_path: Path) -> None:
    # The bundle lacks the edge, so that the server has to say after which layers its exits are.
    shutil.copytree(rig.bundle.mobile.folder, tmp_path / "mobile")
    honest, spoilt = Honest(rig.edge), Honest(rig.edge, NAN)
    metadata = [
        json.dumps({"parameters": {"layers": str(each)}}).encode()
        for each in ([1, 9], list(rig.edge.layers))
    ]
    with (
        BadServer(honest, metadata=metadata[0]) as server,
        rig.device(server.url, bundle=load_bundle(tmp_path), open_s=0.0) as device,
    ):
        tiers = []
        for behaviour, said in ((honest, 0), (honest, 1), (honest, 1), (spoilt, 1), (honest, 1)):
            server.behaviour, server.metadata = behaviour, metadata[said]
            tiers += [answer.tier for answer in device.classify(TEXTS[:1])]
    assert tiers == [MOBILE, EDGE, EDGE, MOBILE, EDGE]
    # Nor is it taken for a server of ours any more, which may be sent narrower integers than others.
    plain = [b'"INT64"' in request.body for request in server.requests]
    assert plain == [True, True, False, False, True]


def test_a_cloud_that_answers_after_the_deadline(rig: Rig) -> None:
    # Its answers come while the next texts are worked on, and must be taken for none of them.
    late = Honest(rig.cloud, delay_s=lambda request: 0.6)
    options: dict[str, Any] = {"to": CLOUD, "deadline_ms": 400, "opens_after": 100}
    with rig.device() as device:
        expected = device.classify(TEXTS[:6])
    with BadServer(late) as server, rig.device(cloud=server.url, **options) as device:
        answers = device.classify(TEXTS[:6])
    assert [(a.tier, a.label) for a in answers] == [(EDGE, e.label) for e in expected]
    for answer in answers:
        assert "the cloud tier did not answer in time (after 0." in str(answer.degraded)
        assert str(answer.degraded).endswith("so the edge tier answered")


def test_an_answer_at_the_second_attempt_says_so_and_is_charged(rig: Rig) -> None:
    honest = Honest(rig.edge)

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 1:
            writer.write(http(429, Retry_After="0"))
        elif request.number == 2:
            raise ConnectionResetError
        else:
            await honest(request, writer)

    with BadServer(behave) as server, rig.device(server.url) as device:
        first, second = device.classify(TEXTS[:2])
    assert (first.tier, second.tier) == (EDGE, EDGE)
    assert first.degraded == (
        "the edge tier was overloaded (HTTP 429) at first, and answered at attempt 3"
    )
    assert second.degraded is None
    assert first.cost == pytest.approx(3 * second.cost)
    ids = [request.headers["x-request-id"] for request in server.requests]
    assert len(set(ids)) == len(ids)
    assert ids[0].startswith(first.request_id)


def test_what_was_not_run_as_decided_is_not_learnt(rig: Rig) -> None:
    policy = always(EDGE, rig.bundle, DimecDcAdaptive)
    for edge, learnt in ((dead_url(), 1), (None, 4)):
        with rig.device(edge, policy=policy) as device:
            device.classify(TEXTS[:3])
            assert device.policy.state().arrays["counts"].sum() == learnt


def test_a_dead_tier_is_soon_left_alone_and_found_again(rig: Rig) -> None:
    port = free_port()
    with rig.device(f"http://127.0.0.1:{port}", attempts=1, opens_after=3, open_s=0.1) as device:
        answers = device.classify(TEXTS[:20])
        assert {answer.tier for answer in answers} == {MOBILE}
        assert sum("left alone" in str(answer.degraded) for answer in answers) >= 10
        with BadServer(Honest(rig.edge), port=port) as server:
            for _ in range(2_000):
                (answer,) = device.classify(TEXTS[:1])
                if answer.tier is EDGE:
                    break
                time.sleep(0.01)
            assert (answer.tier, answer.degraded) == (EDGE, None)
            assert {each.tier for each in device.classify(TEXTS[:5])} == {EDGE}
            assert server.n_probes == 1


def test_answers_are_in_place_whatever_order_they_come_in(rig: Rig) -> None:
    with rig.device() as device:
        expected = device.classify(TEXTS)
    draws = random.Random(0)
    honest = Honest(rig.edge, delay_s=lambda request: draws.random() * 0.03)
    with BadServer(honest) as server, rig.device(server.url) as device:
        answers = list(device.stream(TEXTS, in_flight=8))
        assert device.traffic[EDGE].requests == len(server.requests) == len(TEXTS)
    assert [each.index for each in answers] == list(range(len(TEXTS)))
    assert [each.confidence for each in answers] == pytest.approx([e.confidence for e in expected])
    assert [each.label for each in answers] == [each.label for each in expected]
    assert {each.degraded for each in answers} == {None}


def test_a_server_of_another_maker_may_stand_in(rig: Rig) -> None:
    # it says neither which model it runs nor after which layers, and knows no early exit
    bare = Honest(rig.edge, lambda response, request: replace(response, parameters={}))
    with BadServer(bare) as server:
        with rig.device(server.url) as device:
            answers = device.classify(TEXTS[:3])
        assert {(each.tier, each.degraded) for each in answers} == {(EDGE, None)}
        assert all(b'"INT64"' in request.body for request in server.requests)
        with rig.device(server.url, needs_fingerprint=True) as device:
            (answer,) = device.classify(TEXTS[:1])
        assert "does not say which model it runs" in str(answer.degraded)


def test_a_token_and_tls_of_real_servers(rig: Rig, tmp_path: Path) -> None:
    token = "a-token-that-is-long-enough"
    authority = trustme.CA()
    pem = {name: tmp_path / f"{name}.pem" for name in ("ca", "other", "served", "own")}
    authority.cert_pem.write_to_path(str(pem["ca"]))
    trustme.CA().cert_pem.write_to_path(str(pem["other"]))
    for name, host in (("served", "127.0.0.1"), ("own", "device")):
        both = authority.issue_cert(host).private_key_and_cert_chain_pem
        both.write_to_path(str(pem[name]))

    def ask(url: str, given: str | None, **options: Any) -> Answer:
        with rig.device(url, token=given, attempts=1, **options) as device:
            return device.classify(TEXTS[:1])[0]

    with tier_server(
        "edge",
        rig.bundle.folder,
        *("--tls-certificate", str(pem["served"]), "--tls-key", str(pem["served"])),
        *("--tls-client-ca", str(pem["ca"])),
        environment={"DIMEC_TOKEN": token},
    ) as server:
        right = {"ca_file": pem["ca"], "certificate_file": pem["own"]}
        assert ask(server.url, token, **right).degraded is None
        wrong = ask(server.url, "another-token-that-is-long", **right)
        assert "refused the token" in str(wrong.degraded)
        assert "another-token" not in str(wrong.degraded)
        assert "refused the token" in str(ask(server.url, None, **right).degraded)
        unknown = ask(server.url, token, **{**right, "ca_file": pem["other"]})
        assert "its certificate is not trusted" in str(unknown.degraded)
        without_own = ask(server.url, token, ca_file=pem["ca"])
        unencrypted = ask(server.url.replace("https", "http"), token, **right)
        assert (without_own.tier, unencrypted.tier) == (MOBILE, MOBILE)
