"""The tier server as an ASGI application: the endpoints of the Open Inference Protocol v2, metrics, OpenAPI.

Bodies are read here, within limits. Inference goes through the `Batcher`.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dimec.core.errors import RefusedError, WireError
from dimec.core.version import __version__
from dimec.runtime.server.batching import Batcher, Job
from dimec.runtime.server.gate import EXCHANGE, Exchange, Gate, error, fault
from dimec.runtime.server.metrics import ServerMetrics
from dimec.runtime.server.model import VERSION, ServedModel
from dimec.runtime.server.openapi import openapi, page
from dimec.runtime.server.requests import read_deadline_ms, read_rows, unpacked_bytes
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire.extensions import EXIT_THRESHOLD, LOGITS, decode_thresholds
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

_MODEL_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/infer|/ready)?")
_BODIES = 4
"""Unread bodies take at most so many times the largest one."""
_SMALL_BODY = 16 * 1024
"""A body up to this size is never turned away for want of room."""
_OFF_LOOP_BYTES = 32 * 1024
"""From this size on, bodies are read and written in a thread: the event loop must not stand still."""


class TierService:
    """The endpoints and what they share: the model once it is loaded, the queue, whether requests are taken.

    ``in_flight`` counts the inference requests that are read, queued or run.
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
        self._describe()

    def serve(self, model: ServedModel, batcher: Batcher) -> None:
        """Take requests from now on."""
        self._model, self._batcher = model, batcher
        self._parameters = model.parameters
        self._describe()
        self.metrics.watch(
            batcher, model.layers, resumed=() if model.tails is None else model.tails.layers
        )
        self.state = "ready"

    def _describe(self) -> None:
        """Write the documents once: whoever asks for them needs no token."""
        document = openapi(self.settings, self._model)
        self._document, self._page = json.dumps(document).encode(), page(document)

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
        return Response(self._document, media_type="application/json")

    async def openapi_page(self, request: Request) -> Response:
        """Describe the endpoints for people."""
        return HTMLResponse(self._page)

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
            thresholds = decode_thresholds(
                asked.parameters.get(EXIT_THRESHOLD), n_exits=len(model.layers)
            )
            job = batcher.submit(
                rows.inputs,
                thresholds=thresholds,
                deadline=exchange.arrived + min(deadline_ms, self.settings.max_deadline_ms) / 1000,
                from_layer=rows.from_layer,
            )
            logits = await _unless_left(request, batcher, job)
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
        if self.state != "ready":
            told = {
                "draining": "the server is stopping: ask another one",
                "starting": "the model is being loaded: come back in a moment",
            }
            raise RefusedError(503, self.state, told[self.state], retry_after_s=1)

    def _found(self, request: Request) -> ServedModel:
        name, version = request.path_params["name"], request.path_params["version"]
        if name != self.settings.tier or version != VERSION:
            raise RefusedError(
                404,
                "not found",
                f"there is no model {name[:100]!r} in version {version[:20]!r} here: this server has "
                f"{self.settings.tier}, version {VERSION}",
            )
        if self._model is None:
            self._refuse_unless_ready()
        assert self._model is not None
        return self._model

    async def _asked(self, request: Request) -> InferRequest:
        """Read a request; a large document while no other is read, since Python does nothing else meanwhile."""
        given = request.scope[EXCHANGE].headers.get(HEADER_LENGTH.lower().encode())
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
        patience_s = self.settings.body_timeout_s
        headers = request.scope[EXCHANGE].headers
        if headers.get(b"content-encoding", b"identity") != b"identity":
            told = "compressed bodies are not taken: send it without Content-Encoding"
            raise RefusedError(415, "compressed", told)
        hint = "" if binary else " as JSON, more with binary tensors"
        told = f"the body is too large: at most {most} bytes are taken{hint}"
        too_large = RefusedError(413, "too large", told)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(patience_s) as patience:
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
        except BaseException as exc:
            self._arrived -= len(body)
            if isinstance(exc, TimeoutError):
                told = f"the body took longer than {patience_s:g} s to arrive, or than others had room for"
                raise RefusedError(408, "slow body", told) from exc
            raise
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


async def _unless_left(request: Request, batcher: Batcher, job: Job) -> NDArray[np.float32]:
    """Return the logits of a job, unless the client leaves before they are there."""
    # Nothing more is sent: the client can only leave.
    leaving = asyncio.ensure_future(request.receive())
    leaving.add_done_callback(lambda done: job.future.cancel())
    try:
        return await batcher.answer(job)
    except asyncio.CancelledError:
        if leaving.done():
            raise ClientDisconnect from None
        raise
    finally:
        leaving.cancel()


async def _off_loop(n_bytes: int, work: Callable[[], Result]) -> Result:
    return await asyncio.to_thread(work) if n_bytes > _OFF_LOOP_BYTES else work()


class _Router:
    """Send each request to its endpoint, and turn what is raised there into an answer."""

    def __init__(self, service: TierService) -> None:
        self._service = service
        self._pages: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/v2": service.server_metadata,
            "/v2/": service.server_metadata,
            "/v2/health/live": service.live,
            "/v2/health/ready": service.ready,
            "/metrics": service.metrics_page,
            "/openapi.json": service.openapi_document,
            "/docs": service.openapi_page,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._answer(Request(scope, receive))
        except ClientDisconnect:
            raise
        except Exception as exc:
            response = _answer_to(exc, scope[EXCHANGE])
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        path, allowed = request.scope["path"], {"GET", "HEAD"}
        endpoint = self._pages.get(path)
        if endpoint is None:
            found = _MODEL_PATH.fullmatch(path)
            if found is None:
                told = f"there is nothing at {path[:100]}: see /docs"
                raise RefusedError(404, "not found", told)
            name, version, verb = found.groups()
            request.scope["path_params"] = {"name": name, "version": version or VERSION}
            if verb == "/infer":
                endpoint, allowed = self._service.infer, {"POST"}
            else:
                endpoint = self._service.model_ready if verb else self._service.model_metadata
        if request.method not in allowed:
            request.scope[EXCHANGE].fields["reason"] = "wrong method"
            told = f"{request.method} is not allowed at {path[:100]}: see /docs"
            return error(405, told, {"Allow": ", ".join(sorted(allowed))})
        return await endpoint(request)


def _answer_to(exc: Exception, exchange: Exchange) -> Response:
    if isinstance(exc, RefusedError):
        exchange.fields["reason"] = exc.reason
        headers = {} if exc.retry_after_s is None else {"Retry-After": str(exc.retry_after_s)}
        return error(exc.status, str(exc), headers)
    if isinstance(exc, WireError):
        # The message may quote what was sent, which is the caller's own: it is told, not logged.
        exchange.fields["reason"] = "malformed"
        return error(400, str(exc))
    return fault(exchange, exc)


def tier_app(service: TierService, *, token: str | None) -> ASGIApp:
    """Return the application over a service; with a token only for callers that send it."""
    return Gate(
        _Router(service),
        token=token,
        metrics=service.metrics,
        draining=lambda: service.state == "draining",
        log_requests=service.settings.log_requests,
    )
