"""The files of a site beside a tier: listed and hashed once, at the start, so that a request names one of them or none.

No path of a request ever reaches the file system. A file is opened for each piece of it that is sent, and sent only
while it is the one that was listed: open files and memory do not grow with the number of slow clients.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dimec.bundle.site import INDEX, PACKED, read_site
from dimec.core.errors import OptionError, RefusedError
from dimec.core.untrusted import open_regular
from dimec.runtime.server.logs import say

_MOST_FILES = 4096
_PIECE = 8 * 1024
"""Bytes that are sent at once: what a client that does not read costs."""
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
}

# A disk that hangs holds up no inference, and few threads keep little memory.
_READERS = ThreadPoolExecutor(2, thread_name_prefix="dimec-site")

_Identity = tuple[int, int, int, int]


@dataclass(slots=True)
class _File:
    """A file as it was when it was listed."""

    path: Path
    identity: _Identity
    etag: str
    packed: dict[str, _File] = field(default_factory=dict)

    @classmethod
    def of(cls, path: Path) -> _File:
        with open_regular(path) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            return cls(path, _identity(opened.fileno()), f'"{digest[:32]}"')

    @property
    def size(self) -> int:
        return self.identity[2]

    async def piece(self, offset: int) -> bytes | None:
        """Read a piece; None where the file is gone, or is another one by now."""
        return await asyncio.get_running_loop().run_in_executor(_READERS, self._piece, offset)

    def _piece(self, offset: int) -> bytes | None:
        try:
            with open_regular(self.path) as opened:
                if _identity(opened.fileno()) != self.identity:
                    return None
                opened.seek(offset)
                return opened.read(min(_PIECE, self.size - offset))
        except OSError:
            return None


def _identity(descriptor: int) -> _Identity:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class SiteFiles:
    """The files of a site, by the paths that they are asked for by."""

    def __init__(self, folder: Path, *, taken: Callable[[str], bool]) -> None:
        """List a site; ``taken`` tells whether the server itself answers at a path.

        Raises:
            OptionError: If it is no site, or holds what cannot be served.
        """
        policy = f"{read_site(folder, option='--site').content_policy}; frame-ancestors 'none'"
        self._headers = {
            "content-security-policy": policy,
            "cross-origin-embedder-policy": "require-corp",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "same-origin",
            "referrer-policy": "no-referrer",
            "vary": "Accept-Encoding",
            "x-content-type-options": "nosniff",
        }
        try:
            found = {path: _File.of(real) for path, real in _listed(folder.resolve())}
        except OSError as exc:
            where = exc.filename or folder
            raise OptionError(f"--site {folder}: {where} cannot be read ({exc.strerror})") from exc
        for path in sorted(found):
            whole, end = path[:-3], path[-3:]
            if end in PACKED and whole in found:
                found[whole].packed[PACKED[end]] = found.pop(path)
        if clash := next(filter(taken, found), None):
            raise OptionError(
                f"--site {folder} has a file where the server answers itself, {clash}: remove it"
            )
        for path in [each for each in found if each.endswith(f"/{INDEX}")]:
            found[path.removesuffix(INDEX)] = found[path]
        self._files = found

    def has(self, path: str) -> bool:
        """Tell whether a file has a path."""
        return path in self._files

    async def response(self, path: str, headers: Mapping[bytes, bytes]) -> Response:
        """Return the answer to a request for a file that the site has.

        Raises:
            RefusedError: If it has changed since the server started (404).
        """
        file = self._files[path]
        lasts = path.startswith("/assets/")  # names with a hash of what is in them
        told = {
            **self._headers,
            "cache-control": "public, max-age=31536000, immutable" if lasts else "no-cache",
            "content-type": _TYPES.get(file.path.suffix, "application/octet-stream"),
        }
        taken = _codings(headers.get(b"accept-encoding", b""))
        coding = next(
            (each for each in PACKED.values() if each in file.packed and each in taken), ""
        )
        if coding:
            file, told["content-encoding"] = file.packed[coding], coding
        told["etag"] = file.etag
        known = headers.get(b"if-none-match", b"").decode("latin-1")
        if known == "*" or file.etag in (
            each.strip().removeprefix("W/") for each in known.split(",")
        ):
            return Response(status_code=304, headers=told)
        first = await file.piece(0)
        if first is None:
            message = f"{path[:100]} has changed since the server started: start it again"
            raise RefusedError(404, "site changed", message)
        return _Sending(file, first, told)


class _Sending(Response):
    """A file on its way, piece by piece."""

    def __init__(self, file: _File, first: bytes, headers: Mapping[str, str]) -> None:
        super().__init__(headers={**headers, "content-length": str(file.size)})
        self._file, self._first = file, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        leaving = asyncio.ensure_future(_left(receive))
        part: bytes | None = b"" if scope["method"] == "HEAD" else self._first
        self._first = b""  # kept, it would cost as much as a piece for as long as the client takes
        sent = 0
        try:
            while part and not leaving.done():
                sent += len(part)
                more = sent < self._file.size
                await send({"type": "http.response.body", "body": part, "more_body": more})
                part = await self._file.piece(sent) if more else b""
            if part is None:  # the connection closes: what was sent is not to pass for the whole
                say("site changed", path=str(self._file.path))
            elif not sent and not leaving.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            leaving.cancel()


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _listed(root: Path) -> list[tuple[str, Path]]:
    """Return the regular files below a folder, by their paths in it; hidden ones and links that lead out are not."""

    def refuse(exc: OSError) -> None:
        raise exc

    found: list[tuple[str, Path]] = []
    for place, folders, names in os.walk(root, onerror=refuse):
        folders[:] = [each for each in folders if not each.startswith(".")]
        for name in names:
            real = (Path(place) / name).resolve()
            if name.startswith(".") or not real.is_relative_to(root):
                continue
            if stat.S_ISREG(real.stat().st_mode):
                found.append((f"/{(Path(place) / name).relative_to(root).as_posix()}", real))
            if len(found) > _MOST_FILES:
                raise OptionError(f"--site {root} has more than {_MOST_FILES} files: give a site")
    return found


def _codings(accepted: bytes) -> set[str]:
    """Return the codings that a client takes, from its Accept-Encoding."""
    found = set()
    for each in accepted.decode("latin-1").lower().split(","):
        name, _, weight = each.partition(";")
        if weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000"):
            found.add(name.strip())
    return found
