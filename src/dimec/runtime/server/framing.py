"""Where an HTTP/1.1 request begins and ends: heads and bodies are cut out of what arrives, within limits.

Pure bookkeeping, without sockets. What is beyond the limits or no HTTP/1.1 is a `Refusal`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_HEAD = 64 * 1024
"""Bytes of a request line with all headers."""
MOST_FRAMING = 16 * 1024
"""Bytes that frame a chunked body, trailers included, beyond those of its data: each chunk costs Python's time."""
MOST_LINE = 8 * 1024
"""Bytes of a request line, and of a chunk's size with its extensions."""
MOST_FIELDS = 128
NO_HTTP = "the request is no HTTP/1.1"

_NAME = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_FIELD = _NAME + rb":[\t -~\x80-\xff]*\r\n"
_HEAD = re.compile(
    rb"(?:\r\n)?(?:(?!CONNECT )[A-Z]+) ([!-~]+) HTTP/1\.([01])\r\n((?:" + _FIELD + rb")*+)\r\n"
)
_TRAILER = re.compile(_FIELD)
# In headers in small letters after a line end, which it finds quickly; blanks around the value would cost a pattern
# the square of their number.
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding|upgrade|host):([^\r]*)\r")
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:[ \t]*;[\t -~\x80-\xff]*)?")
_FIRST = frozenset(b"\rABCDEFGHIJKLMNOPQRSTUVWXYZ")


class Refusal(Exception):
    """A request that is not served, with its status and what the client is told."""

    def __init__(self, status: int, message: str) -> None:
        """Take what the client is told."""
        super().__init__(message)
        self.status = status
        self.message = message


class Body:
    """The body of a request: so many bytes, or chunks and trailers.

    Attributes:
        whole: Whether all of it was taken.
    """

    def __init__(self, length: int | None) -> None:
        """Expect ``length`` bytes; None for chunks."""
        self.whole = length == 0
        self._left = length or 0  # bytes to come of the body, or of the chunk
        self._chunked = length is None
        self._in_chunk = self._in_trailers = False
        self._framing = (
            -MOST_FRAMING
        )  # bytes of a chunked body that are none of its data, less those that are

    def take(self, incoming: bytearray) -> bytes | None:
        """Take the next piece from the beginning of what arrived, as a parser is to have it; None where it lacks."""
        if self._left or not self._chunked:
            part = bytes(incoming[: self._left])
            del incoming[: self._left]
            self._left -= len(part)
            self._framing -= len(part)
            self.whole = not (self._left or self._chunked)
            return part
        line = self._line(incoming)
        if line is None:
            return None
        if self._in_chunk:
            if line:
                raise Refusal(400, "a chunk has no end")
            self._in_chunk = False
            return b"\r\n"
        if self._in_trailers:
            self.whole = not line
            if line and not _TRAILER.fullmatch(line + b"\r\n"):
                raise Refusal(400, "a trailer of the body is no header")
            return b"0\r\n\r\n" if self.whole else b""
        found = _CHUNK.fullmatch(line)
        if found is None:
            raise Refusal(400, "a chunk of the body has no size")
        self._left = int(found[1], 16)
        self._in_chunk, self._in_trailers = self._left > 0, self._left == 0
        return b"%x\r\n" % self._left if self._left else b""

    def _line(self, incoming: bytearray) -> bytes | None:
        end = incoming.find(b"\r\n", 0, MOST_LINE + 2)
        if end < 0:
            if len(incoming) > MOST_LINE or _has_bare_line_end(incoming):
                raise Refusal(
                    400, f"a line that frames the body has no end, or over {MOST_LINE} bytes"
                )
            return None
        line = bytes(incoming[:end])
        del incoming[: end + 2]
        self._framing += end + 2
        if self._framing > 0:
            raise Refusal(
                400, f"the body's chunks and trailers take {MOST_FRAMING} bytes more than its data"
            )
        return line


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The head of a request: its bytes as a parser is to have them, its target, and the body that follows."""

    content: bytes
    target: bytes
    body: Body


def take_head(incoming: bytearray, *, seen: int) -> Head | None:
    """Take a head from the beginning of what arrived, ``seen`` bytes of which hold no end; None where it is not whole.

    Raises:
        Refusal: If it cannot become one that is served.
    """
    end = incoming.find(b"\r\n\r\n", max(0, seen - 3)) + 4
    whole = end >= 4
    if not whole and (_has_bare_line_end(incoming) or incoming[0] not in _FIRST):
        raise Refusal(400, NO_HTTP)
    size = end if whole else len(incoming)
    if size > MOST_LINE and not 0 <= incoming.find(b"\r\n", 1) <= MOST_LINE:
        raise Refusal(414, f"the request line has more than {MOST_LINE} bytes")
    if size > MOST_HEAD:
        raise Refusal(431, f"the headers have more than {MOST_HEAD} bytes")
    if not whole:
        return None
    content = bytes(incoming[:end])
    found = _HEAD.fullmatch(content)
    if found is None:
        raise Refusal(400, NO_HTTP)
    target, minor, fields = found.groups()
    if fields.count(b"\n") > MOST_FIELDS:
        raise Refusal(431, f"there are more than {MOST_FIELDS} headers")
    framing: dict[bytes, bytes] = {}
    for name, value in _FRAMING.findall(b"\n" + fields.lower()):
        if name in framing and name != b"upgrade":
            raise Refusal(400, f"the header {name.decode()} is there twice")
        framing[name] = value.strip(b" \t")
    if b"upgrade" in framing:  # nothing else is spoken here: the request is one like any other
        content = _UPGRADE.sub(b"", content)
    body = Body(_length(framing, chunks=minor == b"1"))
    del incoming[:end]
    return Head(content, target, body)


def _length(framing: dict[bytes, bytes], *, chunks: bool) -> int | None:
    """Return the bytes of a body, None where it is sent in chunks."""
    length, encoding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
    if encoding is not None:
        if encoding != b"chunked" or not chunks or length is not None:
            raise Refusal(
                400, "a body is sent with Content-Length, or with Transfer-Encoding: chunked"
            )
        return None
    if length is not None and not _LENGTH.fullmatch(length):
        raise Refusal(400, "Content-Length is no number of bytes")
    return int(length or 0)


def _has_bare_line_end(text: bytearray) -> bool:
    """Return whether there is a CR or LF of its own; a CR at the end may still become a whole one."""
    whole = text.count(b"\r\n")
    return text.count(b"\n") != whole or text.count(b"\r") - text.endswith(b"\r") != whole
