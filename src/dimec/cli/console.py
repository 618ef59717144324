"""How the command line speaks: tables and JSON on stdout, everything else on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

from dimec.progress import Progress

WIDTH = 100

out = Console(width=WIDTH, highlight=False, soft_wrap=False)
err = Console(stderr=True, highlight=False)


_SECONDS_BETWEEN_LINES = 20.0


class _LineByLine:
    """Progress for log files: silent while a stage is short, then a line every twenty seconds."""

    def __init__(self, what: str, total: int) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._began = self._spoke = time.monotonic()

    def advance(self, done: int) -> None:
        self._done += done
        now = time.monotonic()
        if now - self._spoke < _SECONDS_BETWEEN_LINES:
            return
        self._spoke = now
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate
        err.print(
            f"{self._what}: {self._done:,} of {self._total:,}, {rate:,.0f} a second, {left:,.0f} s left",
            soft_wrap=True,
        )


class ConsoleProgress(Progress):
    """Draw a bar per stage on stderr; where that is no terminal, write a line now and then."""

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Draw one stage."""
        if not err.is_terminal:
            yield _LineByLine(what, total).advance
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=err, transient=True) as bars:
            task = bars.add_task(what, total=total)
            yield lambda done: bars.advance(task, done)

    def say(self, message: str) -> None:
        """Print a line."""
        err.print(message, markup=False, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a line that stands out."""
        err.print("[bold yellow]Warning:[/]", end=" ")
        err.print(message, markup=False, soft_wrap=True)
