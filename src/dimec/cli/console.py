"""How the command line speaks: tables and JSON on stdout, everything else on stderr.

Texts, labels and names are other people's: what could steer a terminal is escaped in all that is printed, and what an
output's encoding lacks is replaced.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dimec.core.errors import printable
from dimec.core.progress import Progress

WIDTH = 100
BANNER_WIDTH = 80


class _PlainConsole(Console):
    """A console that takes nothing for markup unless it is told to, and lets no text steer the terminal."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  as rich has them
        # Here, so that tables leave room for it; `render` finds what comes otherwise.
        return super().render_str(printable(text, keep="\n"), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            if segment.control or segment.text.isprintable():
                yield segment
            else:
                yield Segment(printable(segment.text, keep="\n"), segment.style)


out = _PlainConsole(width=WIDTH, highlight=False, soft_wrap=False, markup=False, emoji=False)
err = _PlainConsole(stderr=True, highlight=False, markup=False, emoji=False)


def open_table(*columns: str, left: Collection[str] = (), padding: int = 2) -> Table:
    """Return a table without lines; its columns are flushed right but those in ``left``."""
    table = Table(box=None, padding=(0, padding, 0, 0), header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    return table


def say_line(line: str) -> None:
    """Print a line on stdout at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def print_banner(warnings: Sequence[str]) -> None:
    """Print warnings about a result below it, in a box that nobody overlooks; at most 80 columns."""
    for warning in warnings:
        out.print()
        out.print(
            Panel(warning, title="WARNING", style="bold red", width=BANNER_WIDTH, padding=(0, 1))
        )


def say_json(document: str) -> None:
    """Print JSON on stdout: what cannot be shown, or not in the output's encoding, is escaped as JSON escapes it."""
    encoding = (sys.stdout.encoding or "utf-8").lower().replace("-", "").replace("_", "")
    if not document.isascii() or "\x7f" in document:
        shown = str.isprintable if encoding.startswith("utf") else str.isascii
        document = re.sub(
            r"[^\x00-\x7e]",
            lambda found: (
                found[0] if shown(found[0]) and found[0] != "\x7f" else _in_json(found[0])
            ),
            document,
        )
    say_line(document)


def _in_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))


def pace(done: int, seconds: float) -> str:
    """Say how fast something goes: so many a second, or seconds for each where that is less than one."""
    rate = done / seconds if seconds > 0 else 0.0
    if rate >= 1 or not done:
        return f"{rate:,.0f} a second"
    return f"{seconds / done:,.3g} s each"


SECONDS_BETWEEN_LINES = 20.0


def open_bars() -> Bars:
    """Return bars on stderr, which go when they are done."""
    return Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
    )


class ConsoleProgress(Progress):
    """Draw a bar per stage on stderr; where that is no terminal, write a line every twenty seconds."""

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Draw one stage."""
        if err.is_terminal:
            with open_bars() as bars:
                task = bars.add_task(what, total=total)
                yield lambda done: bars.advance(task, done)
            return
        n_done, began = 0, time.monotonic()
        spoke = began

        def advance(done: int) -> None:
            nonlocal n_done, spoke
            n_done += done
            now = time.monotonic()
            if now - spoke < SECONDS_BETWEEN_LINES:
                return
            spoke = now
            left = (total - n_done) * (now - began) / n_done if n_done else 0.0
            self.say(
                f"{what}: {n_done:,} of {total:,}, {pace(n_done, now - began)}, {left:,.0f} s left"
            )

        yield advance

    def say(self, message: str) -> None:
        """Print a line."""
        err.print(message, soft_wrap=True)

    def warn(self, message: str) -> None:
        """Print a line that stands out."""
        err.print("[bold yellow]Warning:[/]", end=" ", markup=True)
        err.print(message, soft_wrap=True)
