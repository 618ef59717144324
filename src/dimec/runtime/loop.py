"""An event loop in a thread of its own: where a device's requests run, whatever thread asks for them."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from dimec.errors import OptionError
from dimec.runtime.client import TierClient

_Result = TypeVar("_Result")


class RequestLoop:
    """An event loop in a thread of its own, on which all requests run."""

    def __init__(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._ended = False
        self._thread = threading.Thread(
            target=_serve, args=(self._loop,), name="dimec-requests", daemon=True
        )
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Run a coroutine there.

        Raises:
            OptionError: If the loop is closed.
        """
        with self._lock:
            if self._ended:
                work.close()
                raise closed_device()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self, clients: Sequence[TierClient]) -> None:
        """End what still runs, close the clients, and stop."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        asyncio.run_coroutine_threadsafe(_end(clients), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    loop.run_forever()


async def _end(clients: Sequence[TierClient]) -> None:
    own = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not own]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()


def closed_device() -> OptionError:
    """Return the error of whoever uses a device that is closed."""
    return OptionError("this device is closed: load the bundle again")
