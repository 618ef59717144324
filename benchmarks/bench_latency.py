"""How long a tier takes to answer, against how much it is asked.

A closed loop of 32 in flight finds what a tier answers at saturation; then requests of one text each are due at the
times of a Poisson process, at shares of that rate. Latency counts from when a request was due, so it holds what waiting
for the server costs the ones behind. A request that the server refuses (429, its queue being full) has no latency.
Server, client (`load.py`) and nothing else share this machine's cores; all exits are asked for.

    DIMEC_BUNDLE=... DIMEC_DATA=... python benchmarks/bench_latency.py
"""

from __future__ import annotations

import argparse
import os

import load
from bench_server import IN_FLIGHT, TEXTS, dimec_requests
from subject import some_bundle, some_texts, tier_server

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
CONNECTIONS = 400
"""More than the server's queue and its batches hold, so that every request can be sent when it is due."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each load is held")
    parser.add_argument("--warm", type=float, default=1.5, help="how long it is held before that")
    given = parser.parse_args()
    texts, source = some_texts(TEXTS)
    print(f"{len(texts):,} texts of {source}, {os.cpu_count()} cores")
    with some_bundle() as bundle:
        for tier in ("edge", "cloud"):
            with tier_server(tier, bundle.folder) as (port, _):
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
                for share in SHARES:
                    shown = load.run(
                        port,
                        requests,
                        connections=CONNECTIONS,
                        seconds=given.seconds,
                        warm_s=given.warm,
                        rate=share * saturated,
                    )
                    everything = sum(shown["statuses"].values())
                    refused = 1 - shown["statuses"].get("200", 0) / max(1, everything)
                    print(
                        f"{share:5.0%} {share * saturated:6.0f} {shown['answers_per_s']:11.0f} "
                        f"{shown['p50_ms']:8.1f} {shown['p95_ms']:8.1f} {shown['p99_ms']:8.1f} "
                        f"{refused:8.1%} {shown['never_sent']:11}"
                    )


if __name__ == "__main__":
    main()
