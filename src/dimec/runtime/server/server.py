"""A tier server's life: listen, load the bundle, take requests, drain on SIGTERM, end.

It is live as soon as it listens and ready once the bundle is verified, opened and has answered a first row.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType

import numpy as np
import uvicorn
from numpy.typing import NDArray
from prometheus_client import disable_created_metrics
from uvicorn.loops.auto import auto_loop_factory

from dimec.bundle import load_tier
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.errors import OptionError
from dimec.core.files import write_json
from dimec.runtime.server.app import TierService
from dimec.runtime.server.batching import Batcher, Run
from dimec.runtime.server.logs import say, set_up_logging
from dimec.runtime.server.protocol import Connections, allow_connections
from dimec.runtime.server.requests import ServedModel
from dimec.runtime.server.scheduling import Arrays
from dimec.runtime.server.settings import ServerSettings, bind, read_token, tls_context
from dimec.runtime.wire import HIDDEN, MASK

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "openvino": "openvino_onnx"}
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a server that is ready can be asked; the tier is also the model's name."""

    url: str
    port: int
    tier: str
    model_fingerprint: str
    pid: int


def serve(settings: ServerSettings, *, announce: Callable[[Ready], None]) -> None:
    """Serve a tier until SIGTERM or SIGINT; ``announce`` is called once it is ready.

    Raises:
        OptionError: If the address, a certificate or the token cannot be used.
        BundleError: If the bundle cannot be loaded.
    """
    set_up_logging(settings.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp beside every counter, which nothing here needs
    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        runner.run(_serve(settings, announce))


class _Listener(uvicorn.Server):
    """A uvicorn server that leaves signals and connections to us."""

    def __init__(self, config: uvicorn.Config, connections: Connections) -> None:
        super().__init__(config)
        self._connections = connections

    async def on_tick(self, counter: int) -> bool:
        """End what took too long, twice a second."""
        if counter % 5 == 0:
            self._connections.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what nothing is answered on."""
        self._connections.end_handshakes()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave them: stopping begins with draining, during which requests are still answered."""
        yield


async def _serve(settings: ServerSettings, announce: Callable[[Ready], None]) -> None:
    token = read_token(settings, os.environ)
    context = tls_context(settings)
    allow_connections(settings)
    listener = bind(settings, secured=token is not None or context is not None)
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'https' if context else 'http'}://{host}:{port}"
    service = TierService(settings, token=token)
    connections = Connections(settings, tls=context)
    config = uvicorn.Config(
        service,
        http=connections.make,  # type: ignore[arg-type]  # only ever called
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
        # httpx keeps an idle connection for 5 s. Were both to close it at once, a request on its way would be reset.
        timeout_keep_alive=20,
    )
    http = _Listener(config, connections)
    with _signals() as (stop, at_once):
        say("listening", url=url, tier=settings.tier)
        _warn_of_gaps(
            settings, token=token, tls=context is not None, host=listener.getsockname()[0]
        )
        listening = asyncio.ensure_future(http.serve(sockets=[listener]))
        listening.add_done_callback(lambda done: stop.set())  # it fails: nothing to wait for
        batcher: Batcher | None = None
        try:
            model, runs = await asyncio.to_thread(_load, settings)
            batcher = Batcher(
                runs,
                settings=settings,
                padding={"input_ids": model.padding},
                report=service.metrics.batch,
            )
            service.serve(model, batcher)
            ready = Ready(url, port, settings.tier, model.fingerprint, os.getpid())
            say("ready", **asdict(ready))
            if settings.ready_file is not None:
                write_json(settings.ready_file, asdict(ready))
            announce(ready)
            await stop.wait()
            if settings.ready_file is not None:
                settings.ready_file.unlink(missing_ok=True)
            await _drain(settings, service, batcher, at_once)
        finally:
            http.should_exit = True
            await listening
            if batcher is not None:
                await asyncio.to_thread(batcher.close, 5.0)
    say("stopped")


