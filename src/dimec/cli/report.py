"""``dimec report``: one page of a study, or of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dimec import api
from dimec.cli.console import ConsoleProgress, out


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
    """Make a page of results: one HTML file that needs no network, with tables that sort and a what-if panel.

    Beside it are its figures as SVG and PNG and its tables as CSV, Markdown and LaTeX. For a run, what the studies ask
    is computed first and kept in the run's `report/`.

    **Example**: `dimec report studies/main`

    **A run**: `dimec report runs/tickets --out tickets.html`
    """
    written = api.report(folder, out=page, progress=ConsoleProgress(), **given)
    out.print(str(written.page), soft_wrap=True)
    out.print(f"and {len(written.files)} figures and tables beside it", style="dim")
