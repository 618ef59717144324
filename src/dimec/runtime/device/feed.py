"""The texts of a stream, read in a thread of their own, so that no answer has to wait for the next text."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, TypeVar

_Item = TypeVar("_Item")


class Feed(Generic[_Item]):
    """Read an iterator item by item, each when it is asked for; None stands for its end."""

    def __init__(self, items: Iterator[_Item], *, apart: bool) -> None:
        """Take the iterator; ``apart`` reads it in a thread of its own, else asking waits for the item."""
        self._items = items
        self._wanted: SimpleQueue[Future[_Item | None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        if apart:
            # A daemon, since nobody can wake a thread that waits for input which never comes.
            self._thread = threading.Thread(
                target=contextvars.copy_context().run,
                args=(self._read,),
                name="dimec-texts",
                daemon=True,
            )
            self._thread.start()

    def ask(self) -> Future[_Item | None]:
        """Ask for the next item; what the iterator raises is the future's error."""
        future: Future[_Item | None] = Future()
        if self._thread is None:
            future.set_result(next(self._items, None))
        else:
            self._wanted.put(future)
        return future

    def close(self) -> None:
        """Let the thread end, once the iterator gives it back."""
        self._wanted.put(None)

    def _read(self) -> None:
        while (future := self._wanted.get()) is not None:
            try:
                item = next(self._items, None)
            except BaseException as exc:  # it is raised where the item is waited for
                future.set_exception(exc)
            else:
                future.set_result(item)
