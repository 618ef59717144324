"""The papers' main tables: every task and every system, published beside measured (paper 1 §5.5, paper 2 §3.1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dimec.core.tiers import Step, Tier
from dimec.evaluation.controls import SingleExit, single_exit
from dimec.policies import fit_policies
from dimec.policies.replay import replay
from dimec.reporting.results import WhatIf
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import (
    BASELINES,
    OURS,
    PAPER_POLICIES,
    against_full,
    averaged,
    difference,
    ends,
    measured,
    notes_on,
    part_shares,
    ruled_prices,
)
from dimec.studies.published import REFERENCE, published
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import main_claims, over_prices
from dimec.studies.whatif import whatif

ALL_CLOUD = "all-cloud"
_KEPT = (
    *("policy", "score", "low", "high", "score_sd", "above_random"),
    *("random_at_cost", "random_at_cost_low", "random_at_cost_high", "n", "seeds"),
)
PAIRS = (
    ("dimec-dc-adaptive", "dimec-dc-fixed"),
    ("dimee-adaptive", "dimee-fixed"),
    *((name, ALL_CLOUD) for name in (*PAPER_POLICIES, *BASELINES, *OURS)),
    *((name, other) for name in (*PAPER_POLICIES, OURS[0]) for other in BASELINES),
)
"""The pairs of systems whose answers are compared."""
PAPER_ONE = ("dimec-dc-fixed", "dimec-dc-adaptive")
"""The methods that paper 1 trains with exits at the tiers alone."""


@Study
def main(runs: StudyRuns, found: Findings) -> None:
    """Evaluate every system on every task, and pair the answers of those that the papers compare."""
    rows, pairs, own_loss = [], [], []
    ruled: dict[float, tuple[list[dict[str, Any]], list[dict[str, Any]]]]
    ruled = {price: ([], []) for price in ruled_prices(runs)}
    for task in runs.each_task("Study main"):
        rows += averaged(runs, task, "main", measured)
        for price, (own, paired) in ruled.items():
            at = partial(measured, policies=PAPER_POLICIES, price=price)
            own += averaged(runs, task, f"main-{price:g}", at)
            compare = partial(_compare, price=price)
            paired += averaged(runs, task, f"pairs-{price:g}", compare, key=("policy", "against"))
        pairs += [row for row in ruled[runs.options.price][1] if row["task"] == task]
        if runs.options.fitted and runs.has(task, exits="tiers"):
            for exits in ("tiers", "all"):
                run = runs.run(task, exits=exits)
                trained = runs.part(f"own-loss-{exits}", run, _paper_one)
                own_loss += [{"task": task, "exits": exits, **row} for row in trained]
        first = runs.run(task)
        prices = runs.part("whatif", first, _whatif)
        found.whatif.append(WhatIf.model_validate(prices))
    by_price = {price: main_claims(*both) for price, both in ruled.items()}
    found.verdicts += over_prices(by_price, own=runs.options.price)
    beside = _beside_published(rows)
    found.add("published", beside)
    found.add("published-points", _points(beside))
    found.add("systems", rows)
    routed = (*PAPER_POLICIES, *BASELINES, *OURS)
    shown = [row for row in rows if row["policy"] in routed]
    found.add("tier-shares", part_shares(shown, of=("task", "policy")))
    found.add("own-loss", own_loss)
    found.add("pairs", [{**row, "beyond": row["low"] > 0} for row in pairs])
    found.note()
    found.notes += notes_on(runs)


def _compare(runs: StudyRuns, run: Run, *, price: float) -> list[dict[str, Any]]:
    """Compare systems on a run's samples: adaptive with fixed, the methods with baselines, all with all-cloud."""
    setup = runs.setup(run)
    table = setup.table
    own = OURS if price == runs.options.price else ()
    names = [*PAPER_POLICIES, *BASELINES, *own]
    answers = {}
    for name, policy in fit_policies(setup.calibration(price), names).items():
        played = replay(policy, table, costs=setup.costs)
        answers[name] = SingleExit(played.predictions, float(played.costs.mean()))
    last = Step(Tier.CLOUD, table.n_layers)
    answers[ALL_CLOUD] = single_exit(table, last, costs=setup.costs)
    rows = []
    for name, other in PAIRS:
        if name not in answers or other not in answers:
            continue
        first, second = answers[name], answers[other]
        gain, low, high = difference(
            run.config.task.metric, table, [first.predictions], second.predictions
        )
        rows.append(
            {
                "policy": name,
                "against": other,
                "difference": gain,
                **ends((low, high)),
                "cost_difference": first.cost - second.cost,
                "n": len(table),
            }
        )
    return rows


def _paper_one(runs: StudyRuns, run: Run) -> list[dict[str, Any]]:
    """Measure paper 1's methods on a run, with how far they are under its full model."""
    setup = runs.setup(run)
    table, metric = setup.table, run.config.task.metric
    rows = {row["policy"]: row for row in measured(runs, run, policies=PAPER_ONE)}
    policies = fit_policies(setup.calibration(runs.options.price), PAPER_ONE)
    return [
        {
            **rows[name],
            "full": rows[ALL_CLOUD]["score"],
            **against_full(metric, table, policy, setup.costs),
        }
        for name, policy in policies.items()
    ]


def _beside_published(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Join every printed row of BERT-base with the measured one: levels, and drops against the full model."""
    at = {(row["task"], row["policy"]): row for row in rows}
    beside = []
    for printed in published(backbone="bert-base"):
        row = at.get((printed.task, printed.policy))
        reference = at.get((printed.task, REFERENCE))
        if row is None or reference is None:
            continue
        theirs = printed.score - printed.beside(REFERENCE).score
        ours = row["score"] - reference["score"]
        beside.append(
            {
                "task": printed.task,
                "paper": f"paper {printed.paper}",
                "system": printed.system,
                **{name: row[name] for name in _KEPT},
                "printed": printed.score,
                "printed_drop": theirs,
                "drop": ours,
                "drop_difference": ours - theirs,
                "printed_change": printed.cost_change,
                "cost_change": row["cost_change"],
                "change_difference": row["cost_change"] - printed.cost_change,
            }
        )
    return beside


def _whatif(runs: StudyRuns, run: Run) -> dict[str, Any]:
    return whatif(runs.setup(run), price=runs.options.price).model_dump(mode="json")


def _points(beside: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            **row,
            "whose": whose,
            "shown": f"{row['system']}, {row['paper']}",
            "x": row[change],
            "y": row[drop],
        }
        for row in beside
        for whose, change, drop in (
            ("published", "printed_change", "printed_drop"),
            ("measured", "cost_change", "drop"),
        )
    ]
