"""How long a tier takes to answer, against how much it is asked: a table, and a figure.

A closed loop of 32 in flight finds what a tier answers at saturation; then requests of one text each are due at the
times of a Poisson process, at shares of that rate. Latency counts from when a request was due, so it holds what waiting
for the server costs the ones behind. A request that the server refuses (429, its queue being full) has no latency.
Server, client (`load.py`) and nothing else share this machine's cores; all exits are asked for.

    DIMEC_BUNDLE=... DIMEC_DATA=... python benchmarks/bench_latency.py [--figure docs/figures/latency.svg]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import load
from bench_server import IN_FLIGHT, TEXTS, dimec_requests, dimec_server
from subject import some_bundle, some_texts

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
CONNECTIONS = 400
"""More than the server's queue and its batches hold, so that every request can be sent when it is due."""

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each load is held")
    parser.add_argument("--warm", type=float, default=1.5, help="how long it is held before that")
    parser.add_argument("--figure", type=Path, help="an SVG file to write; needs matplotlib")
    given = parser.parse_args()
    texts, source = some_texts(TEXTS)
    print(f"{len(texts):,} texts of {source}, {os.cpu_count()} cores")
    found: dict[str, list[Row]] = {}
    with some_bundle() as bundle:
        for tier in ("edge", "cloud"):
            with dimec_server(tier, bundle.folder) as (port, _):
                requests = dimec_requests(bundle, tier, texts, port=port)
                # Other work on the machine can only lower it: the best of three.
                saturated = max(
                    load.run(port, requests, connections=IN_FLIGHT, seconds=given.seconds)[
                        "answers_per_s"
                    ]
                    for _ in range(3)
                )
                print(f"{tier}: {saturated:.0f} answers/s with {IN_FLIGHT} in flight")
                print("   offered/s  answered/s   p50 ms   p95 ms   p99 ms  refused  never sent")
                found[tier] = []
                for share in SHARES:
                    shown = load.run(
                        port,
                        requests,
                        connections=CONNECTIONS,
                        seconds=given.seconds,
                        warm_s=given.warm,
                        rate=share * saturated,
                    )
                    row = {**shown, "offered": share * saturated, "share": share}
                    found[tier].append(row)
                    report(row)
    if given.figure is not None:
        draw(found, given.figure)


def report(row: Row) -> None:
    everything = sum(row["statuses"].values())
    refused = 1 - row["statuses"].get("200", 0) / max(1, everything)
    print(
        f"{row['share']:5.0%} {row['offered']:6.0f} {row['answers_per_s']:11.0f} {row['p50_ms']:8.1f} "
        f"{row['p95_ms']:8.1f} {row['p99_ms']:8.1f} {refused:8.1%} {row['never_sent']:11}"
    )


def draw(found: dict[str, list[Row]], path: Path) -> None:
    try:
        import matplotlib
    except ImportError:
        print(f"{path} is not drawn: pip install -r benchmarks/requirements.txt")
        return
    matplotlib.use("svg")
    # Letters stay letters, and a second drawing of the same numbers is the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "dimec"})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(found), figsize=(9, 3.6), sharey=True)
    for panel, (tier, rows) in zip(panels, found.items(), strict=True):
        offered = [row["offered"] for row in rows]
        for key, style in (("p50_ms", "o-"), ("p95_ms", "s--"), ("p99_ms", "^:")):
            panel.plot(offered, [row[key] for row in rows], style, markersize=4, label=key[:3])
        saturated = rows[0]["offered"] / rows[0]["share"]
        panel.axvline(saturated, color="0.6", linewidth=1, label=f"{IN_FLIGHT} in flight")
        panel.set(title=tier, xlabel="offered requests a second", yscale="log")
        panel.set_xlim(left=0)
        panel.grid(visible=True, which="both", linewidth=0.3)
    panels[0].set_ylabel("milliseconds")
    panels[0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
