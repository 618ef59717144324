"""Study `shift`: fitted on one data set, tested on another of the same task; does adapting help?

Fixed and adaptive centroids are compared on the same samples, in the order of the data and in shuffled orders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.tiers import TIERS
from dimec.evaluation import controls
from dimec.evaluation.setup import EvaluationSetup
from dimec.policies import POLICIES, Policy
from dimec.policies.replay import Replay, replay
from dimec.reporting.results import Verdict
from dimec.runs.run import Run
from dimec.studies.base import Findings, Study
from dimec.studies.measures import (
    BASELINES,
    OURS,
    PAPER_POLICIES,
    difference,
    ends,
    evaluation_rows,
    mean_interval,
    notes_on,
    part_shares,
)
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import ruling_of, verdict

OTHERS = {"sst2": "cr", "mnli": "sick"}  # the data set that each task's run meets
_TITLES = {"cr": "customer reviews (CR)", "sick": "SICK"}
SYSTEMS = (*PAPER_POLICIES, *BASELINES[1:], *OURS)
N_ORDERS = 5
METHODS = {
    "dimec-dc": ("dimec-dc-fixed", "dimec-dc-adaptive"),
    "dimee": ("dimee-fixed", "dimee-adaptive"),
}
AS_THEY_COME, SHUFFLED = "as they come", f"shuffled, mean of {N_ORDERS}"


@Study
def shift(runs: StudyRuns, found: Findings) -> None:
    """Evaluate every pair in its own domain and in the other one.

    Raises:
        OptionError: If a task has no other data set, or none of them is there.
    """
    pairs, missing = _pairs(runs)
    places: list[dict[str, Any]] = []
    with runs.progress.stage("Shifts", len(pairs)) as advance:
        for task, path in pairs.items():
            run = runs.run(task)
            name = f"shift-{_digest(path)}"
            places += runs.part(name, run, partial(_part, path=path))
            advance(1)
    scores = [{"where": place["where"], **row} for place in places for row in place["rows"]]
    cases = [{"where": place["where"], **case} for place in places for case in place["adaptive"]]
    routed = [row for row in scores if row["kind"] == "policy" and row["mobile"] is not None]
    found.add("scores", scores)
    found.add("adaptive", cases)
    found.add("shares", part_shares(routed, of=("where", "policy")))
    shifted = [place for place in places if place["shifted"]]
    found.verdicts += [
        _verdict("adapts-to-shift", shifted),
        _verdict("adaptive-beats-fixed", places),
    ]
    found.notes += notes_on(runs, on_their_own=False)
    found.note(orders=N_ORDERS)
    found.notes += [
        *(f"{place['where']}: {place['order']}." for place in places if place["order"]),
        *(
            f"{task} on {other}: left out, since neither ROOT/{other} nor ROOT/shift/{other} nor "
            f"ROOT/../shift/{other} exists (ROOT is --data)."
            for task, other in missing.items()
        ),
    ]


def find_other(root: Path, name: str) -> Path | None:
    """Return where another data set is: in the root, in its folder `shift`, or in a folder `shift` beside it."""
    folders = (root / name, root.resolve().parent / "shift" / name, root / "shift" / name)
    return next((folder for folder in folders if folder.is_dir()), None)


def _pairs(runs: StudyRuns) -> tuple[dict[str, Path], dict[str, str]]:
    """Return the other data set of each task, and those that are missing."""
    root = runs.options.data
    unknown = [task for task in runs.tasks if task not in OTHERS]
    if unknown:
        raise OptionError(
            f"the study shift knows no other data set for {', '.join(unknown)}: choose among {', '.join(OTHERS)}"
        )
    if root is None:
        raise OptionError(
            "the study shift needs --data: a folder with a folder for each task, and the other data sets "
            f"({', '.join(OTHERS.values())}) in it, in its folder shift, or in a folder shift beside it"
        )
    found = {task: find_other(root, OTHERS[task]) for task in runs.tasks}
    there = {task: path for task, path in found.items() if path is not None}
    missing = {task: OTHERS[task] for task, path in found.items() if path is None}
    if not there:
        raise OptionError(
            f"--data {root} has none of the other data sets that the study shift tests on: put "
            f"{' or '.join(missing.values())} in it, in its folder shift, or in a folder shift beside it"
        )
    return there, missing


def _part(runs: StudyRuns, run: Run, *, path: Path) -> list[dict[str, Any]]:
    """Evaluate a run on its own test split and on another data set."""
    name, price = run.config.task.name, runs.options.price
    setups = (
        (f"{name}, its own test split", False, runs.setup(run)),
        (f"{name} on {_TITLES[OTHERS[name]]}", True, runs.setup(run, data=path, skip_empty=True)),
    )
    return [
        {
            "where": where,
            "shifted": shifted,
            "order": in_order(setup.table.labels),
            "rows": evaluation_rows(setup.evaluate(SYSTEMS, price=price)),
            "adaptive": _compare(setup, price),
        }
        for where, shifted, setup in setups
    ]


def _compare(setup: EvaluationSetup, price: float) -> list[dict[str, Any]]:
    """Compare adaptive with fixed centroids by method and kind of order, with paired 95 % bootstrap intervals."""
    calibration = setup.calibration(price)
    table = setup.table
    orders = [
        np.random.default_rng([setup.options.seed, each]).permutation(len(table))
        for each in range(N_ORDERS)
    ]
    found = []
    for method, (fixed_name, adaptive_name) in METHODS.items():
        fixed = replay(POLICIES[fixed_name].fit(calibration), table, costs=setup.costs)
        policy = POLICIES[adaptive_name].fit(calibration)
        for order, streams in ((AS_THEY_COME, [np.arange(len(table))]), (SHUFFLED, orders)):
            plays = [
                (replay(policy, table.take(rows), costs=setup.costs), np.argsort(rows))
                for rows in streams
            ]
            case = _difference(setup, fixed, plays)
            spent = case["fixed_cost"] + case["cost_difference"]
            random = _random_at_cost(setup, policy, spent)
            found.append({"method": method, "order": order, **case, "random_at_cost": random})
    return found


def _random_at_cost(setup: EvaluationSetup, policy: Policy, cost: float) -> float:
    """Return the score of the best random mixture of a policy's single exits at a mean cost."""
    table, metric = setup.table, setup.run.config.task.metric
    exits = [controls.single_exit(table, step, costs=setup.costs) for step in policy.endpoints()]
    ways = [controls.majority(table), *exits]
    mixture = controls.random_at_cost(ways, cost, metric=metric, table=table)
    return mixture.expected_score(metric, table)


