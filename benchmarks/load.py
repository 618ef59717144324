"""A light load generator, since it shares the cores with the server that it asks.

One thread, raw keep-alive sockets, requests as byte strings; of answers only status and length are read. It runs as a
process of its own: a plan comes in on stdin, figures go out on stdout, as JSON. Closed loop: each connection sends its
next request once its last one is answered. Open loop: requests are due at the times of a Poisson process, and latency
counts from when a request was due.
"""

from __future__ import annotations

import base64
import json
import re
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)


@dataclass
class _Connection:
    sock: socket.socket
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)


def run(
    port: int,
    requests: Sequence[bytes],
    *,
    connections: int,
    seconds: float,
    warm_s: float = 1.0,
    rate: float | None = None,
) -> dict[str, Any]:
    """Ask for ``seconds`` after ``warm_s`` and return answers per second, latencies and bytes; from another process."""
    plan = {
        "port": port,
        "requests": [base64.b64encode(each).decode() for each in requests],
        "connections": connections,
        "seconds": seconds,
        "warm_s": warm_s,
        "rate": rate,
    }
    done = subprocess.run(
        [sys.executable, str(Path(__file__))],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def http(path: str, headers: dict[str, str], body: bytes, *, port: int) -> bytes:
    """Return a whole request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _generate(plan: dict[str, Any]) -> dict[str, Any]:
    requests = [base64.b64decode(each) for each in plan["requests"]]
    rate, begin = plan["rate"], time.perf_counter()
    counted_from, end = begin + plan["warm_s"], begin + plan["warm_s"] + plan["seconds"]
    arrivals: deque[float] = deque()
    if rate is not None:
        gaps = np.random.default_rng(1).exponential(1 / rate, int(1.5 * rate * (end - begin)) + 50)
        arrivals.extend((begin + np.cumsum(gaps)).tolist())
    ready, latencies, statuses = selectors.EpollSelector(), [], dict[str, int]()
    idle: list[_Connection] = []

    def connect() -> None:
        sock = socket.create_connection(("127.0.0.1", plan["port"]))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(sock)
        ready.register(sock, selectors.EVENT_READ, connection)
        idle.append(connection)

    for _ in range(plan["connections"]):
        connect()
    number = late = answered = total = 0

    def send(connection: _Connection, due: float) -> None:
        nonlocal number
        connection.due = due
        connection.sock.sendall(requests[number % len(requests)])
        number += 1

    if rate is None:
        for connection in idle:
            send(connection, time.perf_counter())
    while (now := time.perf_counter()) < end:
        wait_s = end - now
        if rate is not None:
            while idle and arrivals and arrivals[0] <= now:
                send(idle.pop(), arrivals.popleft())
            if idle and arrivals:
                wait_s = min(wait_s, arrivals[0] - now)
        for key, _ in ready.select(max(0.0, wait_s)):
            connection = key.data
            chunk = connection.sock.recv(65536)
            if not chunk:
                if connection not in idle:
                    raise SystemExit("the server closed a connection that waits for an answer")
                # The server closed an idle one after its keep-alive time: another takes its place.
                idle.remove(connection)
                ready.unregister(connection.sock)
                connection.sock.close()
                connect()
                continue
            connection.received += chunk
            status = _whole(connection.received)
            if status is None:
                continue
            connection.received.clear()
            now = time.perf_counter()
            total += 1
            if counted_from <= now < end:
                statuses[status] = statuses.get(status, 0) + 1
                if status == "200":
                    answered += 1
                    latencies.append(now - connection.due)
            if rate is None:
                send(connection, now)
            else:
                idle.append(connection)
    if rate is not None:
        late = sum(due < end for due in arrivals)
    milliseconds = 1_000 * np.array(latencies or [np.nan])
    return {
        "answers_per_s": answered / plan["seconds"],
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p95_ms": float(np.percentile(milliseconds, 95)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
        "never_sent": late,
        "statuses": statuses,
        "answers": total,
        "client_cpu_s": time.process_time(),
    }


def _whole(received: bytearray) -> str | None:
    """Return the status of an answer that is there as a whole."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(received, 0, end + 2)
    if length is None:  # chunked
        complete = received.endswith(b"0\r\n\r\n")
    else:
        complete = len(received) >= end + 4 + int(length[1])
    return received[9:12].decode() if complete else None


if __name__ == "__main__":
    print(json.dumps(_generate(json.load(sys.stdin))))
