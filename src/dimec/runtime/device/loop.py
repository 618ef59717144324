"""A device's threads: one with the event loop on which requests run, one that reads texts; and what a fork does.

Neither a thread nor the locks of other threads survive a fork: a device makes them anew, by `Device.forked`.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import os
import threading
import weakref
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from dimec.core.errors import OptionError
from dimec.runtime.device.client import Client, Outcome
from dimec.runtime.device.sample import Text

if TYPE_CHECKING:
    from dimec.runtime.device.device import Device

forkable: weakref.WeakSet[Device] = weakref.WeakSet()
"""Devices that mend themselves in every child that is forked; each one's lock is held while a process is forked."""
left_behind: list[object] = []
"""What only the parent may close: connections, and a loop whose thread is not in this process."""
_held = threading.local()


def _before_fork() -> None:
    _held.now = sorted(forkable, key=id)
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

    def submit(self, work: Coroutine[Any, Any, Outcome]) -> Future[Outcome]:
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

    def close(self, clients: Sequence[Client]) -> None:
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


async def _end(clients: Sequence[Client]) -> None:
    lasting = {asyncio.current_task(), *itertools.chain(*(each.lasting for each in clients))}
    tasks = [task for task in asyncio.all_tasks() if task not in lasting]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for client in clients:
        await client.close()


def closed_device() -> OptionError:
    """Return the error of whoever uses a device that is closed."""
    return OptionError("this device is closed: load the bundle again")


class Feed:
    """Read texts one by one, each when it is asked for; None stands for their end.

    It is read in a thread of its own, so that no answer has to wait for the next text.
    """

    def __init__(self, texts: Iterator[Text]) -> None:
        """Take the texts."""
        self._texts = texts
        self._wanted: SimpleQueue[Future[Text | None] | None] = SimpleQueue()
        # A daemon, since nobody can wake a thread that waits for input which never comes.
        threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._read,),
            name="dimec-texts",
            daemon=True,
        ).start()

    def ask(self) -> Future[Text | None]:
        """Ask for the next text; what the iterator raises is the future's error."""
        future: Future[Text | None] = Future()
        self._wanted.put(future)
        return future

    def close(self) -> None:
        """Let the thread end, once the iterator gives it back."""
        self._wanted.put(None)

    def _read(self) -> None:
        while (future := self._wanted.get()) is not None:
            try:
                future.set_result(next(self._texts, None))
            except BaseException as exc:  # it is raised where the text is waited for
                future.set_exception(exc)
