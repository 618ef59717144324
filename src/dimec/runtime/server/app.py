"""The tier server as an ASGI application: the endpoints of the Open Inference Protocol v2, metrics, OpenAPI.

Around every request stand its id, its token, its log line, and an answer whatever happens inside. Bodies are read
here, within limits. Inference goes through the `Batcher`.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import string
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from dimec.core.errors import RefusedError, WireError
from dimec.core.version import __version__
from dimec.runtime.server.batching import Batcher, Job
from dimec.runtime.server.logs import log, say
from dimec.runtime.server.metrics import ServerMetrics
from dimec.runtime.server.openapi import as_html, openapi
from dimec.runtime.server.requests import (
    VERSION,
    ServedModel,
    read_deadline_ms,
    read_rows,
    unpacked_bytes,
)
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import (
    EXIT_THRESHOLD,
    HEADER_LENGTH,
    LOGITS,
    MASK,
    InferRequest,
    InferResponse,
    Limits,
    Parameters,
    decode_request,
    decode_thresholds,
    encode_response,
)

Result = TypeVar("Result")

_MODEL_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(/infer|/ready)?")
_BODIES = 4
"""Unread bodies take at most so many times the largest one."""
_SMALL_BODY = 16 * 1024
"""A body up to this size is never turned away for want of room."""
_PIECE_BYTES = 64 * 1024
"""Bytes that a body is kept in pieces of while it arrives."""
_OFF_LOOP_BYTES = 32 * 1024
"""From this size on, bodies are read and written in a thread: the event loop must not stand still."""
_CLIENT_LEFT = 499
_OPEN = {"/v2/health/live", "/v2/health/ready"}
"""Paths that need no token, since whoever restarts or balances servers has none."""
_QUIET = {*_OPEN, "/metrics"}
"""Paths that are asked so often that they are logged at debug only."""
_ID_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_.:/+=@#")


@dataclass(slots=True)
class _Exchange:
    """A request on its way through the server: who asks, since when, and what its log line will say."""

    request_id: str
    arrived: float
    headers: Mapping[bytes, bytes]
    status: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


class _Body:
    """A body as it arrives, in pieces of one size.

    One buffer that grows with each chunk would be moved time and again, and leave holes in the process's memory.
    """

    def __init__(self) -> None:
        """Start without a byte."""
        self.size = 0
        self._pieces: list[bytes] = []
        self._last = bytearray()

    def take(self, chunk: bytes) -> None:
        """Add what arrived."""
        self.size += len(chunk)
        self._last += chunk
        if len(self._last) >= _PIECE_BYTES:
            self._pieces.append(bytes(self._last))
            self._last.clear()

    def whole(self) -> bytes:
        """Return all of it, and keep nothing."""
        whole = b"".join([*self._pieces, self._last])
        self._pieces.clear()
        return whole


class TierService:
    """The endpoints and what they share: the model once it is loaded, the queue, whether requests are taken.

    ``in_flight`` counts the inference requests that are read, queued or run.
    """

    def __init__(self, settings: ServerSettings, *, token: str | None) -> None:
        """Start without a model; without a token everybody is let in."""
        self.settings = settings
        self.metrics = ServerMetrics()
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.in_flight = 0
        self._expected = None if token is None else _digest(f"Bearer {token}".encode())
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
        self._document, self._description = json.dumps(document).encode(), as_html(document)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        exchange = _Exchange(_request_id(headers.get(b"x-request-id")), time.monotonic(), headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                extra = [(b"x-request-id", exchange.request_id.encode())]
                if self.state == "draining":
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            response = await self._response(Request(scope, receive), exchange)
            await response(scope, receive, answer)
        except ClientDisconnect:
            exchange.status = _CLIENT_LEFT
            exchange.fields["reason"] = "client left"
        finally:
            self._note(scope, exchange)

    async def _response(self, request: Request, exchange: _Exchange) -> Response:
        """Return the answer to a request, and turn what is raised on the way into one."""
        path = request.scope["path"]
        try:
            if self._lets_in(path, exchange.headers):
                return await self._routed(request, path, exchange)
            exchange.fields["reason"] = "unauthorised"
            told = "a bearer token is needed: send the header Authorization: Bearer TOKEN"
            return _error(401, told, {"WWW-Authenticate": "Bearer"})
        except ClientDisconnect:
            raise
        except RefusedError as exc:
            exchange.fields["reason"] = exc.reason
            after = {} if exc.retry_after_s is None else {"Retry-After": str(exc.retry_after_s)}
            return _error(exc.status, str(exc), after)
        except WireError as exc:
            # The message may quote what was sent, which is the caller's own: it is told, not logged.
            exchange.fields["reason"] = "malformed"
            return _error(400, str(exc))
        except Exception as exc:
            request_id = exchange.request_id
            exchange.fields["reason"] = "fault"
            log.error("fault", exc_info=exc, extra={"fields": {"request_id": request_id}})
            told = f"the server could not answer request {request_id}: its log has the reason under this id"
            return _error(500, told)

    def _lets_in(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        if self._expected is None or path in _OPEN:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length: comparing them tells nothing about the token, not even its length.
        given = _digest(scheme.title() + b" " + token.strip())
        return hmac.compare_digest(given, self._expected)

    async def _routed(self, request: Request, path: str, exchange: _Exchange) -> Response:
        """Return what the endpoint of a path answers."""
        page = self._page(path, exchange)
        name, version, verb = "", None, None
        if page is None:
            found = _MODEL_PATH.fullmatch(path)
            if found is None:
                told = f"there is nothing at {path[:100]}: see /docs"
                raise RefusedError(404, "not found", told)
            name, version, verb = found.groups()
        allowed = {"POST"} if verb == "/infer" else {"GET", "HEAD"}
        if request.method not in allowed:
            exchange.fields["reason"] = "wrong method"
            told = f"{request.method} is not allowed at {path[:100]}: see /docs"
            return _error(405, told, {"Allow": ", ".join(sorted(allowed))})
        if page is not None:
            return page
        if verb == "/infer":
            self._refuse_unless_ready()
            return await self._infer(request, exchange, self._found(name, version))
        model, ready = self._found(name, version), self.state == "ready"
        if verb is None:
            return JSONResponse(model.metadata())
        return JSONResponse({"name": model.name, "ready": ready}, 200 if ready else 503)

    def _page(self, path: str, exchange: _Exchange) -> Response | None:
        """Return what stands at a path that is not a model's."""
        match path:
            case "/v2" | "/v2/":
                about = {"name": "dimec", "version": __version__}
                return JSONResponse({**about, "extensions": ["binary_tensor_data"]})
            case "/v2/health/live":
                return JSONResponse({"live": True})
            case "/v2/health/ready":
                ready = self.state == "ready"
                return JSONResponse({"ready": ready, "state": self.state}, 200 if ready else 503)
            case "/metrics":
                accept = exchange.headers.get(b"accept", b"").decode("latin-1")
                content, content_type = self.metrics.page(accept)
                return Response(content, headers={"content-type": content_type})
            case "/openapi.json":
                return Response(self._document, media_type="application/json")
            case "/docs":
                return HTMLResponse(self._description)
        return None

    def _note(self, scope: Scope, exchange: _Exchange) -> None:
        """Count a request that is over, and log it."""
        path = scope["path"]
        reason = exchange.fields.get("reason")
        if path.endswith("/infer"):
            self.metrics.answered(exchange.status)
            if reason is not None:
                self.metrics.rejections.labels(reason).inc()
        if not self.settings.log_requests:
            return
        level = logging.DEBUG if path in _QUIET else logging.INFO
        if log.isEnabledFor(level):
            say(
                "request",
                level=level,
                request_id=exchange.request_id,
                method=scope["method"],
                path=path[:200],
                status=exchange.status,
                total_ms=round((time.monotonic() - exchange.arrived) * 1000, 2),
                **exchange.fields,
            )

    async def _infer(self, request: Request, exchange: _Exchange, model: ServedModel) -> Response:
        """Answer an inference request."""
        batcher = self._batcher
        assert batcher is not None
        self.in_flight += 1
        try:
            asked = await self._asked(request, exchange.headers)
            inputs, from_layer = await _off_loop(
                unpacked_bytes(asked, model), lambda: read_rows(asked, model)
            )
            n_rows, length = inputs[MASK].shape
            exchange.fields.update(rows=n_rows, length=length)
            if from_layer:
                exchange.fields["from_layer"] = from_layer
            deadline_ms = read_deadline_ms(asked)
            if deadline_ms is None:
                deadline_ms = self.settings.default_deadline_ms
            thresholds = decode_thresholds(
                asked.parameters.get(EXIT_THRESHOLD), n_exits=len(model.layers)
            )
            job = batcher.submit(
                inputs,
                thresholds=thresholds,
                deadline=exchange.arrived + min(deadline_ms, self.settings.max_deadline_ms) / 1000,
                from_layer=from_layer,
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
            if from_layer:
                self.metrics.resumed(from_layer, n_rows)
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

    def _found(self, name: str, version: str | None) -> ServedModel:
        version = version or VERSION
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

    async def _asked(self, request: Request, sent: Mapping[bytes, bytes]) -> InferRequest:
        """Read a request; a large document while no other is read, since Python does nothing else meanwhile."""
        given = sent.get(HEADER_LENGTH.lower().encode())
        headers = {} if given is None else {HEADER_LENGTH: given.decode("latin-1")}
        body = await self._body(request, sent, binary=given is not None)
        try:
            if len(body) <= _OFF_LOOP_BYTES:
                return decode_request(headers, body, limits=self._limits)
            async with self._decoding:
                return await asyncio.to_thread(decode_request, headers, body, limits=self._limits)
        finally:
            self._arrived -= len(body)

    async def _body(
        self, request: Request, headers: Mapping[bytes, bytes], *, binary: bool
    ) -> bytes:
        most = self._limits.body_bytes if binary else self._limits.json_bytes
        patience_s = self.settings.body_timeout_s
        if headers.get(b"content-encoding", b"identity") != b"identity":
            told = "compressed bodies are not taken: send it without Content-Encoding"
            raise RefusedError(415, "compressed", told)
        hint = "" if binary else " as JSON, more with binary tensors"
        told = f"the body is too large: at most {most} bytes are taken{hint}"
        too_large = RefusedError(413, "too large", told)
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise too_large
        body = _Body()
        try:
            async with asyncio.timeout(patience_s) as patience:
                try:
                    async for chunk in request.stream():
                        body.take(chunk)
                        self._arrived += len(chunk)
                        if body.size > most:
                            raise too_large
                        self._arriving[patience] = body.size
                        self._make_room(body.size)
                finally:
                    self._arriving.pop(patience, None)
        except BaseException as exc:
            self._arrived -= body.size
            if isinstance(exc, TimeoutError):
                told = f"the body took longer than {patience_s:g} s to arrive, or than others had room for"
                raise RefusedError(408, "slow body", told) from exc
            raise
        return body.whole()

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
        self, exchange: _Exchange, job: Job, model: ServedModel, logits: NDArray[np.float32]
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


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _request_id(given: bytes | None) -> str:
    """Return the caller's id for a request where it is short and plain, else a new one."""
    if given is not None:
        text = given.decode("latin-1")
        if 0 < len(text) <= 128 and _ID_CHARACTERS.issuperset(text):
            return text
    return uuid.uuid4().hex


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as the protocol has it; a message that quotes half a character is still one."""
    sendable = message.encode("utf-8", "replace").decode("utf-8")
    return JSONResponse({"error": sendable}, status, headers=headers)
