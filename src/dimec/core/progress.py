"""Progress reports of long work; the command line draws bars from them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from dimec.core.errors import printable


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


class BarProgress(Progress):
    """Draw a bar per stage on stderr, in a terminal or a notebook; the bar goes when it is done."""

    @contextmanager
    def stage(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Draw one stage."""
        from tqdm import tqdm

        with tqdm(total=total, desc=what, leave=False, file=sys.stderr) as bar:
            yield bar.update

    def say(self, message: str) -> None:
        """Write a line."""
        sys.stderr.write(f"{printable(message)}\n")

    def warn(self, message: str) -> None:
        """Write a line that says what it is."""
        self.say(f"Warning: {message}")


def visible(progress: Progress | None) -> Progress:
    """Return a reporter that is given; else bars where somebody looks, and there is tqdm, which training brings."""
    if progress is not None:
        return progress
    looks = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    return BarProgress() if looks and find_spec("tqdm") else SILENT


def n_launched() -> int:
    """Return how many processes a launcher started for this work; 1 without one."""
    number = os.environ.get("WORLD_SIZE", "1")
    return max(1, int(number)) if number.isdecimal() else 1


def is_first() -> bool:
    """Say whether this is the process of several that reports, or the only one."""
    return n_launched() == 1 or os.environ.get("RANK", "0") == "0"
