"""What a tier server makes of bytes that no client of ours would send, before any token is checked."""

from __future__ import annotations

import contextlib
import json
import resource
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from tests.servers import PATIENCE_S, TierServer, run, tier_server, wait_for

import bench_hostile
from dimec.bundle import Bundle

INFER = "/v2/models/edge/infer"
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n"
A_TENSOR = '{"name": "a", "datatype": "INT64", "shape": [1], "data": [1]}'
BODY = json.dumps(
    {
        "inputs": [
            {"name": name, "datatype": "INT64", "shape": [1, 4], "data": [1, 1, 1, 1]}
            for name in ("input_ids", "attention_mask", "token_type_ids")
        ]
    }
).encode()
SMUGGLED = b"GET /v2/smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def edge(tiny_bundle: Bundle) -> Iterator[TierServer]:
    with tier_server("edge", tiny_bundle.folder, "--log-level", "debug") as server:
        yield server


def head(*fields: str, method: str = "POST", target: str = INFER, version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a", *fields, "", ""]).encode()


def post(body: bytes, *fields: str) -> bytes:
    return head(f"Content-Length: {len(body)}", *fields) + body


def connect(server: TierServer) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", server.ready["port"]), timeout=PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def answers(sock: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """Read so many whole answers; fewer where the server closes."""
    received = b""
    found: list[tuple[int, dict[str, str], bytes]] = []
    while len(found) < count:
        top, end, rest = received.partition(b"\r\n\r\n")
        lines = top.decode("latin-1").split("\r\n")
        fields = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines[1:])}
        length = int(fields.get("content-length", "0"))
        if end and len(rest) >= length:
            received = rest[length:]
            found.append((int(lines[0].split()[1]), fields, rest[:length]))
            continue
        try:
            chunk = sock.recv(65536)
        except ConnectionResetError:
            chunk = b""
        if not chunk:
            break
        received += chunk
    return found


def told(server: TierServer, sent: bytes, *, pieces: int = 1, closes: bool = False) -> Any:
    """Send bytes, in pieces of their own if asked, and return the first answer; all there are where it must close."""
    with connect(server) as sock:
        size = -(-len(sent) // pieces)
        try:
            for first in range(0, len(sent), size):
                sock.sendall(sent[first : first + size])
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before it was all sent
        found = answers(sock, 100 if closes else 1)
        return found if closes else found[0]


# --- one request is one request


@pytest.mark.parametrize(
    "sent",
    [
        head("Content-Length: 5", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked", "Content-Length: 5") + b"0\r\n\r\n",
        head("Content-Length: 4", "Content-Length: 5") + b"abcde",
        head("Content-Length: 5", "content-length: 5") + b"abcde",
        head("Content-Length: 5, 5") + b"abcde",
        head("Content-Length: +5") + b"abcde",
        head("Content-Length: -1"),
        head("Content-Length: 0x5") + b"abcde",
        head("Content-Length: 5_0"),
        head("Content-Length: "),
        head("Content-Length: " + "9" * 30),
        head("Content-Length : 5") + b"abcde",
        head("Transfer-Encoding: chunked, identity") + b"0\r\n\r\n",
        head("Transfer-Encoding: identity, chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked", "Transfer-Encoding: identity") + b"0\r\n\r\n",
        head("Transfer-Encoding: identity"),
        head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: xchunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: \x0bchunked") + b"0\r\n\r\n",
        head("Transfer-Encoding:", " chunked") + b"0\r\n\r\n",
        head("Transfer-Encoding: chunked", version="1.0") + b"0\r\n\r\n",
        head("X: a", " folded", "Content-Length: 0"),
        head("X: a", "\tfolded"),
        head("X: a\rContent-Length: 5") + b"abcde",
        head("X: a\nContent-Length: 5") + b"abcde",
        head("X: a\0b"),
        head("X"),
        head(": a"),
        head("X y: a"),
        head("Host: b"),
        LIVE.replace(b"\r\n", b"\n"),
        LIVE.replace(b"\r\n", b"\r"),
        LIVE.replace(b"a\r\n\r\n", b"a\r\n\n"),
        LIVE.replace(b"HTTP/1.1", b"HTTP/2.0"),
        LIVE.replace(b" HTTP/1.1", b""),
        LIVE.replace(b"GET /", b"GET  /"),
        LIVE.replace(b"GET", b"get"),
        LIVE.replace(b"/live", b"/li\xffve"),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        *(
            head("Transfer-Encoding: chunked") + chunk
            for chunk in (
                b"5 \r\nabcde\r\n0\r\n\r\n",
                b" 5\r\nabcde\r\n0\r\n\r\n",
                b"+5\r\nabcde\r\n0\r\n\r\n",
                b"-5\r\nabcde\r\n0\r\n\r\n",
                b"0x5\r\nabcde\r\n0\r\n\r\n",
                b"5_0\r\nabcde\r\n0\r\n\r\n",
                b"5g\r\nabcde\r\n0\r\n\r\n",
                b"\r\nabcde\r\n0\r\n\r\n",
                b";x=1\r\nabcde\r\n0\r\n\r\n",
                b"fffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
                b"5\nabcde\n0\n\n",
                b"5;x\nabcde\r\n0\r\n\r\n",
                b"5\r\nabcdefgh\r\n0\r\n\r\n",
                b"5\r\nabcde0\r\n\r\n",
                b"5\r\nabcde\n0\r\n\r\n",
                b"0\r\nno trailer\r\n\r\n",
                b"0\r\nX: a\r\n folded\r\n\r\n",
                b"0\r\nX: a\n\r\n\r\n",
            )
        ),
    ],
)  # fmt: skip
def test_what_two_servers_could_read_differently_is_refused(edge: TierServer, sent: bytes) -> None:
    for pieces in (1, 7):
        found = told(edge, sent + SMUGGLED, pieces=pieces, closes=True)
        assert [status for status, _, _ in found] == [400]
        assert found[0][1]["connection"] == "close"
        assert json.loads(found[0][2])["error"] and found[0][1]["x-request-id"]
    assert not edge.logged("request", path="/v2/smuggled")


@pytest.mark.parametrize("protocol", ["h2c", "websocket", "TLS/1.0"])
def test_an_upgrade_is_not_taken_up(edge: TierServer, protocol: str) -> None:
    fields = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {protocol}", "HTTP2-Settings: AAMA")
    for body, status in ((BODY, 200), (SMUGGLED, 400), (b"", 400)):
        with connect(edge) as sock:
            sock.sendall(post(body, *fields) + LIVE)
            assert [each[0] for each in answers(sock, 2)] == [status, 200]
    with connect(edge) as sock:
        sock.sendall(head(*fields, method="GET", target="/v2/health/live") + LIVE)
        assert [each[0] for each in answers(sock, 2)] == [200, 200]
    assert not edge.logged("request", path="/v2/smuggled")


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_that_offers_http2_is_answered(edge: TierServer, tmp_path: Path) -> None:
    (tmp_path / "body.json").write_bytes(BODY)
    done = subprocess.run(
        ["curl", "-s", "--http2", "-w", "%{http_version} %{http_code}", "-o", str(tmp_path / "out"),
         "--data-binary", f"@{tmp_path / 'body.json'}", edge.url + INFER],
        capture_output=True, text=True, check=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.stdout in ("1.1 200", "1 200")
    assert json.loads((tmp_path / "out").read_bytes())["outputs"]


def test_a_body_is_waited_for_and_may_come_in_any_pieces(edge: TierServer) -> None:
    with connect(edge) as sock:
        sock.sendall(head(f"Content-Length: {len(BODY)}", "Expect: 100-continue"))
        assert sock.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(BODY)
        assert answers(sock, 1)[0][0] == 200
    chunks = b"".join(b'%X;name="value"\r\n%c\r\n' % (1, byte) for byte in BODY)
    chunked = head("Transfer-Encoding: Chunked") + chunks + b"000\r\nx-request-id: late\r\n\r\n"
    spaced = b"\r\n\r\n" + BODY.replace(b", ", b",\r\n\r\n") + b"\r\n\r"
    one_chunk = head("Transfer-Encoding: chunked") + b"%x\r\n%s\r\n0\r\n\r\n" % (
        len(spaced),
        spaced,
    )
    for sent in (post(BODY), chunked, one_chunk, b"\r\n" + post(BODY)):
        for pieces in (1, 2, 50, len(sent)):
            status, fields, body = told(edge, sent, pieces=pieces)
            assert (status, json.loads(body)["outputs"][0]["shape"]) == (200, [1, 2, 2])
            assert fields["x-request-id"] != "late"  # a trailer is no header


def test_pipelined_requests_are_answered_in_their_order(edge: TierServer) -> None:
    ids = [f"one-of-many-{number}" for number in range(300)]
    with connect(edge) as sock:
        sock.sendall(b"".join(post(BODY, f"x-request-id: {each}") for each in ids))
        found = answers(sock, len(ids))
    assert [status for status, _, _ in found] == [200] * len(ids)
    assert [fields["x-request-id"] for _, fields, _ in found] == ids


# --- nothing is unbounded


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (head("X: " + "a" * 70_000), 431),
        (head(*[f"X-{number}: {'a' * 600}" for number in range(120)]), 431),
        (head(*[f"X-{number}: a" for number in range(1000)]), 431),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000, 431),
        (head(target="/" + "a" * 9_000), 414),
        (b"GET /" + b"a" * 200_000, 414),
        (b"A" * 200_000, 414),
        (head("Transfer-Encoding: chunked") + b"1;" + b"a" * 9_000, 400),
        (head("Transfer-Encoding: chunked") + (b"1;" + b"a" * 900 + b"\r\nx\r\n") * 100, 400),
        (head("Transfer-Encoding: chunked") + b"0\r\n" + b"X: a\r\n" * 20_000, 400),
        (head("Transfer-Encoding: chunked") + b"0\r\nX: " + b"a" * 9_000, 400),
        (head("Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 40_000, 400),
        (head("Transfer-Encoding: chunked") + b"fffff\r\n" + b"\r\n" * 20_000, 400),
    ],
)  # fmt: skip
def test_heads_chunks_and_trailers_are_bounded(edge: TierServer, sent: bytes, status: int) -> None:
    for pieces in (1, 13):
        found = told(edge, sent, pieces=pieces, closes=True)
        assert [each[0] for each in found] == [status]
        assert json.loads(found[0][2])["error"]


@pytest.mark.parametrize(
    "sent",
    [
        head(method="GET", target="v2"),
        head(method="GET", target="http://"),
        head(method="GET", target="http://a:99999999/"),
        head(method="NONSENSE"),
        LIVE.replace(b"\r\n", b"\n"),
        b"\x16\x03\x01",
    ],
)
def test_what_is_no_http_is_told_so_as_the_protocol_has_it(edge: TierServer, sent: bytes) -> None:
    ((status, fields, body),) = told(edge, sent, closes=True)
    assert (status, fields["content-type"]) == (400, "application/json")
    assert json.loads(body)["error"]
    assert fields["x-request-id"]


def test_what_is_within_the_bounds_is_taken(edge: TierServer) -> None:
    fields = [f"X-{number}: {'a' * 500}" for number in range(120)]
    status, _, _ = told(edge, head(*fields, method="GET", target="/v2/health/live"))
    assert status == 200
    blanks = head(f"Upgrade: a{' ' * 60_000}b", method="GET", target="/v2/health/live")
    with connect(edge) as sock:
        sock.sendall(blanks * 20)  # which took 18 s each
        assert [each[0] for each in answers(sock, 20)] == [200] * 20
    target = "/v2/health/live?" + "a" * 8_000
    assert told(edge, head(method="GET", target=target))[0] == 200


@pytest.mark.parametrize(
    "document",
    [
        r'{"inputs": [{"name": "\ud800", "datatype": "INT64", "shape": [1], "data": [1]}]}',
        r'{"id": "\udfff", "inputs": [{"name": "a", "datatype": "INT64", "shape": [1], "data": [1]}]}',
        r'{"inputs": [{"name": "a", "datatype": "\udbff", "shape": [1], "data": [1]}]}',
        r'{"\ud800": 1, "inputs": []}',
        r'{"inputs": "\ud83d\ud83d"}',
        r'{"parameters": {"exit_threshold": "\ud800"}, "inputs": []}',
        r'{"parameters": {"exit_threshold": "[\"\\ud800\"]"}, "inputs": [' + A_TENSOR + "]}",
        '{"inputs": [{"name": "a", "datatype": "INT64", "shape": [%s], "data": [1]}]}' % ("9" * 4_000),
        '{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1], "data": [%s]}]}' % ("9" * 4_000),
        '{"inputs": [{"name": "a", "datatype": "FP32", "shape": [1], "data": [%s]}]}' % ("9" * 4_000),
        '{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1], "data": [%s]}]}' % ("9" * 100_000),
        '{"parameters": {"deadline_ms": ' + "9" * 4_000 + '}, "inputs": [' + A_TENSOR + "]}",
        '{"parameters": {"exit_threshold": ' + "9" * 4_000 + '}, "inputs": [' + A_TENSOR + "]}",
        "[" * 60_000,
        "[" * 500_000,
        '{"a":' * 60_000,
        '{"inputs": [%s[1]]}' % ("[]," * 300_000),
        '{"inputs": [{"name": "a", "datatype": "INT64", "shape": [1], "data": [%s1]}]}' % ("1," * 400_000),
    ],
)  # fmt: skip
def test_hostile_json_is_a_400_with_body_and_id(edge: TierServer, document: str) -> None:
    status, fields, body = told(edge, post(document.encode(), "x-request-id: mine"))
    assert status == 400
    assert json.loads(body)["error"]
    assert fields["x-request-id"] == "mine"


def test_json_is_bounded_more_narrowly_than_tensors_in_binary(edge: TierServer) -> None:
    large = b" " * (2 * 2**20) + BODY
    assert told(edge, post(large))[0] == 413
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(large), large)
    assert told(edge, head("Transfer-Encoding: chunked") + chunked)[0] == 413
    as_head = post(large, f"Inference-Header-Content-Length: {len(large)}")
    assert told(edge, as_head)[0] == 400
    padded = b" " * 300_000 + BODY
    assert told(edge, post(padded))[0] == 200


# --- files


def test_connections_beyond_the_open_files_are_refused_at_the_start(tiny_bundle: Bundle) -> None:
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, ({0}, {1}));"
    limited += "sys.argv[0] = 'dimec'; from dimec.cli import main; main()"
    arguments = ["serve", "edge", str(tiny_bundle.folder), "--port", "0"]
    done = run([sys.executable, "-c", limited.format(256, 512), *arguments])
    assert done.returncode == 2, done.stderr
    assert "max_connections" in done.stderr and "512" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_soft_limit_of_open_files_is_raised(tiny_bundle: Bundle) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("the hard limit of open files is too low here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with tier_server("edge", tiny_bundle.folder) as server:
            limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
            assert limits[0] >= 1024
            assert server.stop() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_metrics_page_is_described_as_what_it_is(edge: TierServer) -> None:
    document = json.loads(told(edge, head(method="GET", target="/openapi.json"))[2])
    media = document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]
    _, fields, _ = told(edge, head(method="GET", target="/metrics"))
    assert fields["content-type"].partition(";")[0] in media
    media = document["paths"]["/docs"]["get"]["responses"]["200"]["content"]
    assert list(media) == ["text/html"]


# --- the goal, as the benchmark measures it


ON_TLS = (
    "pipelines, never reads",
    "headers without end",
    "one header without end",
    "large heads, no body",
    "large bodies that stop short",
    "half heads",
    "connections that say nothing",
)


@pytest.fixture(scope="module")
def targets(tiny_bundle: Bundle) -> Iterator[tuple[bench_hostile.Target, bench_hostile.Target]]:
    options = ("--threads", "1", "--drain-grace-s", "0")
    with (
        bench_hostile.server(tiny_bundle.folder, *options, tls=False) as plain,
        bench_hostile.server(tiny_bundle.folder, *options, tls=True) as secured,
    ):
        yield plain, secured


@pytest.mark.parametrize(
    ("name", "tls"),
    [(name, False) for name in bench_hostile.ATTACKS] + [(name, True) for name in ON_TLS],
)
def test_an_attack_takes_no_memory_and_good_requests_are_answered(
    targets: tuple[bench_hostile.Target, bench_hostile.Target], name: str, tls: bool
) -> None:
    found = bench_hostile.attack(targets[tls], name, seconds=1.0)
    assert not found.grown_mib > bench_hostile.RSS_MIB  # unknown but on Linux
    assert found.good.sent and found.good.health_ms
    assert found.good.right == found.good.sent, found.good.faults


@pytest.mark.parametrize("tls", [False, True])
def test_a_refused_client_that_goes_on_sending_is_not_read(
    targets: tuple[bench_hostile.Target, bench_hostile.Target], tls: bool
) -> None:
    taken = 0
    with targets[tls].connect() as sock, contextlib.suppress(OSError):
        while taken < 64 * bench_hostile.MIB:  # far more than a system keeps for a reader
            taken += sock.send(b"a" * 65_536)
    assert taken < 64 * bench_hostile.MIB


COUNTS = """
import gc, sys, threading, weakref
from dimec.cli import main
from dimec.runtime.server import app, protocol
gc.disable()
made, bodies = weakref.WeakSet(), weakref.WeakSet()
make = protocol.Connections.make
def noted(self, *arguments, **named):
    connection = make(self, *arguments, **named)
    made.add(connection)
    return connection
protocol.Connections.make = noted
class Noted(app._Body):
    def __init__(self):
        super().__init__()
        bodies.add(self)
app._Body = Noted
def tell():
    for line in sys.stdin:
        held = sum(len(piece) for body in bodies for piece in [*body._pieces, body._last])
        print(len(made) + held, flush=True)
threading.Thread(target=tell, daemon=True).start()
main()
"""


@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_that_is_over_and_its_body_are_freed_at_once(
    tiny_bundle: Bundle, tmp_path: Path, tls: bool
) -> None:
    options, context = ["--port", "0", "--threads", "1", "--drain-grace-s", "0"], None
    if tls:
        authority, pem = trustme.CA(), str(tmp_path / "both.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
        context = ssl.create_default_context()
        authority.configure_trust(context)
        options += ["--tls-certificate", pem, "--tls-key", pem]
    command = [sys.executable, "-c", COUNTS, "serve", "edge", str(tiny_bundle.folder), *options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        asked, said = process.stdin, process.stdout
        assert asked is not None and said is not None
        try:
            target = bench_hostile.Target(json.loads(said.readline())["port"], process.pid, context)
            for sent in (
                LIVE,
                LIVE[:-4],
                head("Content-Length: 9"),
                head("Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 3_000,
                head("Transfer-Encoding: chunked") + (b"10000\r\n" + b"a" * 65_536 + b"\r\n") * 20,
                b"\x16\x03\x01no handshake",
            ):
                for _ in range(3):
                    with target.connect() as sock, contextlib.suppress(OSError):
                        sock.sendall(sent)
                        if sent in (LIVE, b"\x16\x03\x01no handshake"):
                            answers(sock, 1)

            def left() -> int:
                asked.write("\n")
                asked.flush()
                return int(said.readline())

            assert wait_for(lambda: left() == 0, "connections that are over")
        finally:
            process.kill()
