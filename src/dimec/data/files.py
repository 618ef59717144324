"""Readers of labelled tables: CSV, TSV, JSON lines and parquet.

A path goes in; `open_table` gives a `Table`: the names of its columns and, in one pass, the rows of the columns asked
for. What is read is bounded per row, so that a file which is no table ends in a sentence rather than in all the memory.
What the cells mean (texts, labels) is for `sources` to judge.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from dimec.errors import DataError, MissingExtraError

MAX_CELL_CHARACTERS = 100_000
MAX_ROW_BYTES = 1_000_000
SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """The chosen cells of one row and where it stands.

    ``number`` is for messages: the line in an editor, header included, or the row of a parquet file from 1.
    ``position`` counts rows from 0 without the header.
    """

    number: int
    position: int
    cells: tuple[object, ...]


@dataclass(frozen=True)
class Table:
    """An open table: ``read(names)`` gives its rows once, with the cells of those columns in that order."""

    source: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]


def shown(value: object) -> str:
    """Quote a value for a message, cut to a length that a terminal line bears."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def open_table(
    path: Path, *, header: Sequence[str] | None = None, allow_ragged: bool = False
) -> Iterator[Table]:
    """Open a table by the suffix of its name.

    ``header`` names the columns of a CSV or TSV file that has no header line; with ``allow_ragged`` a row with a
    wrong number of fields comes without cells instead of being refused.

    Raises:
        DataError: the file is missing, empty or no table of its kind; here or while rows are read.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"the suffix {path.suffix!r} is not one of {', '.join(SUFFIXES)}; convert or rename the file",
            source=path,
        )
    try:
        with path.open("rb") as handle:
            if suffix == ".parquet":
                yield _parquet(handle, path)
                return
            lines = _Lines(handle, path)
            if suffix in (".csv", ".tsv"):
                split = _csv_records if suffix == ".csv" else _tsv_records
                yield _delimited(split(lines), path, header, allow_ragged)
            else:
                yield _json_lines(lines, path)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise DataError(f"cannot be read ({reason}); check path and rights", source=path) from exc


class _Lines:
    """The lines of a text file, decoded one by one so that a fault has a row, and bounded."""

    def __init__(self, handle: BinaryIO, path: Path) -> None:
        self._handle = handle
        self._path = path
        self._row_bytes = 0
        self.number = 0
        self.row = 1

    def begin_row(self) -> None:
        """Note that the next line starts a row; a CSV row may take several."""
        self.row = self.number + 1
        self._row_bytes = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        raw = self._handle.readline(MAX_ROW_BYTES + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        self._row_bytes += len(raw)
        if self._row_bytes > MAX_ROW_BYTES:
            raise self.fault(
                f"the row is longer than {MAX_ROW_BYTES:,} bytes, and a cell may hold {MAX_CELL_CHARACTERS:,}"
                " characters; shorten the text, or close the quote that is still open"
            )
        if b"\0" in raw:
            raise self.fault("this is no text file (it holds a NUL byte); save it as UTF-8 text")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise self.fault(
                f"this is no UTF-8 text (byte {exc.start + 1} of line {self.number}); save the file as UTF-8"
            ) from exc
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def fault(self, message: str) -> DataError:
        """Make the error for the row that is being read."""
        return DataError(message, source=self._path, row=self.row)


@dataclass(frozen=True, slots=True)
class _Record:
    number: int
    fields: list[str]


def _csv_records(lines: _Lines) -> Iterator[_Record]:
    reader = csv.reader(lines, strict=True)
    while True:
        lines.begin_row()
        try:
            fields = next(reader, None)
        except csv.Error as exc:
            raise lines.fault(
                f"the quoting is broken from here on ({exc}): a quote that is never closed, or a cell of more than"
                f" {MAX_CELL_CHARACTERS:,} characters; close the quote, double quotes inside a cell, or cut the text"
            ) from exc
        if fields is None:
            return
        yield _Record(lines.row, fields)


def _tsv_records(lines: _Lines) -> Iterator[_Record]:
    # Quotes mean nothing in GLUE's TSV files: their texts hold single ones, which a CSV reader would pair up.
    lines.begin_row()
    for line in lines:
        yield _Record(lines.row, line.removesuffix("\n").removesuffix("\r").split("\t"))
        lines.begin_row()


def _is_blank(fields: list[str]) -> bool:
    return not fields or (len(fields) == 1 and not fields[0].strip())


def _delimited(
    records: Iterator[_Record], path: Path, header: Sequence[str] | None, allow_ragged: bool
) -> Table:
    records = (record for record in records if not _is_blank(record.fields))
    if header is None:
        opening = next(records, None)
        if opening is None:
            raise DataError("the file is empty; give one with a header line and rows", source=path)
        header = opening.fields
    columns = tuple(name.strip() for name in header)

    def read(names: Sequence[str]) -> Iterator[Row]:
        places = [columns.index(name) for name in names]
        for position, record in enumerate(records):
            fields = record.fields
            if len(fields) != len(columns):
                if allow_ragged:
                    yield Row(record.number, position, ())
                    continue
                raise DataError(
                    f"the row has {len(fields)} fields where the header has {len(columns)}; "
                    "mend the row (a stray or missing separator, or a line break inside a cell)",
                    source=path,
                    row=record.number,
                )
            yield Row(record.number, position, tuple(fields[place] for place in places))

    return Table(str(path), columns, read)


@dataclass(frozen=True, slots=True)
class _JsonRecord:
    number: int
    values: dict[str, object]


def _json_records(lines: _Lines) -> Iterator[_JsonRecord]:
    lines.begin_row()
    for line in lines:
        if line.strip():
            if lines.row == 1 and line.lstrip().startswith("["):
                raise lines.fault("this is a JSON array; write JSON lines, one object per line")
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as exc:
                raise lines.fault(
                    f"the line is no valid JSON ({exc}); write one object per line"
                ) from exc
            if not isinstance(values, dict):
                raise lines.fault(f"the line holds {shown(values)}; write one JSON object per line")
            yield _JsonRecord(lines.row, values)
        lines.begin_row()


def _json_lines(lines: _Lines, path: Path) -> Table:
    records = _json_records(lines)
    opening = next(records, None)
    if opening is None:
        raise DataError("the file is empty; give one JSON object per line", source=path)

    def read(names: Sequence[str]) -> Iterator[Row]:
        for position, record in enumerate(chain([opening], records)):
            for name in names:
                if name not in record.values:
                    raise DataError(
                        f"the row has no {name!r}, which the first row has; add it",
                        source=path,
                        row=record.number,
                    )
            cells = tuple(record.values[name] for name in names)
            yield Row(record.number, position, cells)

    return Table(str(path), tuple(opening.values), read)


def _parquet(handle: BinaryIO, path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise MissingExtraError(f"reading {path.name}", "train") from exc

    broken = (pa.ArrowException, OSError, UnicodeDecodeError)

    def fault(exc: Exception, row: int | None = None) -> DataError:
        reason = (str(exc).splitlines() or [type(exc).__name__])[0]
        return DataError(
            f"this is no readable parquet file ({reason}); write it again", source=path, row=row
        )

    try:
        file = pq.ParquetFile(handle)
        columns = tuple(str(name) for name in file.schema_arrow.names)
    except broken as exc:
        raise fault(exc) from exc

    def read(names: Sequence[str]) -> Iterator[Row]:
        position = 0
        try:
            for batch in file.iter_batches(batch_size=8192, columns=list(dict.fromkeys(names))):
                cells = [batch.column(name).to_pylist() for name in names]
                for row in zip(*cells, strict=True):
                    yield Row(position + 1, position, row)
                    position += 1
        except broken as exc:
            raise fault(exc, position + 1) from exc

    return Table(str(path), columns, read)
