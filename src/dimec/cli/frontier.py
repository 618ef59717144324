"""``dimec frontier``: every policy at several prices, as data and as a table."""

from __future__ import annotations

from typing import Any

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.evaluate import keep
from dimec.cli.generate import AsJson, RunFolder
from dimec.cli.table import amount, change, interval, open_table, percent, profile_words, unit_words
from dimec.evaluation import Frontier


def frontier(given: dict[str, Any], folder: RunFolder, as_json: AsJson = False) -> None:
    """Sweep the price: at each one, every policy is fitted on validation and replayed, as `dimec evaluate` does.

    The result is kept in the run's `evaluation/`: at each price an evaluation with all controls.

    **Example**: `dimec frontier runs/sst2 --prices 0,0.05,0.1,0.5 --json`
    """
    progress = ConsoleProgress()
    result = api.frontier(folder, progress=progress, **given)
    document = result.model_dump_json(indent=2)
    if as_json:
        say_json(document)
    else:
        _print(result)
    keep(document, folder, "frontier-", data=given.get("data"), progress=progress)


def _print(result: Frontier) -> None:
    """Print a line per policy and price, points that another of the same policy repeats left out."""
    first = result.evaluations[0]
    first_columns = ("policy", "price", "score", "95 % int.", "cost", "cloud")
    table = open_table(
        *first_columns, "random\n@shares", "random\n@cost", "oracle", left=("policy",), padding=1
    )
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
    out.print(f"{first.task}: {first.source}")
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
    out.print(f"controls: {listed}", style="dim")
    unit = unit_words(first.unit, currency=first.currency)
    if first.unit != "lambda":
        unit += profile_words(first.profile)
    out.print(
        f"score: {first.metric}, {first.n:,} samples, × 100 · cost: mean, in {unit}; cloud: change against all-cloud · "
        "random @shares, random @cost, oracle: as in `dimec evaluate` · a price that changes nothing is left out",
        style="dim",
    )
