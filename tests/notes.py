"""A progress reporter that keeps what it is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from dimec.core.progress import Progress


class Notes(Progress):
    """Keep what is said and the bars that were filled; with ``stops``, stop once an epoch's checkpoint is written."""

    def __init__(self, *, stops: bool = False) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []
        self.bars: dict[str, list[int]] = {}
        self._stops = stops

    def say(self, message: str) -> None:
        self.said.append(message)
        if self._stops and message.startswith("epoch "):
            raise KeyboardInterrupt

    def warn(self, message: str) -> None:
        self.warned.append(message)

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        done: list[int] = []
        yield done.append
        self.bars[what] = [total, sum(done)]
