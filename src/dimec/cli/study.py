"""``dimec study``: the papers' tables and figures; ``dimec report``: one page of a study, or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

import dimec
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.generate import AsJson
from dimec.core.errors import OptionError
from dimec.core.extras import needs_training

if TYPE_CHECKING:
    from dimec.reporting.results import Result


def study(
    given: dict[str, Any],
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Which study; without it, all are listed.")
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="The result's folder.", show_default="studies/NAME"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a study of the papers: fit the runs that are missing, compute, rule on the claims.

    A study that is killed goes on with the same command. `dimec report DIR` makes a page of its result.

    **Example**: `dimec study main --tasks cola,mrpc --data data/glue --out studies/main`

    **List the studies**: `dimec study`
    """
    if name is None:
        _list(as_json=as_json)
        return
    result, where = dimec.study(name, out=folder, progress=ConsoleProgress(), **given)
    if as_json:
        say_json(result.model_dump_json(indent=2))
        return
    _print(result, where)


def _list(*, as_json: bool) -> None:
    """Print every study's name, what it asks, and which part of the papers it answers."""
    with needs_training():
        from dimec.studies.running import STUDIES
    if as_json:
        raise OptionError("--json prints a study's result: name the study")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("study", "what", "answers", "tasks"):
        table.add_column(column)
    for each in STUDIES.values():
        table.add_row(each.name, each.title, each.source, " ".join(each.tasks))
    out.print(table)


def _print(result: Result, where: Path) -> None:
    out.print(f"{result.study}: {result.title}")
    for each in result.verdicts:
        out.print()
        out.print(f"{each.ruling}: {each.claim} ({each.source})")
        for line in each.evidence:
            out.print(f"  {line}", style="dim")
        if each.cases:
            out.print(f"  {len(each.cases)} cases: see the report", style="dim")
    out.print()
    for note in result.notes:
        out.print(note, style="dim")
    out.print()
    tables = [table.title for table in result.tables if table.columns]
    out.print(f"{len(tables)} tables ({'; '.join(tables)}) are in {where}")
    out.print(f"dimec report {where}   makes a page of them")


def report(
    given: dict[str, Any],
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|STUDY", help="The folder of a finished fit, or of a study."),
    ],
    page: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="The page.", show_default="report.html beside the results"
        ),
    ] = None,
) -> None:
    """Make a page of a run, or of a study: one HTML file that needs no network, with a what-if panel.

    The page of a run recommends what to deploy as `dimec evaluate` does, and shows what it costs and loses, class by
    class, with texts that it got right and wrong. What it shows is kept in the run's `report/`. Figures as SVG and
    PNG, and tables as CSV, Markdown and LaTeX, are beside the page.

    **Example**: `dimec report runs/tickets --max-drop 0.5`

    **A study**: `dimec report studies/main --out main.html`
    """
    written = dimec.report(folder, out=page, progress=ConsoleProgress(), **given)
    out.print(str(written.page), soft_wrap=True)
    out.print(f"and {len(written.files)} figures and tables beside it", style="dim")
