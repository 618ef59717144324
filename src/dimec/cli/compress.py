"""``dimec compress``: learn a bottleneck at a split of a finished run."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer
from rich.table import Table

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.options import AsJson, Precision
from dimec.cli.testbed import RunFolder
from dimec.runs.compressed import DEFAULT_LEVELS, Compressed

_KIND, _TRAINING = "Of one kind", "Training"


class KindName(StrEnum):
    """How a bottleneck is learnt."""

    bottlenet = "bottlenet"
    bottlenet_pp = "bottlenet-pp"
    bottlefit = "bottlefit"


class ChannelName(StrEnum):
    """What lies between encoder and decoder."""

    awgn = "awgn"
    erasure = "erasure"


def compress(
    folder: RunFolder,
    kind: Annotated[KindName, typer.Option(help="Whose bottleneck.", show_default=False)],
    layer: Annotated[
        int,
        typer.Option(help="The last layer on the device; it needs an exit.", show_default=False),
    ],
    width: Annotated[
        int,
        typer.Option(
            help="How many numbers of a token are shipped, instead of a hidden state's.",
            show_default=False,
        ),
    ],
    pool: Annotated[
        int | None,
        typer.Option(
            help="bottlenet: so many tokens in a row become one.",
            show_default="1",
            rich_help_panel=_KIND,
        ),
    ] = None,
    levels: Annotated[
        int | None,
        typer.Option(
            help="bottlenet: levels of a number; fewer pack better.",
            show_default=str(DEFAULT_LEVELS),
            rich_help_panel=_KIND,
        ),
    ] = None,
    channel: Annotated[
        ChannelName | None,
        typer.Option(
            help="bottlenet-pp: noise on symbols, or erased bits.",
            show_default="awgn",
            rich_help_panel=_KIND,
        ),
    ] = None,
    snr_db: Annotated[
        float | None,
        typer.Option(
            help="bottlenet-pp over awgn: signal over noise, in dB.",
            show_default="10",
            rich_help_panel=_KIND,
        ),
    ] = None,
    erasure_rate: Annotated[
        float | None,
        typer.Option(
            help="bottlenet-pp over erasure: share of bits that are lost.",
            show_default="0.01",
            rich_help_panel=_KIND,
        ),
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(
            help="bottlenet-pp: draws of the channel that scores are averaged over.",
            show_default="5",
            rich_help_panel=_KIND,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            help="bottlefit: of the teacher's logits.", show_default="1", rich_help_panel=_KIND
        ),
    ] = None,
    label_share: Annotated[
        float | None,
        typer.Option(
            help="bottlefit: share of labels, beside the teacher's logits, in the second stage.",
            show_default="0.5",
            rich_help_panel=_KIND,
        ),
    ] = None,
    max_rows: Annotated[
        int,
        typer.Option(help="Training rows of the run to learn from.", rich_help_panel=_TRAINING),
    ] = 8000,
    epochs: Annotated[
        int, typer.Option(help="Epochs of each stage; all of them run.", rich_help_panel=_TRAINING)
    ] = 5,
    batch_size: Annotated[int, typer.Option(help="Rows a batch.", rich_help_panel=_TRAINING)] = 32,
    learning_rate: Annotated[
        float, typer.Option(help="Peak rate of the tail.", rich_help_panel=_TRAINING)
    ] = 5e-5,
    bottleneck_learning_rate: Annotated[
        float, typer.Option(help="Peak rate of the bottleneck.", rich_help_panel=_TRAINING)
    ] = 1e-3,
    precision: Annotated[
        Precision,
        typer.Option(help="auto takes bf16 where the hardware has it.", rich_help_panel=_TRAINING),
    ] = Precision.auto,
    seed: Annotated[int, typer.Option(help="Seed of every draw.", rich_help_panel=_TRAINING)] = 0,
    restart: Annotated[
        bool,
        typer.Option(
            "--restart", help="Replace what is there of this name instead of resuming it."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Learn what the device ships instead of a hidden state, and how the cloud goes on from it.

    The device's layers stay as they are. The result is kept in the run's folder, where `dimec evaluate` finds it. The
    same command resumes a training that was stopped, whatever stopped it.

    **Example**: `dimec compress runs/sst2 --kind bottlefit --layer 2 --width 16`

    **Over a bad channel**: `dimec compress runs/sst2 --kind bottlenet-pp --layer 2 --width 16 --snr-db 0`
    """
    made = api.compress(
        folder,
        kind=str(kind),
        layer=layer,
        width=width,
        pool=pool,
        levels=levels,
        channel=channel and str(channel),
        snr_db=snr_db,
        erasure_rate=erasure_rate,
        draws=draws,
        temperature=temperature,
        label_share=label_share,
        max_rows=max_rows,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        bottleneck_learning_rate=bottleneck_learning_rate,
        precision=str(precision),
        seed=seed,
        restart=restart,
        progress=ConsoleProgress(),
    )
    if as_json:
        document = {
            "folder": str(made.folder),
            "config": made.config.model_dump(mode="json"),
            "scores": made.scores.model_dump(mode="json"),
        }
        say_json(json.dumps(document))
    else:
        _print(made)
        out.print(
            f"{made.folder} is learnt. Next: dimec evaluate {folder}", markup=False, soft_wrap=True
        )


def _print(made: Compressed) -> None:
    """Print what the test rows came to, beside the run's own exits and what else could be sent."""
    test = made.scores.test
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("exit after layer", "accuracy", "as it was"):
        table.add_column(column, justify="right")
    for layer, ours, own in zip(test.layers, test.accuracy, test.uncompressed, strict=True):
        table.add_row(str(layer), f"{100 * ours:.2f}", f"{100 * own:.2f}")
    out.print(table)
    if test.draws:
        mean = 100 * sum(test.draws) / len(test.draws)
        out.print(
            f"last exit over {len(test.draws)} draws of the channel: {mean:.2f} "
            f"({100 * min(test.draws):.2f} to {100 * max(test.draws):.2f}); the table has the first",
            markup=False,
        )
    out.print(
        f"bytes a sample: {test.bytes_compressed:.0f} compressed, {test.bytes_hidden:.0f} as fp16 hidden state, "
        f"{test.bytes_tokens:.0f} as token ids; test accuracy × 100, {test.n:,} samples",
        markup=False,
    )
