"""Files that are whole or not there, whatever kills the process, and that say which format they are in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Give an empty folder beside ``folder`` that takes its place when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # mkdtemp makes it readable to its owner alone, which a folder of results should not be.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        yield partial
        if folder.exists():
            # A folder cannot be renamed onto one with files in it, so the old one steps aside; a
            # process killed just here leaves both, whole, under their hidden names.
            old = partial.with_name(partial.name + ".old")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_format(path: Path, found: int, *, known: int) -> None:
    """Refuse a file that a newer version wrote.

    Raises:
        RunError: If its format is beyond the one known here.
    """
    if found > known:
        raise RunError(
            f"{path} has format {found}, this version reads up to {known}: install a newer dimec"
        )
