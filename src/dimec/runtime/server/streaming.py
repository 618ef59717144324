"""Texts as lines of JSON: one line in, one line out, in order, each as soon as it and those before are there."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from dimec.core.errors import RefusedError, WireError
from dimec.core.tiers import Answer
from dimec.runtime.device.lines import answer_line
from dimec.runtime.device.sample import Text
from dimec.runtime.server.app import Exchange
from dimec.runtime.server.pool import size_of
from dimec.runtime.server.protocol import UNHURRIED
from dimec.runtime.server.requests import texts_of
from dimec.runtime.wire import decode_json

if TYPE_CHECKING:
    from dimec.runtime.server.texts import TextService

_LINES = 64
"""Lines that are read ahead of the answers."""
_CHARACTERS = 8192
"""What they hold together, unless one alone holds more."""
_RETRY_S = 0.05
"""How long a stream waits for a place in a full queue before it looks again."""


class LineStream(Response):
    """The answer to a stream; it begins while the request is still being sent.

    A stream holds a place in the queue while a line of it is not answered. While the queue is full it reads nothing.
    """

    def __init__(self, service: TextService, exchange: Exchange) -> None:
        """Take who answers a request."""
        super().__init__(media_type="application/x-ndjson", headers={"cache-control": "no-store"})
        del self.headers["content-length"]
        self._service, self._exchange = service, exchange
        self._lines: asyncio.Queue[tuple[int, asyncio.Future[Answer], int] | None]
        self._lines = asyncio.Queue()
        self._sent = asyncio.Event()
        self._held = self._characters = 0
        self._place = contextlib.ExitStack()
        self._placed = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read and answer until the client has sent all."""
        scope[UNHURRIED]()
        self._service.in_flight += 1
        reading = asyncio.ensure_future(self._read(receive))
        try:
            # A client that waits for 100 Continue gets it before the answer begins.
            await asyncio.sleep(0)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._answer(send)
            await reading
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            reading.cancel()
            while not self._lines.empty():
                line = self._lines.get_nowait()
                if line is not None:
                    line[1].cancel()
            self._place.close()
            self._service.in_flight -= 1

    async def _read(self, receive: Receive) -> None:
        """Queue the texts of all lines, as many at a time as there is room for."""
        n_lines = 0
        try:
            async for line in self._whole_lines(receive):
                size, future = 0, asyncio.get_running_loop().create_future()
                try:
                    text = self._text(line)
                    size = size_of(text)
                    await self._wait_for_room(size)
                    asked = self._exchange
                    [future] = self._service.pool.submit(
                        [text], request_id=asked.request_id, first=n_lines, span=asked.span
                    )
                except (WireError, RefusedError) as exc:
                    future.set_exception(exc)
                self._held += 1
                self._characters += size
                self._lines.put_nowait((n_lines, future, size))
                n_lines += 1
        finally:
            self._exchange.fields["rows"] = n_lines
            self._lines.put_nowait(None)

    def _text(self, line: bytes | RefusedError) -> Text:
        if isinstance(line, RefusedError):
            raise line
        found = decode_json(line, limits=self._service.limits)
        value = found.get("text") if isinstance(found, dict) else found
        texts, single = texts_of(value, pairs=self._service.device.pairs)
        if not single:
            raise WireError("the line holds a list: send every text in a line of its own")
        return texts[0]

    async def _wait_for_room(self, size: int) -> None:
        while self._held and (self._held >= _LINES or self._characters + size > _CHARACTERS):
            self._sent.clear()
            await self._sent.wait()
        while not self._placed:
            try:
                self._place.enter_context(self._service.pool.place(_CHARACTERS))
                self._placed = True
            except RefusedError:
                await asyncio.sleep(_RETRY_S)

    async def _whole_lines(self, receive: Receive) -> AsyncIterator[bytes | RefusedError]:
        """Give the lines of the body that are not empty; an error, where there is one, is the last."""
        most = self._service.limits.json_bytes
        stopping = asyncio.ensure_future(self._service.stopping.wait())
        rest, more = b"", True
        try:
            while more:
                coming = asyncio.ensure_future(receive())
                await asyncio.wait((coming, stopping), return_when=asyncio.FIRST_COMPLETED)
                if not coming.done():
                    coming.cancel()
                    yield RefusedError(503, "draining", "the server is stopping: ask another one")
                    return
                message = coming.result()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnect
                more = message.get("more_body", False)
                *whole, rest = (rest + message.get("body", b"")).split(b"\n")
                if not more:
                    whole.append(rest)
                for line in whole:
                    if line.strip():
                        yield line
                if len(rest) > most:
                    told = f"the line is too large: at most {most} bytes are taken"
                    yield RefusedError(413, "too large", told)
                    return
        finally:
            stopping.cancel()

    async def _answer(self, send: Send) -> None:
        """Send the answers in the order of the lines; those that are there go together."""
        ready: list[str] = []

        async def flush() -> None:
            if ready:
                body = "".join(ready).encode()
                ready.clear()
                await send({"type": "http.response.body", "body": body, "more_body": True})

        while (line := await self._lines.get()) is not None:
            index, future, size = line
            if not future.done():
                await flush()
            ready.append(await self._said(index, future) + "\n")
            self._held -= 1
            self._characters -= size
            if not self._held:
                self._place.close()
                self._placed = False
            self._sent.set()
            if self._lines.empty():
                await flush()
        await flush()

    async def _said(self, index: int, future: asyncio.Future[Answer]) -> str:
        """Return the line that answers a line."""
        try:
            return answer_line(await future, self._service.device.label_names)
        except RefusedError as exc:
            status, told = exc.status, str(exc)
        except WireError as exc:
            status, told = 400, str(exc)
        except Exception as exc:
            status, told = 500, self._service.fault(exc, self._exchange)
        return json.dumps({"index": index, **self._service.error_document(status, told)})
