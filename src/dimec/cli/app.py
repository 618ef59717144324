"""The application: global behaviour, exit codes, and the list of commands, each loaded when it is called."""

from __future__ import annotations

import io
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from dimec.core.errors import DimecError

VERBS = {
    "fit": (
        "dimec.cli.fit",
        "dimec.runs.run:FitOptions",
        "Train a multi-exit encoder on a labelled data set.",
    ),
    "evaluate": (
        "dimec.cli.evaluate",
        "dimec.evaluation.options:EvaluateOptions",
        "Recommend what to deploy, and show what it loses and saves on held-out texts, or on a data set of yours.",
    ),
    "frontier": (
        "dimec.cli.evaluate",
        "dimec.evaluation.options:FrontierOptions",
        "Sweep the price: at each one, every policy is fitted on validation and replayed, as `dimec evaluate` does.",
    ),
    "plan": (
        "dimec.cli.plan",
        "dimec.deploying.options:PlanOptions",
        "Say what accuracy dimec-cascade can promise against sending everything to the cloud, and what it costs.",
    ),
    "compress": (
        "dimec.cli.fit",
        "dimec.runs.compressed:CompressOptions",
        "Learn a bottleneck: what the device sends in place of a hidden state, and how the cloud goes on from it.",
    ),
    "study": (
        "dimec.cli.study",
        "dimec.studies.options:StudyOptions",
        "Run a study of the papers: fit the runs that are missing, compute, rule on the claims.",
    ),
    "report": (
        "dimec.cli.study",
        "dimec.studies.options:ReportOptions",
        "Make a page of a run, or of a study: one HTML file that needs no network, with a what-if panel.",
    ),
    "export": (
        "dimec.cli.export",
        "dimec.deploying.options:ExportOptions",
        "Write a bundle: ONNX graphs, tokenizer and a manifest for each tier, and on mobile the fitted policy.",
    ),
    "profile": (
        "dimec.cli.profile",
        "dimec.costs.options:ProfileOptions",
        "Measure latency and memory of each tier, engine, number of threads, length and batch, each in its own "
        "process.",
    ),
    "serve": (
        "dimec.cli.serve",
        "dimec.runtime.server.settings:ServeOptions",
        "Serve a tier over HTTP in the Open Inference Protocol v2, or a text classifier of all tiers, until SIGTERM.",
    ),
    "web": (
        "dimec.cli.web",
        "dimec.deploying.options:WebOptions",
        "Write a static site: a page that runs the mobile tier in a browser, offline too, and asks the other tiers.",
    ),
    "classify": (
        "dimec.cli.classify",
        "dimec.runtime.device.options:ClassifyOptions",
        "Classify texts on the cheapest tier that the bundle's policy finds: on this device, at the edge or in the "
        "cloud.",
    ),
    "bulk": (
        "dimec.cli.bulk",
        "dimec.corpus.options:BulkOptions",
        "Label a corpus: files of any size, on this machine or on a Ray cluster, into parquet files.",
    ),
    "doctor": (
        "dimec.cli.doctor",
        None,
        "Say what is installed here, what the processor can do, and whether a bundle is whole and runs.",
    ),
    "demo": (
        "dimec.cli.demo",
        None,
        "Fit MiniLM on the built-in reviews, export it, and classify held-out texts over three tiers on this machine.",
    ),
}
"""Each command: its module, which has a function of its name; its option record, if any; what it does."""
_MARKUP: Any = "markdown"


def load_verb(name: str) -> TyperCommand:
    """Return a command with its options, which takes its libraries."""
    from dimec.cli.generate import add_verb

    module, place, _ = VERBS[name]
    function = getattr(import_module(module), name)
    one = typer.Typer(add_completion=False, rich_markup_mode=_MARKUP)
    if place is None:
        one.command(name)(function)
    else:
        room, _, record = place.partition(":")
        add_verb(one, getattr(import_module(room), record), function)
    command = typer.main.get_command(one)
    assert isinstance(command, TyperCommand)  # of one command, typer makes no group
    return command


class _Verbs(TyperGroup):
    """A group whose list of commands takes none of their libraries: a command is loaded when it is called."""

    def __init__(self, **told: Any) -> None:  # noqa: ANN401  as typer has them
        super().__init__(**told)
        for name, (_, _, summary) in VERBS.items():
            self.add_command(TyperCommand(name, help=summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401  typer keeps its click to itself
        name, found, rest = super().resolve_command(ctx, args)
        return name, found if name is None else load_verb(name), rest


app = typer.Typer(
    name="dimec",
    cls=_Verbs,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=_MARKUP,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from dimec.core.version import __version__

        sys.stdout.write(f"dimec {__version__}\n")
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


def main() -> None:
    """Run the command line; an error ends with one message and its exit code, never with a traceback."""
    _replace_what_cannot_be_encoded()
    try:
        app(prog_name="dimec")
    except DimecError as exc:
        _fail(str(exc), exit_code=exc.exit_code)
    except OSError as exc:  # a folder that may not be written, a disk that is full
        where = f"{exc.filename}: " if exc.filename else ""
        _fail(f"{where}{exc.strerror or exc}", exit_code=2)


def _replace_what_cannot_be_encoded() -> None:
    """Let the outputs replace what their encoding lacks instead of failing, where the user says nothing else."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")


def _fail(message: str, *, exit_code: int) -> NoReturn:
    from dimec.cli.console import err

    err.print("[bold red]Error:[/]", end=" ", markup=True)
    err.print(message, soft_wrap=True)
    sys.exit(exit_code)
