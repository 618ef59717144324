"""What stands between a socket and the HTTP parser, so that nothing a stranger sends is unbounded.

A `Connection` cuts what arrives into single requests and hands the parser one at a time: a whole head that was checked,
then its body as it comes. What lies behind that request waits in the socket. `Connections` knows all of them: how many
there are, what they hold, whose time is up, and which gives way to a newcomer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import ssl
import time
import uuid
from collections.abc import Callable, Iterator
from enum import Enum, auto
from http import HTTPStatus
from itertools import chain
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from dimec.core.errors import OptionError
from dimec.runtime.server.logs import say
from dimec.runtime.server.settings import ServerSettings

MOST_HEAD = 64 * 1024
"""Bytes of a request line with all headers; of what frames a chunked body, trailers included, too."""
MOST_LINE = 8 * 1024
"""Bytes of a request line, and of a chunk's size with its extensions."""
MOST_FIELDS = 128
HEAD_S = 10.0
"""How long a TLS handshake may take, a head, and a client to take what it is sent."""
_LINGER_S = 2.0
"""How long a refused client is kept before it is cut off: cut off at once it would not see the answer."""
_LINGER_BYTES = 256 * 1024
"""What it may go on sending meanwhile."""
_MOST_HELD = 16 * 2**20
"""Bytes that all connections hold before they are requests; beyond it the oldest gives way."""
_PARSED = 3
"""How many times its size a head takes once it is parsed."""
_SECURED = 6
"""How many times what came at once TLS keeps for it, as long as the connection lasts."""
_MOST_WRITTEN = 16 * 1024
"""Bytes that wait for a client to read them before its next request waits too."""
_RESERVE = 16
"""Connections beyond the most that there may be: they are told so, or how the server is."""
_OWN_FILES = 64
"""Files that the server needs besides connections."""
_HEALTH = (b"/v2/health/live", b"/v2/health/ready")

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD = _NAME + rb":[\t -~\x80-\xff]*\r\n"
_HEAD = re.compile(
    rb"(?:\r\n)?((?!CONNECT )[A-Z]+) ([!-~]+) HTTP/1\.([01])\r\n((?:" + _FIELD + rb")*+)\r\n"
)
_TRAILER = re.compile(_FIELD)
# In headers in small letters after a line end, which it finds quickly; blanks around the value would cost a pattern
# the square of their number.
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding|upgrade|host):([^\r]*)\r")
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t -~\x80-\xff]*)?")

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
    """All connections of a server, with what they may hold together."""

    def __init__(self, settings: ServerSettings, *, tls: ssl.SSLContext | None) -> None:
        """Start with none; with a context each begins with a TLS handshake."""
        self.tls = tls
        self.body_s = settings.body_timeout_s
        # One suffices: what was read into it is taken out before anything else is read.
        self.buffer = memoryview(bytearray(_READ))
        self._most = settings.max_connections
        # By when each began what it is at, the oldest first: those that never sent a whole request, and the others.
        self._new: dict[Connection, None] = {}
        self._known: dict[Connection, None] = {}
        self._held = 0

    def make(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        """Return what handles the next connection, as uvicorn asks for it."""
        return Connection(self, _Parser(config, server_state, app_state, _loop))

    def admit(self, connection: Connection) -> bool:
        """Take a connection in, in place of the oldest one that waits for its client where there are too many."""
        n_open = len(self._new) + len(self._known)
        if n_open >= self._most and not self._give_way():
            if n_open >= self._most + _RESERVE:
                return False
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

    def forget(self, connection: Connection) -> None:
        """Leave out a connection that is gone."""
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

    def _give_way(self) -> bool:
        oldest = next((each for each in self._in_order() if each.waits_for_client), None)
        if oldest is not None:
            oldest.abort()
        return oldest is not None

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
    CHUNKS = auto()
    TRAILERS = auto()
    ANSWER = auto()
    OVER = auto()


class Connection(asyncio.BufferedProtocol):
    """One connection: bounds what arrives, and feeds the parser one request at a time.

    Attributes:
        held: Bytes that it keeps of requests that are not whole.
        spare: Whether it is one beyond the most.
        served: Whether it ever sent a whole request.
        deadline: When that must have ended.
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
        self._left = 0  # bytes to come of the body, or of the chunk
        self._in_chunk = False  # whether a chunk's line end is still to come
        self._framing = 0  # bytes of a chunked body that are none of its data, less those that are
        self._most_read = 0  # bytes that came at once
        self._written = float("inf")
        self._until = 0.0
        self.held, self.spare, self.served = 0, False, False
        parser.answered, parser.invalid = self._answered, self._invalid

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
        parser.parser = None  # type: ignore[assignment]
        parser.answered = parser.invalid = _nothing

    def eof_received(self) -> None:
        """Close: a client that has left is not answered."""

    def pause_writing(self) -> None:
        """Answer no further request until the client has taken what there is."""
        self._written = time.monotonic() + HEAD_S
        self._parser.pause_writing()

    def resume_writing(self) -> None:
        """Go on."""
        self._written = float("inf")
        self._parser.resume_writing()

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
            self._refuse(408, f"the request took longer than {HEAD_S:g} s to arrive")
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
        """Return whether nothing is read any more; what a client goes on sending is counted against what it may."""
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
        self._advance()

    def _begin(self) -> None:
        """Note that a request has begun to arrive."""
        self._all.renew(self)
        self._until = time.monotonic() + HEAD_S
        self._parser.keep_alive_no_longer()

    def _advance(self) -> None:
        """Hand the parser what there is of the request that is being sent; stop reading behind it."""
        while self._incoming and self._phase is not _Phase.ANSWER and _STEPS[self._phase](self):
            pass
        if self._phase is _Phase.OVER:
            return
        self._parser.wait_behind(self._phase is _Phase.ANSWER and bool(self._incoming))
        self._weigh()

    def _weigh(self) -> None:
        held = len(self._incoming) + _PARSED * self._head
        self._all.charge(self, held + (_SECURED * self._most_read if self._all.tls else 0))

    def _read_head(self) -> bool:
        incoming = self._incoming
        end = incoming.find(b"\r\n\r\n", max(0, self._seen - 3)) + 4
        if end < 4:
            if _has_bare_line_end(incoming) or incoming[0] not in _FIRST:
                return self._refuse(400, "the request is no HTTP/1.1")
            self._seen = len(incoming)
        size = end if end >= 4 else len(incoming)
        if size > MOST_LINE and not 0 <= incoming.find(b"\r\n", 1) <= MOST_LINE:
            return self._refuse(414, f"the request line has more than {MOST_LINE} bytes")
        if size > MOST_HEAD:
            return self._refuse(431, f"the headers have more than {MOST_HEAD} bytes")
        if end < 4:
            return False
        self._seen = 0
        head = bytes(incoming[:end])
        found = _HEAD.fullmatch(head)
        if found is None:
            return self._refuse(400, "the request is no HTTP/1.1")
        _, target, minor, fields = found.groups()
        if fields.count(b"\n") > MOST_FIELDS:
            return self._refuse(431, f"there are more than {MOST_FIELDS} headers")
        if self.spare and target not in _HEALTH:
            return self._refuse(503, "there are too many connections: come back later")
        framing: dict[bytes, bytes] = {}
        for name, value in _FRAMING.findall(b"\n" + fields.lower()):
            if name in framing and name != b"upgrade":
                return self._refuse(400, f"the header {name.decode()} is there twice")
            framing[name] = value.strip(b" \t")
        if (
            b"upgrade" in framing
        ):  # to nothing that is spoken here: the request is one like any other
            head = _UPGRADE.sub(b"", head)
        length = framing.get(b"content-length")
        if b"transfer-encoding" in framing:
            chunked = framing[b"transfer-encoding"] == b"chunked" and minor == b"1"
            if not chunked or length is not None:
                return self._refuse(
                    400, "a body is sent with Content-Length, or with Transfer-Encoding: chunked"
                )
            self._phase, self._framing = _Phase.CHUNKS, -MOST_HEAD
        elif length is not None and not _LENGTH.fullmatch(length):
            return self._refuse(400, "Content-Length is no number of bytes")
        else:
            self._phase, self._left = _Phase.BODY, int(length or 0)
        self._head = end
        body = bytes(incoming[end : end + self._left])
        del incoming[: end + len(body)]
        self._left -= len(body)
        self._until = time.monotonic() + self._all.body_s + _LINGER_S
        return self._feed(head + body) and self._end_body()

    def _read_body(self) -> bool:
        return self._take() and self._end_body()

    def _end_body(self) -> bool:
        if self._phase is _Phase.BODY and not self._left:
            self._whole()
        return True

    def _take(self) -> bool:
        part = bytes(self._incoming[: self._left])
        del self._incoming[: self._left]
        self._left -= len(part)
        return self._feed(part)

    def _read_chunks(self) -> bool:
        if self._left:
            self._framing -= min(self._left, len(self._incoming))
            return self._take()
        line = self._line()
        if line is None:
            return False
        if self._in_chunk:
            self._in_chunk = False
            return self._feed(b"\r\n") if not line else self._refuse(400, "a chunk has no end")
        found = _CHUNK.fullmatch(line)
        if found is None:
            return self._refuse(400, "a chunk of the body has no size")
        size = int(found[1], 16)
        if not size:
            self._phase = _Phase.TRAILERS
            return True
        self._left, self._in_chunk = size, True
        return self._feed(b"%x\r\n" % size)

    def _read_trailers(self) -> bool:
        line = self._line()
        if line is None:
            return False
        if not line:
            if self._feed(b"0\r\n\r\n"):
                self._whole()
            return True
        return bool(_TRAILER.fullmatch(line + b"\r\n")) or self._refuse(
            400, "a trailer of the body is no header"
        )

    def _line(self) -> bytes | None:
        """Take a line that frames a chunked body; None where there is none yet, or no more of them are taken."""
        end = self._incoming.find(b"\r\n", 0, MOST_LINE + 2)
        if end < 0:
            if len(self._incoming) > MOST_LINE or _has_bare_line_end(self._incoming):
                self._refuse(
                    400, f"a line that frames the body has no end, or over {MOST_LINE} bytes"
                )
            return None
        line = bytes(self._incoming[:end])
        del self._incoming[: end + 2]
        self._framing += end + 2
        if self._framing > 0:
            self._refuse(
                400, f"the body's chunks and trailers take {MOST_HEAD} bytes more than its data"
            )
            return None
        return line

    def _feed(self, part: bytes) -> bool:
        """Give the parser a piece; return whether it went on."""
        self._parser.data_received(part)
        if self._parser.transport.is_closing():
            self._close()
        return self._phase is not _Phase.OVER

    def _whole(self) -> None:
        """Note that a request is there as a whole, if the parser agrees."""
        if not self._parser.whole:
            self._invalid()
            return
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

    def _next(self) -> None:
        self._phase = _Phase.HEAD
        self._all.renew(self)
        # The parser closes before that; a client that does not read what is left is cut off.
        self._until = time.monotonic() + self._parser.timeout_keep_alive + _LINGER_S
        if self._incoming:
            self._begin()

    def _refuse(self, status: int, message: str) -> bool:
        """Answer for the application, read no further, and close; return False."""
        assert self._transport is not None
        request_id = uuid.uuid4().hex
        say("refused", level=logging.DEBUG, request_id=request_id, status=status, error=message)
        if not self._parser.cut():
            phrase = HTTPStatus(status).phrase
            body = b'{"error":"%s"}' % message.encode()
            self._transport.write(
                b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n"
                b"x-request-id: %s\r\n\r\n%s"
                % (status, phrase.encode(), len(body), request_id.encode(), body)
            )
        if self._transport.can_write_eof():
            self._transport.write_eof()
        else:
            self._transport.close()
        self._close()
        return False

    def _invalid(self) -> None:
        self._refuse(400, "the request is no HTTP/1.1")

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


_STEPS: dict[_Phase, Callable[[Connection], bool]] = {
    _Phase.HEAD: Connection._read_head,
    _Phase.BODY: Connection._read_body,
    _Phase.CHUNKS: Connection._read_chunks,
    _Phase.TRAILERS: Connection._read_trailers,
    _Phase.OVER: lambda connection: False,
}
_FIRST = frozenset(b"\rABCDEFGHIJKLMNOPQRSTUVWXYZ")


_NOBODY = asyncio.BufferedProtocol()


def _nothing() -> None:
    """Do nothing."""


def _has_bare_line_end(text: bytearray) -> bool:
    """Return whether there is a CR or LF of its own; a CR at the end may still become a whole one."""
    whole = text.count(b"\r\n")
    return text.count(b"\n") != whole or text.count(b"\r") - text.endswith(b"\r") != whole


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
    invalid: Callable[[], None]
    whole = False
    flow: _Flow

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)

    def send_400_response(self, msg: str) -> None:
        self.invalid()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.whole = False

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

    def cut(self) -> bool:
        """Let the application know that the request will not be whole; return whether it has begun to answer."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return bool(cycle.response_started)
