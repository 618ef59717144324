"""Results that are tables too: short when printed, a table in a notebook, a frame on request."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any, ClassVar

from dimec.core.errors import MissingExtraError
from dimec.core.untrusted import Record


class Tabular(Record):
    """A record whose field ``rows_in`` holds the rows of a table."""

    rows_in: ClassVar[str] = "rows"
    shown_columns: ClassVar[Sequence[str]] = ()
    """The columns that a notebook shows, as `to_pandas` names them."""

    def headline(self) -> str:
        """Say in a line what it is of, and what it found."""
        return ""

    def _flat(self) -> list[dict[str, Any]]:
        """Return the rows; what a cell holds of several values stands in columns of its own."""
        return [_flattened(row.model_dump()) for row in getattr(self, self.rows_in)]

    def to_pandas(self) -> Any:  # noqa: ANN401  of a library without types
        """Return a frame with a line a row: intervals as two columns, ``_low`` and ``_high``; NaN where there is none.

        Raises:
            MissingExtraError: If pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as exc:
            raise MissingExtraError("a frame", "train") from exc
        return pd.DataFrame(self._flat())

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        rows = self._flat()
        head = "".join(f"<th>{escape(each.replace('_', ' '))}</th>" for each in self.shown_columns)
        body = "".join(
            "<tr>"
            + "".join(f"<td>{_cell(row.get(each))}</td>" for each in self.shown_columns)
            + "</tr>"
            for row in rows
        )
        return f"<p>{escape(self.headline())}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def __repr__(self) -> str:
        """Say it in a line."""
        return f"{type(self).__name__}({self.headline()})"

    def __str__(self) -> str:
        """Say it in a line."""
        return repr(self)


def _flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flattened(value, f"{prefix}{name}_")
        elif name.endswith("_ci95"):
            stem = f"{prefix}{name.removesuffix('_ci95')}"
            flat[f"{stem}_low"], flat[f"{stem}_high"] = value or (None, None)
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else escape(str(value))
