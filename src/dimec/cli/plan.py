"""``dimec plan``: what accuracy can be promised against all-cloud, and at what cost."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dimec import api
from dimec.cli import testbed
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.options import AsJson
from dimec.cli.units import amount, profile_words, unit_words

if TYPE_CHECKING:
    from dimec.deploying.planning import Offer, Plan

MaxDrop = Annotated[
    float | None,
    typer.Option(
        metavar="POINTS",
        help="How many points of accuracy under all-cloud are allowed, such as 0.5.",
        show_default=False,
    ),
]
Assurance = Annotated[
    float, typer.Option(help="How sure a promise is to be, for data like the certifying rows.")
]
Over = Annotated[
    int | None,
    typer.Option(
        metavar="TEXTS",
        help="Promise what will be counted on so many texts to come, rather than the drop in the long run.",
        show_default=False,
    ),
]
Budget = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="The other way round: the smallest drop that can be promised for this share of all-cloud's cost.",
        show_default=False,
    ),
]


def plan(
    folder: testbed.RunFolder,
    max_drop: MaxDrop = None,
    assurance: Assurance = api.DEFAULT_ASSURANCE,
    over: Over = None,
    budget: Budget = None,
    mobile_layers: testbed.MobileLayers = None,
    edge_layers: testbed.EdgeLayers = None,
    cuts: testbed.Cuts = None,
    cost: testbed.Cost = None,
    profile: testbed.ProfileName = None,
    unit: testbed.CostUnit = testbed.UnitName.lambda_,
    as_json: AsJson = False,
) -> None:
    """Say what accuracy dimec-cascade can promise against all-cloud, and what it costs: a menu, or one line of it.

    One half of validation fits cascades at many prices, the other half certifies them and chooses nothing. The test
    rows are not looked at.

    **Example**: `dimec plan runs/sst2`

    **Half a point**: `dimec plan runs/sst2 --max-drop 0.5 --assurance 0.95`

    **As counted on the next 5,000 texts**: `dimec plan runs/sst2 --over 5000`

    **For a quarter of the cost**: `dimec plan runs/sst2 --budget 0.25`

    **With more of the encoder on the device**: `dimec plan runs/sst2 --mobile-layers 3 --edge-layers 4`

    **Wherever the encoder is best cut**: `dimec plan runs/sst2 --cuts all`

    **With the latencies of other hardware and links**: `dimec plan runs/sst2 --profile raspberry-pi`
    """
    result = api.plan(
        folder,
        max_drop=max_drop,
        assurance=assurance,
        over=over,
        budget=budget,
        mobile_layers=mobile_layers,
        edge_layers=edge_layers,
        cuts=cuts,
        costs=testbed.cost_model(cost),
        profile=profile,
        unit=unit.value,
        progress=ConsoleProgress(),
    )
    if as_json:
        say_json(result.model_dump_json(indent=2))
    else:
        _print(result)
        given: dict[str, object] = {
            **_asked(result),
            "assurance": None if assurance == api.DEFAULT_ASSURANCE else assurance,
            "over": over,
            "mobile-layers": mobile_layers,
            "edge-layers": edge_layers,
            "cuts": cuts,
        }
        if result.unit != "lambda":
            given |= {"profile": profile, "unit": result.unit}
        words = ["dimec", "export", str(folder), "--out", "BUNDLE"]
        for name, value in given.items():
            words += [] if value is None else [f"--{name}", f"{value}"]
        for each in cost or ():
            words += ["--cost", each]
        out.print(f"to deploy one: {shlex.join(words)}", markup=False, style="dim", soft_wrap=True)


def counted_words(over: int | None) -> str:
    """Say on what a promise is counted, if it is."""
    return "" if over is None else f", as counted on the next {over:,} texts"


def _unit(result: Plan) -> str:
    if result.unit == "lambda":
        return "λ"
    words = unit_words(result.unit, currency=result.currency)
    return f"{words}{profile_words(result.profile)} for a text of the mean length"


def _asked(result: Plan) -> dict[str, object]:
    """Name the question that an export is to answer: the budget, or a tolerance within which there is a cascade."""
    kept = [offer for offer in result.offers if offer.policy != "all-cloud"]
    if not kept:
        return {"max-drop": "POINTS"}
    if result.budget is not None:
        return {"budget": result.budget}
    return {"max-drop": f"{kept[0].max_drop_points:g}"}


def _print(result: Plan) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in (
        "at most",
        "policy",
        "price",
        *(["cut"] if result.n_cuts > 1 else []),
        "cost",
        "of cloud",
        "ms",
        "zero/m/e/c %",
        "seen",
        "bound",
    ):
        table.add_column(column, justify="left" if column == "policy" else "right", no_wrap=True)
    for offer in result.offers:
        table.add_row(*_cells(offer, result))
    out.print(
        f"{result.task}: accuracy under all-cloud's, in points{counted_words(result.over)}, with "
        f"{100 * result.assurance:g} % assurance each",
        markup=False,
    )
    out.print()
    out.print(table)
    out.print()
    for offer in result.offers:
        if offer.shortage is not None:
            out.print(_explain(offer, result.n_certifying), markup=False)
    out.print(
        f"{result.n_choosing:,} validation rows chose, {result.n_certifying:,} others certify (all-cloud: "
        f"{100 * result.cloud_accuracy:.2f}) · cost: mean, in {_unit(result)}, expected, not promised · ms: "
        f"mean wait for an answer{profile_words(result.latency_profile)}, likewise · seen: drop on "
        "the certifying rows; bound: what this one does not exceed · each line's promise stands alone, for data like "
        f"these rows{_compared(result)}",
        style="dim",
        markup=False,
    )


def _cells(offer: Offer, result: Plan) -> list[str]:
    cut = "" if offer.mobile_layers is None else f"{offer.mobile_layers}/{offer.edge_layers}"
    shares = offer.shares
    parts = (
        offer.exit_zero_share,
        shares.mobile - offer.exit_zero_share,
        shares.edge,
        shares.cloud,
    )
    return [
        f"{offer.max_drop_points:.2f}",
        offer.policy,
        "" if offer.price is None else f"{offer.price:.3g}",
        *([cut] if result.n_cuts > 1 else []),
        amount(offer.cost, result.unit),
        f"{100 * offer.cost_vs_cloud:.1f}%",
        amount(offer.latency_ms, "ms"),
        "/".join(f"{100 * each:.0f}" for each in parts),
        f"{offer.drop_points:.2f}",
        f"{offer.bound_points:.2f}",
    ]


def _compared(result: Plan) -> str:
    if result.n_cuts == 1:
        return ""
    return f" · cut: last layers of mobile and edge, of {result.n_cuts} cuts the best by the rows that chose"


def _explain(offer: Offer, n: int) -> str:
    """Say what would help where only all-cloud can be promised."""
    shortage = offer.shortage
    assert shortage is not None
    start = f"at most {offer.max_drop_points:g}: no cascade can be promised with {n:,} rows"
    parts = []
    if shortage.rows_expected is not None:
        parts.append(f"about {shortage.rows_expected:,} would do for the safest one")
    else:
        parts.append("the safest one is not so good on these rows, so more of them would not help")
    if shortage.rows_without_losses is not None:
        parts.append(f"{shortage.rows_without_losses:,} if it lost nothing")
    parts.append(f"with these, {shortage.promisable_points:.2f} points can be promised")
    return f"{start}; {'; '.join(parts)}"
