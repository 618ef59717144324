"""How many samples of each task are easy, medium and hard, and which tiers they go to (paper 1 §6.3)."""

from __future__ import annotations

from typing import Any

import numpy as np

from dimec.evaluation import replay
from dimec.policies import Searched
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.policies.pools import cartography, cartography_pools, exit_pools
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import averaged, notes_on
from dimec.studies.published import notes
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import pool_claims

POOLS = ("easy", "medium", "hard")
METHODS: dict[str, type[Searched]] = {kind.name: kind for kind in (DimecDcFixed, DimeeFixed)}


def make(runs: StudyRuns) -> Findings:
    """Count pools on validation and tiers on test, at the points that the search chose."""
    found = Findings("pools")
    rows = []
    for task in runs.each_task("Study pools"):
        rows += averaged(runs, task, "pools", shares, key=("policy", "what"))
    found.verdicts += pool_claims(rows)
    found.add("pools", rows)
    for method in METHODS:
        parts = [
            {
                **{name: row[name] for name in ("task", "policy", "what")},
                "pool": pool,
                "share": row[pool],
            }
            for row in rows
            if row["policy"] == method
            for pool in POOLS
        ]
        found.add("pool-shares-{method}", parts, method=method)
    found.notes += [
        f"Paper {each.paper} prints {100 * each.easy:.2f} % easy, {100 * each.medium:.2f} % medium and "
        f"{100 * each.hard:.2f} % hard for {each.task} with {each.backbone}."
        for each in notes().pool_shares
    ]
    found.notes += notes_on(runs)
    return found


def shares(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Return the shares of pools on validation and of tiers on test, for both methods."""
    setup = runs.setup(run)
    calibration = setup.calibration(runs.options.price)
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
        tiers = replay(fitted, setup.table, costs=setup.costs).tiers
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


STUDY = Study.of("pools", make)
