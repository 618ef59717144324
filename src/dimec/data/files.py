"""Readers of tables: CSV, TSV, JSON lines and parquet, and what holds rows in memory.

A path goes in; `open_table` gives a `Table`: the names of its columns and, in one pass, the rows of the columns asked
for. What is read is bounded per row, so that a file which is no table does not fill the memory. `frame_table` gives one
of frames of pandas and polars, tables of pyarrow, a `datasets.Dataset`, or lists of dicts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from dimec.core.errors import DataError, MissingExtraError, shown
from dimec.core.options import Frame
from dimec.core.untrusted import open_regular, reason
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

_BATCH = 8_192
_INDEX = "__index_level_"
"""How the name of an index begins that pandas hands over as a column; it holds neither texts nor labels."""


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
            batches = file.iter_batches(batch_size=_BATCH, columns=list(dict.fromkeys(names)))
            for row in numbered(
                [batch.column(name).to_pylist() for name in names] for batch in batches
            ):
                yield row
                n_read = row.number
        except broken as exc:
            raise fault(exc, n_read + 1) from exc

    return Table(str(path), columns, read)


def frame_table(frame: Frame) -> Table:
    """Open rows that are in memory; they may be read again and again.

    Raises:
        MissingExtraError: If they are no list, and pyarrow is not installed.
        DataError: If a column holds values of several types.
    """
    rows = frame.rows
    if isinstance(rows, list | tuple):
        columns = tuple(map(str, rows[0]))

        def read(names: Sequence[str]) -> Iterator[Row]:
            return numbered([[[row.get(name, ABSENT) for row in rows] for name in names]])

        return Table(frame, columns, read)
    try:
        import pyarrow as pa
    except ImportError as exc:
        raise MissingExtraError("reading a frame", "train") from exc
    # A Dataset of Hugging Face's is read by its own means, which know of selections and of the names of classes.
    features: dict[str, Any] = getattr(rows, "features", None) or {}

    def batches(names: Sequence[str]) -> Iterator[Any]:
        if features:
            yield from rows.with_format("arrow").select_columns(list(names)).iter(_BATCH)
        else:
            yield from pa.RecordBatchReader.from_stream(rows)

    def read_arrow(names: Sequence[str]) -> Iterator[Row]:
        return numbered(
            [_cells(batch.column(name), features.get(name)) for name in names]
            for batch in batches(list(dict.fromkeys(names)))
        )

    try:
        listed = (
            rows.column_names if features else pa.RecordBatchReader.from_stream(rows).schema.names
        )
    except (pa.ArrowException, TypeError, ValueError) as exc:
        raise DataError(
            f"it cannot be read as columns of one type each ({reason(exc)}): make each column one of texts",
            source=frame,
        ) from exc
    return Table(frame, tuple(name for name in listed if not name.startswith(_INDEX)), read_arrow)


def _cells(column: Any, feature: Any) -> list[Any]:  # noqa: ANN401  of libraries without types
    """Return a column's values; of codes that have names of classes these."""
    values: list[Any] = column.to_pylist()
    names = getattr(feature, "names", None)
    if not isinstance(names, list):
        return values
    known = range(len(names))
    return [names[value] if value in known else None for value in values]
