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
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from types import FrameType

import numpy as np
import uvicorn
from numpy.typing import NDArray
from prometheus_client import disable_created_metrics

from dimec.bundle import TierBundle, load_tier
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.errors import OptionError, RefusedError
from dimec.core.files import write_json
from dimec.runtime.server.app import TierService, tier_app
from dimec.runtime.server.batching import Batcher, QueueLimits, Run
from dimec.runtime.server.logs import say, set_up_logging
from dimec.runtime.server.model import ServedModel
from dimec.runtime.server.protocol import Connections, allow_connections
from dimec.runtime.server.scheduling import Arrays, BatchLimits
from dimec.runtime.server.settings import ServerSettings, bind, read_token, tls_context
from dimec.runtime.wire.extensions import HIDDEN, MASK

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


@dataclass(frozen=True, slots=True)
class _Loaded:
    model: ServedModel
    run: Run
    resume: Mapping[int, Run]
    padding: Mapping[str, int]


def serve(settings: ServerSettings, *, announce: Callable[[Ready], None]) -> None:
    """Serve a tier until SIGTERM or SIGINT; ``announce`` is called once it is ready.

    Raises:
        OptionError: If the address, a certificate or the token cannot be used.
        BundleError: If the bundle cannot be loaded.
    """
    set_up_logging(settings.log_level)
    disable_created_metrics()  # type: ignore[no-untyped-call]  # a time stamp beside every counter, which nothing here needs
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_serve(settings, announce))


def _new_loop() -> asyncio.AbstractEventLoop:
    """Return uvloop's event loop where there is one, else Python's own."""
    try:
        import uvloop
    except ImportError:  # Windows
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


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
    service = TierService(settings)
    connections = Connections(settings, tls=context)
    config = uvicorn.Config(
        tier_app(service, token=token),
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
    with _signals() as stops:
        say("listening", url=url, tier=settings.tier)
        _warn_of_gaps(
            settings, token=token, tls=context is not None, host=listener.getsockname()[0]
        )
        listening = asyncio.ensure_future(http.serve(sockets=[listener]))
        listening.add_done_callback(lambda done: stops.first.set())  # it fails: nothing to wait for
        batcher: Batcher | None = None
        try:
            loaded = await asyncio.to_thread(_load, settings)
            batcher = _batcher(settings, service, loaded)
            service.serve(loaded.model, batcher)
            ready = Ready(url, port, settings.tier, loaded.model.fingerprint, os.getpid())
            say("ready", **asdict(ready))
            if settings.ready_file is not None:
                write_json(settings.ready_file, asdict(ready))
            announce(ready)
            await stops.first.wait()
            if settings.ready_file is not None:
                settings.ready_file.unlink(missing_ok=True)
            await _drain(settings, service, batcher, stops)
        finally:
            http.should_exit = True
            await listening
            if batcher is not None:
                await asyncio.to_thread(batcher.close, 5.0)
    say("stopped")


async def _drain(
    settings: ServerSettings, service: TierService, batcher: Batcher, stops: _Stops
) -> None:
    """Refuse new requests and answer those that were taken, within the limit."""
    service.state = "draining"
    batcher.hurry()
    began = time.monotonic()
    say("draining", in_flight=service.in_flight)
    while not stops.second.is_set():
        limit = settings.drain_limit_s if service.in_flight else settings.drain_grace_s
        if time.monotonic() - began >= limit:
            break
        await asyncio.sleep(_POLL_S)
    if service.in_flight:
        say("drain cut short", level=logging.WARNING, in_flight=service.in_flight)
        batcher.refuse_waiting(
            lambda: RefusedError(503, "draining", "the server stopped before the request was run")
        )


class _Stops:
    """Set by SIGTERM and SIGINT: the first begins to drain, the second ends that."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    def strike(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


@contextlib.contextmanager
def _signals() -> Iterator[_Stops]:
    stops, loop = _Stops(), asyncio.get_running_loop()

    def take(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stops.strike)

    before = {number: signal.signal(number, take) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stops
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


def _load(settings: ServerSettings) -> _Loaded:
    """Verify and open the tier, and run a first row."""
    tier = load_tier(settings.bundle / settings.tier)
    manifest = tier.manifest
    if manifest.tier != settings.tier:
        raise OptionError(
            f"{settings.bundle / settings.tier} holds the {manifest.tier} tier, not {settings.tier}: "
            "give the folder that `dimec export` wrote"
        )
    engine = TierEngine(tier, engine=settings.engine, threads=settings.threads, whole=True)
    model = ServedModel(
        name=settings.tier,
        platform=_PLATFORMS[settings.engine],
        inputs=tuple(manifest.inputs),
        layers=tuple(engine.layers),
        label_names=tuple(manifest.label_names),
        fingerprint=manifest.model_fingerprint,
        vocabulary=tier.manifest.n_vocabulary,
        max_length=min(settings.max_length or manifest.max_length, manifest.max_length),
        tails=manifest.tails,
    )

    def run(inputs: Arrays, thresholds: NDArray[np.float64] | None) -> NDArray[np.float32]:
        return engine.infer(TokenBatch.of(inputs), thresholds=thresholds)

    first = {
        name: np.full((1, 4), name != "token_type_ids", dtype=np.int64) for name in model.inputs
    }
    never = np.full((1, len(engine.layers)), np.inf)
    for thresholds in (None, never):  # with thresholds the engine runs the graph in pieces
        run(first, thresholds)
    return _Loaded(model, run, _tails(tier, engine), {"input_ids": manifest.pad_id})


def _tails(tier: TierBundle, engine: TierEngine) -> dict[int, Run]:
    """Return what runs on from the hidden states that the tier resumes from, each tried on a first row."""
    tails = tier.manifest.tails
    if tails is None:
        return {}
    code = tails.code

    def resume(
        inputs: Arrays, thresholds: NDArray[np.float64] | None, *, layer: int
    ) -> NDArray[np.float32]:
        state, mask = inputs[HIDDEN], inputs[MASK]
        if code is not None:  # one token of each pool holds its numbers
            numbers = np.ascontiguousarray(state[:, :: code.pool])
            state = engine.restore(numbers, n_tokens=mask.shape[1])
        return engine.resume(
            state, mask, from_layer=layer, thresholds=thresholds, restored=code is not None
        )

    found: dict[int, Run] = {layer: partial(resume, layer=layer) for layer in tails.layers}
    first: Arrays = {
        HIDDEN: np.zeros((1, 4, tails.width), dtype=np.float32),
        MASK: np.ones((1, 4), dtype=np.int64),
    }
    for each in found.values():
        each(first, None)
    return found


def _batcher(settings: ServerSettings, service: TierService, loaded: _Loaded) -> Batcher:
    wait_s = settings.max_wait_ms / 1000
    return Batcher(
        loaded.run,
        batch=BatchLimits(settings.max_batch_tokens, wait_s, settings.max_padding),
        queue=QueueLimits(settings.queue_requests, settings.queue_tokens),
        padding=loaded.padding,
        resume=loaded.resume,
        workers=settings.workers,
        report=service.metrics.batch,
    )
