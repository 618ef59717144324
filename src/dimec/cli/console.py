"""How the command line speaks: tables and JSON on stdout, everything else on stderr."""

from __future__ import annotations

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


class ConsoleProgress(Progress):
    """Draw a bar per stage on stderr; without a terminal, a line when a stage begins and ends."""

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Draw one stage."""
        if not err.is_terminal:
            err.print(f"{what}: {total:,} to do")
            yield lambda done: None
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
        err.print(message, markup=False)

    def warn(self, message: str) -> None:
        """Print a line that stands out."""
        err.print("[bold yellow]Warning:[/]", end=" ")
        err.print(message, markup=False)
