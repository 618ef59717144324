"""``dimec frontier``: every policy at several prices, as data and as a table."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from dimec import api
from dimec.cli import testbed
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.options import AsJson, LabelColumn, PairColumn, SkipEmpty, SkipUnlabelled, TextColumn
from dimec.cli.table import change, interval, percent
from dimec.cli.units import amount, profile_words, unit_words
from dimec.core.errors import OptionError
from dimec.evaluation import Frontier
from dimec.evaluation.setup import PRICES
from dimec.runs.run import Run

_DEFAULT_PRICES = ",".join(f"{price:g}" for price in PRICES)


def frontier(
    folder: testbed.RunFolder,
    data: testbed.Data = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    skip_empty: SkipEmpty = False,
    skip_unlabelled: SkipUnlabelled = False,
    policy: testbed.PolicyNames = None,
    prices: Annotated[
        str,
        typer.Option(
            metavar="P,P,…",
            help="What the full model on the device costs in units of confidence, several times.",
            rich_help_panel=testbed.COSTS_PANEL,
        ),
    ] = _DEFAULT_PRICES,
    cost: testbed.Cost = None,
    profile: testbed.ProfileName = None,
    unit: testbed.CostUnit = testbed.UnitName.lambda_,
    spread: testbed.Spread = testbed.SpreadName.deviation,
    mobile_layers: testbed.MobileLayers = None,
    edge_layers: testbed.EdgeLayers = None,
    mobile_model: testbed.MobileModel = None,
    edge_model: testbed.EdgeModel = None,
    shuffles: testbed.Shuffles = testbed.DEFAULT_SHUFFLES,
    seed: testbed.Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Sweep the price: at each one, every policy is fitted on validation and replayed, as `dimec evaluate` does.

    The result is kept in the run's evaluation folder, an evaluation with all controls per price.

    **Example**: `dimec frontier runs/sst2 --prices 0,0.05,0.1,0.5 --json`
    """
    progress = ConsoleProgress()
    result = api.frontier(
        Run.open(folder),
        data=data,
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        skip_empty=skip_empty,
        skip_unlabelled=skip_unlabelled,
        policies=policy or (),
        costs=testbed.cost_model(cost),
        profile=profile,
        unit=unit.value,
        prices=_read_prices(prices),
        spread=spread.value,
        mobile_layers=mobile_layers,
        edge_layers=edge_layers,
        mobile_model=mobile_model,
        edge_model=edge_model,
        shuffles=shuffles,
        seed=seed,
        progress=progress,
    )
    document = result.model_dump_json(indent=2)
    if as_json:
        say_json(document)
    else:
        _print(result)
    testbed.keep(document, folder, "frontier-", data=data, progress=progress)


def _read_prices(text: str) -> list[float]:
    """Read numbers between commas."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as exc:
        raise OptionError(
            f"--prices {text}: it must be numbers from 0 up with commas between them, such as {_DEFAULT_PRICES}"
        ) from exc


def _print(result: Frontier) -> None:
    """Print a line per policy and price, points that another of the same policy repeats left out."""
    first = result.evaluations[0]
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
    for column in (
        "policy",
        "price",
        "score",
        "95 % int.",
        "cost",
        "cloud",
        "@shares",
        "@cost",
        "oracle",
    ):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    names = dict.fromkeys(row.policy for row in first.rows if row.kind == "policy")
    for name in names:
        seen: set[tuple[float | None, float]] = set()
        for evaluation in result.evaluations:
            row = next(row for row in evaluation.rows if row.policy == name)
            if (row.score, row.cost) in seen:
                continue
            seen.add((row.score, row.cost))
            table.add_row(
                name if len(seen) == 1 else "",
                f"{evaluation.price:g}",
                percent(row.score),
                interval(row.score_ci95),
                amount(row.cost, first.unit),
                change(row.cost_vs_cloud - 1),
                percent(row.random_at_shares),
                percent(row.random_at_cost),
                percent(row.oracle_at_cost),
            )
    out.print(f"{first.task}: {first.source}", markup=False)
    out.print()
    out.print(table)
    out.print()
    controls = dict.fromkeys(
        (row.policy, row.score, row.cost)
        for row in first.rows
        if row.kind == "control" and row.score is not None
    )
    listed = " · ".join(
        f"{name} {percent(score)} at {amount(cost, first.unit)}" for name, score, cost in controls
    )
    out.print(f"controls: {listed}", style="dim", markup=False)
    unit = unit_words(first.unit, currency=first.currency)
    if first.unit != "lambda":
        unit += profile_words(first.profile)
    out.print(
        f"score: {first.metric}, {first.n:,} samples, × 100 · cost: mean, in {unit}; cloud: change against all-cloud · "
        "@shares, @cost, oracle: as in `dimec evaluate` · a price that changes nothing is left out",
        style="dim",
        markup=False,
    )
