"""A tier server under attack by one client: its memory, and whether good requests are still answered.

Each attack runs for `--seconds` on a plain server and on one with TLS, both with a token. Beside it one good client
sends inference requests, one after another, and another asks for health ten times a second. Shown: the server's
resident memory before and the most during the attack (Linux only), the time to a health answer (99 of 100, worst), and
how many good requests had the right logits. Attackers and server share the machine, which the times include.

    DIMEC_BUNDLE=... python benchmarks/bench_hostile.py [--seconds 60] [--only NAME]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import trustme

from dimec.runtime.wire import InferRequest, decode_response, encode_request

TOKEN = "a-token-that-nobody-guesses"
INFER = "/v2/models/edge/infer"
HEALTH = "/v2/health/live"
RSS_MIB = 64.0
"""What the goal allows memory to grow by."""
PATIENCE_S = 60.0


@dataclass
class Target:
    """A server to attack.

    Attributes:
        port: Where it listens on loopback.
        pid: Its process.
        tls: What a client trusts it by; None where it is plain.
        stop: Set when an attack is to end.
    """

    port: int
    pid: int
    tls: ssl.SSLContext | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def raw(self) -> socket.socket:
        """Connect, without a handshake."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=5)

    def connect(self) -> socket.socket:
        """Connect."""
        sock = self.raw()
        try:
            return self.tls.wrap_socket(sock, server_hostname="127.0.0.1") if self.tls else sock
        except OSError:
            sock.close()
            raise

    def client(self) -> http.client.HTTPConnection:
        """Return an HTTP client of it."""
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=PATIENCE_S, context=self.tls
        )

    def rss_mib(self) -> float:
        """Return the resident memory, NaN where the system has no /proc."""
        try:
            pages = int(Path(f"/proc/{self.pid}/statm").read_text(encoding="utf-8").split()[1])
        except OSError:
            return float("nan")
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


# --- attacks: each sends until the target says stop, and connects anew when it is cut off

Sends = Callable[[], Iterator[bytes]]


def refill(target: Target, there: int, wanted: int, *, raw: bool) -> Iterator[socket.socket]:
    """Yield new connections until there are as many as wanted, or the server takes no more."""
    for _ in range(wanted - there):
        if target.stop.is_set():
            return
        try:
            yield target.raw() if raw else target.connect()
        except OSError:
            time.sleep(0.01)
            return


def check_open(sock: socket.socket) -> None:
    """Read and drop what is there; raise if the server closed."""
    with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
        if not sock.recv(65536):
            raise ConnectionResetError


def flood(target: Target, sends: Sends, *, connections: int = 64, reads: bool = False) -> None:
    """Keep so many connections on which everything is sent as fast as it is taken."""
    open_ones: list[tuple[socket.socket, Iterator[bytes], memoryview]] = []
    while not target.stop.is_set():
        for sock in refill(target, len(open_ones), connections, raw=False):
            sock.settimeout(0)
            open_ones.append((sock, sends(), memoryview(b"")))
        moved, kept = False, []
        for sock, pieces, rest in open_ones:
            try:
                if reads:
                    check_open(sock)
                rest = rest or memoryview(next(pieces))
                rest = rest[sock.send(rest) :]
                moved = True
            except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
                pass
            except (OSError, StopIteration):
                sock.close()
                continue
            kept.append((sock, pieces, rest))
        open_ones = kept
        if not moved:
            time.sleep(0.005)
    for sock, _, _ in open_ones:
        sock.close()


def idle(
    target: Target, first: bytes, *, connections: int, drip: bytes = b"", raw: bool = False
) -> None:
    """Keep so many connections on which the beginning of something was sent, and little after it."""
    open_ones: list[socket.socket] = []
    while not target.stop.is_set():
        for sock in refill(target, len(open_ones), connections, raw=raw):
            open_ones.append(sock)
            with contextlib.suppress(OSError):
                sock.sendall(first)
        kept = []
        for sock in open_ones:
            try:
                sock.settimeout(0)
                check_open(sock)
                if drip:
                    sock.send(drip)
            except (BlockingIOError, ssl.SSLWantWriteError):
                pass
            except OSError:
                sock.close()
                continue
            kept.append(sock)
        open_ones = kept
        target.stop.wait(0.2)
    for sock in open_ones:
        sock.close()


