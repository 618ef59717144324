"""Are promises kept? Random certify/test splits of rows that chose nothing.

    python benchmarks/bench_promise.py RUN [RUN ...] [--splits 200] [--cuts all] [--whole]

Runs may also be named in DIMEC_RUNS, with colons between them. The choosing half of validation and its cascades stay
fixed. Each split draws as many certifying rows as a real plan has from the other half and the test rows together; the
rest measure what the promised cascade loses. `broken` counts splits in which that is more than the promise.

A promise over the next texts, as many as the rest has, is held against the rest. A promise in the long run is about the
rate that both are samples of, so that `over all` counts the splits in which the cascade loses more on both together.
`own best` is the cheapest cascade that keeps the tolerance on the rest of the same split.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from itertools import product

import numpy as np

from dimec.deploying.ladder import build_ladder, halve, run_calibration
from dimec.deploying.promise import Assurance, Outcomes, last_kept
from dimec.policies.replay import replay
from dimec.runs.run import Run
from subject import whole_rows

TOLERANCES = (0.5, 1.0, 2.0)


def measure(folder: str, *, splits: int, cuts: str | None, whole: bool) -> None:
    run = Run.open(folder)
    calibration = run_calibration(run)
    ladder = build_ladder(calibration, cuts=run.cuts(cuts))
    _, certifying = halve(run.validation, seed=calibration.seed)
    tables = [
        replace(run.validation.take(certifying), dynamics=None),
        replace(run.test, dynamics=None),
    ]
    if whole:
        shown = whole_rows(run)
        kept = shown[certifying], shown[len(run.validation) :]
        tables = [each.take(np.flatnonzero(rows)) for each, rows in zip(tables, kept, strict=True)]
    cloud = np.concatenate([table.right[:, -1] for table in tables])
    right, cost = [], []
    for rung in ladder.rungs:
        played = [replay(rung.policy, table, costs=calibration.costs) for table in tables]
        right.append(
            np.concatenate([p.predictions == t.labels for p, t in zip(played, tables, strict=True)])
        )
        cost.append(np.concatenate([p.costs for p in played]) / ladder.cloud_cost)
    n, pool = len(tables[0]), len(cloud)
    print(
        f"{run.config.task.name}: {n:,} of {pool:,} rows certify, {len(right)} cascades", flush=True
    )
    loss = np.stack([cloud.astype(float) - each for each in right])
    spent = np.stack(cost)
    for points, over in product(TOLERANCES, (pool - n, None)):
        broken, false, nothing, paid, best, drops = 0, 0, 0, [], [], []
        over_all = 100 * loss.mean(axis=1)
        for split in range(splits):
            order = np.random.default_rng([split, 1]).permutation(pool)
            own, rest = order[:n], order[n:]
            trials = [Outcomes.of(cloud[own], each[own]) for each in right]
            last = last_kept(trials, max_drop=points / 100, assurance=Assurance(over=over))
            dropped, prices = 100 * loss[:, rest].mean(axis=1), spent[:, rest].mean(axis=1)
            keeping = prices[dropped <= points]
            best.append(min(keeping.min(), 1.0) if len(keeping) else 1.0)
            if last is None:
                nothing += 1
                paid.append(1.0)
                continue
            paid.append(prices[last])
            drops.append(dropped[last])
            broken += int(dropped[last] > points)
            false += int(over_all[last] > points)
        mean_drop = f"{np.mean(drops):.2f}" if drops else "-"
        print(
            f"  {points:g} points {'in the long run' if over is None else f'over the next {over:,}'}: broken "
            f"{broken} of {splits} ({100 * broken / splits:.1f} %), over all {false}; "
            f"all-cloud alone in {nothing}; mean drop {mean_drop}; cost of all-cloud's "
            f"{100 * np.mean(paid):.1f} %, own best {100 * np.mean(best):.1f} %",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="*", metavar="RUN")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--cuts", help="compared by the choosing half; the run's own by default")
    parser.add_argument("--whole", action="store_true", help="rows that are part of no other row")
    given = parser.parse_args()
    runs = given.runs or [each for each in os.environ.get("DIMEC_RUNS", "").split(":") if each]
    if not runs:
        parser.error("name runs with exit zero, or set DIMEC_RUNS")
    for folder in runs:
        measure(folder, splits=given.splits, cuts=given.cuts, whole=given.whole)


if __name__ == "__main__":
    main()
