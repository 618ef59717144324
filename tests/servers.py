"""Tier servers in processes of their own, for tests: started, found, asked and stopped like anybody would."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from dimec.runtime.wire import (
    InferRequest,
    InferResponse,
    decode_response,
    encode_request,
)
from tests.forked import SERVES, Forked

PATIENCE_S = 120.0
"""How long anything is waited for before a test fails: far more than it takes."""


@dataclass
class TierServer:
    """A running ``dimec serve``."""

    process: Forked
    ready: dict[str, Any] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return str(self.ready["url"])

    @property
    def address(self) -> str:
        return self.url.partition("://")[2]

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in list(self.log)
            if line["event"] == event
            and all(line.get(name) == value for name, value in fields.items())
        ]

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


def wait_for(holds: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds and return what it gave."""
    end = time.monotonic() + PATIENCE_S
    while not (found := holds()):
        assert time.monotonic() < end, f"{what}: not within {PATIENCE_S:g} s"
        time.sleep(0.01)
    return found


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command that is to end by itself."""
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        env={**os.environ, "COLUMNS": "400"},
    )


@contextlib.contextmanager
def tier_server(
    tier: str,
    bundle: Path,
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[TierServer]:
    """Start a server on a free port of loopback, wait until it is ready, and make sure it is gone in the end."""
    (out, says_out), (err, says_err) = os.pipe(), os.pipe()
    process = SERVES.start(
        *("serve", tier, bundle, "--port", "0", "--threads", "1"),
        *("--drain-grace-s", "0", *options),
        out=says_out,
        err=says_err,
        environment=environment,
    )
    os.close(says_out)
    os.close(says_err)
    server = TierServer(process)
    lines: queue.Queue[str | None] = queue.Queue()

    def read_stdout() -> None:
        with os.fdopen(out, encoding="utf-8") as said:
            for line in said:
                lines.put(line)
        lines.put(None)

    def read_stderr() -> None:
        with os.fdopen(err, encoding="utf-8") as said:
            for line in said:
                try:
                    server.log.append(json.loads(line))
                except ValueError:
                    server.log.append({"event": line})

    readers = [threading.Thread(target=read, daemon=True) for read in (read_stdout, read_stderr)]
    for reader in readers:
        reader.start()
    try:
        line = lines.get(timeout=PATIENCE_S)
        if line is None:
            readers[1].join(PATIENCE_S)
            raise AssertionError(f"the server ended before it was ready: {server.log}")
        server.ready = json.loads(line)
        yield server
    finally:
        process.kill()
        process.wait(PATIENCE_S)
        for reader in readers:
            reader.join(PATIENCE_S)


# --- requests


def tokens(*lengths: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Make rows of tokens, padded on the right."""
    rng = np.random.default_rng([seed, *lengths])
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = rng.integers(1000, 30_000, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def client_of(server: TierServer, **options: Any) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=PATIENCE_S, **options)


def ask(
    client: httpx.Client,
    inputs: Mapping[str, NDArray[Any]],
    *,
    binary: bool = True,
    headers: Mapping[str, str] | None = None,
    tier: str = "edge",
    version: str = "",
    **parameters: Any,
) -> httpx.Response:
    request = InferRequest(inputs, parameters, binary_output=binary)
    made, body = encode_request(request, binary=binary)
    path = f"/v2/models/{tier}{version}/infer"
    return client.post(path, content=body, headers={**made, **(headers or {})})


def read(response: httpx.Response) -> InferResponse:
    assert response.status_code == 200, response.text
    return decode_response(response.headers, response.content)


def logits_of(response: httpx.Response) -> NDArray[np.float32]:
    return read(response).outputs["logits"]


def metric(client: httpx.Client, name: str) -> float:
    page = client.get("/metrics").text
    return float(next(line.split()[-1] for line in page.splitlines() if line.startswith(name)))
