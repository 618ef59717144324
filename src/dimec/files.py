"""Files that are whole or not there, whatever kills the process, and that say which format they are in."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from dimec.errors import RunError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, make it durable, then move it there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    write(partial)
    with partial.open("r+b") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def write_json(path: Path, document: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON document, readable and in UTF-8."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` that takes its place when the block ends well.

    It first clears away what killed processes left beside this very ``folder``, and puts back a folder that a kill
    caught while it stepped aside.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as locks:
        with _clearing:
            _clear(folder)
            prefix = f".{folder.name}.{os.getpid()}-"
            partial = Path(tempfile.mkdtemp(prefix=prefix, suffix=".partial", dir=folder.parent))
            _lock(partial, locks)
        old = partial.with_suffix(".old")
        try:
            # mkdtemp makes it readable to its owner alone, which a folder of results should not be.
            umask = os.umask(0)
            os.umask(umask)
            partial.chmod(0o777 & ~umask)
            yield partial
            if folder.exists():
                _lock(folder, locks)
                _swap(partial, folder, old=old)
                shutil.rmtree(old)
            else:
                partial.rename(folder)
        finally:
            if not old.exists():  # else both are needed to tell what happened
                shutil.rmtree(partial, ignore_errors=True)


def _swap(partial: Path, folder: Path, *, old: Path) -> None:
    """Let a folder take another one's place, which cannot be renamed onto while there are files in it."""
    try:
        folder.rename(old)
        # A process killed just here leaves both, whole, under their hidden names.
        partial.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


# In one process a folder is made and locked in one go, as far as its threads can see.
_clearing = threading.Lock()


def _clear(folder: Path) -> None:
    """Remove what killed processes left of replacing ``folder``, or undo it where they were half through.

    A living process is told by its id and by its locks: in a container the same id comes again at every start, and
    means nothing in the next container. Where folders cannot be locked, nothing is touched.
    """
    pattern = re.compile(rf"(\.{re.escape(folder.name)}\.([0-9]+)-[a-z0-9_]{{8}})\.(?:partial|old)")
    try:
        matches = [pattern.fullmatch(path.name) for path in folder.parent.iterdir()]
    except OSError:
        return
    for stem, writer in sorted({(match[1], int(match[2])) for match in matches if match}):
        old, partial = (folder.with_name(stem + end) for end in (".old", ".partial"))
        there = [each for each in (old, partial) if each.is_dir() and not each.is_symlink()]
        # What cannot be cleared away is no reason not to write.
        with suppress(OSError), ExitStack() as locks:
            if not there or not all(_lock(each, locks) for each in there) or _lives(writer):
                continue
            if len(there) == 2 and not (folder.exists() and any(folder.iterdir())):
                old.rename(folder)
                there.remove(old)
            # The old one goes first: without the other it would be taken for one that was being removed.
            for each in there:
                shutil.rmtree(each)


def _lives(process: int) -> bool:
    """Say whether another process is there, as far as this system lets us see."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _lock(folder: Path, locks: ExitStack) -> bool:
    """Try to lock a folder, wherever it is moved to, until the locks are closed or the process ends."""
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
        locks.callback(os.close, descriptor)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (ImportError, OSError):
        return False
    return True


def check_format(path: Path, found: int, *, known: int) -> None:
    """Refuse a file that a newer version wrote.

    Raises:
        RunError: If its format is beyond the one known here.
    """
    if found > known:
        raise RunError(
            f"{path} has format {found}, this version reads up to {known}: install a newer dimec"
        )
