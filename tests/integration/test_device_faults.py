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

import numpy as np
import pytest
import trustme
from tests.bundles import always
from tests.misbehaving import (
    BadServer,
    Behaviour,
    Honest,
    Request,
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
from dimec.policies.cde import Cde
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.wire.extensions import DEADLINE_MS
from dimec.runtime.wire.messages import decode_request

TEXTS = list(reviews(60, seed=3).first)
MOBILE, EDGE, CLOUD = Tier
QUICK = DeviceSettings(threads=1, deadline_ms=20_000, backoff_ms=1, open_s=30, in_flight=1)


def first_exits(tier: Tier, bundle: Bundle, alpha: float) -> Policy:
    """Make a policy that sends everything to one tier, where it leaves at the first sure exit."""
    base = always(tier, bundle)
    assert isinstance(base, DimecDcFixed) and bundle.cloud is not None
    return DimeeFixed(base.depths, base.centroids, {"alpha": alpha}, layers=bundle.cloud.layers)


def price(bundle: Bundle, *steps: Step) -> float:
    return bundle.mobile.manifest.costs.of(steps)


def on_mobile(bundle: Bundle) -> list[Answer]:
    with Device(bundle, policy=always(MOBILE, bundle), settings=QUICK) as device:
        return device.classify(TEXTS)


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
def test_a_lying_tier_is_not_believed_and_not_asked_again(name: str, tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    behaviour = LIES.get(name) or Honest(tiny_bundle.edge, SPOILT[name])
    with (
        BadServer(behaviour) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=QUICK
        ) as device,
    ):
        answers = device.classify(TEXTS[:3])
    for answer, expected in zip(answers, on_mobile(tiny_bundle)[:3], strict=True):
        assert (answer.tier, answer.label, answer.layer) == (MOBILE, expected.label, expected.layer)
        assert answer.degraded is not None
        assert answer.degraded.endswith("so the mobile tier answered")
    assert "the edge tier gave an answer that cannot be trusted (" in str(answers[0].degraded)
    assert "the edge tier was left alone after failures (wrong, " in str(answers[1].degraded)
    assert len(server.requests) == 1
    depths = tiny_bundle.mobile.manifest.depths
    failed = price(tiny_bundle, Step(EDGE, depths.edge))
    local = price(tiny_bundle, Step(MOBILE, depths.mobile))
    assert [answer.cost for answer in answers] == pytest.approx([failed + local, local, local])


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
def test_a_tier_that_refuses_or_fails(name: str, tiny_bundle: Bundle) -> None:
    behaviour, words, attempts = REFUSALS[name]
    with (
        BadServer(behaviour) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=QUICK
        ) as device,
    ):
        (answer,) = device.classify(TEXTS[:1])
    assert answer.degraded is not None and words in answer.degraded
    assert answer.degraded.isprintable()
    assert len(server.requests) == attempts
    depths = tiny_bundle.mobile.manifest.depths
    failed = attempts * price(tiny_bundle, Step(EDGE, depths.edge))
    assert answer.cost == pytest.approx(failed + price(tiny_bundle, Step(MOBILE, depths.mobile)))


@pytest.mark.parametrize("behaviour", [never, dripping], ids=["never", "dripping"])
def test_a_slow_tier_is_waited_for_half_the_deadline(
    behaviour: Behaviour, tiny_bundle: Bundle
) -> None:
    settings = QUICK.model_copy(update={"deadline_ms": 400, "opens_after": 2})
    with (
        BadServer(behaviour) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=settings
        ) as device,
    ):
        answers = device.classify(TEXTS[:5])
    assert "the edge tier did not answer in time (after 0." in str(answers[0].degraded)
    # then the breaker is open; on a busy machine the time may be over before a request was read
    assert len(server.requests) <= 2
    assert "left alone after failures (slow, " in str(answers[2].degraded)
    assert {answer.tier for answer in answers} == {MOBILE}


def test_a_tier_is_given_half_of_the_time_that_is_left(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    # An hour and more, so that what the device itself takes is next to nothing.
    settings = QUICK.model_copy(update={"deadline_ms": 1e7})
    with (
        BadServer(Honest(tiny_bundle.edge)) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=settings
        ) as device,
    ):
        device.classify(TEXTS[:1])
    (request,) = server.requests
    asked = decode_request(request.headers, request.body)
    assert asked.parameters[DEADLINE_MS] == pytest.approx(5e6, rel=0.1)