def _difference(
    setup: EvaluationSetup, fixed: Replay, plays: Sequence[tuple[Replay, NDArray[np.intp]]]
) -> dict[str, Any]:
    """Compare replays of the adaptive kind with that of the fixed kind.

    Each comes with the indices that restore the table's order.
    """
    metric, table, rng = setup.run.config.task.metric, setup.table, np.random.default_rng(0)
    answers = [play.predictions[back] for play, back in plays]
    gain, low, high = difference(metric, table, answers, fixed.predictions, rng=rng)
    scores = [table.score(metric, each) for each in answers]
    base = table.score(metric, fixed.predictions)
    spent = np.mean([play.costs[back] for play, back in plays], axis=0) - fixed.costs
    return {
        "n": len(table),
        "fixed": base,
        "adaptive": float(np.mean(scores)),
        "difference": gain,
        **ends((low, high), "difference_"),
        "least": min(scores) - base,
        "most": max(scores) - base,
        "fixed_cost": float(fixed.costs.mean()),
        "cost_difference": float(spent.mean()),
        **ends(mean_interval(spent, rng=rng), "cost_difference_"),
        **_tiers("fixed", [fixed]),
        **_tiers("adaptive", [play for play, _ in plays]),
    }


def gains(case: Mapping[str, Any]) -> bool:
    """Tell whether adapting scores higher and does not cost more, both beyond their 95 % intervals."""
    return bool(case["difference_low"] > 0 and case["cost_difference_low"] <= 0)


def routes(case: Mapping[str, Any]) -> bool:
    """Tell whether the adaptive kind reaches random at its cost. One that does not has drifted instead of adapting."""
    return bool(case["adaptive"] >= case["random_at_cost"])


def in_order(labels: NDArray[np.integer]) -> str | None:
    """Describe how the stream is ordered by label; None where neighbours agree as often as in a shuffled stream."""
    if len(labels) < 2:
        return None
    alike = float((labels[1:] == labels[:-1]).mean())
    shares = np.bincount(labels) / len(labels)
    chance = float((shares**2).sum())
    error = np.sqrt(chance * (1 - chance) / (len(labels) - 1))
    if abs(alike - chance) <= 4 * error:
        return None
    return f"{alike:.1%} of neighbouring rows have the same label, where a shuffled stream has {chance:.1%}"


def _tiers(kind: str, plays: Sequence[Replay]) -> dict[str, float]:
    tiers = np.concatenate([play.tiers for play in plays])
    return {f"{kind}_{tier}": float((tiers == index).mean()) for index, tier in enumerate(TIERS)}


def _verdict(claim_id: str, places: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge a claim about adapting: in every order of every stream it must gain and reach random at its cost."""
    cases = [case for place in places for case in place["adaptive"]]
    gaining = [case for case in cases if gains(case)]
    agreeing = sum(routes(case) for case in gaining)
    summary = (
        f"In {len(gaining)} of {len(cases)} cases (method, stream, order) adapting scores higher, beyond the "
        f"interval of the paired difference, without costing more. In {agreeing} of these it is not below random "
        "at its cost, which is what counts: one that is has only drifted to where any rule would be better."
    )
    lines = [sentence for place in places for sentence in _said_of(place)]
    return verdict(claim_id, ruling_of(agreeing, of=len(cases)), [summary], cases=lines)


def _said_of(place: Mapping[str, Any]) -> Iterator[str]:
    scores = {row["policy"]: row["score"] for row in reversed(place["rows"])}
    alone = [f"{tier} {100 * scores[f'all-{tier}']:.2f}" for tier in TIERS]
    yield f"{place['where']}: the last exits of the tiers alone score {', '.join(alone)}."
    for case in place["adaptive"]:
        above = 100 * (case["adaptive"] - case["random_at_cost"])
        yield (
            f"{place['where']}, {case['method']}, {case['order']}: adaptive minus fixed is "
            f"{100 * case['difference']:+.2f} points ({100 * case['difference_low']:+.2f} to "
            f"{100 * case['difference_high']:+.2f}) and {case['cost_difference']:+.2f} lambda "
            f"({case['cost_difference_low']:+.2f} to {case['cost_difference_high']:+.2f}); adaptive minus random at "
            f"its cost is {above:+.2f} points."
        )


def _digest(folder: Path) -> str:
    """Hash the files of a folder, so that parts of other data are not read back."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
