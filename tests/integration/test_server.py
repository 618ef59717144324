"""Tier servers as processes of their own, asked over real sockets by clients that we did not write."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import trustme
from numpy.typing import NDArray
from tests.commands import Here
from tests.servers import (
    PATIENCE_S,
    TierServer,
    ask,
    client_of,
    logits_of,
    metric,
    tier_server,
    tokens,
    wait_for,
)

from dimec.bundle import Bundle
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.tiers import softmax
from dimec.runtime.wire import (
    InferRequest,
    encode_request,
    narrow,
)

TOKEN = "a-token-that-nobody-guesses"
Tokens = dict[str, NDArray[np.int64]]
FOR_EVER = ("--max-wait-ms", "600000")
"""A lone request waits in the queue until something happens to it."""


@pytest.fixture(scope="module")
def edge(tiny_bundle: Bundle) -> Iterator[TierServer]:
    with tier_server("edge", tiny_bundle.folder) as server:
        yield server


@pytest.fixture(scope="module")
def engine(tiny_bundle: Bundle) -> TierEngine:
    assert tiny_bundle.edge is not None
    return TierEngine(tiny_bundle.edge, threads=1)


# --- third-party clients


def test_tritonclient_works_unchanged(edge: TierServer, engine: TierEngine) -> None:
    import tritonclient.http as triton

    inputs = tokens(7, 12, 3)
    expected = engine.infer(TokenBatch.of(inputs))
    with triton.InferenceServerClient(edge.address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("edge")
        assert client.is_model_ready("edge", "1")
        assert not client.is_model_ready("cloud")
        assert client.get_server_metadata()["name"] == "dimec"
        metadata = client.get_model_metadata("edge")
        assert [tensor["name"] for tensor in metadata["inputs"]] == [*inputs, "text"]
        assert metadata["outputs"] == [{"name": "logits", "datatype": "FP32", "shape": [-1, 2, 2]}]
        assert metadata["parameters"]["model_fingerprint"] == edge.ready["model_fingerprint"]
        assert json.loads(metadata["parameters"]["layers"]) == [1, 2]
        assert json.loads(metadata["parameters"]["label_names"]) == ["negative", "positive"]
        for binary_in in (True, False):
            sent = []
            for name, array in inputs.items():
                tensor = triton.InferInput(name, list(array.shape), "INT64")
                tensor.set_data_from_numpy(array, binary_data=binary_in)
                sent.append(tensor)
            for outputs in (
                None,
                [triton.InferRequestedOutput("logits", binary_data=True)],
                [triton.InferRequestedOutput("logits", binary_data=False)],
            ):
                result = client.infer(
                    "edge", sent, outputs=outputs, request_id="7", model_version="1"
                )
                got = result.as_numpy("logits")
                assert got.dtype == np.float32
                np.testing.assert_allclose(got, expected, atol=1e-5)
                response = result.get_response()
                assert response["id"] == "7"
                assert (
                    response["parameters"]["model_fingerprint"] == edge.ready["model_fingerprint"]
                )
        early = client.infer("edge", sent, parameters={"exit_threshold": 0.0}).as_numpy("logits")
        assert np.isnan(early[:, 1]).all()
        with pytest.raises(Exception, match="there is no model 'cloud'"):
            client.infer("cloud", sent)


# --- answers


def test_json_binary_and_narrow_tensors_give_the_same(edge: TierServer, engine: TierEngine) -> None:
    inputs = tokens(4, 9, 30)
    expected = engine.infer(TokenBatch.of(inputs))
    with client_of(edge) as client:
        narrowed = {name: narrow(array) for name, array in inputs.items()}
        ways = itertools.product((inputs, narrowed), (True, False), ("", "/versions/1"))
        for sent, binary, version in ways:
            answer = ask(client, sent, binary=binary, version=version)
            np.testing.assert_allclose(logits_of(answer), expected, atol=1e-5)


def test_an_early_exit_is_the_full_answer_filtered(edge: TierServer) -> None:
    inputs = tokens(*range(3, 43))
    with client_of(edge) as client:
        full = logits_of(ask(client, inputs))
        confidence = softmax(full).max(axis=2)
        threshold = float(np.median(confidence[:, 0])) + 1e-9
        for binary in (True, False):
            early = logits_of(ask(client, inputs, binary=binary, exit_threshold=threshold))
            left = confidence[:, 0] >= threshold
            assert 0 < left.sum() < len(left)
            np.testing.assert_allclose(early[:, 0], full[:, 0], atol=1e-5)
            np.testing.assert_array_equal(np.isnan(early[:, 1, 0]), left)
            np.testing.assert_allclose(early[~left, 1], full[~left, 1], atol=1e-5)


def test_every_exit_can_have_a_threshold_of_its_own(edge: TierServer) -> None:
    inputs = tokens(*range(3, 43))
    with client_of(edge) as client:
        confidence = softmax(logits_of(ask(client, inputs))).max(axis=2)
        threshold = float(np.median(confidence[:, 0])) + 1e-9
        early = logits_of(ask(client, inputs, exit_threshold=json.dumps([threshold, None])))
        np.testing.assert_array_equal(np.isnan(early[:, 1, 0]), confidence[:, 0] >= threshold)
        never = logits_of(ask(client, inputs, exit_threshold=json.dumps([None, 0.0])))
        assert not np.isnan(never).any()


# --- what is refused


def test_bad_requests_are_told_what_is_wrong(edge: TierServer) -> None:
    good = tokens(4, 6)
    wrong: list[tuple[Any, int, str]] = [
        ({"input_ids": good["input_ids"]}, 400, "attention_mask"),
        ({**good, "other": good["input_ids"]}, 400, "other"),
        ({**good, "attention_mask": good["attention_mask"][:, :3]}, 400, "attention_mask"),
        ({**good, "input_ids": good["input_ids"].astype(np.float32)}, 400, "input_ids"),
        ({name: array[0] for name, array in good.items()}, 400, "input_ids"),
        ({name: array[:0] for name, array in good.items()}, 400, "input_ids"),
        ({**good, "input_ids": good["input_ids"] + 30_000}, 400, "input_ids"),
        ({**good, "input_ids": good["input_ids"] - 30_000}, 400, "input_ids"),
        ({**good, "attention_mask": good["attention_mask"] * 2}, 400, "0..1"),
        ({**good, "attention_mask": good["attention_mask"] * 0}, 400, "row 0 of attention_mask"),
        (tokens(129), 413, "128"),
        (tokens(*[2] * 257), 413, "256"),
    ]
    with client_of(edge) as client:
        for inputs, status, told in wrong:
            response = ask(client, inputs)
            assert response.status_code == status, response.text
            assert told in response.json()["error"]
            assert response.headers["x-request-id"]
        for parameters in (
            {"exit_threshold": "x"},
            {"exit_threshold": -1},
            {"exit_threshold": "[0.5]"},
            {"exit_threshold": "[0.5, null, true]"},
            {"exit_threshold": '[0.5, null, "0.5"]'},
            {"exit_threshold": "[" * 5_000},
            {"deadline_ms": True},
        ):
            response = ask(client, good, **parameters)
            assert response.status_code == 400, response.text
            assert "must be a number" in response.json()["error"]
        infer = "/v2/models/edge/infer"
        for method, path, status in [
            ("GET", "/nowhere", 404),
            ("GET", "/v2/models/mobile", 404),
            ("GET", "/v2/models/edge/versions/2", 404),
            ("POST", "/v2/models/mobile/infer", 404),
            ("GET", infer, 405),
        ]:
            response = client.request(method, path)
            assert (response.status_code, list(response.json())) == (status, ["error"])
        assert client.post(infer, content=b"\xff\xfe").status_code == 400
        too_large = b"x" * (5 * 2**20)
        assert client.post(infer, content=too_large).status_code == 413
        chunks = (too_large[i : i + 65536] for i in range(0, len(too_large), 65536))
        assert client.post(infer, content=chunks).status_code == 413
        gzip = client.post(infer, content=b"x", headers={"Content-Encoding": "gzip"})
        assert gzip.status_code == 415
        odd = ask(client, good, headers={"x-request-id": 'a"b{}<script>' + "x" * 500})
        assert set(odd.headers["x-request-id"]) <= set("0123456789abcdef")
        assert odd.status_code == 200


def test_queue_deadline_slow_body_and_a_client_that_leaves(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"queue_requests": 2, "body_timeout_s": 1}))
    options = ("--config", str(settings), *FOR_EVER)
    with (
        tier_server("edge", tiny_bundle.folder, *options) as server,
        client_of(server) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def waiting(n: int) -> None:
            wait_for(lambda: metric(client, "dimec_queue_requests") == n, f"{n} requests wait")

        # a deadline that passes in the queue: never run
        late = ask(client, tokens(9), deadline_ms=30, headers={"x-request-id": "late"})
        assert late.status_code == 504
        assert "deadline" in late.json()["error"]
        assert ask(client, tokens(9), deadline_ms=-5).status_code == 504
        assert metric(client, "dimec_batch_rows_count") == 0
        # a client that leaves
        hasty = httpx.Client(base_url=server.url, timeout=0.2)
        with hasty, pytest.raises(httpx.TimeoutException):
            ask(hasty, tokens(9))
        waiting(0)
        wait_for(lambda: server.logged("request", status=499), "the client was seen leaving")
        # a body that never comes
        with socket.create_connection(("127.0.0.1", server.ready["port"])) as slow:
            slow.settimeout(PATIENCE_S)
            slow.sendall(
                b"POST /v2/models/edge/infer HTTP/1.1\r\nHost: a\r\nContent-Length: 99\r\n\r\n{"
            )
            assert slow.recv(65536).startswith(b"HTTP/1.1 408")
        # a full queue
        held = [pool.submit(ask, client, tokens(9)) for _ in range(2)]
        waiting(2)
        full = ask(client, tokens(9))
        assert full.status_code == 429
        assert int(full.headers["Retry-After"]) >= 1
        assert "2 requests" in full.json()["error"]
        # what waits is answered when the server stops, and does not wait for company then
        assert server.stop() == 0
        assert [response.result().status_code for response in held] == [200, 200]
        wait_for(lambda: server.logged("stopped"), "the last line of the log")
        assert server.logged("request", request_id="late", status=504, reason="deadline")


def test_an_engine_fault_is_a_500_for_its_request_alone(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    # rows longer than the position embeddings: the graph fails on them while it runs
    shutil.copytree(tiny_bundle.folder / "edge", tmp_path / "edge")
    manifest = tmp_path / "edge" / "manifest.json"
    document = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**document, "max_length": 512, "max_tokens": 512}))
    options = ("--max-wait-ms", "300", "--max-padding", "9")
    with (
        tier_server("edge", tmp_path, *options) as server,
        client_of(server) as client,
        ThreadPoolExecutor(3) as pool,
    ):
        asked = [
            pool.submit(ask, client, tokens(length), headers={"x-request-id": f"r{length}"})
            for length in (100, 200, 120)
        ]
        assert [response.result().status_code for response in asked] == [200, 500, 200]
        assert "r200" in asked[1].result().json()["error"]
        assert "Traceback" not in asked[1].result().text
        (fault,) = wait_for(lambda: server.logged("fault", request_id="r200"), "the trace")
        assert "Traceback" in fault["trace"]
        assert ask(client, tokens(8)).status_code == 200
        assert metric(client, 'dimec_rejections_total{reason="fault"}') == 1


# --- metrics, logs, pages


def test_metrics_count_what_happened(tiny_bundle: Bundle) -> None:
    with tier_server("edge", tiny_bundle.folder) as server, client_of(server) as client:
        ask(client, tokens(4, 4, 4), headers={"x-request-id": "counted"})
        ask(client, tokens(4, 4), exit_threshold=0.0)
        ask(client, {"input_ids": tokens(4)["input_ids"]})
        for name, value in {
            'dimec_responses_total{status="200"}': 2,
            'dimec_responses_total{status="400"}': 1,
            'dimec_rejections_total{reason="malformed"}': 1,
            'dimec_exits_total{layer="1"}': 2,
            'dimec_exits_total{layer="2"}': 3,
            'dimec_tokens_total{kind="real"}': 20,
            'dimec_tokens_total{kind="padding"}': 0,
            "dimec_batch_rows_sum": 5,
            "dimec_batch_requests_count": 2,
            'dimec_request_seconds_count{stage="queue"}': 2,
            'dimec_request_seconds_count{stage="compute"}': 2,
            'dimec_request_seconds_count{stage="total"}': 2,
            "dimec_queue_requests": 0,
            "dimec_requests_in_flight": 0,
            "dimec_ready": 1,
        }.items():
            assert metric(client, name) == value, name
        openmetrics = client.get("/metrics", headers={"accept": "application/openmetrics-text"})
        assert openmetrics.text.endswith("# EOF\n")
        (line,) = wait_for(lambda: server.logged("request", request_id="counted"), "the log line")
        assert (line["rows"], line["exits"], line["status"]) == (3, {"2": 3}, 200)
        assert not [line for line in server.log if line.get("path") == "/metrics"]


def test_the_openapi_document_says_what_the_server_answers(edge: TierServer) -> None:
    from jsonschema import Draft202012Validator

    with client_of(edge) as client:
        document = client.get("/openapi.json").json()

        def check(schema: dict[str, Any], body: Any) -> None:
            Draft202012Validator({**schema, "components": document["components"]}).validate(body)

        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                found = client.request(method, path.replace("{name}", "edge"))
                assert str(found.status_code) in operation["responses"], path
                assert found.status_code not in (404, 405), path
        operation = document["paths"]["/v2/models/{name}/infer"]["post"]
        headers, body = encode_request(InferRequest(tokens(3, 2)), binary=False)
        check(
            operation["requestBody"]["content"]["application/json"]["schema"],
            json.loads(body),
        )
        answers = [
            client.post("/v2/models/edge/infer", headers=headers, content=body),
            client.post("/v2/models/edge/infer", content=b"{}"),
            client.post("/v2/models/none/infer", headers=headers, content=body),
            client.post("/v2/models/edge/infer", content=b" " * (4 * 2**20 + 1)),
            client.post("/v2/models/edge/infer", headers={"content-encoding": "gzip"}, content=b""),
        ]
        assert [each.status_code for each in answers] == [200, 400, 404, 413, 415]
        for answer in answers:
            said = operation["responses"][str(answer.status_code)]
            told = document["components"]["responses"].get(str(answer.status_code), said)
            check(told["content"]["application/json"]["schema"], answer.json())
        page = client.get("/docs")
        assert "http://" not in page.text and "https://" not in page.text  # needs no other host
        assert all(path in page.text for path in document["paths"])


# --- who may ask


def test_a_token_and_tls(tiny_bundle: Bundle, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    for blob in certificate.cert_chain_pems:
        blob.write_to_path(tmp_path / "cert.pem", append=True)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    options = (
        "--tls-certificate", str(tmp_path / "cert.pem"), "--tls-key", str(tmp_path / "key.pem"),
        "--host", "0.0.0.0",
    )  # fmt: skip
    with tier_server(
        "edge", tiny_bundle.folder, *options, environment={"DIMEC_TOKEN": TOKEN}
    ) as server:
        assert server.url.startswith("https://")
        server.ready["url"] = f"https://127.0.0.1:{server.ready['port']}"
        with client_of(server, verify=trusting) as client:
            wrong: list[dict[str, Any]] = [
                {},
                {"Authorization": f"Bearer {TOKEN}x"},
                {"Authorization": f"Bearer {TOKEN[:-1]}"},
                {"Authorization": f"Basic {TOKEN}"},
                {"Authorization": TOKEN},
                {"Authorization": "Bearer x"},
                {"Authorization": b"Bearer \xff"},
            ]
            for headers in wrong:
                for path in ("/v2", "/v2/models/edge", "/metrics", "/docs", "/nowhere"):
                    response = client.get(path, headers=headers)
                    assert response.status_code == 401, (path, headers)
                    assert response.headers["WWW-Authenticate"] == "Bearer"
                assert client.post("/v2/models/edge/infer", headers=headers).status_code == 401
            assert client.get("/v2/health/live").status_code == 200
            assert client.get("/v2/health/ready").status_code == 200
            allowed = {"Authorization": f"Bearer {TOKEN}"}
            assert ask(client, tokens(5), headers=allowed).status_code == 200
            assert (
                client.get("/metrics", headers={"Authorization": f"bearer {TOKEN}"}).status_code
                == 200
            )
        with client_of(server) as stranger, pytest.raises(httpx.ConnectError, match="certificate"):
            stranger.get("/v2")
        assert TOKEN not in json.dumps(server.log)
        assert not server.logged("no TLS: what is sent, a token included, can be read on the way")
        import gevent.ssl
        import tritonclient.http as triton

        def context() -> ssl.SSLContext:
            made: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            authority.configure_trust(made)
            return made

        with triton.InferenceServerClient(
            f"127.0.0.1:{server.ready['port']}", ssl=True, ssl_context_factory=context
        ) as client_of_triton:
            metadata = client_of_triton.get_model_metadata("edge", headers=allowed)
            assert metadata["name"] == "edge"


def test_mutual_tls(tiny_bundle: Bundle, tmp_path: Path) -> None:
    authority, other = trustme.CA(), trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")

    def context(issuer: trustme.CA | None) -> ssl.SSLContext:
        made = ssl.create_default_context()
        authority.configure_trust(made)
        if issuer is not None:
            issuer.issue_cert("device@example.org").configure_cert(made)
        return made

    both = str(tmp_path / "both.pem")
    options = (
        "--tls-certificate", both, "--tls-key", both, "--tls-client-ca", str(tmp_path / "ca.pem"),
    )  # fmt: skip
    with tier_server("edge", tiny_bundle.folder, *options) as server:
        with client_of(server, verify=context(authority)) as known:
            assert ask(known, tokens(5)).status_code == 200
        for issuer in (None, other):
            with (
                client_of(server, verify=context(issuer)) as stranger,
                pytest.raises(httpx.TransportError),
            ):
                stranger.get("/v2/health/live")
        with client_of(server, verify=context(authority)) as known:
            assert known.get("/v2/health/ready").status_code == 200


# --- starting and stopping


def test_sigterm_drains(tiny_bundle: Bundle, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    options = ("--drain-grace-s", "600", "--drain-limit-s", "600", "--ready-file", str(ready_file))
    with (
        tier_server("edge", tiny_bundle.folder, *options, *FOR_EVER) as server,
        client_of(server) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        assert json.loads(ready_file.read_text())["port"] == server.ready["port"]
        held = [pool.submit(ask, client, tokens(9)) for _ in range(2)]
        wait_for(lambda: metric(client, "dimec_queue_requests") == 2, "2 requests wait")
        server.process.send_signal(signal.SIGTERM)
        assert [len(logits_of(response.result())) for response in held] == [1, 1]
        wait_for(lambda: client.get("/v2/health/ready").status_code == 503, "not ready any more")
        assert client.get("/v2/health/live").status_code == 200
        assert client.get("/v2/models/edge/ready").status_code == 503
        refused = ask(client, tokens(9))
        assert refused.status_code == 503
        assert refused.headers["connection"] == "close"
        assert "stopping" in refused.json()["error"]
        assert not ready_file.exists()
        assert server.stop() == 0  # a second signal cuts the grace short


def test_nothing_taken_is_lost_under_load(tiny_bundle: Bundle, engine: TierEngine) -> None:
    asked = [tokens(4 + i % 40, seed=i) for i in range(40)]
    expected = [engine.infer(TokenBatch.of(inputs)) for inputs in asked]
    stopping = threading.Event()
    with tier_server("edge", tiny_bundle.folder, "--drain-grace-s", "0.5") as server:

        def hammer(first: int) -> tuple[list[int], int]:
            """Ask until the server is gone; return the statuses, and how many were asked before it was told."""
            statuses: list[int] = []
            before = 0
            with client_of(server) as client:
                for number in range(first, 1_000_000):
                    told = stopping.is_set()
                    try:
                        response = ask(client, asked[number % 40])
                    except httpx.TransportError:
                        assert told  # gone: nothing listens any more
                        return statuses, before
                    if response.status_code == 200:
                        np.testing.assert_allclose(
                            logits_of(response), expected[number % 40], atol=1e-5
                        )
                    statuses.append(response.status_code)
                    before += not told
            raise AssertionError("the server never ended")

        with ThreadPoolExecutor(8) as pool:
            clients = [pool.submit(hammer, first) for first in range(8)]
            wait_for(lambda: len(server.logged("request", status=200)) > 100, "some answers")
            stopping.set()
            assert server.stop() == 0
            for client in clients:
                statuses, before = client.result()
                assert set(statuses) <= {200, 503}
                # once refused, always refused; what was asked just before may be answered or refused
                assert statuses == sorted(statuses)
                assert set(statuses[: before - 1]) <= {200}
        wait_for(lambda: server.logged("stopped"), "the last line of the log")
        assert server.logged("request", status=503, reason="draining")


def test_what_cannot_be_served_ends_with_2_and_one_sentence(
    tiny_bundle: Bundle, edge: TierServer, tmp_path: Path, here: Here
) -> None:
    bundle, unknown = tiny_bundle.folder, tmp_path / "settings.json"
    unknown.write_text('{"max_row": 5}')
    altered = shutil.copytree(bundle, tmp_path / "altered")
    graph = altered / "edge" / "segment-1.onnx"
    graph.write_bytes(graph.read_bytes()[:-1] + b"!")
    for arguments, told in [
        ((tmp_path / "nowhere", "--port", "0"), "nowhere"),
        ((altered, "--port", "0"), "segment-1.onnx"),
        ((bundle, "--port", edge.ready["port"]), "choose another --port"),
        ((bundle, "--port", "0", "--host", "0.0.0.0"), "--insecure"),
        ((bundle, "--config", unknown), "max_row"),
    ]:
        said = here("serve", "edge", *arguments, code=2)
        assert told in said.err.replace("\n", " ")
        assert said.out == ""
