"""Between a socket and the HTTP parser: bounds on memory, time and the number of connections.

A `Connection` hands the parser one request at a time: a whole head that was checked, then its body as it comes, of
which the parser says where it ends. What lies behind that request waits in the socket. `Connections` bounds how many
there are and what they hold, ends those whose time is up, and lets the oldest give way to a newcomer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from enum import Enum, auto
from http import HTTPStatus
from itertools import chain
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from dimec.core.errors import OptionError, RefusedError
from dimec.runtime.server.framing import no_http, take_head
from dimec.runtime.server.logs import say
from dimec.runtime.server.settings import ServerSettings

HEAD_S = 10.0
"""How long a TLS handshake may take, a head, and a client to take what it is sent."""
_LARGE_HEAD = 8 * 1024
"""Heads with more bytes wait for each other: a turn of the loop reads one of them, and whatever is small."""
_LINGER_S = 2.0
"""How long a refused client is kept before it is cut off: cut off at once it would not see the answer."""
_LINGER_BYTES = 256 * 1024
"""What it may go on sending meanwhile."""
_MOST_HELD = 16 * 2**20
"""Bytes that all connections hold before they are requests; beyond it the oldest gives way."""
_PARSED = 3
"""Memory of a parsed head, in multiples of its size."""
_SECURED = 6
"""Memory of TLS, in multiples of the most that came at once, as long as the connection lasts."""
_MOST_WRITTEN = 16 * 1024
"""Bytes that wait for a client to read them before its next request waits too."""
_UNREAD = 48 * 1024
"""Memory of a connection whose client does not read what it is sent; on TLS twice that."""
_RESERVE = 16
"""Connections beyond the most that there may be: they are refused, or asked how the server is."""
_OWN_FILES = 64
"""Files that the server needs besides connections."""
_MOST_FRAMING = 8 * 1024
"""Bytes that frame a chunked body, trailers included, beyond those of its data: each chunk costs Python's time."""
_PIECE = 16
"""What an empty line in such a body costs besides, as if these were bytes that frame it: a piece ends with each."""
_EMPTY_LINE = b"\r\n\r\n"
_HEALTH = (b"/v2/health/live", b"/v2/health/ready", b"/health")

UNHURRIED = "dimec.unhurried"
"""In the scope: what an application calls whose answer begins before the body is whole, which then takes its time."""

_READ = 32 * 1024
"""Bytes that are read at once: what lies behind a request in the same read has to be kept."""