def test_what_a_server_was_is_forgotten_after_a_wrong_answer(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    # The bundle lacks the edge, so that the server has to say after which layers its exits are.
    assert tiny_bundle.edge is not None
    shutil.copytree(tiny_bundle.mobile.folder, tmp_path / "mobile")
    alone = load_bundle(tmp_path)
    layers = list(tiny_bundle.edge.layers)
    honest, spoilt = Honest(tiny_bundle.edge), Honest(tiny_bundle.edge, NAN)
    settings = QUICK.model_copy(update={"open_s": 0.0})
    metadata = [
        json.dumps({"parameters": {"layers": str(each)}}).encode() for each in ([1, 9], layers)
    ]
    policy = always(EDGE, tiny_bundle)
    with (
        BadServer(honest, metadata=metadata[0]) as server,
        Device(alone, edge=server.url, policy=policy, settings=settings) as device,
    ):
        tiers = []
        for behaviour, said in ((honest, 0), (honest, 1), (honest, 1), (spoilt, 1), (honest, 1)):
            server.behaviour, server.metadata = behaviour, metadata[said]
            tiers += [answer.tier for answer in device.classify(TEXTS[:1])]
    assert tiers == [MOBILE, EDGE, EDGE, MOBILE, EDGE]
    # Nor is it taken for a server of ours any more, which may be sent narrower integers than others.
    plain = [b'"INT64"' in request.body for request in server.requests]
    assert plain == [True, True, False, False, True]


def test_a_cloud_that_answers_after_the_deadline(tiny_bundle: Bundle) -> None:
    # Its answers come while the next texts are worked on, and must be taken for none of them.
    assert tiny_bundle.cloud is not None
    late = Honest(tiny_bundle.cloud, delay_s=lambda request: 0.6)
    settings = QUICK.model_copy(update={"deadline_ms": 400, "opens_after": 100})
    with Device(tiny_bundle, policy=always(EDGE, tiny_bundle), settings=QUICK) as device:
        expected = device.classify(TEXTS[:8])
    with (
        BadServer(late) as server,
        Device(
            tiny_bundle, cloud=server.url, policy=always(CLOUD, tiny_bundle), settings=settings
        ) as device,
    ):
        answers = device.classify(TEXTS[:8])
    assert [(a.tier, a.label) for a in answers] == [(EDGE, e.label) for e in expected]
    for answer in answers:
        assert "the cloud tier did not answer in time (after 0." in str(answer.degraded)
        assert str(answer.degraded).endswith("so the edge tier answered")


def test_a_tier_that_nobody_serves(tiny_bundle: Bundle) -> None:
    with Device(
        tiny_bundle,
        edge=f"http://127.0.0.1:{free_port()}",
        policy=always(EDGE, tiny_bundle),
        settings=QUICK,
    ) as device:
        answers = device.classify(TEXTS[:4])
    assert "the edge tier could not be reached in 3 attempts" in str(answers[0].degraded)
    assert [answer.tier for answer in answers] == [MOBILE] * 4


def test_an_answer_at_the_second_attempt_says_so_and_is_charged(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    honest = Honest(tiny_bundle.edge)

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number == 1:
            writer.write(http(429, Retry_After="0"))
        elif request.number == 2:
            raise ConnectionResetError
        else:
            await honest(request, writer)

    with (
        BadServer(behave) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=QUICK
        ) as device,
    ):
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


def test_cloud_down_edge_stands_in_and_then_mobile(tiny_bundle: Bundle) -> None:
    policy = always(CLOUD, tiny_bundle)
    depths = tiny_bundle.mobile.manifest.depths
    with Device(
        tiny_bundle, cloud=f"http://127.0.0.1:{free_port()}", policy=policy, settings=QUICK
    ) as device:
        (answer,) = device.classify(TEXTS[:1])
    assert (answer.tier, answer.layer) == (EDGE, depths.edge)
    assert str(answer.degraded).endswith("so the edge tier answered")
    failed = 3 * price(tiny_bundle, Step(CLOUD, depths.cloud))
    assert answer.cost == pytest.approx(failed + price(tiny_bundle, Step(EDGE, depths.edge)))
    dead = f"http://127.0.0.1:{free_port()}"
    with Device(tiny_bundle, edge=dead, cloud=dead, policy=policy, settings=QUICK) as device:
        (answer,) = device.classify(TEXTS[:1])
    assert (answer.tier, answer.layer) == (MOBILE, depths.mobile)
    said = str(answer.degraded)
    assert said.index("the cloud tier could") < said.index("the edge tier could")


def test_mobile_goes_on_where_it_stands(tiny_bundle: Bundle) -> None:
    # CDE runs mobile, is not sure, and finds neither cloud nor edge: mobile's reading is still there
    depths = tiny_bundle.mobile.manifest.depths
    policy = Cde(depths, target=1.0, temperatures={"mobile": 1.0, "cloud": 1.0})
    dead = f"http://127.0.0.1:{free_port()}"
    with Device(tiny_bundle, edge=dead, cloud=dead, policy=policy, settings=QUICK) as device:
        (answer,) = device.classify(TEXTS[:1])
    failed = price(tiny_bundle, Step(CLOUD, depths.cloud)) + price(
        tiny_bundle, Step(EDGE, depths.edge)
    )
    assert answer.cost == pytest.approx(
        3 * failed + price(tiny_bundle, Step(MOBILE, depths.mobile))
    )


def test_what_was_not_run_as_decided_is_not_learnt(tiny_bundle: Bundle) -> None:
    policy = always(EDGE, tiny_bundle, DimecDcAdaptive)
    with Device(
        tiny_bundle, edge=f"http://127.0.0.1:{free_port()}", policy=policy, settings=QUICK
    ) as device:
        device.classify(TEXTS[:3])
        assert device.policy.state().arrays["counts"].sum() == 1
    with Device(tiny_bundle, policy=policy, settings=QUICK) as device:
        device.classify(TEXTS[:3])
        assert device.policy.state().arrays["counts"].sum() == 4


def test_a_dead_tier_is_soon_left_alone_and_found_again(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    settings = QUICK.model_copy(update={"attempts": 1, "opens_after": 3, "open_s": 0.1})
    port = free_port()
    policy = always(EDGE, tiny_bundle)
    with Device(
        tiny_bundle, edge=f"http://127.0.0.1:{port}", policy=policy, settings=settings
    ) as device:
        answers = device.classify(TEXTS[:20])
        assert {answer.tier for answer in answers} == {MOBILE}
        assert sum("left alone" in str(answer.degraded) for answer in answers) >= 10
        with BadServer(Honest(tiny_bundle.edge), port=port) as server:
            for _ in range(2_000):
                (answer,) = device.classify(TEXTS[:1])
                if answer.tier is EDGE:
                    break
                time.sleep(0.01)
            assert answer.tier is EDGE
            assert answer.degraded is None
            assert server.n_probes == 1
            assert {each.tier for each in device.classify(TEXTS[:5])} == {EDGE}
            assert server.n_probes == 1


def test_answers_are_in_place_whatever_order_they_come_in(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    with Device(tiny_bundle, policy=always(EDGE, tiny_bundle), settings=QUICK) as device:
        expected = device.classify(TEXTS)
    draws = random.Random(0)
    honest = Honest(tiny_bundle.edge, delay_s=lambda request: draws.random() * 0.03)
    with (
        BadServer(honest) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=QUICK
        ) as device,
    ):
        answers = list(device.stream(TEXTS, in_flight=8))
        assert device.traffic[EDGE].requests == len(server.requests) == len(TEXTS)
    assert [each.index for each in answers] == list(range(len(TEXTS)))
    assert [each.confidence for each in answers] == pytest.approx([e.confidence for e in expected])
    assert [each.label for each in answers] == [each.label for each in expected]
    assert {each.degraded for each in answers} == {None}


def test_an_answer_to_another_text_is_not_taken(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    held: list[bytes] = []

    class Late:
        """Give every request the answer of the one before."""

        def __init__(self) -> None:
            self.honest = Honest(tiny_bundle.edge)  # type: ignore[arg-type]

        async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
            class Catch:
                def write(self, data: bytes) -> None:
                    held.append(data)

            await self.honest(request, Catch())  # type: ignore[arg-type]
            writer.write(held[0] if len(held) == 1 else held[-2])

    settings = QUICK.model_copy(update={"open_s": 0.0})
    with (
        BadServer(Late()) as server,
        Device(
            tiny_bundle, edge=server.url, policy=always(EDGE, tiny_bundle), settings=settings
        ) as device,
    ):
        first, *others = device.classify(TEXTS[:4])
    assert first.tier is EDGE
    assert {each.tier for each in others} == {MOBILE}
    assert all("answers another request" in str(each.degraded) for each in others)


def test_early_exits_of_a_server_are_read_as_the_policy_would(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.edge is not None
    for alpha in (0.0, 0.58, 1.1):
        policy = first_exits(EDGE, tiny_bundle, alpha)
        with Device(tiny_bundle, policy=policy, settings=QUICK) as device:
            expected = device.classify(TEXTS)
        with (
            BadServer(Honest(tiny_bundle.edge, binary=alpha > 0)) as server,
            Device(tiny_bundle, edge=server.url, policy=policy, settings=QUICK) as device,
        ):
            answers = device.classify(TEXTS)
        assert [(a.label, a.layer, a.cost, a.degraded) for a in answers] == [
            (e.label, e.layer, e.cost, None) for e in expected
        ]
        assert len(server.requests) == len(TEXTS)  # all exits of a text in one request


def test_a_server_of_another_maker_may_stand_in(tiny_bundle: Bundle) -> None:
    # it says neither which model it runs nor after which layers, and knows no early exit
    assert tiny_bundle.edge is not None
    bare = Honest(tiny_bundle.edge, lambda response, request: replace(response, parameters={}))
    policy = always(EDGE, tiny_bundle)
    with BadServer(bare) as server:
        with Device(tiny_bundle, edge=server.url, policy=policy, settings=QUICK) as device:
            answers = device.classify(TEXTS[:3])
        assert {(each.tier, each.degraded) for each in answers} == {(EDGE, None)}
        assert all(b'"INT64"' in request.body for request in server.requests)
        strict = QUICK.model_copy(update={"needs_fingerprint": True})
        with Device(tiny_bundle, edge=server.url, policy=policy, settings=strict) as device:
            (answer,) = device.classify(TEXTS[:1])
        assert "does not say which model it runs" in str(answer.degraded)


def test_a_token_and_tls_of_real_servers(tiny_bundle: Bundle, tmp_path: Path) -> None:
    token = "a-token-that-is-long-enough"
    authority, stranger = trustme.CA(), trustme.CA()
    served, own = authority.issue_cert("127.0.0.1"), authority.issue_cert("device")
    files = {name: tmp_path / f"{name}.pem" for name in ("ca", "other", "cert", "key", "own")}
    authority.cert_pem.write_to_path(str(files["ca"]))
    stranger.cert_pem.write_to_path(str(files["other"]))
    served.private_key_pem.write_to_path(str(files["key"]))
    for place, blob in enumerate(served.cert_chain_pems):
        blob.write_to_path(str(files["cert"]), append=place > 0)
    own.private_key_and_cert_chain_pem.write_to_path(str(files["own"]))
    policy = always(EDGE, tiny_bundle)

    def ask(url: str, given: str | None, **options: object) -> Answer:
        settings = QUICK.model_copy(update={"attempts": 1, **options})
        with Device(tiny_bundle, edge=url, token=given, policy=policy, settings=settings) as device:
            return device.classify(TEXTS[:1])[0]

    with tier_server(
        "edge",
        tiny_bundle.folder,
        *("--tls-certificate", str(files["cert"]), "--tls-key", str(files["key"])),
        *("--tls-client-ca", str(files["ca"])),
        environment={"DIMEC_TOKEN": token},
    ) as server:
        right = {"ca_file": files["ca"], "certificate_file": files["own"]}
        assert ask(server.url, token, **right).degraded is None
        wrong = ask(server.url, "another-token-that-is-long", **right)
        assert "refused the token" in str(wrong.degraded)
        assert "another-token" not in str(wrong.degraded)
        assert "refused the token" in str(ask(server.url, None, **right).degraded)
        unknown = ask(server.url, token, **{**right, "ca_file": files["other"]})
        assert "its certificate is not trusted" in str(unknown.degraded)
        assert (
            ask(server.url, token, ca_file=files["ca"]).tier is MOBILE
        )  # no certificate of its own
        assert ask(server.url.replace("https", "http"), token, **right).tier is MOBILE
