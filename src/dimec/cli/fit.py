"""``dimec fit``: train a multi-exit encoder into a run folder; ``dimec compress``: learn a bottleneck in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dimec
from dimec.cli.console import ConsoleProgress, open_table, out, print_banner, say_json
from dimec.cli.generate import AsJson, Restart, RunFolder
from dimec.core.errors import DimecError, OptionError
from dimec.core.progress import is_first

if TYPE_CHECKING:
    from dimec.runs.compressed import Compressed
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
    report_to: Annotated[
        str | None,
        typer.Option(
            "--report-to",
            metavar="NAMES",
            help="Trackers that are told of every epoch: tensorboard, mlflow, wandb; several by commas.",
            rich_help_panel="Output",
            hidden=True,
        ),
    ] = None,
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
    from dimec.runs.baselines import baseline_warnings

    progress = ConsoleProgress()
    if search and report_to:
        raise OptionError("--report-to is of one fit: give it without --search")
    if search:
        result = dimec.search(out=folder, restart=restart, progress=progress, **given)
        if not as_json:
            _print_search(result)
        run = result.run
    else:
        try:
            run = dimec.fit(
                out=folder, restart=restart, report_to=report_to or (), progress=progress, **given
            )
        except DimecError as exc:  # of several processes the first tells it
            if is_first():
                raise
            raise typer.Exit(exc.exit_code) from exc
        if not is_first():
            return
    warnings = baseline_warnings(run)
    if not as_json:
        print_banner(warnings)
    if as_json:
        document = {"run": str(run.folder), "epochs": run.epochs(), "warnings": warnings}
        say_json(json.dumps(document))
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


def compress(
    given: dict[str, Any], folder: RunFolder, restart: Restart = False, as_json: AsJson = False
) -> None:
    """Learn a bottleneck: what the device sends in place of a hidden state, and how the cloud goes on from it.

    The device's layers stay as they are. The result is kept in the run's folder, where `dimec evaluate` finds it. The
    same command resumes a training that was stopped.

    **Example**: `dimec compress runs/sst2 --kind bottlefit --layer 2 --width 16`

    **Over a bad channel**: `dimec compress runs/sst2 --kind bottlenet-pp --layer 2 --width 16 --snr-db 0`
    """
    made = dimec.compress(folder, restart=restart, progress=ConsoleProgress(), **given)
    if as_json:
        document = {
            "folder": str(made.folder),
            "config": made.config.model_dump(mode="json"),
            "scores": made.scores.model_dump(mode="json"),
        }
        say_json(json.dumps(document))
    else:
        _print_compressed(made)
        out.print(f"{made.folder} is learnt. Next: dimec evaluate {folder}", soft_wrap=True)


def _print_compressed(made: Compressed) -> None:
    """Print what the test rows came to, beside the run's own exits and what else could be sent."""
    test = made.scores.test
    table = open_table("exit after layer", "accuracy", "as it was")
    for layer, ours, own in zip(test.layers, test.accuracy, test.uncompressed, strict=True):
        table.add_row(str(layer), f"{100 * ours:.2f}", f"{100 * own:.2f}")
    out.print(table)
    if test.draws:
        mean = 100 * sum(test.draws) / len(test.draws)
        out.print(
            f"last exit over {len(test.draws)} draws of the channel: {mean:.2f} "
            f"({100 * min(test.draws):.2f} to {100 * max(test.draws):.2f}); the table has the first",
        )
    out.print(
        f"bytes a sample: {test.bytes_compressed:.0f} compressed, {test.bytes_hidden:.0f} as fp16 hidden state, "
        f"{test.bytes_tokens:.0f} as token ids; test accuracy × 100, {test.n:,} samples",
    )
