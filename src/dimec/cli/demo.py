"""``dimec demo``: from built-in texts to three real tiers, one of which is killed on the way."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live
from rich.table import Table

from dimec import api
from dimec.cli.console import ConsoleProgress, err, out, say_json
from dimec.cli.options import AsJson
from dimec.cli.table import change, percent, print_evaluation
from dimec.core.tiers import TIERS

if TYPE_CHECKING:
    from dimec.cli.demo_run import Summary, Tally


def demo(
    folder: Annotated[Path, typer.Option("--out", help="Where the run and the bundle go.")] = Path(
        "runs/demo"
    ),
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 3,
    texts: Annotated[int, typer.Option(help="Held-out texts to classify, at most.", min=3)] = 600,
    as_json: AsJson = False,
) -> None:
    """Fit MiniLM on the built-in reviews, export it, and classify held-out texts over three tiers on this machine.

    Edge and cloud run as servers in processes of their own, the device in this one. The edge is killed a third of the
    way and started again after two thirds: every text is answered all the same. The built-in data is generated: it
    shows that everything works and proves nothing else.

    **Example**: `dimec demo`
    """
    from dimec.cli.demo_run import demonstrate

    progress = ConsoleProgress()
    run = api.fit("reviews", out=folder / "run", epochs=epochs, progress=progress)
    if not as_json:
        print_evaluation(api.evaluate(run, progress=progress), console=out)
        out.print()
    bundle = folder / "bundle"
    api.export(run, out=bundle, progress=progress)
    progress.say("starting the edge and the cloud as servers of their own")
    if err.is_terminal:
        with Live(console=err, refresh_per_second=8, transient=True) as live:
            summary = demonstrate(
                run, bundle, limit=texts, seen=lambda tally: live.update(_live(tally, texts))
            )
    else:
        with progress.stage("Classifying over three tiers", texts) as advance:
            summary = demonstrate(run, bundle, limit=texts, seen=lambda tally: advance(1))
    if as_json:
        say_json(json.dumps(_document(summary), indent=2))
    else:
        _print(summary)
        out.print(
            f"\nNext: `dimec serve edge {bundle} --port 8101`, `dimec serve cloud {bundle} --port 8102`, then "
            f"`dimec classify {bundle} --edge http://127.0.0.1:8101 --cloud http://127.0.0.1:8102 "
            '"a gripping film"`.',
            markup=False,
        )


def _live(tally: Tally, total: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("texts", "mobile", "edge", "cloud", "accuracy", "cost", "degraded", ""):
        table.add_column(column, justify="right")
    table.add_row(
        f"{len(tally.answers)}/{total}",
        *(f"{100 * tally.share(tier):.0f} %" for tier in TIERS),
        percent(tally.accuracy),
        f"{tally.cost:.2f} λ",
        str(sum(tally.degraded.values())),
        tally.events[-1][1] if tally.events else "",
    )
    return table


def _print(summary: Summary) -> None:
    tally = summary.tally
    out.print(
        f"{len(tally.answers)} texts by {summary.policy} over mobile (this process), edge and cloud (a server each):",
        markup=False,
    )
    out.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", pad_edge=False)
    for column in ("tier", "answers", "median ms", "p95 ms", "requests", "bytes sent"):
        table.add_column(column, justify="left" if column == "tier" else "right")
    for tier in TIERS:
        latency = tally.latency_ms(tier)
        table.add_row(
            str(tier),
            f"{100 * tally.share(tier):.0f} %",
            *(("", "") if latency is None else (f"{each:.1f}" for each in latency)),
            str(summary.requests.get(tier, "")),
            f"{summary.sent_bytes[tier]:,}" if tier in summary.sent_bytes else "",
        )
    out.print(table)
    out.print()
    out.print(
        f"accuracy {percent(tally.accuracy)} (all-cloud {percent(summary.all_cloud_accuracy)}) at {tally.cost:.2f} λ a "
        f"text: {change(tally.cost / summary.all_cloud_cost - 1)} against all-cloud, "
        f"{change(tally.cost / summary.reference_cost - 1)} against bert-on-mobile",
        markup=False,
    )
    for number, event in tally.events:
        out.print(f"after {number} texts: {event}", markup=False)
    for reason, count in tally.degraded.items():
        out.print(f"degraded, {count} of {len(tally.answers)}: {reason}", markup=False)
    out.print(
        "servers ended with "
        + ", ".join(f"{code} ({tier})" for tier, code in summary.exit_codes.items()),
        style="dim",
        markup=False,
    )


def _document(summary: Summary) -> dict[str, object]:
    tally = summary.tally
    return {
        "policy": summary.policy,
        "n": len(tally.answers),
        "accuracy": tally.accuracy,
        "cost": tally.cost,
        "all_cloud_accuracy": summary.all_cloud_accuracy,
        "all_cloud_cost": summary.all_cloud_cost,
        "reference_cost": summary.reference_cost,
        "shares": {str(tier): tally.share(tier) for tier in TIERS},
        "latency_ms": {
            str(tier): dict(zip(("median", "p95"), latency, strict=True))
            for tier in TIERS
            if (latency := tally.latency_ms(tier)) is not None
        },
        "requests": {str(tier): count for tier, count in summary.requests.items()},
        "sent_bytes": {str(tier): count for tier, count in summary.sent_bytes.items()},
        "events": [{"after": number, "event": event} for number, event in tally.events],
        "degraded": tally.degraded,
        "exit_codes": {str(tier): code for tier, code in summary.exit_codes.items()},
        "answers": [asdict(answer) for answer in tally.answers],
    }
