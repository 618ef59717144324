"""``dimec evaluate``: route a split with every policy and print it beside the honest controls."""

from __future__ import annotations

from dataclasses import fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from dimec import api
from dimec.cli.console import ConsoleProgress, out
from dimec.cli.options import DATA_PANEL, AsJson, LabelColumn, PairColumn, SkipEmpty, TextColumn
from dimec.cli.table import print_evaluation
from dimec.costs import DEFAULT_PRICE, CostModel
from dimec.errors import OptionError
from dimec.files import write_atomically
from dimec.runs import Run

_COSTS = "Costs"


class SpreadName(StrEnum):
    """What beta is held against."""

    deviation = "deviation"
    variance = "variance"


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished fit.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A labelled file or folder instead of the test split.", rich_help_panel=DATA_PANEL
        ),
    ] = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    skip_empty: SkipEmpty = False,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="A policy, or all; may be given several times. Default: all."),
    ] = None,
    price: Annotated[
        float,
        typer.Option(
            help="What the full model on the device costs in units of confidence.",
            rich_help_panel=_COSTS,
        ),
    ] = DEFAULT_PRICE,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=λ",
            help="Change a price, such as to_cloud=6; names: "
            + ", ".join(field.name for field in fields(CostModel))
            + ".",
            rich_help_panel=_COSTS,
        ),
    ] = None,
    spread: Annotated[
        SpreadName,
        typer.Option(help="What β is held against in data cartography's pools."),
    ] = SpreadName.deviation,
    mobile_layers: Annotated[
        int | None, typer.Option(help="Layers on the device, instead of the run's.")
    ] = None,
    edge_layers: Annotated[
        int | None, typer.Option(help="Layers on the edge, instead of the run's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random routing and of intervals.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Replay policies over the held-out split, or over a data set of yours, and set them beside the controls.

    Thresholds and pools come from the validation split alone. What is printed is kept in the run's evaluation folder.

    **Example**: `dimec evaluate runs/sst2`

    **A domain shift**: `dimec evaluate runs/sst2 --data reviews.csv --policy dimec-dc-fixed --price 0.2`
    """
    progress = ConsoleProgress()
    run = Run.open(folder)
    evaluation = api.evaluate(
        run,
        data=data,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        skip_empty=skip_empty,
        policies=policy or (),
        costs=_cost_model(cost or ()),
        price=price,
        spread=spread.value,
        mobile_layers=mobile_layers,
        edge_layers=edge_layers,
        seed=seed,
        progress=progress,
    )
    document = evaluation.model_dump_json(indent=2)
    if as_json:
        typer.echo(document)
    else:
        print_evaluation(evaluation, console=out)
    kept = folder / "evaluation" / f"{f'data-{data.stem}' if data else 'test'}.json"
    try:
        write_atomically(kept, lambda path: path.write_text(document + "\n", encoding="utf-8"))
    except OSError as exc:
        progress.warn(f"the table could not be kept in {kept}: {exc.strerror or exc}")


def _cost_model(changes: list[str] | tuple[str, ...]) -> CostModel:
    """Read NAME=NUMBER pairs over the papers' prices."""
    known = [field.name for field in fields(CostModel)]
    values: dict[str, float] = {}
    for change in changes:
        name, _, number = change.partition("=")
        try:
            values[name] = float(number)
        except ValueError:
            name = ""
        if name not in known:
            raise OptionError(
                f"--cost {change}: it must be NAME=NUMBER with one of the names {', '.join(known)}"
            )
    return CostModel(**values)
