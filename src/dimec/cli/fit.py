"""``dimec fit``: train a multi-exit encoder and leave a run folder behind."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.options import (
    DATA_PANEL,
    AsJson,
    LabelColumn,
    PairColumn,
    Precision,
    SkipEmpty,
    SkipUnlabelled,
    TextColumn,
)

if TYPE_CHECKING:
    from dimec.training import SearchResult

_MODEL, _TRAINING = "Model", "Training"


class MetricName(StrEnum):
    """What a task is scored by."""

    accuracy = "accuracy"
    f1 = "f1"
    matthews = "matthews"


class Exits(StrEnum):
    """Where exits go."""

    all = "all"
    tiers = "tiers"


class TrainingKind(StrEnum):
    """What learns when."""

    joint = "joint"
    two_stage = "two-stage"


class SplitKind(StrEnum):
    """How rows are split."""

    random = "random"
    grouped = "grouped"


class PoolingName(StrEnum):
    """What an exit looks at."""

    attention = "attention"
    mean = "mean"
    cls = "cls"


def fit(
    task: Annotated[
        str,
        typer.Argument(
            help="sst2, cola, mrpc, qqp, qnli, mnli, rte, reviews (built in), or a name for your own --data."
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", help="The run's folder.", show_default=False)],
    data: Annotated[
        str | None,
        typer.Option(
            help="File (CSV, TSV, JSONL, parquet) or folder; without it, the hub, or the built-in data.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    skip_empty: SkipEmpty = False,
    skip_unlabelled: SkipUnlabelled = False,
    fold_labels: Annotated[
        bool,
        typer.Option(
            "--fold-labels",
            help="Make one class of those that look alike (case, width, unseen characters), by its most frequent "
            "spelling.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = False,
    metric: Annotated[
        MetricName | None,
        typer.Option(
            help="Score of the task; by default its own, else accuracy.", rich_help_panel=DATA_PANEL
        ),
    ] = None,
    split: Annotated[
        SplitKind,
        typer.Option(
            help="grouped keeps a row that is part of a longer row in that row's split.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = SplitKind.random,
    max_length: Annotated[
        int, typer.Option(help="Tokens after which a text is cut.", rich_help_panel=DATA_PANEL)
    ] = 128,
    max_rows: Annotated[
        int | None,
        typer.Option(help="Draw this many rows and leave the rest.", rich_help_panel=DATA_PANEL),
    ] = None,
    keep_texts: Annotated[
        bool,
        typer.Option(
            "--keep-texts/--no-texts",
            help="Whether the run keeps a copy of the texts, for reports and export --quantize.",
            rich_help_panel=DATA_PANEL,
        ),
    ] = True,
    backbone: Annotated[
        str,
        typer.Option(
            help="minilm (offline), a folder in Hugging Face's layout, or a hub name.",
            rich_help_panel=_MODEL,
        ),
    ] = "minilm",
    layers: Annotated[
        int | None,
        typer.Option(
            help="Keep only the backbone's first layers: a smaller model; by default all.",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    exits: Annotated[
        Exits,
        typer.Option(
            help="Exits after every layer, or only after the tiers'.", rich_help_panel=_MODEL
        ),
    ] = Exits.all,
    mobile_layers: Annotated[
        int | None,
        typer.Option(help="Layers on the device; by default the papers'.", rich_help_panel=_MODEL),
    ] = None,
    edge_layers: Annotated[
        int | None,
        typer.Option(help="Layers on the edge; by default the papers'.", rich_help_panel=_MODEL),
    ] = None,
    pooling: Annotated[
        PoolingName,
        typer.Option(
            help="What an exit looks at: tokens by weights that it learns, or, as the papers' do, mean or first token.",
            rich_help_panel=_MODEL,
        ),
    ] = PoolingName.attention,
    training: Annotated[
        TrainingKind,
        typer.Option(
            help="All exits together, or the backbone with the last exit and then, on the frozen backbone, the others.",
            rich_help_panel=_TRAINING,
        ),
    ] = TrainingKind.joint,
    epochs: Annotated[
        int,
        typer.Option(help="Epochs of each stage; all of them run.", rich_help_panel=_TRAINING),
    ] = 5,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.", rich_help_panel=_TRAINING)] = 32,
    learning_rate: Annotated[
        float, typer.Option(help="Peak rate of the backbone.", rich_help_panel=_TRAINING)
    ] = 5e-5,
    head_learning_rate: Annotated[
        float, typer.Option(help="Peak rate of the exits.", rich_help_panel=_TRAINING)
    ] = 1e-3,
    r_drop: Annotated[
        float,
        typer.Option(
            help="Weight of R-Drop, such as 1: rows are read twice under dropout, and exits learn to say the same "
            "both times. Takes twice as long.",
            rich_help_panel=_TRAINING,
        ),
    ] = 0.0,
    precision: Annotated[
        Precision,
        typer.Option(help="auto takes bf16 where the hardware has it.", rich_help_panel=_TRAINING),
    ] = Precision.auto,
    seed: Annotated[int, typer.Option(help="Seed of every draw.", rich_help_panel=_TRAINING)] = 0,
    search: Annotated[
        bool,
        typer.Option(
            "--search",
            help="Fit the papers' grid of 15 batch sizes and rates, keep the best on validation.",
            rich_help_panel=_TRAINING,
        ),
    ] = False,
    restart: Annotated[
        bool,
        typer.Option("--restart", help="Replace what the folder holds instead of resuming it."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a multi-exit encoder on a labelled data set, recording its training dynamics.

    The same command resumes a fit that was stopped, whatever stopped it.

    **Example**: `dimec fit sst2 --data glue/sst2 --backbone minilm --out runs/sst2`

    **Your own data**: `dimec fit tickets --data tickets.csv --text-column body --label-column queue --out runs/tickets`

    **DeeBERT's training, to compare with**: `dimec fit sst2 --data glue/sst2 --training two-stage --out runs/deebert`

    **Better exits, in twice the time**: `dimec fit sst2 --data glue/sst2 --r-drop 1 --out runs/sst2`

    **A smaller model, to hold one tier of another run**: `dimec fit sst2 --data glue/sst2 --layers 2 --out runs/small`
    """
    options = {
        "data": data,
        "text_column": text_column,
        "pair_column": pair_column,
        "label_column": label_column,
        "skip_empty": skip_empty,
        "skip_unlabelled": skip_unlabelled,
        "fold_labels": fold_labels,
        "metric": metric and str(metric),
        "split": str(split),
        "max_length": max_length,
        "max_rows": max_rows,
        "keep_texts": keep_texts,
        "backbone": backbone,
        "layers": layers,
        "exits": str(exits),
        "mobile_layers": mobile_layers,
        "edge_layers": edge_layers,
        "pooling": str(pooling),
        "training": str(training),
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "head_learning_rate": head_learning_rate,
        "r_drop": r_drop,
        "precision": str(precision),
        "seed": seed,
    }
    progress = ConsoleProgress()
    if search:
        result = api.search(task, out=folder, restart=restart, progress=progress, **options)
        if not as_json:
            _print_search(result)
        run = result.run
    else:
        run = api.fit(task, out=folder, restart=restart, progress=progress, **options)
    if as_json:
        metrics = (run.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        document = {"run": str(run.folder), "epochs": [json.loads(line) for line in metrics]}
        say_json(json.dumps(document))
    elif run.config.depths:
        out.print(f"{run.folder} is fitted. Next: dimec evaluate {run.folder}", markup=False)
    else:
        out.print(
            f"{run.folder} is fitted. Its model is too small for three tiers, but it can hold one tier of another "
            f"run. Next: dimec evaluate RUN --mobile-model {run.folder}",
            markup=False,
            soft_wrap=True,  # the command has to stay in one piece
        )


def _print_search(result: SearchResult) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("batch", "rate", "kept epoch", "validation score by exit"):
        table.add_column(
            column, justify="right" if column != "validation score by exit" else "left"
        )
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
