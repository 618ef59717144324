"""``dimec fit``: train a multi-exit encoder and leave a run folder behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.generate import AsJson, Restart
from dimec.cli.table import open_table

if TYPE_CHECKING:
    from dimec.training import SearchResult


def fit(
    given: dict[str, Any],
    folder: Annotated[Path, typer.Option("--out", help="The run's folder.", show_default=False)],
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Fit the papers' grid of 15 batch sizes and learning rates and keep the best on validation.",
            rich_help_panel="Training",
            hidden=True,
        ),
    ] = False,
    restart: Restart = False,
    as_json: AsJson = False,
) -> None:
    """Train a multi-exit encoder on a labelled data set.

    The same command resumes a fit that was stopped.

    **Example**: `dimec fit tickets --data tickets.csv --out runs/tickets`

    **Named columns**: `dimec fit tickets --data t.csv --text-column body --label-column queue --out runs/tickets`

    **DeeBERT's training, to compare with**: `dimec fit sst2 --data glue/sst2 --training two-stage --out runs/deebert`

    **Better exits, in twice the time**: `dimec fit sst2 --data glue/sst2 --r-drop 1 --out runs/sst2`

    **A smaller model, to hold one tier of another run**: `dimec fit sst2 --data glue/sst2 --layers 2 --out runs/small`
    """
    progress = ConsoleProgress()
    if search:
        result = api.search(out=folder, restart=restart, progress=progress, **given)
        if not as_json:
            _print_search(result)
        run = result.run
    else:
        run = api.fit(out=folder, restart=restart, progress=progress, **given)
    if as_json:
        say_json(json.dumps({"run": str(run.folder), "epochs": run.epochs()}))
    elif run.config.depths:
        out.print(f"{run.folder} is fitted. Next: dimec evaluate {run.folder}")
    else:
        out.print(
            f"{run.folder} is fitted. Its model is too small for three tiers, but it can hold one tier of another "
            f"run. Next: dimec evaluate RUN --mobile-model {run.folder}",
            soft_wrap=True,  # the command has to stay in one piece
        )


def _print_search(result: SearchResult) -> None:
    last = "validation score by exit"
    table = open_table("batch", "rate", "kept epoch", last, left=(last,))
    for trial in result.trials:
        scores = "  ".join(f"{100 * each:.2f}" for each in trial.validation_scores)
        mark = "bold" if trial == result.best else None
        table.add_row(
            str(trial.batch_size),
            f"{trial.learning_rate:g}",
            str(trial.best_epoch),
            scores,
            style=mark,
        )
    out.print(table)
