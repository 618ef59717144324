"""Rows in memory as a `Table`: frames of pandas and polars, tables of pyarrow, `datasets.Dataset`, lists of dicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from dimec.core.errors import DataError, MissingExtraError
from dimec.core.options import Frame
from dimec.core.untrusted import reason
from dimec.data.columns import Table
from dimec.data.faults import Row, numbered
from dimec.data.files import ABSENT

_BATCH = 8_192
_INDEX = "__index_level_"
"""How the name of an index begins that pandas hands over as a column; it holds neither texts nor labels."""


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
