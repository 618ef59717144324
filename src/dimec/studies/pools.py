"""How many samples of each task are easy, medium and hard, and which tiers they go to (paper 1 §6.3)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dimec.evaluation import replay
from dimec.policies import Searched
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.policies.pools import cartography, cartography_pools, exit_pools
from dimec.reporting.results import Column, Figure, Table
from dimec.runs.run import Run
from dimec.studies.base import PAPER_TASKS, Findings, Study
from dimec.studies.measures import SEEDS, name_of_policy, notes_on, over_seeds
from dimec.studies.published import notes
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import pool_claims

POOLS = ("easy", "medium", "hard")
METHODS: dict[str, type[Searched]] = {kind.name: kind for kind in (DimecDcFixed, DimeeFixed)}


def make(shop: StudyRuns) -> Findings:
    """Count pools on validation and tiers on test, at the points that the search chose."""
    found = Findings()
    all_runs, rows = [], []
    with shop.progress.stage("Study pools", len(shop.tasks)) as advance:
        for task in shop.tasks:
            runs = shop.seeds(task)
            all_runs += runs
            seeds = [shop.part("pools", run, partial(shares, shop, run)) for run in runs]
            rows += [{"task": task, **row} for row in over_seeds(seeds, key=("policy", "what"))]
            advance(1)
    found.verdicts += pool_claims(rows)
    in_parts = [
        {
            "task": row["task"],
            "policy": row["policy"],
            "what": row["what"],
            "pool": pool,
            "share": row[pool],
        }
        for row in rows
        for pool in POOLS
    ]
    found.add(
        Table(
            name="pools",
            title="Pools and tiers by task",
            about="The pools are made of validation rows, which have training dynamics and labels; a test row goes to "
            "the pool of the nearest centroid, and so to that pool's tier: easy to mobile, medium to the edge, hard to "
            "the cloud. Where a router knew the pools, the second line would be like the first.",
            columns=(
                name_of_policy("method"),
                Column(name="what", title="of", quantity="text"),
                *(Column(name=pool, title=pool, quantity="share") for pool in POOLS),
                Column(name="alpha", title="α", quantity="number"),
                Column(name="beta", title="β", quantity="number"),
                Column(name="n", title="n", quantity="count", about="Rows of one seed."),
                SEEDS,
            ),
            group="task",
            source="paper 1 §6.3",
        ),
        rows,
    )
    for method in METHODS:
        name = f"pool-shares-{method}"
        found.add(
            Table(name=name, title=f"Shares of pools, {method}"),
            [row for row in in_parts if row["policy"] == method],
            Figure(
                name=f"pools-{method}",
                title=f"{method}: easy, medium and hard by task",
                about="Stacked shares of the three pools, a bar per task; a panel for the pools of validation rows and "
                "one for the tiers that test rows are sent to.",
                table=name,
                kind="stacked",
                x="task",
                y="share",
                color="pool",
                facet="what",
                x_quantity="text",
                y_title="share",
                y_quantity="share",
                hover=("task", "pool", "share"),
                source="paper 1 §6.3",
            ),
        )
    found.notes += [
        f"Paper {each.paper} prints {100 * each.easy:.2f} % easy, {100 * each.medium:.2f} % medium and "
        f"{100 * each.hard:.2f} % hard for {each.task} with {each.backbone}."
        for each in notes().pool_shares
    ]
    found.notes += notes_on(all_runs)
    return found


def shares(shop: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Return the shares of pools on validation and of tiers on test, for both methods."""
    bed = shop.testbed(run)
    calibration = bed.calibration(shop.options.price)
    tables = calibration.tables
    rows = []
    for name, policy in METHODS.items():
        fitted = policy.fit(calibration)
        at = fitted.operating_point()
        depths = calibration.depths[policy.method]
        if policy.method == "dc":
            samples = cartography(tables.encoder, layer=depths.mobile)
            pools = cartography_pools(samples, **at)
        else:
            pools = exit_pools(tables, depths=depths, **at)
        tiers = replay(fitted, bed.table, costs=bed.costs).tiers
        for what, found in (("pools of validation rows", pools), ("tiers of test rows", tiers)):
            counted = np.bincount(found, minlength=3) / len(found)
            rows.append(
                {
                    "policy": name,
                    "what": what,
                    **dict(zip(POOLS, counted.tolist(), strict=True)),
                    "alpha": at["alpha"],
                    "beta": at.get("beta"),
                    "n": len(found),
                }
            )
    return rows


STUDY = Study(
    name="pools",
    title="Easy, medium and hard",
    about="What share of each task's samples is easy, medium or hard at the thresholds that the search chose, and do "
    "the test rows go to the tiers in these shares?",
    source="paper 1 §6.3",
    tasks=PAPER_TASKS,
    make=make,
)