def allow_connections(settings: ServerSettings) -> None:
    """Raise the number of files that this process may open to what its connections need.

    Raises:
        OptionError: If the system does not allow so many.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = settings.max_connections + _RESERVE + _OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (OSError, ValueError) as exc:
        raise OptionError(
            f"max_connections {settings.max_connections} needs {needed} open files and this process may have {hard}: "
            f"give at most {hard - _RESERVE - _OWN_FILES}, or raise the limit (ulimit -n)"
        ) from exc


class Connections:
    """All connections of a server, and the bounds on what they hold together."""

    def __init__(self, settings: ServerSettings, *, tls: ssl.SSLContext | None) -> None:
        """Start with none; with a context each begins with a TLS handshake."""
        self.tls = tls
        self.body_s = settings.body_timeout_s
        # One buffer suffices: what was read into it is taken out before anything else is read.
        self.buffer = memoryview(bytearray(_READ))
        self._most = settings.max_connections
        # By when each began what it is at, the oldest first: those that never sent a whole request, and the others.
        self._new: dict[Connection, None] = {}
        self._known: dict[Connection, None] = {}
        self._large: dict[Connection, None] = {}  # those whose large heads wait to be read
        self._turn_planned = False
        self._held = 0

    def make(self, *arguments: Any, **named: Any) -> Connection:  # noqa: ANN401  of uvicorn
        """Return what handles the next connection, as uvicorn asks for it."""
        return Connection(self, _Parser(*arguments, **named))

    def admit(self, connection: Connection) -> bool:
        """Take a connection in, in place of the oldest one that waits for its client where there are too many."""
        n_open = len(self._new) + len(self._known)
        if n_open >= self._most:
            oldest = next((each for each in self._in_order() if each.waits_for_client), None)
            if oldest is not None:
                oldest.abort()
            elif n_open >= self._most + _RESERVE:
                return False
            else:
                connection.spare = True
        self._new[connection] = None
        return True

    def renew(self, connection: Connection) -> None:
        """Note that a connection begins something; one that is gone stays so."""
        if connection in self._new or connection in self._known:
            self._discard(connection)
            (self._known if connection.served else self._new)[connection] = None

    def charge(self, connection: Connection, held: int) -> None:
        """Note what a connection holds now."""
        self._held += held - connection.held
        connection.held = held
        if self._held > _MOST_HELD:
            self._make_room()

    def queue(self, connection: Connection) -> None:
        """Let a connection go on when those that wait have, one in each turn of the loop."""
        self._large[connection] = None
        self._plan_turn()

    def _plan_turn(self) -> None:
        if self._large and not self._turn_planned:
            self._turn_planned = True
            asyncio.get_running_loop().call_soon(self._take_turn)

    def _take_turn(self) -> None:
        self._turn_planned = False
        if self._large:
            connection = next(iter(self._large))
            del self._large[connection]
            self._plan_turn()
            connection.go_on()

    def forget(self, connection: Connection) -> None:
        """Leave out a connection that is gone."""
        self._large.pop(connection, None)
        self._discard(connection)
        self._held -= connection.held
        connection.held = 0

    def sweep(self) -> None:
        """End what took too long."""
        now = time.monotonic()
        for connection in [each for each in self._in_order() if each.deadline < now]:
            connection.expire()

    def end_handshakes(self) -> None:
        """Cut off the connections that uvicorn does not know of yet."""
        for connection in [each for each in self._in_order() if each.in_handshake]:
            connection.abort()

    def _in_order(self) -> Iterator[Connection]:
        """Go through all in the order in which they are cut off."""
        return chain(self._new, self._known)

    def _discard(self, connection: Connection) -> None:
        self._new.pop(connection, None)
        self._known.pop(connection, None)

    def _make_room(self) -> None:
        """Cut off the oldest of those that hold much, some at once since finding them takes time."""
        for each in [each for each in self._in_order() if each.held >= 4096]:
            if self._held < _MOST_HELD * 3 // 4:
                break
            if each.waits_for_client:
                each.abort()


class _Phase(Enum):
    HANDSHAKE = auto()
    HEAD = auto()
    BODY = auto()
    ANSWER = auto()
    OVER = auto()


_READING = (_Phase.HEAD, _Phase.BODY)


class Connection(asyncio.BufferedProtocol):
    """One connection: bounds what arrives, and feeds the parser one request at a time.

    Attributes:
        held: Bytes that it keeps of requests that are not whole.
        spare: Whether it is one beyond the most.
        served: Whether it ever sent a whole request.
    """

    def __init__(self, all_of_them: Connections, parser: _Parser) -> None:
        """Begin before anything is connected."""
        self._all, self._parser = all_of_them, parser
        self._transport: asyncio.Transport | None = None
        self._socket: asyncio.Transport | None = None  # the same, or what lies under TLS
        self._phase = _Phase.HANDSHAKE
        self._incoming = bytearray()
        self._seen = 0  # bytes of a head that were looked through
        self._head = 0  # bytes of the head of the request that is being sent
        self._to_come: int | None = 0  # bytes of the body that is being sent; None for chunks
        self._fed = 0  # bytes of such chunks so far
        self._left = _LINGER_BYTES  # bytes that are read once nothing is served any more
        self._most_read = 0  # bytes that came at once
        self._written = float("inf")
        self._until = 0.0
        self.held, self.spare, self.served = 0, False, False
        parser.answered, parser.invalid = self._answered, self._invalid
        parser.take_time, self._unhurried = self._take_time, False

    # --- a connection's life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin; with the first bytes where a TLS handshake comes first."""
        self._transport = self._socket = transport
        self._until = time.monotonic() + HEAD_S
        if not self._all.admit(self):
            transport.abort()
        elif self._all.tls is None:
            self._open(transport)

    def _shake_hands(self, tls: ssl.SSLContext) -> None:
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        self._transport.pause_reading()
        self._handshake = loop.create_task(self._secure(loop, tls))
        # The loop's TLS takes the transport over within two turns; what was read before then is handed on.
        loop.call_soon(loop.call_soon, self._hand_on, bytes(self._incoming))
        self._incoming.clear()

    def _hand_on(self, first: bytes) -> None:
        assert self._transport is not None
        protocol: Any = self._transport.get_protocol()  # by now the loop's, a buffered one
        if protocol is not self and self._phase is not _Phase.OVER:
            below = _BelowTls(self, protocol)
            self._transport.set_protocol(below)
            below.hand_on(first)

    async def _secure(self, loop: asyncio.AbstractEventLoop, tls: ssl.SSLContext) -> None:
        assert self._transport is not None
        try:
            transport = await loop.start_tls(
                self._transport,
                self,
                tls,
                server_side=True,
                ssl_handshake_timeout=HEAD_S,
                ssl_shutdown_timeout=_LINGER_S,
            )
        except (OSError, RuntimeError):  # the client's fault, or it is gone
            transport = None
        if transport is None or self._phase is _Phase.OVER:
            self.abort()
            self.connection_lost(None)  # which nobody else says before there is TLS
        else:
            # Both loops read far ahead of a reader that stands still.
            transport.set_read_buffer_limits(high=_READ)  # type: ignore[attr-defined]
            self._open(transport)

    def _open(self, transport: asyncio.Transport) -> None:
        transport.set_write_buffer_limits(high=_MOST_WRITTEN)
        self._transport = transport
        self._phase = _Phase.HEAD
        self._parser.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of everything."""
        parser = self._parser
        opened = parser.transport is not None
        self._phase = _Phase.OVER
        self._incoming.clear()
        self._all.forget(self)
        # A flood of connections must not wait for Python to find that nothing refers to them.
        if self._transport is not None and self._transport is not self._socket:
            with contextlib.suppress(AttributeError):  # asyncio's, where it was closed twice
                self._transport.set_protocol(_NOBODY)  # TLS keeps the methods of this one
        if opened and parser.parser is not None:
            parser.connection_lost(exc)
        parser.keep_alive_no_longer()
        parser.let_go()

    def eof_received(self) -> None:
        """Close: a client that has left is not answered."""

    def pause_writing(self) -> None:
        """Answer no further request until the client has taken what there is."""
        self._written = time.monotonic() + HEAD_S
        self._parser.pause_writing()
        self._weigh_soon()

    def resume_writing(self) -> None:
        """Go on."""
        self._written = float("inf")
        self._parser.resume_writing()
        self._weigh_soon()

    def _weigh_soon(self) -> None:
        """Weigh it once the write that says so is over: it may be cut off."""
        asyncio.get_running_loop().call_soon(self._weigh_open)

    def _weigh_open(self) -> None:
        if self._phase is not _Phase.OVER:
            self._weigh()

    @property
    def in_handshake(self) -> bool:
        """Whether it has still to become one that HTTP is spoken on."""
        return self._phase is _Phase.HANDSHAKE

    @property
    def waits_for_client(self) -> bool:
        """Whether its client is the one to act."""
        return self._phase is not _Phase.ANSWER or self._written < float("inf")

    @property
    def deadline(self) -> float:
        """When what it is at must have ended; far away while the server is the one to act."""
        return min(self._until, self._written)

    def expire(self) -> None:
        """End what took too long: with an answer where a head is half there."""
        if self._phase is _Phase.HEAD and self._incoming:
            told = f"the request took longer than {HEAD_S:g} s to arrive"
            self._refuse(RefusedError(408, "slow", told))
        else:
            self.abort()

    def abort(self) -> None:
        """Cut it off."""
        self._phase = _Phase.OVER
        self._incoming.clear()
        self._all.forget(self)
        if self._transport is not None:
            self._transport.abort()

    # --- what arrives

    def over(self, nbytes: int) -> bool:
        """Return whether nothing is served any more; then what a client goes on sending is counted."""
        if self._phase is _Phase.OVER:
            self._left -= nbytes
            if self._left < 0 and self._socket is not None:
                self._socket.pause_reading()
        return self._phase is _Phase.OVER

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where to read into."""
        return self._all.buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Take what was read."""
        if self.over(nbytes):
            return
        self._incoming += self._all.buffer[:nbytes]
        self._most_read = max(self._most_read, nbytes)
        if self._phase is _Phase.HANDSHAKE and self._all.tls is not None:
            return self._shake_hands(self._all.tls)
        if self._phase is _Phase.HEAD and len(self._incoming) == nbytes:
            self._begin()
        if self._phase is _Phase.HEAD and self._has_large_head():
            self._parser.wait_behind(waiting=True)
            self._all.queue(self)
            self._weigh()  # which may cut it off
        else:
            self._advance()

    def _has_large_head(self) -> bool:
        incoming = self._incoming
        return len(incoming) > _LARGE_HEAD and incoming.find(_EMPTY_LINE, 0, _LARGE_HEAD) < 0

    def go_on(self) -> None:
        """Read a large head, or what there is of it."""
        self._parser.wait_behind(waiting=False)
        self._advance()

    def _begin(self) -> None:
        """Note that a request has begun to arrive."""
        self._all.renew(self)
        self._until = time.monotonic() + HEAD_S
        self._parser.keep_alive_no_longer()

    def _advance(self) -> None:
        """Hand the parser what there is of the request that is being sent; stop reading behind it."""
        try:
            while self._incoming and self._phase in _READING and self._read():
                pass
        except RefusedError as refusal:
            self._refuse(refusal)
        if self._phase is _Phase.OVER:
            return
        self._parser.wait_behind(self._phase is _Phase.ANSWER and bool(self._incoming))
        self._weigh()

    def _weigh(self) -> None:
        held = len(self._incoming) + _PARSED * self._head
        unread = _UNREAD if self._written < float("inf") else 0
        tls = unread + _SECURED * self._most_read if self._all.tls else 0
        self._all.charge(self, held + unread + tls)

    def _read(self) -> bool:
        """Hand the parser a head with what there is of its body, or a piece of the body; return whether there was."""
        if self._phase is _Phase.HEAD:
            head = take_head(self._incoming, seen=self._seen)
            self._seen = 0 if head else len(self._incoming)
            if head is None:
                return False
            if self.spare and head.target not in _HEALTH:
                told = "there are too many connections: come back later"
                raise RefusedError(503, "connections", told)
            self._phase, self._head = _Phase.BODY, len(head.content)
            self._to_come, self._fed = head.length, 0
            self._until = time.monotonic() + self._all.body_s + _LINGER_S
            self._feed(head.content + self._take())
        else:
            part = self._take()
            if not part:
                return False
            self._feed(part)
        if self._phase is _Phase.BODY and self._parser.whole:
            self._whole()
        return True

    def _take(self) -> bytes:
        """Take the next piece of the body from what arrived, and nothing that lies behind the body."""
        incoming = self._incoming
        if self._to_come is not None:
            end = min(self._to_come, len(incoming))
            self._to_come -= end
        else:  # chunks end with an empty line, which is not cut in two
            end = incoming.find(_EMPTY_LINE) + 4
            if end < 4:
                begun = (n for n in (3, 2, 1, 0) if incoming.endswith(_EMPTY_LINE[:n]))
                end = len(incoming) - next(begun)
            else:
                self._fed += _PIECE
            self._fed += end
        part = bytes(incoming[:end])
        del incoming[:end]
        return part

    def _feed(self, part: bytes) -> None:
        self._parser.data_received(part)
        if self._parser.transport.is_closing():
            self._close()
        elif self._fed - 2 * self._parser.n_body > _MOST_FRAMING and not self._unhurried:
            told = f"the body's chunks and trailers take {_MOST_FRAMING} bytes more than its data"
            raise RefusedError(400, "malformed", told)

    def _whole(self) -> None:
        """Note that a request is there as a whole."""
        self._head, self.served = 0, True
        self._all.renew(self)
        self._phase = _Phase.ANSWER
        self._until = float("inf")
        if self._parser.cycle.response_complete:
            self._next()

    def _answered(self) -> None:
        """Go on once a request was answered; one that was answered before it was whole is read to its end."""
        self._head = 0
        if self._parser.transport.is_closing():
            self._close()
        elif self._phase is _Phase.ANSWER:
            self._next()
            self._advance()
        elif self._unhurried:
            self._unhurried, self._until = False, time.monotonic() + _LINGER_S

    def _take_time(self) -> None:
        if self._phase is _Phase.BODY:
            self._unhurried, self._until = True, float("inf")

    def _next(self) -> None:
        self._phase, self._unhurried = _Phase.HEAD, False
        self._all.renew(self)
        # The parser closes before that; a client that does not read what is left is cut off.
        self._until = time.monotonic() + self._parser.timeout_keep_alive + _LINGER_S
        if self._incoming:
            self._begin()

    def _refuse(self, refusal: RefusedError) -> None:
        """Answer for the application, read no further, and close."""
        assert self._transport is not None
        request_id, status, message = uuid.uuid4().hex, refusal.status, str(refusal)
        say("refused", level=logging.DEBUG, request_id=request_id, status=status, error=message)
        if not self._parser.cut():
            body = f'{{"error":"{message}"}}'
            head = (
                f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\nx-request-id: {request_id}\r\n\r\n"
            )
            self._transport.write((head + body).encode())
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
        self._close()

    def _invalid(self) -> None:
        self._refuse(no_http())

    def _close(self) -> None:
        """Read nothing more; what is still written has a moment to be taken."""
        self._phase = _Phase.OVER
        self._incoming.clear()
        self._head, self._left = 0, _LINGER_BYTES
        self._weigh()
        self._until = time.monotonic() + _LINGER_S


class _BelowTls(asyncio.BufferedProtocol):
    """Between a socket and the loop's TLS, which reads 256 KiB at once and deciphers what nobody will look at."""

    def __init__(self, connection: Connection, tls: asyncio.BufferedProtocol) -> None:
        """Read for a connection, and hand on to its TLS."""
        self._connection, self._tls = connection, tls
        self.get_buffer = connection.get_buffer  # type: ignore[method-assign]
        self.connection_lost = tls.connection_lost  # type: ignore[method-assign]
        self.eof_received = tls.eof_received  # type: ignore[method-assign]
        self.pause_writing = tls.pause_writing  # type: ignore[method-assign]
        self.resume_writing = tls.resume_writing  # type: ignore[method-assign]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what was read, unless the connection is over."""
        if not self._connection.over(nbytes):
            self.hand_on(self._connection.get_buffer(nbytes)[:nbytes])

    def hand_on(self, part: bytes | memoryview) -> None:
        """Let TLS take what was read."""
        memoryview(self._tls.get_buffer(len(part)))[: len(part)] = part
        self._tls.buffer_updated(len(part))


