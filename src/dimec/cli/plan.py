"""``dimec plan``: what accuracy can be promised against all-cloud, and at what cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dimec
from dimec.cli.console import ConsoleProgress, open_table, out, say_json
from dimec.cli.generate import AsJson, RunFolder
from dimec.cli.table import amount, profile_words, unit_words
from dimec.core.options import checked, command_line
from dimec.deploying.options import ExportOptions

if TYPE_CHECKING:
    from dimec.deploying.planning import Capacity, Offer, Plan


def plan(given: dict[str, Any], folder: RunFolder, as_json: AsJson = False) -> None:
    """Say what accuracy dimec-cascade can promise against sending everything to the cloud, and what it costs.

    One half of validation fits cascades at many prices, the other half certifies them and chooses nothing. With
    `--data` all of validation chooses, and the rows of that file certify. The test rows are not looked at. Without
    `--max-drop` or `--budget` it prints a menu.

    **Example**: `dimec plan runs/sst2 --max-drop 0.5`

    **A higher assurance**: `dimec plan runs/sst2 --max-drop 0.5 --assurance 0.99`

    **As measured on the next 5,000 texts**: `dimec plan runs/sst2 --over 5000`

    **Certified on rows of your own**: `dimec plan runs/sst2 --data labelled.csv`

    **For a quarter of the cost**: `dimec plan runs/sst2 --budget 0.25`

    **With more of the encoder on the device**: `dimec plan runs/sst2 --mobile-layers 3 --edge-layers 4`

    **Wherever the encoder is best cut**: `dimec plan runs/sst2 --cuts all`

    **With the latencies of other hardware and links**: `dimec plan runs/sst2 --profile raspberry-pi`

    **What 10,000 texts a second take**: `dimec plan runs/sst2 --max-drop 0.5 --rate 10000 --profile here.json`
    """
    result = dimec.plan(folder, progress=ConsoleProgress(), **given)
    if as_json:
        say_json(result.model_dump_json(indent=2))
    else:
        _print(result)
        shown = f"to deploy one: {_export_command(result, folder, given)}"
        out.print(shown, style="dim", soft_wrap=True)


def _export_command(result: Plan, folder: Path, given: dict[str, Any]) -> str:
    """Write the command that exports the first offer with a cascade: by its budget, or by its drop."""
    kept = [offer for offer in result.offers if offer.policy != "all-cloud"]
    asked: dict[str, object] = {"max_drop": "POINTS"}
    if kept and result.budget is not None:
        asked = {"budget": result.budget}
    elif kept:
        asked = {"max_drop": f"{kept[0].max_drop_points:g}"}
    unused = {
        "max_drop",
        "budget",
        "rate",
        "assurance",
        *(() if result.unit != "lambda" else ("profile", "unit")),
    }
    also = {name: value for name, value in given.items() if name not in unused}
    if "data" in also:
        asked["certify"] = also.pop("data")
    options = checked(ExportOptions, also)
    asked["assurance"] = f"{result.assurance:g}"
    return command_line("export", options, str(folder), out="BUNDLE", **asked)


def counted_words(over: int | None) -> str:
    """Say on what a promise is counted, if it is."""
    return "" if over is None else f", as counted on the next {over:,} texts"


def _unit(result: Plan) -> str:
    if result.unit == "lambda":
        return "λ"
    words = unit_words(result.unit, currency=result.currency)
    return f"{words}{profile_words(result.profile)} for a text of the mean length"


def _print(result: Plan) -> None:
    cut = ["cut"] if result.n_cuts > 1 else []
    columns = ["at most", "policy", "price", *cut, "cost", "of cloud", "ms", "zero/m/e/c %"]
    table = open_table(*columns, "seen", "bound", left=("policy",))
    for offer in result.offers:
        table.add_row(*_cells(offer, result))
    out.print(
        f"{result.task}: accuracy under all-cloud's, in points{counted_words(result.over)}, with "
        f"{100 * result.assurance:g} % assurance each",
    )
    out.print()
    out.print(table)
    out.print()
    if result.cloud_capacity is not None:
        _print_capacity(result, result.cloud_capacity)
    for offer in result.offers:
        if offer.shortage is not None:
            out.print(_explain(offer, result))
    for words in _passed_over(result.offers):
        out.print(words)
    compared = ""
    if result.n_cuts > 1:
        compared = f" · cut: last layers of mobile and edge, of {result.n_cuts} cuts the best by the rows that chose"
    out.print(
        f"{result.n_choosing:,} validation rows chose, {result.n_certifying:,} "
        f"{'others' if result.certified_on is None else f'of {result.certified_on}'} certify (all-cloud: "
        f"{100 * result.cloud_accuracy:.2f}) · cost: mean, in {_unit(result)}, expected, not promised · ms: "
        f"mean wait for an answer{profile_words(result.latency_profile)}, likewise · seen: drop on "
        "the certifying rows; bound: what this one does not exceed · each line's promise stands alone, for data like "
        f"these rows{compared}",
        style="dim",
    )


def _print_capacity(result: Plan, all_cloud: Capacity) -> None:
    """Print what the rate takes, a cascade a line, beside what it takes where the cloud answers all."""
    columns = ("device", "edge", "cloud", "to edge", "to cloud", f"{result.currency}/h")
    table = open_table("at most", "policy", *columns, left=("policy",))
    kept = [each for each in result.offers if each.policy != "all-cloud"]
    rows = [(f"{each.max_drop_points:.2f}", each.policy, each.capacity) for each in kept]
    for points, policy, took in (*rows, ("", "all-cloud", all_cloud)):
        assert took is not None
        figures = (
            took.mobile,
            took.edge,
            took.cloud,
            took.edge_mbit_s,
            took.cloud_mbit_s,
            took.money_hour,
        )
        table.add_row(points, policy, *(f"{each:,.{_digits(each)}f}" for each in figures))
    out.print(f"{result.rate:,.10g} texts a second take")
    out.print()
    out.print(table)
    out.print(
        f"device, edge, cloud: seconds of computing a second{profile_words(result.latency_profile)}, which are busy "
        "cores if that is of one core; each text by itself, without reserves · to edge, to cloud: Mbit/s that the "
        "devices send · means over the certifying rows",
        style="dim",
    )
    out.print()


def _digits(value: float) -> int:
    return 0 if value >= 100 else 1 if value >= 10 else 2


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


def _explain(offer: Offer, result: Plan) -> str:
    """Say what would help where only all-cloud can be promised."""
    shortage = offer.shortage
    assert shortage is not None
    start = (
        f"at most {offer.max_drop_points:g}: no cascade can be promised with "
        f"{result.n_certifying:,} certifying rows"
    )
    own = result.certified_on is None

    def rows(n: int, labelled: int | None) -> str:
        return (
            f"{n:,} (some {_rounded(labelled):,} labelled rows in all)"
            if labelled and own
            else f"{n:,}"
        )

    expected, lossless = shortage.rows_expected, shortage.rows_without_losses
    parts = []
    if expected is None:
        parts.append("the safest one is not so good on these rows, so more of them would not help")
    else:
        needed = rows(expected, shortage.labelled_expected)
        parts.append(f"about {needed} would do for the safest one")
    if lossless is not None and lossless != expected:
        parts.append(f"{rows(lossless, shortage.labelled_without_losses)} if it lost nothing")
    if own and expected is not None:
        parts.append("--data gives further rows that certify")
    parts.append(f"with these, {shortage.promisable_points:.2f} points can be promised")
    return f"{start}; {'; '.join(parts)}"


def _rounded(n: int) -> int:
    """Round to two digits."""
    return round(n, 2 - len(str(n)))


def _passed_over(offers: Sequence[Offer]) -> list[str]:
    """Say why a cascade whose bound lies within a smaller tolerance is not offered there."""
    said = []
    for place, offer in enumerate(offers):
        later = [each for each in offers[place + 1 :] if each.price not in (None, offer.price)]
        within = [each for each in later if each.bound_points <= offer.max_drop_points]
        if within and offer.stopped is not None:
            said.append(
                f"at most {offer.max_drop_points:g}: the cascade of price {within[0].price:.3g} has a bound of "
                f"{within[0].bound_points:.2f} and is not offered here, because cascades are tested from dear to cheap "
                f"and the tests stop at the first that fails: that of price {offer.stopped.price:.3g}, whose bound is "
                f"{offer.stopped.bound_points:.2f}"
            )
    return said