def head(*fields: str, method: str = "POST", path: str = INFER) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: a", *fields, "", ""]).encode()


def for_ever(then: bytes, *, first: bytes = b"") -> Sends:
    def pieces() -> Iterator[bytes]:
        yield first or then
        while True:
            yield then

    return pieces


FIELD = b"X-%d: %s\r\n" % (7, b"a" * 900)
LONG = b"a" * 30_000
CHUNK = b"8000\r\n" + b"a" * 0x8000 + b"\r\n"
GET = head(method="GET", path=HEALTH)
CHUNKED = head("Transfer-Encoding: chunked")
ALLOWED = f"Authorization: Bearer {TOKEN}"
DOCS = head(ALLOWED, method="GET", path="/docs")
ALLOWED_CHUNKED = head("Transfer-Encoding: chunked", ALLOWED)
FILE = head(method="GET", path="/assets/runtime.wasm")
PREFLIGHT = head(
    "Origin: https://evil.example", "Access-Control-Request-Method: POST", method="OPTIONS"
)
MIB = 2**20


def asks_and_leaves(target: Target) -> None:
    """Ask for a large file, and leave with its first bytes."""
    while not target.stop.is_set():
        with contextlib.suppress(OSError), target.connect() as sock:
            sock.sendall(FILE)
            sock.recv(1)


def json_bodies() -> Iterator[bytes]:
    """Yield bodies near what JSON may have, each as slow to read as its kind can be."""
    tensor = b'{"inputs":[{"name":"a","datatype":"%s","shape":[1],"data":[%s1]}]}'
    kinds = (
        b'{"inputs":[%s[]]}' % (b"[]," * 20_000),
        b"[" * 60_000,
        tensor % (b"FP32", b"1," * 500_000),
        tensor % (b"FP32", b"1e9," * 240_000),
        tensor % (b"INT64", (b"9" * 4_000 + b",") * 240),
        b'{"a":"%s"}' % (b"\\u00e9" * 160_000),
        b"{%s}" % b",".join(b'"%d":0' % number for number in range(90_000)),
        b" " * (4 * MIB),
    )
    while True:
        for body in kinds:
            yield head(f"Content-Length: {len(body)}", ALLOWED) + body


