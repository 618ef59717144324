"""``dimec evaluate``: route a split with every policy and print it beside the honest controls."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from dimec import api
from dimec.cli.console import ConsoleProgress, out
from dimec.cli.table import print_evaluation
from dimec.costs import DEFAULT_PRICE, CostModel
from dimec.errors import OptionError
from dimec.files import write_atomically
from dimec.runs import Run

_DATA, _COSTS = "Data", "Costs"


def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished fit.")],
    data: Annotated[
        Path | None,
        typer.Option(
            help="A labelled file or folder instead of the test split.", rich_help_panel=_DATA
        ),
    ] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the (first) text.", rich_help_panel=_DATA)
    ] = None,
    pair_column: Annotated[
        str | None, typer.Option(help="Column of the second text.", rich_help_panel=_DATA)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the label.", rich_help_panel=_DATA)
    ] = None,
    skip_empty: Annotated[
        bool,
        typer.Option(
            "--skip-empty",
            help="Leave out rows without text instead of stopping.",
            rich_help_panel=_DATA,
        ),
    ] = False,
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
    mobile_layers: Annotated[
        int | None, typer.Option(help="Layers on the device, instead of the run's.")
    ] = None,
    edge_layers: Annotated[
        int | None, typer.Option(help="Layers on the edge, instead of the run's.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of random routing and of intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Replay policies over the held-out split, or over a data set of yours, and set them beside the controls.

    Thresholds and pools come from the validation split alone. What is printed is kept in the run's evaluation folder.

    **Example**: `dimec evaluate runs/sst2`

    **A domain shift**: `dimec evaluate runs/sst2 --data reviews.csv --policy dimec-dc-fixed --price 0.2`
    """
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
        mobile_layers=mobile_layers,
        edge_layers=edge_layers,
        seed=seed,
        progress=ConsoleProgress(),
    )
    document = evaluation.model_dump_json(indent=2)
    kept = folder / "evaluation" / f"{data.stem if data else 'test'}.json"
    write_atomically(kept, lambda path: path.write_text(document + "\n", encoding="utf-8"))
    if as_json:
        typer.echo(document)
    else:
        print_evaluation(evaluation, console=out)


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
