"""Write a report: the page, and its figures and tables as files beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dimec.core.errors import RunError
from dimec.core.extras import needs_report
from dimec.core.files import write_atomically
from dimec.core.progress import SILENT, Progress
from dimec.reporting import charts, tables
from dimec.reporting.page import page
from dimec.reporting.results import Result, Rows, read_result, read_rows, read_whatif
from dimec.reporting.theme import config


@dataclass(frozen=True, slots=True)
class Written:
    """A report: the page, which needs no other file, and the files beside it."""

    page: Path
    files: tuple[Path, ...]


def check_installed() -> None:
    """Check that the report extra is installed, before anything is read or computed for a report.

    Raises:
        MissingExtraError: If the report extra is not installed.
    """
    with needs_report():
        import altair  # noqa: F401
        import jinja2  # noqa: F401
        import pyarrow  # noqa: F401
        import vl_convert  # noqa: F401


def write_report(folder: Path, *, out: Path | None = None, progress: Progress = SILENT) -> Written:
    """Draw what a study left in a folder.

    Args:
        out: The page; ``report.html`` in the folder if not given. Folders for figures and tables stand beside it.

    Raises:
        RunError: If the folder holds no result, or one that cannot be read or drawn.
        MissingExtraError: If the report extra is not installed.
    """
    check_installed()
    import vl_convert

    result, rows = _read(folder)
    whatif = read_whatif(folder)
    drawn = _charts(result, rows)
    target = out if out is not None else folder / "report.html"
    files: list[Path] = []

    def write(path: Path, content: str | bytes) -> None:
        data = content.encode() if isinstance(content, str) else content
        write_atomically(path, lambda partial: partial.write_bytes(data))
        files.append(path)

    for table in result.tables:
        if table.columns:
            for ending, as_text in tables.ENDINGS.items():
                path = target.parent / "tables" / f"{table.name}.{ending}"
                write(path, as_text(table, rows[table.name]))
    with progress.stage("drawing figures", len(drawn)) as advance:
        for name, document in drawn.items():
            static = _static(document)
            svg = vl_convert.vegalite_to_svg(static, allowed_base_urls=[])
            png = vl_convert.vegalite_to_png(static, scale=2, allowed_base_urls=[])
            write(target.parent / "figures" / f"{name}.svg", svg)
            write(target.parent / "figures" / f"{name}.png", png)
            advance(1)
    text = page(result, rows, charts=drawn, whatif=whatif, vega=_vega() if drawn else "")
    write_atomically(target, lambda partial: partial.write_text(text, encoding="utf-8"))
    return Written(target, tuple(files))


def draw_figures(folder: Path, begins: str) -> dict[str, str]:
    """Return the figures of a study's folder whose names begin so, as SVG.

    Raises:
        RunError: If the folder holds no result, or one that cannot be read or drawn.
        MissingExtraError: If the report extra is not installed.
    """
    check_installed()
    import vl_convert

    drawn = _charts(*_read(folder))
    return {
        name: vl_convert.vegalite_to_svg(_static(document), allowed_base_urls=[])
        for name, document in drawn.items()
        if name.startswith(begins)
    }


def _read(folder: Path) -> tuple[Result, dict[str, Rows]]:
    result = read_result(folder)
    _check(folder, result)
    return result, {table.name: read_rows(folder, table.name) for table in result.tables}


def _static(document: dict[str, Any]) -> dict[str, Any]:
    """Return a figure as the files beside the page draw it: in the light theme, on white."""
    return {**document, "config": {**config("light"), "background": "white"}}


@lru_cache(maxsize=1)
def _vega() -> str:
    """Return the program that draws the charts of a page; bundling it takes longer than all the rest of a report."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def _check(folder: Path, result: Result) -> None:
    """Refuse a result with a name that cannot name a file, or with a figure over a table that it does not have."""
    tables = [table.name for table in result.tables]
    for name in (*tables, *(figure.name for figure in result.figures)):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise RunError(
                f"{folder} has a table or figure named {name!r}, which cannot name a file: letters, digits, "
                "'_', '.' and '-' can"
            )
    for figure in result.figures:
        if figure.table not in tables:
            raise RunError(
                f"figure {figure.name} of {folder} draws table {figure.table}, which is none of its tables "
                f"({', '.join(tables) or 'it has none'}): run the study again"
            )


def _charts(result: Result, rows: Mapping[str, Rows]) -> dict[str, dict[str, Any]]:
    """Return every figure that has data as a Vega-Lite document, by name."""
    columns = {table.name: table.columns for table in result.tables}
    shown = [figure for figure in result.figures if rows.get(figure.table)]
    hues = charts.hues((figure, rows[figure.table]) for figure in shown)
    return {
        figure.name: charts.chart(figure, rows[figure.table], columns[figure.table], hues)
        for figure in shown
    }
