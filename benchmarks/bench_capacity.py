"""How many requests a second a core serves, by tier and by length: a server at saturation, in its own CPU time.

32 requests are in flight, a text of so many tokens each, as far as the bundle reads them, and every exit of the tier is
asked for; the server has one thread for its engine. A core is a second of the server process's CPU time, so that client
and server may share a machine; what HTTP, queue and batching take is in it.

    DIMEC_BUNDLE=... python benchmarks/bench_capacity.py [--lengths 16,32] [-- OPTIONS OF dimec serve]
"""

from __future__ import annotations

import argparse
import os

import numpy as np
from numpy.typing import NDArray

import load
from bench_server import IN_FLIGHT, cpu_s, request
from dimec.bundle import Bundle
from dimec.bundle.engines.hardware import machine
from dimec.core.tiers import Tier
from subject import some_bundle, tier_server

N_REQUESTS = 64


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lengths", default="16,32,64,128", help="tokens of a text, by commas")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("serve", nargs="*", help="options of dimec serve, after --")
    given = parser.parse_args()
    with some_bundle() as bundle:
        longest = bundle.mobile.manifest.max_length
        lengths = [each for each in map(int, given.lengths.split(",")) if each <= longest]
        print(
            f"{machine().processor}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; "
            f"requests a second of a core by the tokens of a text"
        )
        print(f"{'tier':8}{'layers':>8}" + "".join(f"{each:>8}" for each in lengths))
        for tier in (Tier.EDGE, Tier.CLOUD):
            held = bundle.of(tier)
            if held is None:
                continue
            options = ["--threads", "1", *given.serve]
            with tier_server(tier, bundle.folder, options) as (port, pid):
                found = [measure(bundle, tier, port, pid, each, given.seconds) for each in lengths]
            print(
                f"{tier:8}{held.manifest.layers[-1]:>8}"
                + "".join(f"{each:>8,.0f}" for each in found)
            )


def measure(bundle: Bundle, tier: str, port: int, pid: int, length: int, seconds: float) -> float:
    """Return answers per second of the server's CPU time."""
    draw = np.random.default_rng(length)
    bodies = []
    for _ in range(N_REQUESTS):
        inputs: dict[str, NDArray[np.int64]] = {
            name: np.zeros((1, length), np.int64) for name in bundle.mobile.manifest.inputs
        }
        inputs["attention_mask"][:] = 1
        inputs["input_ids"][:] = draw.integers(1_000, 20_000, (1, length))
        bodies.append(request(inputs, tier, port=port))
    load.run(port, bodies, connections=IN_FLIGHT, seconds=seconds / 5, warm_s=0)
    before = cpu_s(pid)
    shown = load.run(port, bodies, connections=IN_FLIGHT, seconds=seconds, warm_s=0)
    spent = cpu_s(pid) - before
    if set(shown["statuses"]) - {"200"}:
        raise SystemExit(f"{tier} did not answer everything: {shown['statuses']}")
    return float(shown["answers"] / spent)


if __name__ == "__main__":
    main()
