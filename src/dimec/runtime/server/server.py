"""A server's life: listen, load the bundle, take requests, drain on SIGTERM, end.

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
from types import FrameType

import uvicorn
from prometheus_client import disable_created_metrics
from uvicorn.loops.auto import auto_loop_factory

from dimec.bundle.manifest import ASKED
from dimec.core.files import write_json
from dimec.core.tracing import set_up_tracing
from dimec.runtime.server.app import Service
from dimec.runtime.server.asking import AskingService
from dimec.runtime.server.logs import say, set_up_logging
from dimec.runtime.server.protocol import Connections, allow_connections
from dimec.runtime.server.settings import ServeOptions, bind, read_token, tls_context
from dimec.runtime.server.texts import TextService
from dimec.runtime.server.tier import TierService

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Ready:
    """Where a server that is ready can be asked; the tier is also the model's name."""

    url: str
    port: int
    tier: str
    model_fingerprint: str
    pid: int


def serve(settings: ServeOptions, *, announce: Callable[[Ready], None]) -> None:
    """Serve a tier, or the whole cascade, until SIGTERM or SIGINT; ``announce`` is called once it is ready.

    Raises:
        OptionError: If the address, a certificate or the token cannot be used.
        BundleError: If the bundle cannot be loaded.
    """
    set_up_logging(settings.log_level)
    if fault := set_up_tracing(f"dimec-{settings.tier}"):
        say("no traces", level=logging.WARNING, reason=fault)
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


async def _serve(settings: ServeOptions, announce: Callable[[Ready], None]) -> None:
    token = read_token(settings.token_file, os.environ)
    context = tls_context(settings)
    allow_connections(settings)
    listener = bind(settings, secured=token is not None or context is not None)
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"{'https' if context else 'http'}://{host}:{port}"
    service = _service_of(settings)(settings, token=token)
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
        try:
            fingerprint = await service.load()
            ready = Ready(url, port, settings.tier, fingerprint, os.getpid())
            say("ready", **asdict(ready))
            if settings.ready_file is not None:
                write_json(settings.ready_file, asdict(ready))
            announce(ready)
            await stop.wait()
            if settings.ready_file is not None:
                settings.ready_file.unlink(missing_ok=True)
            await _drain(settings, service, at_once)
        finally:
            http.should_exit = True
            await listening
            if service.state != "starting":
                await asyncio.to_thread(service.close, 5.0)
    say("stopped")


def _service_of(settings: ServeOptions) -> type[TextService | TierService | AskingService]:
    """Return what serves what is asked for."""
    if settings.tier == "device":
        return TextService
    asks = settings.model is not None or (settings.bundle / settings.tier / ASKED).exists()
    return AskingService if asks else TierService


async def _drain(settings: ServeOptions, service: Service, at_once: asyncio.Event) -> None:
    """Refuse new requests and answer those that were taken, within the limit."""
    service.state = "draining"
    service.hurry()
    began = time.monotonic()
    say("draining", in_flight=service.in_flight)
    while not at_once.is_set():
        limit = settings.drain_limit_s if service.in_flight else settings.drain_grace_s
        if time.monotonic() - began >= limit:
            break
        await asyncio.sleep(_POLL_S)
    if service.in_flight:
        say("drain cut short", level=logging.WARNING, in_flight=service.in_flight)
        service.refuse_waiting()


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


def _warn_of_gaps(settings: ServeOptions, *, token: str | None, tls: bool, host: str) -> None:
    """Log what does not protect a server that others can reach."""
    if host.startswith("127.") or host == "::1":
        return
    if not tls:
        say("no TLS: what is sent, a token included, can be read on the way", level=logging.WARNING)
    if token is None and settings.tls_client_ca is None:
        told = "neither token nor client certificates: whoever can connect can ask"
        say(told, level=logging.WARNING)
