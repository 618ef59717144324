"""The tier server as an ASGI application: the endpoints of the Open Inference Protocol v2, metrics, OpenAPI.

Starlette routes and answers. Bodies are read here, within limits, and inference goes through the `Batcher`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from dimec.core.errors import RefusedError, WireError
from dimec.core.version import __version__
from dimec.runtime.server.batching import Batcher, Job
from dimec.runtime.server.gate import EXCHANGE, Exchange, Gate, error, fault
from dimec.runtime.server.metrics import ServerMetrics
from dimec.runtime.server.model import VERSION, Rows, ServedModel, read_deadline_ms
from dimec.runtime.server.openapi import openapi, page
from dimec.runtime.server.resumed import read_rows, unpacked_bytes
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire.extensions import (
    EXIT_THRESHOLD,
    LOGITS,
    decode_thresholds,
)
from dimec.runtime.wire.messages import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    Limits,
    Parameters,
    decode_request,
    encode_response,
)

Result = TypeVar("Result")

_BODIES = 4
"""What has arrived of bodies that are not read yet takes at most so many times the largest one."""
_SMALL_BODY = 16 * 1024
"""A body up to this size is never turned away for want of room."""
_HEADER_LENGTH = HEADER_LENGTH.lower().encode()
_OFF_LOOP_BYTES = 32 * 1024
"""From this size on, bodies are read and written in a thread: the event loop must not stand still."""


class TierService:
    """What the endpoints share: the model once it is loaded, the queue, and whether requests are taken.

    Attributes:
        state: ``starting`` until the model is loaded, ``draining`` once the server was told to stop.
        in_flight: Inference requests being read, queued or run.
    """

    def __init__(self, settings: ServerSettings) -> None:
        """Start without a model."""
        self.settings = settings
        self.metrics = ServerMetrics()
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.in_flight = 0
        self._arriving: dict[asyncio.Timeout, int] = {}  # the oldest first
        self._arrived = 0  # bytes of these, and of bodies that are whole but not decoded
        self._decoding = asyncio.Lock()
        self._model: ServedModel | None = None
        self._batcher: Batcher | None = None
        self._parameters: Parameters = {}
        self._limits = Limits(
            body_bytes=settings.max_body_bytes,
            json_bytes=min(settings.max_body_bytes, max(65_536, settings.max_body_bytes // 4)),
            lists=max(1024, settings.queue_tokens),
            elements=settings.max_body_bytes,
            tensors=8,
            text=8192,
            parameters=16,
        )
        self.metrics.ready.set_function(lambda: float(self.state == "ready"))
        self.metrics.in_flight.set_function(lambda: self.in_flight)

    def serve(self, model: ServedModel, batcher: Batcher) -> None:
        """Take requests from now on."""
        self._model, self._batcher = model, batcher
        self._parameters = model.parameters
        self.metrics.watch(
            batcher, model.layers, resumed=() if model.tails is None else model.tails.layers
        )
        self.state = "ready"

    @property
    def draining(self) -> bool:
        """Whether the server was told to stop."""
        return self.state == "draining"

    # --- endpoints

    async def live(self, request: Request) -> Response:
        """Say that the process answers."""
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        """Say whether inference requests are taken."""
        ready = self.state == "ready"
        return JSONResponse({"ready": ready, "state": self.state}, 200 if ready else 503)

    async def server_metadata(self, request: Request) -> Response:
        """Describe the server."""
        return JSONResponse(
            {"name": "dimec", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def model_metadata(self, request: Request) -> Response:
        """Describe the model."""
        return JSONResponse(self._found(request).metadata())

    async def model_ready(self, request: Request) -> Response:
        """Say whether the model takes requests."""
        model = self._found(request)
        ready = self.state == "ready"
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    async def metrics_page(self, request: Request) -> Response:
        """Give the counters."""
        content, content_type = self.metrics.page(request.headers.get("accept", ""))
        return Response(content, headers={"content-type": content_type})

    async def openapi_document(self, request: Request) -> Response:
        """Describe the endpoints for machines."""
        return JSONResponse(openapi(self.settings, self._model))

    async def openapi_page(self, request: Request) -> Response:
        """Describe the endpoints for people."""
        return HTMLResponse(page(openapi(self.settings, self._model)))

    async def infer(self, request: Request) -> Response:
        """Answer an inference request."""
        exchange: Exchange = request.scope[EXCHANGE]
        self._refuse_unless_ready()
        model, batcher = self._found(request), self._batcher
        assert batcher is not None
        self.in_flight += 1
        try:
            asked = await self._asked(request)
            rows = await _off_loop(
                unpacked_bytes(asked, model),
                lambda: read_rows(
                    asked,
                    model,
                    max_rows=self.settings.max_rows,
                    max_tokens=self.settings.queue_tokens,
                ),
            )
            exchange.fields.update(rows=rows.rows, length=rows.length)
            if rows.from_layer:
                exchange.fields["from_layer"] = rows.from_layer
            deadline_ms = read_deadline_ms(asked)
            if deadline_ms is None:
                deadline_ms = self.settings.default_deadline_ms
            logits, job = await self._run(
                request,
                batcher,
                rows,
                request_id=exchange.request_id,
                thresholds=decode_thresholds(
                    asked.parameters.get(EXIT_THRESHOLD), n_exits=len(model.layers)
                ),
                deadline=exchange.arrived + min(deadline_ms, self.settings.max_deadline_ms) / 1000,
            )
            answer = InferResponse(
                {LOGITS: logits},
                self._parameters,
                asked.id or exchange.request_id,
                model.name,
                VERSION,
            )
            binary = {LOGITS} if asked.wants_binary(LOGITS) else set()
            headers, content = await _off_loop(
                logits.nbytes, lambda: encode_response(answer, binary=binary)
            )
            self._count(exchange, job, model, logits)
            if rows.from_layer:
                self.metrics.resumed(rows.from_layer, rows.rows)
            return Response(content, headers=headers)
        finally:
            self.in_flight -= 1

    # --- parts of an inference

    def _refuse_unless_ready(self) -> None:
        if self.state == "draining":
            raise RefusedError(
                503, "draining", "the server is stopping: ask another one", retry_after_s=1
            )
        if self.state == "starting":
            raise RefusedError(
                503, "starting", "the model is being loaded: come back in a moment", retry_after_s=1
            )

    def _found(self, request: Request) -> ServedModel:
        name, version = request.path_params["name"], request.path_params.get("version", VERSION)
        if name != self.settings.tier or version != VERSION:
            raise HTTPException(
                404,
                f"there is no model {name[:100]!r} in version {version[:20]!r} here: this server has "
                f"{self.settings.tier}, version {VERSION}",
            )
        if self._model is None:
            self._refuse_unless_ready()
        assert self._model is not None
        return self._model

    async def _asked(self, request: Request) -> InferRequest:
        """Read a request; a large document while no other is read, since Python does nothing else meanwhile."""
        given = request.scope[EXCHANGE].headers.get(_HEADER_LENGTH)
        headers = {} if given is None else {HEADER_LENGTH: given.decode("latin-1")}
        body = await self._body(request, binary=given is not None)
        try:
            if len(body) <= _OFF_LOOP_BYTES:
                return decode_request(headers, body, limits=self._limits)
            async with self._decoding:
                return await asyncio.to_thread(decode_request, headers, body, limits=self._limits)
        finally:
            self._arrived -= len(body)

    async def _body(self, request: Request, *, binary: bool) -> bytes:
        most = self._limits.body_bytes if binary else self._limits.json_bytes
        headers = request.scope[EXCHANGE].headers
        if headers.get(b"content-encoding", b"identity") != b"identity":
            raise HTTPException(
                415, "compressed bodies are not taken: send it without Content-Encoding"
            )
        too_large = RefusedError(
            413,
            "too large",
            f"the body is too large: at most {most} bytes are taken"
            + ("" if binary else " as JSON, more with binary tensors"),
        )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise too_large
        body = bytearray()
        whole = False
        try:
            async with asyncio.timeout(self.settings.body_timeout_s) as patience:
                try:
                    async for chunk in request.stream():
                        body += chunk
                        self._arrived += len(chunk)
                        if len(body) > most:
                            raise too_large
                        self._arriving[patience] = len(body)
                        self._make_room(len(body))
                finally:
                    self._arriving.pop(patience, None)
            whole = True
        except TimeoutError as exc:
            raise RefusedError(
                408,
                "slow body",
                f"the body took longer than {self.settings.body_timeout_s:g} s to arrive, or than others had room for",
            ) from exc
        finally:
            if not whole:
                self._arrived -= len(body)
        return bytes(body)

    def _make_room(self, size: int) -> None:
        """Give up on the large body that has been arriving for longest, if bodies take too much."""
        if self._arrived <= _BODIES * self.settings.max_body_bytes or size <= _SMALL_BODY:
            return
        oldest = next((each for each, held in self._arriving.items() if held > _SMALL_BODY), None)
        if oldest is None:
            raise RefusedError(
                429, "bodies", "too many bodies are on their way: come back later", retry_after_s=1
            )
        del self._arriving[oldest]
        oldest.reschedule(0)

    async def _run(
        self,
        request: Request,
        batcher: Batcher,
        rows: Rows,
        *,
        request_id: str,
        thresholds: NDArray[np.float64] | None,
        deadline: float,
    ) -> tuple[NDArray[np.float32], Job]:
        """Run the rows, unless the client leaves before."""
        job = batcher.submit(
            rows.inputs,
            request_id=request_id,
            thresholds=thresholds,
            deadline=deadline,
            from_layer=rows.from_layer,
        )
        # Nothing more is sent: it can only leave.
        leaving = asyncio.ensure_future(request.receive())
        leaving.add_done_callback(lambda done: job.future.cancel())
        try:
            return await batcher.answer(job), job
        except asyncio.CancelledError:
            if leaving.done():
                raise ClientDisconnect from None
            raise
        finally:
            leaving.cancel()

    def _count(
        self, exchange: Exchange, job: Job, model: ServedModel, logits: NDArray[np.float32]
    ) -> None:
        started = job.started or job.arrived
        queue, compute = started - job.arrived, job.finished - started
        self.metrics.times(queue=queue, compute=compute, total=time.monotonic() - exchange.arrived)
        if job.thresholds is None:
            exits = {model.layers[-1]: len(logits)}
        else:
            exits = model.last_exits(logits)
        for layer, rows in exits.items():
            self.metrics.exits(layer, rows)
        exchange.fields.update(
            queue_ms=round(queue * 1000, 2),
            compute_ms=round(compute * 1000, 2),
            exits={str(layer): rows for layer, rows in exits.items()},
        )


async def _off_loop(n_bytes: int, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if n_bytes > _OFF_LOOP_BYTES else work()


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    reasons = {404: "not found", 405: "wrong method", 415: "compressed"}
    request.scope[EXCHANGE].fields["reason"] = reasons.get(exc.status_code, "refused")
    message = exc.detail
    if exc.status_code == 404 and message == "Not Found":
        message = f"there is nothing at {request.url.path[:100]}: see /docs"
    if exc.status_code == 405:
        message = f"{request.method} is not allowed at {request.url.path[:100]}: see /docs"
    return error(exc.status_code, message, exc.headers)


async def _refused(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RefusedError)
    request.scope[EXCHANGE].fields["reason"] = exc.reason
    headers = {} if exc.retry_after_s is None else {"Retry-After": str(exc.retry_after_s)}
    return error(exc.status, str(exc), headers)


async def _malformed(request: Request, exc: Exception) -> Response:
    # What is wrong may quote what was sent, which is the caller's own: it is told, not logged.
    request.scope[EXCHANGE].fields["reason"] = "malformed"
    return error(400, str(exc))


async def _fault(request: Request, exc: Exception) -> Response:
    return fault(request.scope[EXCHANGE], exc)


_HANDLERS: Mapping[Any, Callable[[Request, Exception], Awaitable[Response]]] = {
    HTTPException: _http_error,
    RefusedError: _refused,
    WireError: _malformed,
    Exception: _fault,
}
"""What becomes of an error, the narrower ones first."""


def tier_app(service: TierService, *, token: str | None) -> ASGIApp:
    """Return the application over a service."""
    model = "/v2/models/{name}"
    versioned = model + "/versions/{version}"
    routes = [
        Route("/v2", service.server_metadata),
        Route("/v2/", service.server_metadata),
        Route("/v2/health/live", service.live),
        Route("/v2/health/ready", service.ready),
        Route("/metrics", service.metrics_page),
        Route("/openapi.json", service.openapi_document),
        Route("/docs", service.openapi_page),
    ]
    for base in (model, versioned):
        routes += [
            Route(base + "/infer", service.infer, methods=["POST"]),
            Route(base + "/ready", service.model_ready),
            Route(base, service.model_metadata),
        ]
    app = Starlette(routes=routes, exception_handlers=_HANDLERS)
    app.router.redirect_slashes = False
    return Gate(_ShortCut(app, service), service, token=token)


class _ShortCut:
    """In front of the routes: inference by its usual path goes straight to its endpoint, at half the cost."""

    def __init__(self, app: ASGIApp, service: TierService) -> None:
        self._app = app
        self._service = service
        self._name = service.settings.tier
        self._path = f"/v2/models/{self._name}/infer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] != self._path or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["path_params"] = {"name": self._name}
        request = Request(scope, receive)
        try:
            response = await self._service.infer(request)
        except ClientDisconnect:
            raise
        except Exception as exc:
            handle = next(each for kind, each in _HANDLERS.items() if isinstance(exc, kind))
            response = await handle(request, exc)
        await response(scope, receive, send)