ATTACKS: dict[str, Callable[[Target], None]] = {
    "pipelines, never reads": lambda t: flood(t, for_ever(GET * 200)),
    "pipelines large answers, never reads": lambda t: flood(t, for_ever(DOCS * 200)),
    "pipelines large files, never reads": lambda t: flood(t, for_ever(FILE * 200)),
    "large files, never reads": lambda t: idle(t, FILE, connections=1_000),
    "large files, reads": lambda t: flood(t, for_ever(FILE), connections=16, reads=True),
    "asks for a large file and leaves": asks_and_leaves,
    "preflights of strangers": lambda t: flood(
        t, for_ever(PREFLIGHT * 50), connections=16, reads=True
    ),
    "pipelines, reads": lambda t: flood(t, for_ever(GET * 50), connections=16, reads=True),
    "headers without end": lambda t: flood(t, for_ever(FIELD * 30, first=GET[:-2])),
    "one header without end": lambda t: flood(t, for_ever(LONG, first=GET[:-2] + b"X: ")),
    "URL without end": lambda t: flood(t, for_ever(LONG, first=b"GET /")),
    "large heads, no body": lambda t: idle(
        t,
        head(*[f"X-{n}: {'a' * 500}" for n in range(120)], "Content-Length: 9"),
        connections=1_000,
    ),
    "trailers without end": lambda t: flood(t, for_ever(FIELD * 30, first=CHUNKED + b"0\r\n")),
    "chunk extensions without end": lambda t: flood(t, for_ever(LONG, first=CHUNKED + b"1;a=")),
    "chunks of one byte": lambda t: flood(
        t, for_ever(b"1\r\nx\r\n" * 2_000, first=ALLOWED_CHUNKED), connections=16, reads=True
    ),
    "body without end": lambda t: flood(t, for_ever(CHUNK, first=ALLOWED_CHUNKED), connections=16),
    "large bodies that stop short": lambda t: idle(
        t,
        head(f"Content-Length: {4 * MIB}", ALLOWED, f"Inference-Header-Content-Length: {MIB}")
        + b"a" * (4 * MIB - 1_000),
        connections=32,
    ),
    "idle chunked bodies": lambda t: idle(t, ALLOWED_CHUNKED + b"1\r\n{\r\n", connections=64),
    "half heads": lambda t: idle(t, GET[:-4], connections=1_100),
    "half heads that drip": lambda t: idle(t, GET[:-4], connections=1_100, drip=b"a"),
    "connections that say nothing": lambda t: idle(t, b"", connections=1_100, raw=True),
    "JSON that is slow to read": lambda t: flood(t, json_bodies, connections=8, reads=True),
    "noise": lambda t: flood(
        t, lambda: iter([random.Random(1).randbytes(10_000)]), connections=16, reads=True
    ),
}


# --- what is measured beside an attack


@dataclass
class Good:
    """What the good clients saw."""

    sent: int = 0
    right: int = 0
    health_ms: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def questions() -> list[tuple[bytes, dict[str, str]]]:
    """Return the good client's requests: body and headers."""
    rng = np.random.default_rng(0)
    found = []
    for length in (4, 9, 16):
        ids = rng.integers(1_000, 20_000, (1, length))
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        fields, body = encode_request(InferRequest(inputs, binary_output=True))
        found.append((body, {**fields, "Authorization": f"Bearer {TOKEN}"}))
    return found


def good_client(target: Target, good: Good) -> None:
    """Ask for logits one after another, each on a connection that is kept as long as it can be."""
    asked = questions()
    expected: list[np.ndarray] = []
    connection = target.client()
    while not target.stop.is_set():
        number = good.sent % len(asked)
        good.sent += 1
        try:
            for last in (False, True):  # once more on a new connection, as any HTTP client does
                try:
                    connection.request("POST", INFER, *asked[number])
                    answer = connection.getresponse()
                    body = answer.read()
                    break
                except (OSError, http.client.HTTPException):
                    connection.close()
                    if last:
                        raise
            fields = {name.lower(): value for name, value in answer.getheaders()}
            logits = (
                decode_response(fields, body).outputs["logits"] if answer.status == 200 else None
            )
            if len(expected) <= number and logits is not None:
                expected.append(logits)
            if logits is not None and np.allclose(logits, expected[number], atol=1e-5):
                good.right += 1
            else:
                good.faults.append(f"{answer.status} {body[:80]!r}")
        except (OSError, http.client.HTTPException) as exc:
            good.faults.append(str(exc))
        target.stop.wait(0.01)
    connection.close()


def health_client(target: Target, good: Good) -> None:
    """Ask for health on a new connection each time, as an orchestrator does."""
    while not target.stop.is_set():
        began = time.perf_counter()
        connection = target.client()
        try:
            connection.request("GET", HEALTH)
            status = connection.getresponse().status
            if status != 200:
                good.faults.append(f"health {status}")
        except (OSError, http.client.HTTPException) as exc:
            good.faults.append(f"health: {exc}")
        connection.close()
        good.health_ms.append(1_000 * (time.perf_counter() - began))
        target.stop.wait(0.1)


@dataclass
class Outcome:
    """What an attack did."""

    before_mib: float
    most_mib: float
    grown_mib: float
    good: Good


