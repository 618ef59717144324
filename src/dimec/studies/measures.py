"""Rows of evaluations as rows of a study's table, averaged over seeds, and the notes that studies share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import Metric, interval, paired_differences
from dimec.core.split_choice import SIZES
from dimec.core.tiers import TIERS
from dimec.costs.model import CostModel
from dimec.evaluation.results import Evaluation, Row
from dimec.policies import Policy
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.studies.study_runs import StudyRuns, fit_seconds

PAPER_POLICIES = ("dimec-dc-fixed", "dimec-dc-adaptive", "dimee-fixed", "dimee-adaptive")
BASELINES = ("random", "deebert", "early-exit", "adaee", "i-splitee")
OURS = ("dimec-cascade", "dimec-guarded")
RULED_PRICES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # the prices that claims about costs are ruled at
N_RESAMPLES = 500
GLUE_ROWS = {
    "sst2": 67_349,
    "cola": 8_551,
    "mrpc": 3_668,
    "rte": 2_490,
    "qnli": 104_743,
    "qqp": 363_846,
    "mnli": 392_702,
}
"""Rows of GLUE's training splits."""


def evaluation_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return an evaluation's policies and controls as flat rows."""
    return [
        {
            **{name: getattr(row, name) for name in ("policy", "kind", "score")},
            **ends(row.score_ci95),
            **{name: getattr(row, name) for name in ("accuracy", "cost", "cost_change")},
            "against_cloud": row.cost_vs_cloud - 1,
            **{str(tier): row.shares and getattr(row.shares, tier) for tier in TIERS},
            "random_at_shares": row.random_at_shares,
            "random_at_cost": row.random_at_cost,
            **ends(row.random_at_cost_ci95, "random_at_cost_"),
            "oracle": row.oracle_at_cost,
            "gap": row.gap_closed,
            "auc": row.auc_mobile_right,
            "above_random": beats_random(row),
            "n": evaluation.n,
        }
        for row in evaluation.rows
    ]


def ends(interval: tuple[float, float] | None, name: str = "") -> dict[str, float | None]:
    """Return the columns of an interval, whose names begin with ``name``; None in both without one."""
    low, high = interval or (None, None)
    return {f"{name}low": low, f"{name}high": high}


def beats_random(row: Row) -> bool:
    """Tell whether a score is above random at its cost, beyond both intervals."""
    if row.score is None or row.score_ci95 is None or row.random_at_cost is None:
        return False
    highest = row.random_at_cost_ci95[1] if row.random_at_cost_ci95 else row.random_at_cost
    return row.score_ci95[0] > row.random_at_cost and row.score > highest


def part_shares(
    rows: Iterable[Mapping[str, Any]],
    *,
    of: Sequence[str],
    parts: Sequence[str] = TIERS,
    what: str = "tier",
) -> list[dict[str, Any]]:
    """Return a row for each tier, or other part, of each row: its share, and the columns that say what it is of."""
    return [
        {**{name: row[name] for name in of}, what: str(part), "share": row[part]}
        for row in rows
        for part in parts
    ]


def difference(
    metric: Metric,
    table: ExitTable,
    answers: Sequence[NDArray[np.int64]],
    others: NDArray[np.int64],
    *,
    rng: np.random.Generator | None = None,
) -> tuple[float, float, float]:
    """Return how much higher answers score than others, in the mean of several, and its paired 95 % interval."""
    scores = [table.score(metric, each) for each in answers]
    drawn = paired_differences(
        metric,
        table.labels,
        answers,
        others,
        n_classes=table.n_classes,
        rng=np.random.default_rng(0) if rng is None else rng,
    )
    low, high = interval(drawn)
    return float(np.mean(scores)) - table.score(metric, others), low, high


