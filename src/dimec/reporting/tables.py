"""A printed table as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

from dimec.reporting.format import around, formatted, stands_out
from dimec.reporting.results import Rows, Table

Row = Mapping[str, Any]

_TEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "\N{NO-BREAK SPACE}": "~",
    "\N{MINUS SIGN}": "$-$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "→": r"$\rightarrow$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "Δ": r"$\Delta$",
    "λ": r"$\lambda$",
    "μ": r"$\mu$",
    "σ": r"$\sigma$",
}
_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+")


def sections(table: Table, rows: Rows) -> list[tuple[str | None, list[Row]]]:
    """Group the rows by the table's sections, in order of their first row; one group without a name if it has none."""
    if table.group is None:
        return [(None, list(rows))]
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(formatted(row.get(table.group), "text"), []).append(row)
    return list(found.items())


def as_csv(table: Table, rows: Rows) -> str:
    """Return a table as CSV: unrounded values, with the ends of their intervals."""
    names: list[str | None] = [table.group]
    for column in table.columns:
        names += [column.name, column.low, column.high, column.spread, column.stands_out]
    kept = list(dict.fromkeys(name for name in names if name is not None))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(kept)
    writer.writerows([row.get(name) for name in kept] for row in rows)
    return text.getvalue()


def as_markdown(table: Table, rows: Rows) -> str:
    """Return a table as Markdown, formatted as in the page; what stands out is bold."""
    grouped = table.group is not None
    titles = (table.group or "", *(each.title for each in table.columns))
    lines = [
        [_markdown(title) for title in titles],
        ["---", *("---" if each.quantity == "text" else "---:" for each in table.columns)],
    ]
    for group, members in sections(table, rows):
        shown = (_cells(table, row, _markdown, "**{}**") for row in members)
        lines += [[_markdown(group or ""), *cells] for cells in shown]
    about = f"{_markdown(table.about)}\n\n" if table.about else ""
    return f"**{_markdown(table.title)}**\n\n{about}" + "".join(
        f"| {' | '.join(line if grouped else line[1:])} |\n" for line in lines
    )


def as_latex(table: Table, rows: Rows) -> str:
    """Return a table for LaTeX's booktabs, with every special sign escaped."""
    letters = "".join("l" if column.quantity == "text" else "r" for column in table.columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        "\\begin{table}",
        f"\\caption{{{_latex(table.title)}}}",
        f"\\begin{{tabular}}{{{letters}}}",
        "\\toprule",
        _latex_line([_latex(column.title) for column in table.columns]),
    ]
    for group, members in sections(table, rows):
        lines.append("\\midrule")
        if group is not None:
            lines.append(
                f"\\multicolumn{{{len(table.columns)}}}{{l}}{{\\textit{{{_latex(group)}}}}} \\\\"
            )
        lines += [_latex_line(_cells(table, row, _latex, "\\textbf{{{}}}")) for row in members]
    lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


ENDINGS = {"csv": as_csv, "md": as_markdown, "tex": as_latex}
"""The functions that write a table, by ending of the file."""


def _cells(table: Table, row: Row, escape: Callable[[str], str], bold: str) -> list[str]:
    """Return a row's values as text, with what stands about them; what stands out is put into ``bold``."""
    cells = []
    for column in table.columns:
        text = escape(formatted(row.get(column.name), column.quantity))
        shown = bold.format(text) if stands_out(row, column) else text
        beside = " ".join(around(row, column))
        cells.append(f"{shown} ({escape(beside)})" if beside else shown)
    return cells


def _markdown(text: str) -> str:
    return re.sub(r"([\\|*_`<>\[\]])", r"\\\1", _BREAKS.sub(" ", text))


def _latex(text: str) -> str:
    return "".join(_TEX.get(sign, sign) for sign in _BREAKS.sub(" ", text))


def _latex_line(cells: list[str]) -> str:
    # A row that begins with a bracket would be taken for an option of the line break before it.
    return (
        " & ".join("{" + cell + "}" if cell.startswith("[") else cell for cell in cells) + " \\\\"
    )
