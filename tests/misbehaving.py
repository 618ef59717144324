"""Tier servers that misbehave, on real sockets: what a device must survive.

A `BadServer` speaks as much HTTP as a test lets it. `honest` answers as a tier should, from the tier's own graphs, so
that a test can spoil one thing about it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from dimec.bundle import TierBundle
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.runtime.wire import (
    CODE,
    EXIT_THRESHOLD,
    FROM_LAYER,
    HIDDEN,
    LAYERS,
    MODEL_FINGERPRINT,
    InferResponse,
    decode_request,
    decode_thresholds,
    encode_response,
)


@dataclass(frozen=True)
class Request:
    """What came in."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    number: int
    """Which request for an inference it is, from 1."""


Behaviour = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def http(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Write a response."""
    named = {"content-length": str(len(body)), **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


class BadServer:
    """A server in a thread; probes are answered well unless ``probes`` says otherwise, all with ``metadata``."""

    def __init__(
        self,
        behaviour: Behaviour,
        *,
        port: int = 0,
        probes: int = 200,
        metadata: bytes = b"{}",
    ) -> None:
        self.behaviour = behaviour
        self.probes = probes
        self.metadata = metadata
        self.requests: list[Request] = []
        self.n_probes = 0
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._main(),))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(60)
        self._loop.close()

    async def _main(self) -> None:
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._over.wait()
        server.close()
        own = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not own]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                method, path, _ = head[0].split()
                pairs = (line.partition(":") for line in head[1:] if line)
                headers = {name.lower(): value.strip() for name, _, value in pairs}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "GET":
                    self.n_probes += 1
                    writer.write(http(self.probes, self.metadata))
                else:
                    request = Request(method, path, headers, body, len(self.requests) + 1)
                    self.requests.append(request)
                    await self.behaviour(request, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass  # cancelled at the end: asyncio would report it as an error of ours
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()


@dataclass
class Honest:
    """Answer as a tier should; ``spoil`` changes the response before it is written."""

    tier: TierBundle
    spoil: Callable[[InferResponse, Request], InferResponse] = lambda response, request: response
    delay_s: Callable[[Request], float] = lambda request: 0.0
    binary: bool = True
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._engine = TierEngine(self.tier, threads=1)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        asked = decode_request(request.headers, request.body)
        thresholds = decode_thresholds(
            asked.parameters.get(EXIT_THRESHOLD), n_exits=len(self.tier.layers)
        )
        if FROM_LAYER in asked.parameters:
            mask = asked.inputs["attention_mask"].astype(np.int64)
            tails = self.tier.manifest.tails
            assert tails is not None
            if tails.code is None:
                hidden = asked.inputs[HIDDEN].astype(np.float32)
            else:
                data = asked.inputs[CODE][0].tobytes()
                hidden = self._engine.arrive(data, tails.code, n_tokens=mask.shape[1])
            logits = self._engine.resume(
                hidden,
                mask,
                from_layer=int(asked.parameters[FROM_LAYER]),
                thresholds=thresholds,
                restored=tails.code is not None,
            )
        else:
            logits = self._engine.infer(TokenBatch.of(asked.inputs), thresholds=thresholds)
        response = InferResponse(
            {"logits": logits},
            {
                MODEL_FINGERPRINT: self.tier.manifest.model_fingerprint,
                LAYERS: str(list(self.tier.layers)),
            },
            asked.id,
            str(self.tier.tier),
        )
        response = self.spoil(response, request)
        headers, body = encode_response(response, binary=["logits"] if self.binary else ())
        await asyncio.sleep(self.delay_s(request))
        writer.write(http(200, body, **headers, **self.headers))


def with_logits(change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> Any:
    """Spoil the logits."""
    return lambda response, request: replace(
        response, outputs={"logits": change(np.array(response.outputs["logits"]))}
    )


def with_parameters(**parameters: str) -> Any:
    """Spoil parameters."""
    return lambda response, request: replace(
        response, parameters={**response.parameters, **parameters}
    )


def writes(*parts: bytes, close: bool = False, pause_s: float = 0.0) -> Behaviour:
    """Write these bytes, whatever was asked."""

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if close:
            raise ConnectionResetError

    return behave


async def never(request: Request, writer: asyncio.StreamWriter) -> None:
    """Accept and never answer."""
    await asyncio.sleep(3_600)


async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
    """Write a body without end."""
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
        await writer.drain()


async def dripping(request: Request, writer: asyncio.StreamWriter) -> None:
    """Write a byte now and then, so that no wait for the next one is long."""
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
    while True:
        writer.write(b"{")
        await writer.drain()
        await asyncio.sleep(0.01)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


_TAKEN: list[socket.socket] = []
"""Ports that nobody listens on and no other server can be given."""


def dead_url() -> str:
    """Return the URL of a server that is not there, and never will be."""
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    _TAKEN.append(taken)
    return f"http://127.0.0.1:{taken.getsockname()[1]}"
