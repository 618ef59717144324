"""``dimec pools``: what the adaptive policies of several devices have learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dimec import api
from dimec.cli.console import out

pools = typer.Typer(
    name="pools",
    no_args_is_help=True,
    help="What the adaptive policies of devices have learnt: merge it.",
    rich_markup_mode="markdown",
)


@pools.callback()
def pools_command() -> None:
    """What the adaptive policies of devices have learnt: merge it."""


@pools.command()
def merge(
    states: Annotated[
        list[Path], typer.Argument(help="The devices' state folders.", show_default=False)
    ],
    folder: Annotated[
        Path, typer.Option("--out", help="Folder of the merged state.", show_default=False)
    ],
) -> None:
    """Add up what several devices have learnt, exactly: their sums and counts beyond the common start.

    Copy the result to every device as its --state: each then goes on from it.

    **Example**: `dimec pools merge phone-1/state phone-2/state --out merged`
    """
    merged = api.merge_pools(states, out=folder)
    out.print(
        f"{folder} holds {merged.updates:,} updates of {len(merged.sources)} devices.",
        markup=False,
        soft_wrap=True,
    )
