"""What every server is as an ASGI application: health, metadata, metrics, OpenAPI, and bodies within limits.

Around every request stand its id, its token, its log line, and an answer whatever happens inside. What is inferred, and
by what, is a subclass's.
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
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from numpy.typing import NDArray
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from dimec.bundle.manifest import TierManifest
from dimec.core import tracing
from dimec.core.errors import RefusedError, WireError
from dimec.core.version import __version__
from dimec.runtime.server.logs import log, say
from dimec.runtime.server.metrics import RequestMetrics
from dimec.runtime.server.openapi import as_html
from dimec.runtime.server.requests import VERSION, Tensor
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.server.site import SiteFiles
from dimec.runtime.wire import (
    DEADLINE_MS,
    HEADER_LENGTH,
    LABEL_NAMES,
    InferRequest,
    InferResponse,
    Limits,
    Parameters,
    decode_request,
    encode_response,
)

if TYPE_CHECKING:
    from opentelemetry.trace import Span

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
_OPEN = {"/v2/health/live", "/v2/health/ready", "/health"}
"""Paths that need no token, since whoever restarts or balances servers has none."""
_OWN = {"/v2", "/v2/", "/metrics", "/openapi.json", "/docs", "/info", *_OPEN}
"""What every server answers itself, beside what it takes by POST and below /v2/."""
_QUIET = {*_OPEN, "/metrics"}
"""Paths that are asked so often that they are logged at debug only."""
_PREFLIGHT = b"access-control-request-method"
_OF_PREFLIGHT = {
    "access-control-allow-methods": "GET, POST",
    "access-control-allow-headers": "authorization, content-type, inference-header-content-length, x-request-id",
    "access-control-max-age": "7200",
}
_EXPOSED = b"inference-header-content-length, retry-after, x-request-id"
_ID_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_.:/+=@#")


@dataclass(slots=True)
class Exchange:
    """A request on its way through the server: who asks, since when, and what its log line will say."""

    request_id: str
    arrived: float
    headers: Mapping[bytes, bytes]
    status: int = 0
    fields: dict[str, Any] = field(default_factory=dict)
    span: Span | None = None


Handler = Callable[[Request, Exchange], Awaitable[Response]]


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
        self.drop()
        return whole

    def drop(self) -> None:
        """Keep nothing."""
        self._pieces.clear()
        self._last.clear()


class Service(ABC):
    """The endpoints of one model, whose name is the tier's.

    Attributes:
        state: Whether requests are taken; whoever has loaded the model says that it is ready.
        in_flight: How many requests are read, queued or run.
        posts: What answers a POST, by path, beside the protocol's own ``infer``.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        token: str | None,
        metrics: RequestMetrics,
        document: dict[str, Any],
    ) -> None:
        """Start without a model, described by an OpenAPI document; without a token everybody is let in."""
        self.settings = settings
        self.posts: dict[str, Handler] = {}
        self.state: Literal["starting", "ready", "draining"] = "starting"
        self.in_flight = 0
        self._expected = None if token is None else _digest(f"Bearer {token}".encode())
        self._arriving: dict[asyncio.Timeout, int] = {}  # the oldest first
        self._arrived = 0  # bytes of these, and of bodies that are whole but not decoded
        self._decoding = asyncio.Lock()
        self._origins = frozenset(origin.encode() for origin in settings.allow_origin)
        self._site: SiteFiles | None = None
        if settings.site is not None:
            self._site = SiteFiles(settings.site, taken=_is_own)
        self.limits = Limits(
            body_bytes=settings.max_body_bytes,
            json_bytes=min(settings.max_body_bytes, max(65_536, settings.max_body_bytes // 4)),
            lists=max(1024, settings.queue_tokens),
            elements=settings.max_body_bytes,
            tensors=8,
            text=8192,
            parameters=16,
        )
        metrics.ready.set_function(lambda: float(self.state == "ready"))
        metrics.in_flight.set_function(lambda: self.in_flight)
        self._requests = metrics
        self.describe(document)

    @abstractmethod
    async def load(self) -> str:
        """Load the model and take requests from now on; returns the model's fingerprint."""

    @abstractmethod
    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the model, once it is loaded."""

    @abstractmethod
    async def infer(self, request: Request, exchange: Exchange) -> Response:
        """Answer a request of the protocol for inference."""

    # What follows is called once the model is loaded.

    @abstractmethod
    def hurry(self) -> None:
        """Wait for company no longer: the server is stopping."""

    @abstractmethod
    def refuse_waiting(self) -> None:
        """Answer what has not begun to run with 503."""

    @abstractmethod
    def close(self, limit_s: float) -> None:
        """Let go of the model, waiting so long for what runs."""

    def described(
        self,
        manifest: TierManifest,
        *,
        platform: str = "dimec",
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        parameters: Parameters,
    ) -> dict[str, Any]:
        """Return the protocol's description of a model that takes and gives these tensors."""

        def named(tensors: Sequence[Tensor]) -> list[dict[str, Any]]:
            return [dict(zip(("name", "datatype", "shape"), each, strict=True)) for each in tensors]

        return {
            "name": self.settings.tier,
            "versions": [VERSION],
            "platform": platform,
            "inputs": named(inputs),
            "outputs": named(outputs),
            "parameters": {**parameters, LABEL_NAMES: json.dumps(manifest.label_names)},
        }

    def describe(self, document: dict[str, Any]) -> None:
        """Write the OpenAPI document and its page, once for all who ask."""
        self._document, self._description = json.dumps(document).encode(), as_html(document)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        exchange = Exchange(_request_id(headers.get(b"x-request-id")), time.monotonic(), headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                extra = [(b"x-request-id", exchange.request_id.encode())]
                if self._origins:
                    extra.append((b"vary", b"Origin"))
                    if (origin := headers.get(b"origin")) in self._origins:
                        extra.append((b"access-control-allow-origin", origin))
                        extra.append((b"access-control-expose-headers", _EXPOSED))
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

    async def _response(self, request: Request, exchange: Exchange) -> Response:
        """Return the answer to a request, and turn what is raised on the way into one."""
        path = request.scope["path"]
        try:
            if self._origins and request.method == "OPTIONS" and _PREFLIGHT in exchange.headers:
                return self._preflight(exchange)
            if self._site is not None and self._is_of_site(request.method, path):
                return await self._site.response(path, exchange.headers)
            if self._lets_in(path, exchange.headers):
                return await self._routed(request, path, exchange)
            exchange.fields["reason"] = "unauthorised"
            told = "a bearer token is needed: send the header Authorization: Bearer TOKEN"
            return self._error(401, told, {"WWW-Authenticate": "Bearer"})
        except ClientDisconnect:
            raise
        except RefusedError as exc:
            exchange.fields["reason"] = exc.reason
            after = {} if exc.retry_after_s is None else {"Retry-After": str(exc.retry_after_s)}
            return self._error(exc.status, str(exc), after)
        except WireError as exc:
            # The message may quote what was sent, which is the caller's own: it is told, not logged.
            exchange.fields["reason"] = "malformed"
            return self._error(400, str(exc))
        except Exception as exc:
            return self._error(500, self.fault(exc, exchange))

    def fault(self, exc: Exception, exchange: Exchange) -> str:
        """Log a fault of the server; returns what the caller is told."""
        request_id = exchange.request_id
        exchange.fields["reason"] = "fault"
        log.error("fault", exc_info=exc, extra={"fields": {"request_id": request_id}})
        return f"the server could not answer request {request_id}: its log has the reason under this id"

    def _is_of_site(self, method: str, path: str) -> bool:
        return self._site is not None and method in ("GET", "HEAD") and self._site.has(path)

    def _preflight(self, exchange: Exchange) -> Response:
        """Tell a browser, which sends no token here, whether a page may ask."""
        if exchange.headers.get(b"origin") in self._origins:
            return Response(status_code=204, headers=_OF_PREFLIGHT)
        raise RefusedError(403, "origin", "pages of this origin may not ask: see --allow-origin")

    def _lets_in(self, path: str, headers: Mapping[bytes, bytes]) -> bool:
        if self._expected is None or path in _OPEN:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length: comparing them tells nothing about the token, not even its length.
        given = _digest(scheme.title() + b" " + token.strip())
        return hmac.compare_digest(given, self._expected)

    async def _routed(self, request: Request, path: str, exchange: Exchange) -> Response:
        """Return what the endpoint of a path answers."""
        page = self.page(path, exchange)
        handler = self.posts.get(path)
        name, version, verb = "", None, None
        if page is None and handler is None:
            found = _MODEL_PATH.fullmatch(path)
            if found is None:
                told = f"there is nothing at {path[:100]}: see /docs"
                raise RefusedError(404, "not found", told)
            name, version, verb = found.groups()
            handler = self.infer if verb == "/infer" else None
        allowed = {"GET", "HEAD"} if handler is None else {"POST"}
        if request.method not in allowed:
            exchange.fields["reason"] = "wrong method"
            told = f"{request.method} is not allowed at {path[:100]}: see /docs"
            return self._error(405, told, {"Allow": ", ".join(sorted(allowed))})
        if page is not None:
            return page
        if handler is not None:
            self._refuse_unless_ready()
        if path not in self.posts:
            self._check_name(name, version)
        if handler is not None:
            self.in_flight += 1
            exchange.span = tracing.begin("serve", "SERVER", headers=exchange.headers)
            try:
                return await handler(request, exchange)
            finally:
                self.in_flight -= 1
        if self.state == "starting":
            self._refuse_unless_ready()
        if verb is None:
            return JSONResponse(self.metadata())
        ready = self.state == "ready"
        return JSONResponse({"name": name, "ready": ready}, 200 if ready else 503)

    def page(self, path: str, exchange: Exchange) -> Response | None:
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
                content, content_type = self._requests.page(accept)
                return Response(content, headers={"content-type": content_type})
            case "/openapi.json":
                return Response(self._document, media_type="application/json")
            case "/docs":
                return HTMLResponse(self._description)
        return None

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        """Count a request that is over, and log it."""
        path = scope["path"]
        reason = exchange.fields.get("reason")
        tracing.end(
            exchange.span,
            tier=self.settings.tier,
            path=path[:200],
            status=exchange.status,
            request_id=exchange.request_id,
            rows=exchange.fields.get("rows"),
            queue_ms=exchange.fields.get("queue_ms"),
            compute_ms=exchange.fields.get("compute_ms"),
            error=reason,
        )
        infers = path.endswith("/infer") or path in self.posts
        if infers and not self._is_of_site(scope["method"], path):
            self._requests.answered(exchange.status)
            if reason is not None:
                self._requests.rejections.labels(reason).inc()
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

    # --- parts of an inference

    def _refuse_unless_ready(self) -> None:
        if self.state != "ready":
            told = {
                "draining": "the server is stopping: ask another one",
                "starting": "the model is being loaded: come back in a moment",
            }
            raise RefusedError(503, self.state, told[self.state], retry_after_s=1)

    def _check_name(self, name: str, version: str | None) -> None:
        version = version or VERSION
        if name != self.settings.tier or version != VERSION:
            raise RefusedError(
                404,
                "not found",
                f"there is no model {name[:100]!r} in version {version[:20]!r} here: this server has "
                f"{self.settings.tier}, version {VERSION}",
            )

    def deadline(self, asked: InferRequest | None, exchange: Exchange) -> float:
        """Return until when a request's caller waits, in seconds of `time.monotonic`.

        Raises:
            WireError: If it says no number.
        """
        given = None if asked is None else asked.parameters.get(DEADLINE_MS)
        if isinstance(given, bool | str) or abs(given or 0) > 1e18:
            raise WireError(f"{DEADLINE_MS} is {str(given)[:40]!r}: it must be a number")
        left_ms = self.settings.default_deadline_ms if given is None else float(given)
        return exchange.arrived + min(left_ms, self.settings.max_deadline_ms) / 1000

    async def answer(
        self,
        asked: InferRequest,
        exchange: Exchange,
        outputs: Mapping[str, NDArray[Any]],
        parameters: Parameters,
    ) -> Response:
        """Return the response of the protocol that a request is answered with."""
        answer = InferResponse(
            outputs, parameters, asked.id or exchange.request_id, self.settings.tier, VERSION
        )
        binary = {name for name in outputs if asked.wants_binary(name)}
        headers, content = await off_loop(
            sum(each.nbytes for each in outputs.values()),
            lambda: encode_response(answer, binary=binary),
        )
        return Response(content, headers=headers)

    async def asked(self, request: Request, sent: Mapping[bytes, bytes]) -> InferRequest:
        """Read a request of the protocol."""
        given = sent.get(HEADER_LENGTH.lower().encode())
        headers = {} if given is None else {HEADER_LENGTH: given.decode("latin-1")}
        return await self.decoded(
            request,
            sent,
            lambda body: decode_request(headers, body, limits=self.limits),
            binary=given is not None,
        )

    async def decoded(
        self,
        request: Request,
        headers: Mapping[bytes, bytes],
        decode: Callable[[bytes], Result],
        *,
        binary: bool = False,
    ) -> Result:
        """Read a body; a large document while no other is read, since Python does nothing else meanwhile."""
        body = await self._body(request, headers, binary=binary)
        try:
            if len(body) <= _OFF_LOOP_BYTES:
                return decode(body)
            async with self._decoding:
                return await asyncio.to_thread(decode, body)
        finally:
            self._arrived -= len(body)

    async def _body(
        self, request: Request, headers: Mapping[bytes, bytes], *, binary: bool
    ) -> bytes:
        most = self.limits.body_bytes if binary else self.limits.json_bytes
        patience_s = self.settings.body_timeout_s
        if headers.get(b"content-encoding", b"identity") != b"identity":
            told = "compressed bodies are not taken: send it without Content-Encoding"
            raise RefusedError(415, "compressed", told)
        hint = "" if binary else " as JSON, more with binary tensors"
        told = f"the body is too large: at most {most} bytes are taken{hint}"
        length = headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > most):
            raise RefusedError(413, "too large", told)
        body = _Body()
        try:
            async with asyncio.timeout(patience_s) as patience:
                try:
                    async for chunk in request.stream():
                        body.take(chunk)
                        self._arrived += len(chunk)
                        if body.size > most:
                            raise RefusedError(413, "too large", told)
                        self._arriving[patience] = body.size
                        self._make_room(body.size)
                finally:
                    self._arriving.pop(patience, None)
        except BaseException as exc:
            self._arrived -= body.size
            body.drop()  # the traceback keeps it for as long as the error lives
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

    def error_document(self, status: int, message: str) -> dict[str, Any]:
        """Return an error as the protocol has it."""
        return {"error": message}

    def _error(
        self, status: int, message: str, headers: Mapping[str, str] | None = None
    ) -> Response:
        # A message that quotes half a character is still one.
        sendable = message.encode("utf-8", "replace").decode("utf-8")
        return JSONResponse(self.error_document(status, sendable), status, headers=headers)


async def unless_left(request: Request, answer: asyncio.Future[Result]) -> Result:
    """Return what a future gives, unless the client leaves before: then it is cancelled."""
    # Nothing more is sent: the client can only leave.
    leaving = asyncio.ensure_future(request.receive())
    leaving.add_done_callback(lambda done: answer.cancel())
    try:
        return await answer
    except asyncio.CancelledError:
        if leaving.done():
            raise ClientDisconnect from None
        raise
    finally:
        leaving.cancel()


async def off_loop(n_bytes: int, work: Callable[[], Result]) -> Result:
    """Do work on so many bytes, in a thread where it would hold up the event loop."""
    return await asyncio.to_thread(work) if n_bytes > _OFF_LOOP_BYTES else work()


def _is_own(path: str) -> bool:
    """Tell whether a server answers at a path itself."""
    return path in _OWN or path.startswith("/v2/")


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _request_id(given: bytes | None) -> str:
    """Return the caller's id for a request where it is short and plain, else a new one."""
    if given is not None:
        text = given.decode("latin-1")
        if 0 < len(text) <= 128 and _ID_CHARACTERS.issuperset(text):
            return text
    return uuid.uuid4().hex
