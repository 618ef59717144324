"""Readers of tables: CSV, TSV, JSON lines and parquet.

A path goes in; `open_table` gives a `Table`: the names of its columns and, in one pass, the rows of the columns asked
for. What is read is bounded per row, so that a file which is no table does not fill the memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

from dimec.core.errors import DataError, MissingExtraError, shown
from dimec.core.untrusted import open_regular
from dimec.data.columns import Table
from dimec.data.delimited import (
    BOM,
    SEPARATORS,
    Layout,
    Lines,
    Record,
    find_layout,
    open_text,
    records,
)
from dimec.data.faults import Faults, Row, numbered

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
# As many lines that are no objects may stand before the first one.
_MOST_OPENING = 1_000


ABSENT = object()
"""The cell of a JSON object that lacks a key which the first one has."""


@contextmanager
def open_table(
    path: Path, *, header: Sequence[str] | None = None, allow_ragged: bool = False
) -> Iterator[Table]:
    """Open a table by the suffix of its name.

    ``header`` names the columns of a TSV file of GLUE's that has no header line; with ``allow_ragged``, for another of
    GLUE's, a row with a wrong number of fields comes without cells instead of with a fault.

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
        if suffix == ".parquet":
            with open_regular(path) as handle:
                yield _parquet(handle, path)
            return
        with open_text(path) as handle:
            lines = Lines(handle, path)
            if suffix not in (".csv", ".tsv"):
                yield _json_lines(lines, path)
                return
            usual = "," if suffix == ".csv" else "\t"
            layout = Layout(usual, quoted=False)
            if header is None:
                layout = find_layout(handle, path, usual=usual, is_glue=allow_ragged)
                handle.seek(0)
            yield _delimited(lines, path, layout, header, allow_ragged)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise DataError(f"cannot be read ({reason}); check path and rights", source=path) from exc


def _delimited(
    lines: Lines, path: Path, layout: Layout, header: Sequence[str] | None, allow_ragged: bool
) -> Table:
    rows = (record for record in records(lines, layout) if not record.is_blank)
    opening: Record | None = None
    if header is None:
        opening = next(rows, None)
        if opening is None:
            raise DataError("the file is empty; give one with a header line and rows", source=path)
        if opening.fault:
            raise DataError(opening.fault, source=path, row=opening.number, unit="line")
        header = opening.fields
    columns = tuple(name.strip() for name in header)
    by = SEPARATORS.get(layout.separator, layout.separator)

    def fault(fields: list[str]) -> str | None:
        if len(fields) != len(columns):
            return (
                f"the row has {len(fields)} fields where the header has {len(columns)} (separated by {by}); "
                "mend the row (a stray or missing separator, or a line break inside a cell)"
            )
        # Files that were put one after another repeat the mark of the first line too.
        plain = (field.lstrip(BOM).strip() for field in fields)
        if opening and fields[-1] == opening.fields[-1] and tuple(plain) == columns:
            return "the line repeats the header; remove it"
        return None

    def read(names: Sequence[str]) -> Iterator[Row]:
        places = [columns.index(name) for name in names]
        for position, record in enumerate(rows):
            fields = record.fields
            wrong = record.fault or fault(fields)
            if wrong:
                is_left_out = allow_ragged and not record.fault and len(fields) != len(columns)
                yield Row(record.number, position, (), None if is_left_out else wrong)
            else:
                yield Row(record.number, position, tuple(fields[place] for place in places))

    return Table(str(path), columns, read, unit="line", names_are_sure=opening is None)


def _json_objects(lines: Lines) -> Iterator[tuple[int, dict[str, object], str | None]]:
    """Give the number and the object of each line that is not blank, with what is wrong with it."""
    while True:
        lines.begin_row()
        line = next(lines, None)
        if line is None:
            return
        if lines.wrong:
            yield lines.row, {}, lines.wrong
        elif lines.row == 1 and line.lstrip().startswith("["):
            raise lines.fault("this is a JSON array; write JSON lines, one object per line")
        elif line.strip():
            yield lines.row, *_json_object(line)


def _json_object(line: str) -> tuple[dict[str, object], str | None]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as exc:
        return {}, f"the line is no valid JSON ({exc}); write one object per line"
    if not isinstance(found, dict):
        return {}, f"the line holds {shown(found)}; write one JSON object per line"
    return found, None


def _json_lines(lines: Lines, path: Path) -> Table:
    found = _json_objects(lines)
    faults = Faults(str(path), "line")
    opening: list[tuple[int, dict[str, object], str | None]] = []
    for each in islice(found, _MOST_OPENING):  # up to the first that names the columns
        opening.append(each)
        number, values, wrong = each
        if wrong is None:
            break
        faults.add(number, wrong)
    else:
        faults.refuse()
        raise DataError("the file is empty; give one JSON object per line", source=path)

    def read(names: Sequence[str]) -> Iterator[Row]:
        for position, (number, values, fault) in enumerate(chain(opening, found)):
            cells = () if fault else tuple(values.get(name, ABSENT) for name in names)
            yield Row(number, position, cells, fault)

    return Table(str(path), tuple(values), read, unit="line")


def _parquet(handle: BinaryIO, path: Path) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise MissingExtraError(f"reading {path.name}", "train") from exc

    # Moments that Python has none for are an OverflowError or a ValueError of their own.
    broken = (pa.ArrowException, OSError, ValueError, OverflowError)

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
        n_read = 0
        try:
            batches = file.iter_batches(batch_size=8192, columns=list(dict.fromkeys(names)))
            for row in numbered(
                [batch.column(name).to_pylist() for name in names] for batch in batches
            ):
                yield row
                n_read = row.number
        except broken as exc:
            raise fault(exc, n_read + 1) from exc

    return Table(str(path), columns, read)
