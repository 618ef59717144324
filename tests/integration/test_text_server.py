"""The whole cascade behind one server for callers with texts: asked by clients that others wrote, and by sockets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from tests.commands import Here
from tests.servers import PATIENCE_S, TierServer, client_of, tier_server, wait_for

from dimec.bundle import Bundle
from dimec.core.errors import RefusedError
from dimec.core.tiers import Answer
from dimec.data import reviews
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.server.pool import TextPool
from dimec.runtime.server.requests import texts_of
from dimec.runtime.server.settings import ServeOptions

TOKEN = "a-token-that-nobody-guesses"
# tritonclient writes into the headers that it is given: each caller gets a copy.
BEARER = {"Authorization": f"Bearer {TOKEN}"}
TEXTS = list(reviews(40, seed=11).first)[:24]
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "serve-text.md"


@pytest.fixture(scope="module")
def edge(tiny_bundle: Bundle) -> Iterator[TierServer]:
    with tier_server("edge", tiny_bundle.folder, environment={"DIMEC_TOKEN": TOKEN}) as server:
        yield server


@pytest.fixture(scope="module")
def server(tiny_bundle: Bundle, edge: TierServer) -> Iterator[TierServer]:
    options = ("--edge", edge.url, "--body-timeout-s", "0.5", "--max-rows", "32")
    environment = {"DIMEC_TOKEN": TOKEN}
    with tier_server("device", tiny_bundle.folder, *options, environment=environment) as device:
        yield device


@pytest.fixture
def client(server: TierServer) -> Iterator[httpx.Client]:
    with client_of(server, headers=dict(BEARER)) as client:
        yield client


@pytest.fixture(scope="module")
def expected(tiny_bundle: Bundle) -> dict[str, Answer]:
    with Device(tiny_bundle, settings=DeviceSettings(threads=1)) as device:
        return dict(zip(TEXTS, device.classify(TEXTS), strict=True))


def check(scores: list[dict[str, Any]], answer: Answer) -> None:
    assert [each["score"] for each in scores] == pytest.approx(
        sorted(answer.probabilities, reverse=True), abs=1e-5
    )
    assert scores[0]["label"] == answer.label


def test_predict_is_that_of_text_embeddings_inference(
    client: httpx.Client, expected: dict[str, Answer]
) -> None:
    def predict(inputs: object, **options: bool) -> Any:
        response = client.post("/predict", json={"inputs": inputs, **options})
        assert response.status_code == 200, response.text
        return response.json()

    check(predict(TEXTS[0]), expected[TEXTS[0]])
    for inputs in (TEXTS, [[text] for text in TEXTS]):
        for scores, text in zip(predict(inputs), TEXTS, strict=True):
            check(scores, expected[text])
    raw = predict(TEXTS[0], raw_scores=True)
    check([{**each, "score": np.exp(each["score"])} for each in raw], expected[TEXTS[0]])
    assert len(predict("word " * 500)) == 2
    refused = client.post("/predict", json={"inputs": ["a", "word " * 500], "truncate": False})
    assert refused.status_code == 422
    info = client.get("/info").json()
    assert info["model_type"]["classifier"]["id2label"] == {"0": "negative", "1": "positive"}
    assert (info["max_client_batch_size"], info["max_input_length"]) == (32, 128)


def test_the_client_of_the_hub_works_unchanged(
    server: TierServer, expected: dict[str, Answer]
) -> None:
    from huggingface_hub import InferenceClient

    client = InferenceClient(base_url=server.url, token=TOKEN)
    check([dict(each) for each in client.text_classification(TEXTS[0])], expected[TEXTS[0]])
    [best] = client.text_classification(TEXTS[0], top_k=1, function_to_apply="softmax")
    assert best.label == expected[TEXTS[0]].label


@pytest.mark.parametrize("binary", [True, False])
def test_tritonclient_sends_texts(
    server: TierServer, edge: TierServer, expected: dict[str, Answer], binary: bool
) -> None:
    import tritonclient.http as triton

    texts = triton.InferInput("text", [len(TEXTS)], "BYTES")
    texts.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary)
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_server_ready() and client.is_model_ready("device", headers=dict(BEARER))
        metadata = client.get_model_metadata("device", headers=dict(BEARER))
        assert metadata["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
        names = [output["name"] for output in metadata["outputs"]]
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        found = client.infer("device", [texts], outputs=outputs, headers=dict(BEARER))
    answers = [expected[text] for text in TEXTS]
    probabilities = found.as_numpy("probabilities")
    assert probabilities == pytest.approx(np.array([a.probabilities for a in answers]), abs=1e-5)
    as_text = [str(each, "utf-8") if binary else each for each in found.as_numpy("tier")]
    assert as_text == [answer.tier for answer in answers]
    assert found.as_numpy("cost").tolist() == pytest.approx([answer.cost for answer in answers])
    with triton.InferenceServerClient(edge.address) as client:  # a tier makes token ids itself
        logits = client.infer("edge", [texts], headers=dict(BEARER)).as_numpy("logits")
    assert logits.shape == (len(TEXTS), 2, 2)
    for row, answer in zip(logits, answers, strict=True):
        if (answer.tier, answer.layer) == ("edge", 2):
            given = np.exp(row[1]) / np.exp(row[1]).sum()
            assert given == pytest.approx(np.array(answer.probabilities), abs=1e-5)


def connect(server: TierServer) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.ready["port"]), timeout=PATIENCE_S)


def head(path: str, *fields: str) -> bytes:
    lines = (f"POST {path} HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", *fields, "", "")
    return "\r\n".join(lines).encode()


def chunk(text: str) -> bytes:
    return f"{len(text.encode()):x}\r\n{text}\r\n".encode()


def read_until(sock: socket.socket, mark: bytes) -> bytes:
    found = b""
    while mark not in found:
        part = sock.recv(65536)
        assert part, found
        found += part
    return found


def test_a_stream_is_answered_while_it_is_sent(
    server: TierServer, client: httpx.Client, expected: dict[str, Answer]
) -> None:
    lines = [json.dumps(TEXTS[0]), json.dumps({"text": TEXTS[1]}), "", "[1]", '"cut']
    lines += map(json.dumps, TEXTS * 10)
    response = client.post("/stream", content="\n".join(lines))
    found = [json.loads(line) for line in response.text.splitlines()]
    assert [line["index"] for line in found] == list(range(4 + 10 * len(TEXTS)))
    assert ["error" in line for line in found[:5]] == [False, False, True, True, False]
    for line, text in zip([*found[:2], *found[4:]], TEXTS[:2] + TEXTS * 10, strict=True):
        answer = expected[text]
        assert (line["label"], line["tier"], line["layer"]) == (
            answer.label,
            answer.tier,
            answer.layer,
        )
    with connect(server) as sock:
        sock.sendall(head("/stream", f"Authorization: Bearer {TOKEN}"))
        for index in range(3):
            sock.sendall(chunk(f"{json.dumps(TEXTS[index])}\n"))
            assert b'"index": %d' % index in read_until(sock, b"}\n")
            wait_past_the_limit_of_a_body = 0.6 if index == 1 else 0
            sock.settimeout(PATIENCE_S)
            signal.sigtimedwait([], wait_past_the_limit_of_a_body)
        sock.sendall(b"0\r\n\r\n")
        read_until(sock, b"0\r\n\r\n")


def test_nothing_is_taken_before_the_token(server: TierServer) -> None:
    with client_of(server) as client:
        for path in ("/", "/predict", "/stream", "/v2/models/device/infer"):
            assert client.post(path, content=b'"a"').status_code == 401
        assert client.get("/info").status_code == 401
        assert client.get("/health").status_code == 200
    with connect(server) as sock:  # nor is there more time for a body
        sock.sendall(head("/stream") + chunk('"a"\n'))
        assert b" 401 " in read_until(sock, b"bearer token")
        while sock.recv(65536):
            pass


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/predict", b"{}", 422),
        ("/predict", b"[]", 422),
        ("/predict", b'{"inputs": []}', 422),
        ("/predict", b'{"inputs": [["a", "b"]]}', 422),
        ("/predict", b'{"inputs": "a", "raw_scores": 3}', 422),
        ("/predict", b'{"inputs": "\\ud800"}', 400),
        ("/predict", b'{"inputs": "a"', 400),
        ("/predict", json.dumps({"inputs": ["a"] * 33}).encode(), 413),
        ("/predict", b" " * (2**20 + 1), 413),
        ("/", b'{"inputs": "a", "parameters": {"top_k": 0}}', 422),
        ("/", b'{"inputs": "a", "parameters": {"function_to_apply": "sigmoid"}}', 422),
        ("/v2/models/device/infer", b'{"inputs": [{"name": "text", "datatype": "BYTES"}]}', 400),
        ("/v2/models/edge/infer", b"{}", 404),
    ],
)
def test_what_cannot_be_answered_is_told(
    client: httpx.Client, path: str, body: bytes, status: int
) -> None:
    response = client.post(path, content=body)
    assert response.status_code == status, response.text
    assert response.json()["error"] and response.json()["error_type"] in ("validation", "backend")
    assert client.get(path).status_code in (405, 404)


def test_the_openapi_document_covers_the_endpoints(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found = client.request(method, path.replace("{name}", "device"))
            assert str(found.status_code) in operation["responses"], path
            assert found.status_code not in (404, 405), path


def test_the_commands_of_the_page_run_as_written(server: TierServer) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.DOTALL | re.M)
    commands = [block for kind, block in blocks if not kind and "curl" in block]
    assert commands
    for command in commands:
        here = command.replace("http://127.0.0.1:8100", server.url)
        secured = here.replace("curl ", f"curl -sS --fail -H 'Authorization: Bearer {TOKEN}' ")
        done = subprocess.run(
            ["bash", "-c", secured], capture_output=True, text=True, timeout=PATIENCE_S
        )
        assert done.returncode == 0, (command, done.stderr)
        assert "label" in done.stdout


def test_a_lost_tier_costs_no_answer_and_stopping_ends_streams(
    tiny_bundle: Bundle, edge: TierServer, expected: dict[str, Answer]
) -> None:
    lost = ("--edge", "http://127.0.0.1:9", "--backoff-ms", "1", "--open-s", "60")
    with tier_server("device", tiny_bundle.folder, *lost) as server, client_of(server) as client:
        found = client.post("/predict", json={"inputs": TEXTS}).json()
        assert len(found) == len(TEXTS)
        metrics = client.get("/metrics").text
        wanted = sum(answer.tier == "edge" for answer in expected.values())
        degraded = re.findall(r"^dimec_device_degraded_total{.*} (.*)", metrics, re.M)
        assert sum(map(float, degraded)) == wanted > 0
        assert 'dimec_responses_total{status="200"} 1.0' in metrics
        with connect(server) as sock:
            sock.sendall(head("/stream") + chunk(f"{json.dumps(TEXTS[0])}\n"))
            read_until(sock, b"}\n")
            server.process.send_signal(signal.SIGTERM)
            assert b"stopping" in read_until(sock, b"0\r\n\r\n")
        assert server.process.wait(PATIENCE_S) == 0
    wait_for(lambda: server.logged("stopped"), "the last log line")


def test_a_full_queue_says_when_to_come_back(tiny_bundle: Bundle) -> None:
    settings = ServeOptions(
        tier="device", bundle=tiny_bundle.folder, queue_requests=2, queue_tokens=10
    )

    async def run() -> None:
        device = Device(tiny_bundle, settings=DeviceSettings(threads=1))
        pool = TextPool(device, settings=settings)
        with pool.place(1_000), pytest.raises(RefusedError) as refused, pool.place(1):
            pass
        assert (refused.value.status, refused.value.retry_after_s) == (429, 1)
        with pool.place(1), pool.place(1), pytest.raises(RefusedError), pool.place(1):
            pass
        left, answered = pool.submit(TEXTS[:2], request_id="a")
        left.cancel()
        assert (await answered).request_id == "a.1"
        assert pool.waiting_texts == 0
        [waiting] = pool.submit(TEXTS[:1], request_id="b")
        pool.refuse_waiting()
        with pytest.raises(RefusedError):
            await waiting
        await asyncio.to_thread(pool.close, PATIENCE_S)

    asyncio.run(run())


def test_inputs_of_tasks_about_pairs() -> None:
    assert texts_of(["a", "b"], pairs=True) == ([("a", "b")], True)
    assert texts_of([["a", "b"], ["c", "d"]], pairs=True) == ([("a", "b"), ("c", "d")], False)
    assert texts_of(["a", "b"], pairs=False) == (["a", "b"], False)
    wrong: object
    for wrong in ("a", ["a"], [["a"]], [["a", "b"], "c"], None, {}):
        with pytest.raises(RefusedError):
            texts_of(wrong, pairs=True)


def test_options_of_another_server_are_refused(here: Here, tmp_path: Path) -> None:
    for tier, option, value in (
        ("edge", "--cloud", "http://127.0.0.1:9"),
        ("device", "--max-padding", "1"),
    ):
        assert option in here("serve", tier, tmp_path, option, value, code=2).err