async def _drain(
    settings: ServerSettings, service: TierService, batcher: Batcher, at_once: asyncio.Event
) -> None:
    """Refuse new requests and answer those that were taken, within the limit."""
    service.state = "draining"
    batcher.hurry()
    began = time.monotonic()
    say("draining", in_flight=service.in_flight)
    while not at_once.is_set():
        limit = settings.drain_limit_s if service.in_flight else settings.drain_grace_s
        if time.monotonic() - began >= limit:
            break
        await asyncio.sleep(_POLL_S)
    if service.in_flight:
        say("drain cut short", level=logging.WARNING, in_flight=service.in_flight)
        batcher.refuse_waiting()


@contextlib.contextmanager
def _signals() -> Iterator[tuple[asyncio.Event, asyncio.Event]]:
    """Give what SIGTERM and SIGINT set: the first signal begins to drain, the second ends that."""
    stop, at_once, loop = asyncio.Event(), asyncio.Event(), asyncio.get_running_loop()

    def take(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(lambda: (at_once if stop.is_set() else stop).set())

    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop, at_once
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _warn_of_gaps(settings: ServerSettings, *, token: str | None, tls: bool, host: str) -> None:
    """Log what does not protect a server that others can reach."""
    if host.startswith("127.") or host == "::1":
        return
    if not tls:
        say("no TLS: what is sent, a token included, can be read on the way", level=logging.WARNING)
    if token is None and settings.tls_client_ca is None:
        told = "neither token nor client certificates: whoever can connect can ask"
        say(told, level=logging.WARNING)


def _load(settings: ServerSettings) -> tuple[ServedModel, dict[int, Run]]:
    """Verify and open the tier; return it, and what runs rows by the layer that they stand at, each tried on a row."""
    tier = load_tier(settings.bundle / settings.tier)
    manifest = tier.manifest
    if manifest.tier != settings.tier:
        raise OptionError(
            f"{settings.bundle / settings.tier} holds the {manifest.tier} tier, not {settings.tier}: "
            "give the folder that `dimec export` wrote"
        )
    engine = TierEngine(tier, engine=settings.engine, threads=settings.threads, whole=True)
    tails = manifest.tails
    model = ServedModel(
        name=settings.tier,
        platform=_PLATFORMS[settings.engine],
        inputs=tuple(manifest.inputs),
        layers=tuple(engine.layers),
        label_names=tuple(manifest.label_names),
        fingerprint=manifest.model_fingerprint,
        vocabulary=manifest.n_vocabulary,
        padding=manifest.pad_id,
        max_rows=settings.max_rows,
        max_tokens=settings.queue_tokens,
        max_length=min(settings.max_length or manifest.max_length, manifest.max_length),
        tails=tails,
    )

    def run(inputs: Arrays, thresholds: NDArray[np.float64] | None) -> NDArray[np.float32]:
        return engine.infer(TokenBatch.of(inputs), thresholds=thresholds)

    def resume(
        inputs: Arrays, thresholds: NDArray[np.float64] | None, *, layer: int
    ) -> NDArray[np.float32]:
        state, mask = inputs[HIDDEN], inputs[MASK]
        code = None if tails is None else tails.code
        if code is not None:  # one token of each pool holds its numbers
            numbers = np.ascontiguousarray(state[:, :: code.pool])
            state = engine.restore(numbers, n_tokens=mask.shape[1])
        return engine.resume(
            state, mask, from_layer=layer, thresholds=thresholds, restored=code is not None
        )

    runs: dict[int, Run] = {0: run}
    first: Arrays = {
        name: np.full((1, 4), name != "token_type_ids", dtype=np.int64) for name in model.inputs
    }
    never = np.full((1, len(engine.layers)), np.inf)
    for thresholds in (None, never):  # with thresholds the engine runs the graph in pieces
        run(first, thresholds)
    if tails is not None:
        state: Arrays = {
            HIDDEN: np.zeros((1, 4, tails.width), dtype=np.float32),
            MASK: np.ones((1, 4), dtype=np.int64),
        }
        runs.update((layer, partial(resume, layer=layer)) for layer in tails.layers)
        for layer in tails.layers:
            runs[layer](state, None)
    return model, runs
