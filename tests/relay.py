"""A link with a delay: a relay before a server that holds back what passes, both ways."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from tests.servers import PATIENCE_S


@contextlib.contextmanager
def delayed(port: int, *, round_trip_ms: float) -> Iterator[str]:
    """Give the URL of a relay to a port of this machine that delays each way by half of ``round_trip_ms``."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    relay = _Relay(port, round_trip_ms / 2000)
    try:
        own = asyncio.run_coroutine_threadsafe(relay.open(), loop).result(PATIENCE_S)
        yield f"http://127.0.0.1:{own}"
    finally:
        asyncio.run_coroutine_threadsafe(relay.close(), loop).result(PATIENCE_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(PATIENCE_S)
        loop.close()


class _Relay:
    def __init__(self, port: int, delay_s: float) -> None:
        self._port = port
        self._delay_s = delay_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def open(self) -> int:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, above: asyncio.StreamReader, up: asyncio.StreamWriter) -> None:
        below, down = await asyncio.open_connection("127.0.0.1", self._port)
        for reader, writer in ((above, down), (below, up)):
            held: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
            for work in (self._take(reader, held), self._pass_on(held, writer)):
                task = asyncio.create_task(work)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _take(
        self, reader: asyncio.StreamReader, held: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        """Note when each piece is due, so that several pieces of one message are not delayed one after the other."""
        chunk = b"-"
        while chunk:
            with contextlib.suppress(ConnectionError):
                chunk = await reader.read(65_536)
            held.put_nowait((asyncio.get_running_loop().time() + self._delay_s, chunk))

    async def _pass_on(
        self, held: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                due, chunk = await held.get()
                await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))
                if not chunk:
                    return
                writer.write(chunk)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
        finally:
            writer.close()
