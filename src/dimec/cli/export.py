"""``dimec export``: make a run into a bundle that devices and servers run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import dimec
from dimec.cli.console import ConsoleProgress, open_table, out, say_json
from dimec.cli.generate import AsJson, RunFolder
from dimec.cli.plan import counted_words
from dimec.cli.table import cost_words, percent, profile_words, say_recommendation

if TYPE_CHECKING:
    from dimec.deploying.export_report import ExportReport, TailsReport


def export(
    given: dict[str, Any],
    folder: RunFolder,
    bundle: Annotated[Path, typer.Option("--out", help="The bundle's folder.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Write a bundle: ONNX graphs, tokenizer and a manifest for each tier, and on mobile the fitted policy.

    Every graph is compared with torch before it is written. A bundle that is there already is replaced at the end; an
    export that is killed leaves nothing that loads.

    Without `--policy` it exports what `dimec evaluate` recommends for `--max-drop`.

    **Example**: `dimec export runs/sst2 --out bundles/sst2 --max-drop 0.5`

    **With a promise instead of an expectation**: `dimec export runs/sst2 --out bundles/sst2 --max-drop 0.5 --assurance
    0.95`

    **A small device**: `dimec export runs/sst2 --out bundles/sst2 --policy dimee-fixed --quantize mobile`

    **More of the encoder on the device**: `dimec export runs/sst2 --out bundles/sst2 --mobile-layers 3 --edge-layers 4`

    **As much of it as validation finds best**: `dimec export runs/sst2 --out bundles/sst2 --cuts all`

    **For the least waiting on 4G**: `dimec export runs/sst2 --out bundles/sst2 --profile phone-4g --unit ms`

    **Split computing**: `dimec export runs/sst2 --out bundles/sst2 --policy splitee --tails`

    **Behind a learned bottleneck** of `dimec compress`: `dimec export runs/sst2 --out bundles/sst2 --policy bottlefit`

    **The best promise for a quarter of the cost**: `dimec export runs/sst2 --out bundles/sst2 --budget 0.25`

    **A promise that is watched**: `dimec export runs/sst2 --out bundles/sst2 --max-drop 0.5 --assurance 0.95 --policy
    dimec-guarded --audit-rate 0.05` puts the cascade under a guard, which falls back to safer ones where the data
    change.
    """
    report = dimec.export(folder, out=bundle, progress=ConsoleProgress(), **given)
    if as_json:
        say_json(report.model_dump_json(indent=2))
    else:
        show(report)


def show(report: ExportReport) -> None:
    """Print the tiers, and what quantising changed."""
    columns = ("layers", "MB", "weights", f"{report.metric} before", "after", "labels flipped")
    table = open_table("tier", *columns, left=("tier",))
    for tier in report.tiers:
        table.add_row(
            tier.tier,
            f"{tier.layers}",
            f"{tier.bytes / 1e6:.1f}",
            "int8" if tier.quantized else "fp32",
            percent(tier.score_before),
            percent(tier.score_after),
            "" if tier.flipped is None else f"{tier.flipped:,} of {report.n:,}",
        )
    fitted_in = ""
    if report.unit != "lambda":
        fitted_in = f", fitted in {report.unit}{profile_words(report.profile)}"
    chosen = report.recommendation
    by = ""
    if chosen is None:
        by = f" at price {report.price:g}{fitted_in}"
    elif chosen.policy != report.policy:
        by = f" ({chosen.policy})"
    out.print(f"{report.bundle}: {report.policy}{by}")
    out.print()
    out.print(table)
    out.print()
    for when, change in (("before", report.before), ("after", report.after)):
        # What was chosen by validation looks too good there: what held-out rows say stands in its place.
        if change is not None and report.recommendation is None:
            point = ", ".join(
                f"{name} = {value:.3g}" for name, value in change.operating_point.items()
            )
            out.print(
                f"{report.policy} {when if report.after else 'on validation'}: {percent(change.score)} at "
                f"{cost_words(change.cost, report.currency)}{f' ({point})' if point else ''}",
            )
    if (promise := report.promise) is not None:
        out.print(
            f"promised with {100 * promise.assurance:g} % assurance: at most {promise.max_drop_points:g} points of "
            f"accuracy under all-cloud in float32{counted_words(promise.over)}, on data like the "
            f"{promise.rows:,} certifying rows (on them: {promise.drop_points:.2f})",
        )
    if report.recommendation is not None:
        out.print()
        say_recommendation(report.recommendation)
    if report.promise is not None or report.recommendation is not None:
        out.print(
            "This is about texts like those of validation. Of other texts it says nothing: to see whether yours are "
            "such, export with --policy dimec-guarded --audit-rate 0.1 first, and look at the first 500 audits.",
            style="dim",
        )
    if report.tails is not None:
        _show_tails(report.tails)
    if report.flipped is not None:
        out.print(f"{report.flipped:,} of {report.n:,} validation answers changed")
    if report.policy == "bottlenet-pp":
        out.print(
            "Its figure is at the channel's rate of erasures; live nothing is erased, and answers are others.",
            style="dim",
        )
    out.print(
        "On the validation split. before: by torch; after: by the exported files, thresholds and centroids fitted "
        "again on them."
        if report.after
        else "The exported files say what torch says, so nothing was fitted anew.",
        style="dim",
    )


def _show_tails(tails: TailsReport) -> None:
    """Print where tiers go on from hidden states, and what that takes on disk and on the wire."""
    places = ", ".join(
        f"{tier} resumes after layers {', '.join(map(str, layers))}"
        for tier, layers in tails.resuming.items()
    )
    layers, parts = tails.mobile_layers_added, []
    if layers:
        parts.append(f"mobile holds layers {layers[0]} to {layers[-1]} too")
    if tails.bottleneck is not None:
        parts.append(
            "mobile holds what reduces, cloud what restores and layers of its own behind it"
        )
    added = (
        f"{', '.join(parts)}: {tails.bytes_added / 1e6:.1f} MB added"
        if parts
        else "nothing added to the files"
    )
    how = f"hidden states travel as {tails.datatype}, {tails.bytes_per_token:,g} bytes a token"
    if tails.bottleneck is not None:
        how = f"{tails.bytes_per_token:,g} numbers a token travel as bytes ({tails.bottleneck})"
    out.print(f"tails: {places}; {added}; {how}")
