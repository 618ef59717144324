"""Around every request of a tier server: its id, its token, its log line, and an answer whatever happens inside."""

from __future__ import annotations

import hashlib
import hmac
import logging
import string
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dimec.runtime.server.logs import log, say
from dimec.runtime.server.metrics import ServerMetrics

EXCHANGE = "dimec.exchange"
"""Where a request's scope holds its `Exchange`."""

_CLIENT_LEFT = 499
_OPEN = {"/v2/health/live", "/v2/health/ready"}
"""Paths that need no token, since whoever restarts or balances servers has none."""
_QUIET = {*_OPEN, "/metrics"}
"""Paths that are asked so often that they are logged at debug only."""
_ID_CHARACTERS = frozenset(string.ascii_letters + string.digits + "-_.:/+=@#")


@dataclass(slots=True)
class Exchange:
    """A request on its way through the server: who asks, since when, and what its log line will say."""

    request_id: str
    arrived: float
    headers: Mapping[bytes, bytes]
    status: int = 0
    fields: dict[str, Any] = field(default_factory=dict)


class Gate:
    """Around every request: its id, its token, its log line, and an answer whatever happens inside."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        token: str | None,
        metrics: ServerMetrics,
        draining: Callable[[], bool],
        log_requests: bool,
    ) -> None:
        """Guard an application; without a token everybody is let in."""
        self._app = app
        self._expected = None if token is None else _digest(f"Bearer {token}".encode())
        self._metrics = metrics
        self._draining = draining
        self._log_requests = log_requests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id"))
        exchange = scope[EXCHANGE] = Exchange(request_id, time.monotonic(), headers)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                extra = [(b"x-request-id", exchange.request_id.encode())]
                if self._draining():
                    extra.append((b"connection", b"close"))
                message["headers"] = [*message.get("headers", []), *extra]
            await send(message)

        try:
            if self._let_in(scope, headers):
                await self._app(scope, receive, answer)
            else:
                exchange.fields["reason"] = "unauthorised"
                told = "a bearer token is needed: send the header Authorization: Bearer TOKEN"
                await error(401, told, {"WWW-Authenticate": "Bearer"})(scope, receive, answer)
        except ClientDisconnect:
            exchange.status = _CLIENT_LEFT
            exchange.fields["reason"] = "client left"
        except Exception as exc:
            if not exchange.status:
                await fault(exchange, exc)(scope, receive, answer)
        finally:
            self._note(scope, exchange)

    def _let_in(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        if self._expected is None or scope["path"] in _OPEN:
            return True
        scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
        # Digests have one length: comparing them tells nothing about the token, not even its length.
        given = _digest(scheme.title() + b" " + token.strip())
        return hmac.compare_digest(given, self._expected)

    def _note(self, scope: Scope, exchange: Exchange) -> None:
        path = scope["path"]
        reason = exchange.fields.get("reason")
        if path.endswith("/infer"):
            self._metrics.answered(exchange.status)
            if reason is not None:
                self._metrics.rejections.labels(reason).inc()
        if not self._log_requests:
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


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def _request_id(given: bytes | None) -> str:
    """Return the caller's id for a request where it is short and plain, else a new one."""
    if given is not None:
        text = given.decode("latin-1")
        if 0 < len(text) <= 128 and _ID_CHARACTERS.issuperset(text):
            return text
    return uuid.uuid4().hex


def fault(exchange: Exchange, exc: Exception) -> Response:
    """Log what went wrong on our side, and return what the caller is told of it."""
    exchange.fields["reason"] = "fault"
    log.error("fault", exc_info=exc, extra={"fields": {"request_id": exchange.request_id}})
    told = f"the server could not answer request {exchange.request_id}: its log has the reason under this id"
    return error(500, told)


def error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as the protocol has it; a message that quotes half a character is still one."""
    sendable = message.encode("utf-8", "replace").decode("utf-8")
    return JSONResponse({"error": sendable}, status, headers=headers)
