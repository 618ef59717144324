"""Progress reports of long work; the command line draws bars from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Progress:
    """Reports nothing: the default. A subclass overrides what it shows."""

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Open a stage of ``total`` units of work; call what it yields with the number of units just done."""
        yield lambda done: None

    def say(self, message: str) -> None:
        """Report something worth reading."""

    def warn(self, message: str) -> None:
        """Report something that the user should look into."""


SILENT = Progress()
