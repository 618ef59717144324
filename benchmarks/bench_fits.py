"""What one fit of a task is worth beside another: the exits' scores, and what cascades make of them.

The runs hold the same rows and differ in an option of the fit, such as `--r-drop 1`. For each: the score of every exit,
and what cascades lose, `wrong + lambda * cost` in points, in the mean over the prices that a frontier has, with the
rows of validation answered by cascades fitted on the other four fifths and test rows by cascades fitted on
validation. The differences from the first run have 95 % intervals from a paired bootstrap over the rows. Validation is
what chooses; test is beside it to see whether it chose well.

    python benchmarks/bench_fits.py RUN OTHER [OTHER ...]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench_cascade import Interval, drawn
from dimec.core.metrics import confusion, score
from dimec.deploying.cuts import cross_fit, fit_cascades
from dimec.deploying.planning import run_calibration
from dimec.evaluation import replay
from dimec.evaluation.options import PRICES
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run


@dataclass(frozen=True)
class Worth:
    """What a run's exits do with a split: the score of each, and what the last exit and cascades lose on each row."""

    table: ExitTable
    scores: NDArray[np.float64]
    all_cloud: NDArray[np.float64]
    cascade: NDArray[np.float64]


def worth(run: Run) -> dict[str, Worth]:
    """Measure a run on validation and on test."""
    calibration = run_calibration(run)
    prices = [price for price in PRICES if price > 0]
    units = np.array([[replace(calibration, price=price).unit] for price in prices])
    crossed = cross_fit(calibration, prices)
    cascades = fit_cascades(calibration, [calibration.depths] * len(prices), prices)
    played = [replay(each, run.test, costs=calibration.costs) for each in cascades]
    labels = np.stack([each.predictions for each in played])
    costs = np.stack([each.costs for each in played])

    def of(table: ExitTable, labels: NDArray[np.int64], costs: NDArray[np.float64]) -> Worth:
        by_exit = [
            confusion(table.labels, said, n_classes=table.n_classes) for said in table.predictions.T
        ]
        scores = np.array([float(score(run.config.task.metric, each)) for each in by_exit])
        lost = (labels != table.labels) + units * costs
        wrong = (~table.right[:, -1]).astype(np.float64)
        return Worth(table, 100 * scores, 100 * wrong, 100 * lost.mean(axis=0))

    return {
        "validation": of(run.validation, crossed.labels, crossed.costs),
        "test": of(run.test, labels, costs),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that `dimec fit` made")
    folders = parser.parse_args().runs
    base: dict[str, Worth] = {}
    for folder in folders:
        run = Run.open(Path(folder))
        print(f"== {folder}: {run.config.task.name}, {run.config.task.metric} by exit")
        for split, found in worth(run).items():
            n = len(found.table)
            print(
                f"{split:10} ({n:,})  {' '.join(f'{each:5.2f}' for each in found.scores)}; wrong at the last exit "
                f"{found.all_cloud.mean():.2f}; cascades lose {found.cascade.mean():.2f}"
            )
            first = base.setdefault(split, found)
            if first is found:
                continue
            if not np.array_equal(first.table.row_ids, found.table.row_ids):
                raise SystemExit(f"{folder} holds other rows than {folders[0]}")
            weights = drawn(n)
            exit_, cascade = (
                Interval.of(weights @ (mine - theirs))
                for mine, theirs in (
                    (found.all_cloud, first.all_cloud),
                    (found.cascade, first.cascade),
                )
            )
            print(f"{'':10} less the first: {exit_:+.2f}; {cascade:+.2f}", flush=True)


if __name__ == "__main__":
    main()
