"""``dimec profile``: what a bundle's tiers take on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dimec.cli.console import ConsoleProgress, open_table, out, say_json
from dimec.cli.generate import AsJson, BundleFolder
from dimec.core.errors import OptionError
from dimec.core.files import write_json
from dimec.core.options import checked
from dimec.core.outputs import check_output_file
from dimec.core.tiers import Tier
from dimec.costs.options import ProfileOptions
from dimec.costs.profiles import load_profile

if TYPE_CHECKING:
    from dimec.bundle.choosing import Profile


def profile(
    given: dict[str, Any],
    bundle: BundleFolder,
    file: Annotated[
        Path | None,
        typer.Option("--out", help="The profile's file.", show_default="BUNDLE/profile.json"),
    ] = None,
    costs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a profile of costs with these times, for --profile of evaluate, frontier and plan.",
            show_default=False,
            hidden=True,
        ),
    ] = None,
    costs_base: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Where the links, watts and prices of --costs come from, to be edited.",
            hidden=True,
        ),
    ] = "laptop",
    as_json: AsJson = False,
) -> None:
    """Measure latency and memory of each tier, engine, number of threads, length and batch, each in its own process.

    The profile is kept as JSON, with a description of the machine, layer by layer. From the one in the bundle
    `classify`, `serve` and `evaluate` take the fastest engine by `--engine auto`.

    **Example**: `dimec profile bundles/sst2 --tier mobile --threads 1,2 --lengths 16,64`

    **For costs in milliseconds**: `dimec profile bundles/sst2 --costs here.json`, then edit it
    """
    from dimec.bundle.manifest import PROFILE
    from dimec.bundle.profiling import cost_profile
    from dimec.bundle.profiling import profile as measure_bundle

    progress = ConsoleProgress()
    options = checked(ProfileOptions, given)
    base = load_profile(costs_base)
    if costs is not None and 1 not in options.batches:
        raise OptionError("--costs needs texts measured alone: let 1 be among --batches")
    path = file or bundle / PROFILE
    inputs: dict[str, str | Path | None] = {
        "--costs-base": costs_base,
        **{f"BUNDLE/{each}": bundle / each for each in Tier},
    }
    if file is not None:
        check_output_file(path, inputs=inputs, own=("*.json",))
    if costs is not None:
        check_output_file(
            costs, option="--costs", inputs={**inputs, "--out": path}, own=("*.json",)
        )
    result = measure_bundle(bundle, options, progress=progress)
    if as_json:
        say_json(result.model_dump_json(indent=2))
    else:
        _print(result)
    if costs is not None:
        filled = cost_profile(result, name=costs.stem, base=base)
        write_json(costs, filled.model_dump(mode="json", exclude_none=True))
        if not as_json:
            out.print(
                f"costs: {costs}; its links, watts and prices are those of {base.name}, to be edited"
            )
    try:
        write_json(path, result.model_dump(mode="json"))
    except OSError as exc:
        if file is not None:
            raise
        progress.warn(f"the profile could not be kept in {path}: {exc}")


def _print(result: Profile) -> None:
    from dimec.bundle.choosing import fastest

    columns = ("threads", "batch", "tokens", "median ms", "p95 ms", "texts/s", "ms a layer", "MB")
    table = open_table("tier", "engine", *columns, left=("tier", "engine"))
    for each in result.measurements:
        table.add_row(
            f"{each.tier}{' int8' if each.quantized else ''}",
            each.engine,
            str(each.threads),
            str(each.batch),
            str(each.length),
            f"{each.latency_ms:.2f}",
            f"{each.latency_ms_p95:.2f}",
            f"{1000 * each.batch / each.latency_ms:,.0f}",
            f"{sum(each.layer_ms) / len(each.layer_ms):.2f}",
            "" if each.engine_memory_bytes is None else f"{each.engine_memory_bytes / 1e6:.0f}",
        )
    here = result.machine
    for quantized in sorted({each.quantized for each in result.measurements}):
        name = fastest(result, quantized=quantized, threads=here.cores)
        kind = "tiers with 8-bit weights" if quantized else "tiers in float32"
        out.print(f"--engine auto takes {name} for {kind}")
    out.print(f"{here.processor}, {here.cores} cores; all texts run to the tier's last exit")
    out.print()
    out.print(table)
    out.print()
    out.print(
        "median and p95: of one batch · MB: what graphs and runs added to the process", style="dim"
    )