_NOBODY = asyncio.BufferedProtocol()


def _nothing() -> None:
    """Do nothing."""


class _Flow(FlowControl):
    """A flow that stands still while there is a request behind the one that is answered."""

    behind = False

    def resume_reading(self) -> None:
        """Read on, unless a request waits."""
        if not self.behind:
            super().resume_reading()


class _Parser(HttpToolsProtocol):
    """uvicorn's protocol, fed a request at a time; says when one is whole and when it is answered."""

    answered: Callable[[], None]
    take_time: Callable[[], None]
    invalid: Callable[[], None]
    whole = False
    n_body = 0
    in_head = False
    flow: _Flow

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)

    def send_400_response(self, msg: str) -> None:
        self.invalid()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.whole, self.n_body, self.in_head = False, 0, True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.in_head:  # a trailer is no header
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.in_head = False
        super().on_headers_complete()
        self.scope[UNHURRIED] = self.take_time  # type: ignore[literal-required]  # an extension

    def on_body(self, body: bytes) -> None:
        self.n_body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.whole = True

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.headers is not None:
            self.headers.clear()  # of an answered request, which may not have been sent as a whole
        self.answered()

    def keep_alive_no_longer(self) -> None:
        """A request has begun: the connection is not idle any more."""
        self._unset_keepalive_if_required()

    def wait_behind(self, waiting: bool) -> None:
        """Stop reading while something waits behind a request, and go on."""
        if waiting is not self.flow.behind:
            self.flow.behind = waiting
            (self.flow.pause_reading if waiting else self.flow.resume_reading)()

    def let_go(self) -> None:
        """Forget the connection and its request, which refer to this in turn."""
        self.answered = self.invalid = self.take_time = _nothing
        self.parser = self.cycle = self.scope = None  # type: ignore[assignment]

    def cut(self) -> bool:
        """Let the application know that the request will not be whole; return whether it has begun to answer."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return bool(cycle.response_started)
