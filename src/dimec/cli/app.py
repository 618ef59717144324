"""The application: global behaviour, exit codes, and the list of commands."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer

import dimec
from dimec.cli.classify import classify
from dimec.cli.console import err, replace_what_cannot_be_encoded, say_line
from dimec.cli.demo import demo
from dimec.cli.doctor import doctor
from dimec.cli.evaluate import evaluate, frontier
from dimec.cli.export import export
from dimec.cli.fit import compress, fit
from dimec.cli.generate import add_verb
from dimec.cli.plan import plan
from dimec.cli.profile import profile
from dimec.cli.serve import serve
from dimec.cli.study import report, study
from dimec.core.errors import DimecError
from dimec.costs.options import ProfileOptions
from dimec.deploying.options import ExportOptions, PlanOptions
from dimec.evaluation.options import EvaluateOptions, FrontierOptions
from dimec.runs.compressed import CompressOptions
from dimec.runs.run import FitOptions
from dimec.runtime.device.options import ClassifyOptions
from dimec.runtime.server.settings import ServerSettings
from dimec.studies.options import ReportOptions, StudyOptions

app = typer.Typer(
    name="dimec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        say_line(f"dimec {dimec.__version__}")
        raise typer.Exit


@app.callback()
def dimec_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A text classifier across device, edge and cloud; every text goes to the cheapest tier that gets it right.

    Exit codes: 0 done, 1 a fault of ours, 2 bad usage or bad input.

    **Example**: `dimec demo`
    """


add_verb(app, FitOptions, fit)
add_verb(app, EvaluateOptions, evaluate)
add_verb(app, FrontierOptions, frontier)
add_verb(app, PlanOptions, plan)
add_verb(app, CompressOptions, compress)
add_verb(app, StudyOptions, study)
add_verb(app, ReportOptions, report)
add_verb(app, ExportOptions, export)
add_verb(app, ProfileOptions, profile)
add_verb(app, ServerSettings, serve)
add_verb(app, ClassifyOptions, classify)
app.command()(doctor)
app.command()(demo)


def main() -> None:
    """Run the command line; an error ends with one message and its exit code, never with a traceback."""
    replace_what_cannot_be_encoded()
    try:
        app(prog_name="dimec")
    except DimecError as exc:
        _fail(str(exc), exit_code=exc.exit_code)
    except OSError as exc:  # a folder that may not be written, a disk that is full
        where = f"{exc.filename}: " if exc.filename else ""
        _fail(f"{where}{exc.strerror or exc}", exit_code=2)


def _fail(message: str, *, exit_code: int) -> NoReturn:
    err.print("[bold red]Error:[/]", end=" ", markup=True)
    err.print(message, soft_wrap=True)
    sys.exit(exit_code)
