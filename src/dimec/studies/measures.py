"""Rows of an evaluation as rows of a study's table, over seeds; and what several studies say alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dimec.evaluation import Evaluation, Row
from dimec.reporting.results import Column
from dimec.runs.run import Run
from dimec.studies.study_runs import StudyRuns, fit_seconds

PAPER_POLICIES = ("dimec-dc-fixed", "dimec-dc-adaptive", "dimee-fixed", "dimee-adaptive")
GLUE_ROWS = {
    "sst2": 67_349,
    "cola": 8_551,
    "mrpc": 3_668,
    "rte": 2_490,
    "qnli": 104_743,
    "qqp": 363_846,
    "mnli": 392_702,
}
"""Rows of GLUE's training splits, to tell a part from the whole."""

SCORE = Column(
    name="score",
    title="score",
    quantity="score",
    about="In the task's metric, × 100, with its 95 % bootstrap interval (over seeds: the mean of theirs); bold where "
    "it is above chance at its cost beyond both intervals, on every seed.",
    low="low",
    high="high",
    spread="score_sd",
    stands_out="above_chance",
)
COST = Column(name="cost", title="cost", quantity="cost", about="Mean, in λ.", spread="cost_sd")
CHANGE = Column(
    name="cost_change",
    title="against BERT",
    quantity="change",
    about="Cost against the full model on the mobile device, 1.00 of the papers.",
)
SHARES = tuple(
    Column(name=tier, title=tier, quantity="share", about=f"Share of samples that {tier} answers.")
    for tier in ("mobile", "edge", "cloud")
)
AT_SHARES = Column(
    name="at_shares",
    title="chance at its shares",
    quantity="score",
    about="Score of its own tiers, shuffled over the samples.",
)
AT_COST = Column(
    name="at_cost",
    title="chance at its cost",
    quantity="score",
    about="Score of the best random mixture of single exits at the same mean cost, and where 95 % of these land.",
    low="at_cost_low",
    high="at_cost_high",
)
GAP = Column(
    name="gap",
    title="gap closed",
    quantity="share",
    about="On accuracy: 0 is chance at its cost, 100 the oracle at its cost.",
)
AUC = Column(
    name="auc",
    title="router AUC",
    quantity="score",
    about="How well the router ranks the samples that the mobile exit gets right; 50 is chance.",
)
ORACLE = Column(
    name="oracle",
    title="oracle",
    quantity="score",
    about="The largest accuracy at its cost.",
)
N = Column(name="n", title="n", quantity="count", about="Test rows of one seed.")
SEEDS = Column(name="seeds", title="seeds", quantity="count")


def name_of_policy(title: str = "policy") -> Column:
    """Return the column of names."""
    return Column(name="policy", title=title, quantity="text")


def evaluation_rows(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return policies and controls as flat rows."""
    rows = []
    for row in evaluation.rows:
        low, high = row.score_ci95 or (None, None)
        shares = row.shares
        rows.append(
            {
                "policy": row.policy,
                "kind": row.kind,
                "score": row.score,
                "low": low,
                "high": high,
                "accuracy": row.accuracy,
                "cost": row.cost,
                "cost_change": row.cost_change,
                "against_cloud": row.cost_vs_cloud - 1,
                "mobile": shares and shares.mobile,
                "edge": shares and shares.edge,
                "cloud": shares and shares.cloud,
                "at_shares": row.random_at_shares,
                "at_cost": row.random_at_cost,
                "at_cost_low": row.random_at_cost_ci95 and row.random_at_cost_ci95[0],
                "at_cost_high": row.random_at_cost_ci95 and row.random_at_cost_ci95[1],
                "oracle": row.oracle_at_cost,
                "gap": row.gap_closed,
                "auc": row.auc_mobile_right,
                "above_chance": beats_chance(row),
                "n": evaluation.n,
            }
        )
    return rows


def beats_chance(row: Row) -> bool:
    """Say whether a score is above chance at its cost, beyond the intervals of both."""
    if row.score is None or row.score_ci95 is None or row.random_at_cost is None:
        return False
    highest = row.random_at_cost_ci95[1] if row.random_at_cost_ci95 else row.random_at_cost
    return row.score_ci95[0] > row.random_at_cost and row.score > highest


def row_of(evaluation: Evaluation, policy: str) -> Row:
    """Return one row of an evaluation by its name, the first where the methods' depths give two."""
    return next(row for row in evaluation.rows if row.policy == policy)


def over_seeds(
    seeds: Sequence[Iterable[Mapping[str, Any]]], *, key: Sequence[str] = ("policy",)
) -> list[dict[str, Any]]:
    """Average numbers over seeds, row by row: ``score_sd`` and ``cost_sd`` say how far they spread.

    A number that some seed lacks is None; what is said of a row holds where it holds on every seed; words are the
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
                row[name] = _mean(_numbers(found, name), of=len(found))
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


def _mean(numbers: Sequence[float], *, of: int) -> float | None:
    return float(np.mean(numbers)) if len(numbers) == of else None


def measured(
    shop: StudyRuns, task: str, name: str, policies: Sequence[str] = ()
) -> tuple[list[Run], list[dict[str, Any]]]:
    """Evaluate policies on a task's runs at the study's price: the runs, and the rows over seeds."""
    runs = shop.seeds(task)
    rows = [shop.part(name, run, partial(_evaluate, shop, run, policies)) for run in runs]
    return runs, [{"task": task, **row} for row in over_seeds(rows)]


def _evaluate(shop: StudyRuns, run: Run, policies: Sequence[str]) -> list[dict[str, Any]]:
    bed = shop.testbed(run)
    return evaluation_rows(bed.evaluate(policies, price=shop.options.price, progress=shop.progress))


def notes_on(runs: Iterable[Run], *, on_their_own: bool = True) -> list[str]:
    """Say which tasks are parts of GLUE's, which have a single seed, and what was cut.

    ``on_their_own`` is whether all scores are of the runs' own rows.
    """
    by_task: dict[str, list[Run]] = {}
    for run in runs:
        by_task.setdefault(run.config.task.name, []).append(run)
    notes = []
    parts = []
    for task, found in by_task.items():
        whole = GLUE_ROWS.get(task)
        held = 10 * len(found[0].test)
        if whole and held < 0.95 * whole:
            parts.append(f"{task} (about {held:,} of {whole:,} rows)")
    if parts:
        notes.append(f"Parts of GLUE's training splits, not the whole: {', '.join(parts)}.")
    single = [
        f"{task} ({seconds / 60:.0f} minutes a fit)" if (seconds := fit_seconds(found[0])) else task
        for task, found in by_task.items()
        if len(found) == 1
    ]
    if single:
        notes.append(f"A single seed, so no spread: {', '.join(single)}.")
    cut = {
        task: found[0].config.share_cut
        for task, found in by_task.items()
        if found[0].config.share_cut > 0.01
    }
    if cut:
        listed = ", ".join(f"{task} {share:.0%}" for task, share in cut.items())
        notes.append(f"Texts cut at the longest length that was fitted: {listed}.")
    if on_their_own:
        notes.append(
            "All rows are of GLUE's training splits, split 80/10/10 as the papers do. Thresholds, "
            "pools and prices are chosen on validation rows; scores are of test rows."
        )
    return notes
