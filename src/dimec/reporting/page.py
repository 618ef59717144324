"""The page: one HTML file that needs no other file and no network.

Every text of a result may hold what users wrote. Jinja escapes what is shown, `_embedded` what scripts read, and the
page's policy runs no script but those whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dimec.core.extras import needs_report
from dimec.reporting import theme
from dimec.reporting.charts import MANY, data_table
from dimec.reporting.format import around, formatted, number, stands_out
from dimec.reporting.results import Column, Result, Rows, Table, UsedRun, WhatIf
from dimec.reporting.tables import sections

SHOWN_AS_TABLE = 200  # the most rows of a figure whose data are shown as a table too

_HERE = Path(__file__).parent
_SCRIPTS = ("rule.js", "whatif.js", "page.js")
_MARKS = {
    "holds": "✓",
    "holds in part": "◐",
    "does not hold here": "✗",
    "unmoved": "=",
    "depends on the price": "±",
    "could not be tested": "?",
}


def page(
    result: Result,
    rows: Mapping[str, Rows],
    *,
    charts: Mapping[str, Mapping[str, Any]],
    whatif: Sequence[WhatIf],
    vega: str,
) -> str:
    """Return the page: a result with the rows of its tables and its figures as Vega-Lite documents, by name.

    ``whatif`` is what the panel of prices computes from, ``vega`` the scripts that define ``vegaEmbed``.

    Raises:
        MissingExtraError: If jinja2 is not installed.
    """
    with needs_report():
        import jinja2
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["formatted"] = formatted
    own = "\n".join(_asset(name) for name in _SCRIPTS)
    scripts = [vega, f"(() => {{\n'use strict';\n{own}}})();"]
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()) for script in scripts)
    hashes = " ".join(f"'sha256-{digest.decode()}'" for digest in digests)
    data = {
        "charts": charts,
        "many": MANY,
        "themes": {name: theme.config(name) for name in theme.PALETTES},
        "palettes": theme.PALETTES,
        "whatif": [each.model_dump(mode="json") for each in whatif],
    }
    text: str = environment.get_template("page.html").render(
        result=result,
        run_titles=list(UsedRun.model_fields),
        printed=[_printed(table, rows, result, charts) for table in result.tables],
        whatif=whatif,
        marks=_MARKS,
        style=_asset("page.css"),
        scripts=scripts,
        hashes=hashes,
        data=_embedded(data),
    )
    # Half an emoji, as broken data sets hold them, is no UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def _printed(
    table: Table, rows: Mapping[str, Rows], result: Result, charts: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what the template shows of a table: its rows in sections, where it is printed, and its figures."""
    found = rows.get(table.name, [])
    parts = [
        (group, [[_cell(row, column) for column in table.columns] for row in members])
        for group, members in sections(table, found)
    ]
    drawn = []
    for figure in (each for each in result.figures if each.table == table.name):
        titles, lines = (
            data_table(figure, found, table.columns) if len(found) <= SHOWN_AS_TABLE else ([], [])
        )
        drawn.append(
            {
                "figure": figure,
                "has_chart": figure.name in charts,
                "n": len(found),
                "titles": titles,
                "lines": lines,
            }
        )
    return {"table": table, "sections": parts if table.columns else [], "figures": drawn}


def _cell(row: Mapping[str, Any], column: Column) -> dict[str, Any]:
    """Return a value as text and as what its column is sorted by, with what stands about it."""
    value = row.get(column.name)
    found = number(value)
    text = formatted(value, column.quantity)
    return {
        "text": text,
        "value": found if found is not None else ("" if value is None else text),
        "around": around(row, column),
        "stands_out": stands_out(row, column),
    }


def _asset(name: str) -> str:
    return (_HERE / "assets" / name).read_text(encoding="utf-8")


def _embedded(data: object) -> str:
    """Return JSON without signs that could end its HTML element, whatever texts it holds."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
