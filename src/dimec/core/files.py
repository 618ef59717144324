"""Files and folders that are whole or not there, whatever kills the process.

What is written has the rights that the umask gives, whichever library wrote it. A link stays a link: its target is
written.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from dimec.core.errors import DimecError, InputError, OutputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path``, make it durable, then move it there in one step.

    Raises:
        OutputError: If it cannot be written; nothing of it is left.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.unlink(missing_ok=True)
            with partial.open("wb") as file:
                rights = os.fstat(file.fileno()).st_mode
            write(partial)
            partial.chmod(rights & 0o777)  # safetensors puts a file of its owner's alone there
            with partial.open("r+b") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


def write_json(path: Path, document: Any) -> None:  # noqa: ANN401  any JSON value
    """Write a JSON document, readable and in UTF-8."""
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


_UNWRITABLE = {
    errno.ENOSPC,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
    getattr(errno, "EDQUOT", errno.ENOSPC),
}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Translate the system's errors while something is written, also those that a library reports as its own.

    Raises:
        OutputError: If the disk is full, or the place may not be written to.
    """
    try:
        yield
    except DimecError:
        raise
    except Exception as exc:
        # Rust's libraries (safetensors, tokenizers) raise errors of their own, which end in "(os error 28)".
        number = exc.errno if isinstance(exc, OSError) else None
        if number is None and (said := re.search(r"(?:\(os error|\[Errno) (\d+)", str(exc))):
            number = int(said[1])
        if number is None or number not in _UNWRITABLE:
            raise
        raise OutputError(
            f"{path} cannot be written ({os.strerror(number)}): make room, see to the rights, or choose another place"
        ) from exc


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` that takes its place when the block ends well.

    Where ``folder`` is a link, what it leads to is replaced. It first clears away what killed processes left beside
    this very ``folder``, and puts back a folder that a kill caught while it stepped aside.

    Raises:
        OutputError: If the disk is full, or the place may not be written to.
    """
    folder = Path(os.path.realpath(folder))
    with writing(folder), ExitStack() as locks:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _clearing:
            _clear(folder)
            name = f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
            partial = folder.with_name(name)
            partial.mkdir()
            _lock(partial, locks)
        old = partial.with_suffix(".old")
        try:
            rights = partial.stat().st_mode & 0o666
            yield partial
            for path in partial.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    path.chmod(rights)
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
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    locks.callback(os.close, descriptor)
    return lock(descriptor) is True


def lock(descriptor: int) -> bool | None:
    """Lock an open file or folder until it is closed or the process ends; False where another process holds it.

    None where this system or this file system has no such locks.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def hold(path: Path, *, otherwise: DimecError) -> IO[bytes]:
    """Lock a file, made where it is missing, until what is returned is closed or the process ends, however it ends.

    Raises ``otherwise`` if another process holds it; see `lock`.
    """
    file = path.open("ab")
    if lock(file.fileno()) is False:
        file.close()
        raise otherwise
    return file


def check_readable(path: Path, *, fault: type[InputError]) -> None:
    """Refuse a file that this user may not read, before a library calls it missing; a missing one passes.

    Raises:
        InputError: ``fault``, if it is there and cannot be opened.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as exc:
        raise fault(
            f"{path} cannot be read ({exc.strerror}): give this user the right to read it and the folders above it"
        ) from exc
