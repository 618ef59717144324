"""Where the head of an HTTP/1.1 request ends, and what may stand in it.

Pure bookkeeping, without sockets. The parser behind it, llhttp, is as strict about header fields and chunks; what it
would let pass is refused here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dimec.core.errors import RefusedError

MOST_HEAD = 64 * 1024
"""Bytes of a request line with all headers."""
MOST_LINE = 8 * 1024
"""Bytes of a request line."""
MOST_FIELDS = 128

_FIELD = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[\t -~\x80-\xff]*\r\n"
_HEAD = re.compile(
    rb"(?:\r\n)?(?:(?!CONNECT )[A-Z]+) ([!-~]+) HTTP/1\.([01])\r\n((?:" + _FIELD + rb")*+)\r\n"
)
# In headers in small letters after a line end, which it finds quickly; blanks around the value would cost a pattern
# the square of their number.
_FRAMING = re.compile(rb"\n(content-length|transfer-encoding|upgrade|host):([^\r]*)\r")
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_FIRST = frozenset(b"\rABCDEFGHIJKLMNOPQRSTUVWXYZ")


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """The head of a request.

    Attributes:
        content: Its bytes, as a parser is to have them.
        length: Bytes of the body that follows; None where it comes in chunks.
    """

    content: bytes
    target: bytes
    length: int | None


def take_head(incoming: bytearray, *, seen: int) -> Head | None:
    """Take a head from the beginning of what arrived, ``seen`` bytes of which hold no end; None where it is not whole.

    Raises:
        RefusedError: If it cannot become one that is served.
    """
    end = incoming.find(b"\r\n\r\n", max(0, seen - 3)) + 4
    whole = end >= 4
    if not whole and (_has_bare_line_end(incoming) or incoming[0] not in _FIRST):
        raise no_http()
    size = end if whole else len(incoming)
    if size > MOST_LINE and not 0 <= incoming.find(b"\r\n", 1) <= MOST_LINE:
        raise RefusedError(414, "too large", f"the request line has more than {MOST_LINE} bytes")
    if size > MOST_HEAD:
        raise RefusedError(431, "too large", f"the headers have more than {MOST_HEAD} bytes")
    if not whole:
        return None
    content = bytes(incoming[:end])
    found = _HEAD.fullmatch(content)
    if found is None:
        raise no_http()
    target, minor, fields = found.groups()
    if fields.count(b"\n") > MOST_FIELDS:
        raise RefusedError(431, "too large", f"there are more than {MOST_FIELDS} headers")
    framing: dict[bytes, bytes] = {}
    for name, value in _FRAMING.findall(b"\n" + fields.lower()):
        if name in framing and name != b"upgrade":
            raise RefusedError(400, "malformed", f"the header {name.decode()} is there twice")
        framing[name] = value.strip(b" \t")
    if b"upgrade" in framing:  # nothing else is spoken here: the request is one like any other
        content = _UPGRADE.sub(b"", content)
    length, encoding = framing.get(b"content-length", b"0"), framing.get(b"transfer-encoding")
    if encoding is not None and (encoding, minor) != (b"chunked", b"1"):
        raise RefusedError(
            400,
            "malformed",
            "a body is sent with Content-Length, or with Transfer-Encoding: chunked",
        )
    if not _LENGTH.fullmatch(length):
        raise RefusedError(400, "malformed", "Content-Length is no number of bytes")
    del incoming[:end]
    return Head(content, target, int(length) if encoding is None else None)


def no_http() -> RefusedError:
    """Return the error of what is no HTTP/1.1."""
    return RefusedError(400, "malformed", "the request is no HTTP/1.1")


def _has_bare_line_end(text: bytearray) -> bool:
    """Return whether there is a CR or LF of its own; a CR at the end may still become a whole one."""
    whole = text.count(b"\r\n")
    return text.count(b"\n") != whole or text.count(b"\r") - text.endswith(b"\r") != whole
