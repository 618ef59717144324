"""A corpus as blocks of rows, the same ones whenever and wherever it is read: what is done is known by a block's name.

Files are read by dimec's own readers, those of a URL from a copy that lasts as long as they are read. A row that cannot
be classified stays in its block and says why.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import fs

from dimec.core.errors import DataError, OptionError
from dimec.core.options import TextColumns
from dimec.data.faults import Row
from dimec.data.files import SUFFIXES
from dimec.data.unlabelled import file_rows

BLOCK_ROWS = 4_096
_BLOCK_CHARACTERS = 8_000_000

ROWS = pa.schema(
    [
        ("row", pa.int64()),
        ("id", pa.string()),
        ("first", pa.string()),
        ("second", pa.string()),
        ("error", pa.string()),
    ]
)
"""The columns of a block: a row's place in its file from 0, its id, its texts, and why it cannot be classified."""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one file that follow each other.

    Attributes:
        name: What no other block of the corpus is called.
        file: The file's place among those of the corpus.
        rows: The rows, by `ROWS`.
    """

    name: str
    file: int
    rows: pa.Table


@dataclass(frozen=True, slots=True)
class Corpus:
    """Files that are labelled together.

    Attributes:
        place: The file, folder or URL.
        paths: The files, in order, as the file system has them.
        fingerprint: SHA-256 over their names, sizes and times of change.
        id_column: What is kept beside the answers.
    """

    place: str
    paths: tuple[str, ...]
    fingerprint: str
    columns: TextColumns
    id_column: str | None
    pairs: bool

    @classmethod
    def of(cls, place: str, columns: TextColumns, *, id_column: str | None, pairs: bool) -> Corpus:
        """List the files of a place.

        Raises:
            DataError: If there is none.
            OptionError: If the place is of no known kind.
        """
        system, path = file_system(place, option="--data")
        try:
            info = system.get_file_info(path)
            found = [info]
            if info.type == fs.FileType.Directory:
                found = [
                    each
                    for each in system.get_file_info(fs.FileSelector(path, recursive=True))
                    if each.extension and f".{each.extension.lower()}" in SUFFIXES
                ]
        except (OSError, pa.ArrowException) as exc:
            raise DataError(f"--data {place} cannot be looked into: check path and rights") from exc
        found = [each for each in found if each.type == fs.FileType.File]
        if not found:
            raise DataError(
                f"--data {place}: there is no file there whose name ends in one of {', '.join(SUFFIXES)}; give a file, "
                "or a folder of such"
            )
        found.sort(key=lambda each: str(each.path))
        listed = "".join(f"{each.path}\0{each.size}\0{each.mtime_ns}\n" for each in found)
        digest = hashlib.sha256(listed.encode(errors="surrogateescape")).hexdigest()
        paths = tuple(str(each.path) for each in found)
        return cls(place, paths, digest, columns, id_column, pairs)

    def read(self, file: int) -> Iterator[tuple[Row, str | None]]:
        """Give the rows of a file, each with its id.

        Raises:
            DataError: If it cannot be read, or lacks a column.
        """
        with _here(self.place, self.paths[file]) as path:
            try:
                yield from file_rows(
                    path, pairs=self.pairs, columns=self.columns, also=self.id_column
                )
            except OSError as exc:
                raise DataError(f"cannot be read ({exc.strerror or exc})", source=path) from exc

    def count(self, file: int) -> tuple[int, int]:
        """Return how many rows a file has, and how many of them can be classified."""
        n_rows, n_good = 0, 0
        for row, _ in self.read(file):
            n_rows, n_good = row.position + 1, n_good + (row.fault is None)
        return n_rows, n_good

    def blocks(
        self, file: int, *, done: Container[str] = (), only: NDArray[np.int64] | None = None
    ) -> Iterator[Block]:
        """Give the blocks of a file but those that are done; of ``only`` some rows where these are given."""
        wanted = None if only is None else set(only.tolist())
        found: list[tuple[int, str | None, str | None, str | None, str | None]] = []
        number, characters = 0, 0

        def block() -> Iterator[Block]:
            name = f"{file:05d}-{number:07d}"
            if found and name not in done:
                columns = zip(*found, strict=True)
                yield Block(name, file, pa.table([list(each) for each in columns], schema=ROWS))

        for row, own in self.read(file):
            if wanted is not None and row.position not in wanted:
                continue
            first, second = (*map(str, row.cells), None, None)[:2]
            error = None if row.fault is None else _encodable(row.fault)
            found.append((row.position, own and _encodable(own), first, second, error))
            characters += len(first or "") + len(second or "")
            if len(found) == BLOCK_ROWS or characters >= _BLOCK_CHARACTERS:
                yield from block()
                number, characters, found = number + 1, 0, []
        yield from block()


def file_system(place: str, *, option: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a path or a URL, and the path in it.

    Raises:
        OptionError: If it is of no known kind.
    """
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).absolute())
    try:
        system, path = fs.FileSystem.from_uri(place)
        return system, path
    except (pa.ArrowException, OSError, ValueError) as exc:
        first = exc
    try:
        from fsspec.core import url_to_fs

        found, path = url_to_fs(place)
    except (ImportError, OSError, ValueError):
        reason = (str(first).splitlines() or [type(first).__name__])[0]
        raise OptionError(
            f"{option} {place} cannot be opened ({reason}): give a path, or a URL such as s3://bucket/folder"
        ) from first
    return fs.PyFileSystem(fs.FSSpecHandler(found)), path


@contextmanager
def _here(place: str, path: str) -> Iterator[Path]:
    """Give a file of a corpus on this machine."""
    system, _ = file_system(place, option="--data")
    if isinstance(system, fs.LocalFileSystem):
        yield Path(path)
        return
    with TemporaryDirectory(prefix="dimec-") as scratch:
        copy = Path(scratch, PurePosixPath(path).name)
        with system.open_input_stream(path) as source, copy.open("wb") as file:
            shutil.copyfileobj(source, file)
        yield copy


def _encodable(text: str) -> str:
    return text.encode(errors="replace").decode()
