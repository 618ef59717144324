"""``dimec study``: the papers' tables and figures, each with one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.generate import AsJson
from dimec.core.errors import OptionError
from dimec.core.extras import needs_training
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
    result, where = api.study(name, out=folder, progress=ConsoleProgress(), **given)
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
