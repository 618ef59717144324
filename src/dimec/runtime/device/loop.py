"""An event loop in a thread of its own, on which a device's requests run, and what a forked child does about it.

Neither the thread nor the locks of other threads survive a fork: `survives_forks` lets an object mend itself.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from dimec.core.errors import OptionError
from dimec.runtime.device.client import TierClient

_Result = TypeVar("_Result")


class Forkable(Protocol):
    """An object that is used in processes that are forked from its own."""

    @property
    def lock(self) -> threading.RLock:
        """The lock that is held while a process is forked."""

    def forked(self) -> None:
        """Replace what a child does not inherit; called in the child."""


_forkable: weakref.WeakSet[Forkable] = weakref.WeakSet()
_held = threading.local()
_left_behind: list[object] = []


def leave_behind(*parts: object) -> None:
    """Keep what only the parent may close: connections, and a loop whose thread is not in this process."""
    _left_behind.extend(parts)


def survives_forks(each: Forkable) -> None:
    """Let an object mend itself in every child that is forked from here on, as long as it lives."""
    _forkable.add(each)


def _before_fork() -> None:
    _held.now = sorted(_forkable, key=id)
    for each in _held.now:
        each.lock.acquire()


def _after_fork() -> None:
    for each in _held.now:
        each.lock.release()
    del _held.now


def _after_fork_in_child() -> None:
    for each in _held.now:
        each.forked()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child
    )


class RequestLoop:
    """An event loop in a thread of its own, started at the first request, on which all requests run."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._ended = False
        self._thread: threading.Thread | None = None

    def submit(self, work: Coroutine[Any, Any, _Result]) -> Future[_Result]:
        """Run a coroutine there.

        Raises:
            OptionError: If the loop is closed.
        """
        with self._lock:
            if self._ended:
                work.close()
                raise closed_device()
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="dimec-requests", daemon=True
                )
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self, clients: Sequence[TierClient]) -> None:
        """End what still runs, close the clients, and stop."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        if self._loop is None or self._thread is None:  # nothing was asked, no connection is open
            return
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
