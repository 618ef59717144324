"""Replay and evaluation on 40,000 samples: samples a second by policy, and the time of the whole table.

The exit table is drawn at random with MiniLM's shape (six exits, 384 numbers an embedding): what a sample takes hardly
depends on what the exits say. Beside it the same policies run sample by sample, as a plain loop would.

    python benchmarks/bench_replay.py
"""

from __future__ import annotations

import time

import numpy as np

from dimec.core.tiers import method_depths
from dimec.costs.model import CostModel
from dimec.evaluation.rows import evaluate
from dimec.policies import Calibration, fit_policies
from dimec.policies.replay import replay
from dimec.runs.exit_table import Dynamics, ExitTable

N_SAMPLES, N_VALIDATION, WIDTH, EXITS = 40_000, 6_700, 384, 6


def draw(n: int, *, seed: int, with_zero: bool = False) -> ExitTable:
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, n)
    signs = (2 * labels - 1)[:, None] * np.linspace(0.5, 2.0, EXITS)
    noise = draws.normal(size=(n, EXITS, 2))
    logits = (np.stack([-signs, signs], axis=2) + noise).astype(np.float32)
    dynamics = draws.random((n, 5, EXITS), dtype=np.float32)
    return ExitTable(
        layers=tuple(range(1, EXITS + 1)),
        logits=logits,
        labels=labels,
        embeddings=draws.normal(size=(n, WIDTH)).astype(np.float32),
        n_tokens=np.full(n, 13, dtype=np.int32),
        payload_bytes=np.full(n, 26, dtype=np.int32),
        row_ids=np.arange(n),
        label_names=("no", "yes"),
        dynamics=Dynamics(dynamics, dynamics > 0.5),
        exit_zero=logits[:, 0] if with_zero else None,
    )


def main() -> None:
    costs = CostModel()
    calibration = Calibration(
        draw(N_VALIDATION, seed=0),
        {"dc": method_depths("dc", EXITS), "ee": method_depths("ee", EXITS)},
        costs=costs,
    )
    began = time.perf_counter()
    policies = fit_policies(calibration)
    print(f"fit all policies on {N_VALIDATION:,} rows: {time.perf_counter() - began:.2f} s")
    print(f"{'policy':20} {'samples/s':>12} {'against one by one':>20}")
    for name, policy in policies.items():
        table = draw(N_SAMPLES, seed=1)  # anew, so that each pays for its own probabilities
        rates = []
        for one_by_one in (policy.learns, True):
            timed = policy.fresh()
            timed.learns = one_by_one
            began = time.perf_counter()
            replay(timed, table, costs=costs)
            rates.append(N_SAMPLES / (time.perf_counter() - began))
        print(f"{name:20} {rates[0]:12,.0f} {rates[0] / rates[1]:19.1f}x")
    table = draw(N_SAMPLES, seed=1)
    for metric in ("accuracy", "f1", "matthews"):
        began = time.perf_counter()
        evaluate(
            table, policies, task="bench", source="drawn", metric=metric, costs=costs, price=0.1
        )  # fmt: skip
        seconds = time.perf_counter() - began
        print(
            f"whole table on {N_SAMPLES:,} samples, {metric}, bootstrap included: {seconds:.1f} s"
        )


if __name__ == "__main__":
    main()
