"""A tier at saturation against its bare engine.

Saturated: 32 requests in flight, a text each, closed loop. Client (`load.py`) and server share this machine's cores;
the bare engine has them to itself: one onnxruntime session over `tier.onnx`, rows in the order of arrival in ready-made
batches of a fixed size, the best of several sizes, with threads that spin and without. Both take turns, and medians
over rounds of ratios within a round count. Core-milliseconds are CPU time.

    DIMEC_BUNDLE=... DIMEC_DATA=... python benchmarks/bench_server.py [--tier edge] [-- OPTIONS OF dimec serve]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

import load
from dimec.bundle import Bundle, load_tier
from dimec.runtime.wire import InferRequest, encode_request, narrow
from subject import some_bundle, some_texts, tier_server

IN_FLIGHT, TEXTS, SIZES = 32, 1024, (1, 2, 4, 8, 16, 32)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tier", choices=("edge", "cloud"), default="edge")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--bare", help=argparse.SUPPRESS)
    parser.add_argument("serve", nargs="*", help="options of dimec serve, after --")
    given = parser.parse_args()
    texts, source = some_texts(TEXTS)
    if given.bare:
        print(json.dumps(bare(Path(given.bare), texts, given.seconds)))
        return
    with some_bundle() as bundle:
        measure(bundle, given, texts, source)


def measure(bundle: Bundle, given: argparse.Namespace, texts: Sequence[str], source: str) -> None:
    folder = bundle.folder / given.tier
    best: list[dict[str, list[float]]] = []
    rates: list[float] = []
    servers: list[float] = []
    clients: list[float] = []
    for _ in range(given.rounds):
        best.append(bare_elsewhere(folder, given.seconds / 5))
        with tier_server(given.tier, bundle.folder, given.serve) as (port, pid):
            requests = dimec_requests(bundle, given.tier, texts, port=port)
            before = cpu_s(pid)
            shown = load.run(port, requests, connections=IN_FLIGHT, seconds=given.seconds)
            if set(shown["statuses"]) - {"200"}:
                print(f"  dimec did not answer everything: {shown['statuses']}")
            rates.append(shown["answers_per_s"])
            n = shown["answers"]
            servers.append(1_000 * (cpu_s(pid) - before) / n)
            clients.append(1_000 * shown["client_cpu_s"] / n)
    cores = os.cpu_count() or 1
    print(
        f"{given.tier}: {len(texts):,} texts of {source}, {IN_FLIGHT} in flight, {cores} cores, {given.rounds} rounds"
    )
    for key in best[0]:
        rate, spent = np.median([each[key] for each in best], axis=0)
        print(f"  bare, {key:28} {rate:8.0f} rows/s, {spent:.2f} core-ms a row")
    peaks = [max(rate for rate, _ in each.values()) for each in best]
    reference = float(np.median(peaks))
    print(f"{'bare engine, best of these':36} {reference:8.0f} rows/s  1.00")
    ratio = f"{np.median(np.array(rates) / np.array(peaks)):.2f}"
    spread = ", ".join(f"{rate:.0f}" for rate in rates)
    print(f"{'dimec':36} {np.median(rates):8.0f} rows/s  {ratio} of the bare engine  ({spread})")
    print(
        f"core-ms a request of dimec: server {np.median(servers):.2f}, client {np.median(clients):.2f}; "
        f"there are {1_000 * cores / reference:.2f} at the bare engine's best, "
        f"{1_000 * cores / reference / 0.9:.2f} at 0.90 of it"
    )


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, NaN where the system has no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- what is asked


def dimec_requests(bundle: Bundle, tier: str, texts: Sequence[str], *, port: int) -> list[bytes]:
    """Encode texts as a device does; every exit is asked for."""
    tokenizer = bundle.mobile.tokenizer()
    return [request(tokenizer.encode_one(text)[0].named(), tier, port=port) for text in texts]


def request(named: Mapping[str, NDArray[np.int64]], tier: str, *, port: int) -> bytes:
    """Encode the arrays of a text as a device does."""
    inputs = {name: narrow(array) for name, array in named.items()}
    asked = InferRequest(inputs, {"deadline_ms": 60_000.0}, "bench", binary_output=True)
    headers, body = encode_request(asked, binary=True)
    headers |= {"x-request-id": "bench"}
    return load.http(f"/v2/models/{tier}/infer", headers, body, port=port)


# --- the bare engine


def bare_elsewhere(folder: Path, seconds: float) -> dict[str, list[float]]:
    done = subprocess.run(
        [sys.executable, __file__, "--bare", str(folder), "--seconds", str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, list[float]] = json.loads(done.stdout)
    return found


def bare(folder: Path, texts: Sequence[str], seconds: float) -> dict[str, tuple[float, float]]:
    """Return rows a second and core-milliseconds a row by how the engine was run."""
    tokens = load_tier(folder).tokenizer().encode(texts)
    found = {}
    for spinning in (False, True):
        options = ort.SessionOptions()
        options.inter_op_num_threads = 1
        if not spinning:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session = ort.InferenceSession(
            str(folder / "tier.onnx"), options, providers=["CPUExecutionProvider"]
        )
        for size in SIZES:
            batches = [
                tokens.batch(np.arange(first, first + size)).named()
                for first in range(0, len(texts), size)
            ]
            for batch in batches[: max(1, 64 // size)]:
                session.run(None, batch)
            rows, began, spent = 0, time.perf_counter(), time.process_time()
            while time.perf_counter() - began < seconds:
                session.run(None, batches[rows // size % len(batches)])
                rows += size
            took = time.perf_counter() - began
            spent = time.process_time() - spent
            how = f"batches of {size}{', spinning' if spinning else ''}"
            found[how] = rows / took, 1_000 * spent / rows
    return found


if __name__ == "__main__":
    main()