def attack(target: Target, name: str, seconds: float) -> Outcome:
    """Run one attack beside the good clients."""
    good, before = Good(), target.rss_mib()
    target.stop.clear()
    threads = [
        threading.Thread(target=good_client, args=(target, good)),
        threading.Thread(target=health_client, args=(target, good)),
    ]
    # The attacker is a process of its own: as a thread it would slow down the clients that are measured.
    attacker = subprocess.Popen(
        [sys.executable, __file__, "--attack", name, "--port", str(target.port)]
        + (["--tls"] if target.tls else []),
        stdout=subprocess.PIPE,
    )
    assert attacker.stdout is not None
    attacker.stdout.readline()  # it begins
    for thread in threads:
        thread.start()
    most, end = before, time.monotonic() + seconds
    while time.monotonic() < end:
        most = max(most, target.rss_mib())
        time.sleep(0.05)
    target.stop.set()
    for thread in threads:
        thread.join()
    attacker.kill()
    attacker.communicate()
    return Outcome(before, most, most - before, good)


@contextlib.contextmanager
def server(bundle: Path, *options: str, tls: bool) -> Iterator[Target]:
    """Start a server that wants a token, with a site beside it that has a large file."""
    from subject import tier_server  # what trains comes with it, which no attacker should load

    with tempfile.TemporaryDirectory() as scratch:
        context, site = None, Path(scratch) / "site"
        (site / "assets").mkdir(parents=True)
        (site / "index.html").write_text("a page", encoding="utf-8")
        (site / "site.json").write_text('{"format": 1, "title": "a site"}', encoding="utf-8")
        (site / "assets" / "runtime.wasm").write_bytes(os.urandom(14 * MIB))
        options = ("--site", str(site), "--allow-origin", "https://pages.example", *options)
        if tls:
            authority = trustme.CA()
            pem = f"{scratch}/both.pem"
            authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(pem)
            context = ssl.create_default_context()
            authority.configure_trust(context)
            options = ("--tls-certificate", pem, "--tls-key", pem, *options)
        with tier_server("edge", bundle, options, token=TOKEN) as (port, pid):
            target = Target(port, pid, context)
            # What a server takes once, it takes before anything is measured.
            warm = threading.Thread(target=good_client, args=(target, Good()))
            warm.start()
            time.sleep(1)
            target.stop.set()
            warm.join()
            yield target


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--only", choices=tuple(ATTACKS))
    parser.add_argument("--attack", choices=tuple(ATTACKS), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tls", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        # An attacker trusts anybody.
        context = ssl._create_unverified_context() if given.tls else None
        print("begun", flush=True)
        ATTACKS[given.attack](Target(given.port, 0, context))
        return
    from subject import some_bundle

    with some_bundle() as bundle:
        print(
            f"{given.seconds:g} s an attack   RSS before  most  grown MiB   health p99  worst ms   good right/sent"
        )
        for tls in (False, True):
            for name in [given.only] if given.only else ATTACKS:
                with server(bundle.folder, tls=tls) as target:
                    found = attack(target, name, given.seconds)
                show(f"{'TLS' if tls else 'plain'}: {name}", found)


def show(name: str, found: Outcome) -> None:
    good = found.good
    p99, worst = np.percentile(good.health_ms, [99, 100]) if good.health_ms else (np.nan, np.nan)
    print(
        f"{name:44} {found.before_mib:6.0f} {found.most_mib:6.0f} {found.grown_mib:6.0f}     "
        f"{p99:8.0f}   {worst:8.0f}   {good.right:8}/{good.sent}",
        flush=True,
    )
    for fault in sorted(set(good.faults))[:3]:
        print(f"    {good.faults.count(fault)} times: {fault}")
    if found.grown_mib >= RSS_MIB:
        print(f"    memory grew by more than {RSS_MIB:g} MiB")


if __name__ == "__main__":
    main()