def mean_interval(values: NDArray[np.floating], *, rng: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of a mean."""
    picks = rng.integers(0, len(values), (N_RESAMPLES, len(values)))
    return interval(values[picks].mean(axis=1).astype(np.float64))


def against_full(
    metric: Metric, table: ExitTable, policy: Policy, costs: CostModel
) -> dict[str, float | None]:
    """Return how much higher a policy scores than the full model, with its paired 95 % interval, as columns."""
    answers = replay(policy, table, costs=costs).predictions
    gain, low, high = difference(metric, table, [answers], table.predictions[:, -1])
    return {"against_full": gain, **ends((low, high), "against_full_")}


def over_seeds(
    seeds: Sequence[Iterable[Mapping[str, Any]]], *, key: Sequence[str] = ("policy",)
) -> list[dict[str, Any]]:
    """Average numbers over seeds, row by row: ``score_sd`` and ``cost_sd`` say how far they spread.

    A number that some seed lacks is None; a boolean is true where it is so on every seed; texts are the
    first seed's.
    """
    tables = [{tuple(row[name] for name in key): row for row in rows} for rows in seeds]
    averaged = []
    for place, first in tables[0].items():
        found = [table[place] for table in tables if place in table]
        row: dict[str, Any] = {}
        for name, value in first.items():
            if isinstance(value, str) or name in key:
                row[name] = value
            elif isinstance(value, bool):
                row[name] = all(each[name] for each in found)
            else:
                numbers = _numbers(found, name)
                row[name] = float(np.mean(numbers)) if len(numbers) == len(found) else None
        for name in ("score", "cost"):
            numbers = _numbers(found, name)
            several = len(numbers) == len(found) > 1
            row[f"{name}_sd"] = float(np.std(numbers, ddof=1)) if several else None
        averaged.append(
            {**row, "n": round(row["n"]) if row.get("n") else None, "seeds": len(found)}
        )
    return averaged


def _numbers(rows: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    return [float(row[name]) for row in rows if row.get(name) is not None]


def averaged(
    runs: StudyRuns,
    task: str,
    part: str,
    compute: Callable[[StudyRuns, Run], list[dict[str, Any]]],
    *,
    key: Sequence[str] = ("policy",),
) -> list[dict[str, Any]]:
    """Compute the rows of a part from a run for each seed, and average them."""
    seeds = [runs.part(part, run, compute) for run in runs.seeds(task)]
    return [{"task": task, **row} for row in over_seeds(seeds, key=key)]


def measured(
    runs: StudyRuns, run: Run, *, policies: Sequence[str] = (), price: float | None = None
) -> list[dict[str, Any]]:
    """Evaluate policies on a run, at the study's price where none is given."""
    setup, price = runs.setup(run), runs.options.price if price is None else price
    return evaluation_rows(setup.evaluate(policies, price=price, progress=runs.progress))


def ruled_prices(runs: StudyRuns) -> tuple[float, ...]:
    """Return the prices that claims about costs are ruled at, the study's own among them."""
    return tuple(sorted({*RULED_PRICES, runs.options.price}))


def notes_on(runs: StudyRuns, *, on_their_own: bool = True) -> list[str]:
    """List tasks with a part of GLUE's rows, tasks with a single seed, and texts that were cut.

    ``on_their_own`` is whether all scores are of the runs' own rows.
    """
    by_task: dict[str, dict[int, Run]] = {}
    for run in runs.read:
        by_task.setdefault(run.config.task.name, {}).setdefault(run.config.options.seed, run)
    first = {task: next(iter(seeds.values())) for task, seeds in by_task.items()}
    sizes = {task: run.config.options.split_choice.sizes for task, run in first.items()}
    held = {task: 100 * len(run.test) // sizes[task][2] for task, run in first.items()}
    listed: dict[str, Sequence[str]] = {
        "Parts of GLUE's training splits, not the whole": [
            f"{task} (about {rows:,} of {GLUE_ROWS[task]:,} rows)"
            for task, rows in held.items()
            if rows < 0.95 * GLUE_ROWS.get(task, 0)
        ],
        "Other parts for training, validation and test": [
            f"{task} {'/'.join(map(str, own))}" for task, own in sizes.items() if own != SIZES
        ],
        "A single seed, so no spread": [
            f"{task} ({seconds / 60:.0f} minutes a fit)" if (seconds := fit_seconds(run)) else task
            for task, run in first.items()
            if len(by_task[task]) == 1
        ],
        "Texts cut at the longest length that was fitted": [
            f"{task} {run.config.share_cut:.0%}"
            for task, run in first.items()
            if run.config.share_cut > 0.01
        ],
        "No fitted run, so left out": runs.left_out,
    }
    notes = [f"{what}: {', '.join(cases)}." for what, cases in listed.items() if cases]
    if on_their_own:
        notes.append(
            "All rows are of GLUE's training splits, split 80/10/10 as the papers do where nothing else "
            "is said. Thresholds, pools and prices are chosen on validation rows; scores are of test rows."
        )
    return notes
