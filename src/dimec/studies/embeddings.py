"""Study `embeddings`: do embeddings of easy, medium and hard samples lie apart? A picture and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from dimec.policies.pools import EASY, HARD, MEDIUM, POOL_NAMES
from dimec.reporting.results import Verdict
from dimec.studies.base import Findings, Study
from dimec.studies.measures import notes_on
from dimec.studies.pool_measures import METHODS, MOST_SAMPLES, picture_of, separation_of
from dimec.studies.separation import N_SHUFFLES, STRUCTURE, distances, silhouette
from dimec.studies.study_runs import StudyRuns
from dimec.studies.verdicts import ruling_of, verdict

DIGITS = 3
"""Silhouettes, distances and AUCs are kept to the thousandth."""


def make(runs: StudyRuns) -> Findings:
    """Measure the pools of every task and seed, and draw those of the first seed."""
    found = Findings("embeddings")
    parts: list[dict[str, Any]] = []
    points: list[dict[str, Any]] = []
    for task in runs.each_task("Embeddings"):
        for run in runs.seeds(task):
            setup, price = runs.setup(run), runs.options.price
            parts += runs.part("separation", run, partial(separation_of, setup, price))
            if run.config.options.seed == 0:
                points += runs.part("picture", run, partial(picture_of, setup, price))
    _with_picture(parts, points)
    for part in parts:
        part.setdefault("easy_hard_picture", None)
    flat = [_rounded(part) for part in parts]
    found.add("separation", flat, structure=STRUCTURE, shuffles=N_SHUFFLES)
    found.add("pools", [row for part in parts for row in _pool_rows(part)])
    found.add("router", flat, shuffles=N_SHUFFLES)
    found.add("pictures", points)
    found.verdicts += [_clear(parts), _medium(parts)]
    found.notes += [*_notes(parts), *notes_on(runs)]
    return found


def _with_picture(parts: list[dict[str, Any]], points: Sequence[Mapping[str, Any]]) -> None:
    """Add the picture's silhouettes to the parts of the first seed."""
    for task in dict.fromkeys(point["task"] for point in points):
        own = [point for point in points if point["task"] == task]
        apart = distances(np.array([(point["x"], point["y"]) for point in own]))
        for method, policy in METHODS.items():
            pools = np.array([POOL_NAMES.index(point[f"pool_{method}"]) for point in own])
            value = silhouette(apart, pools, among=(EASY, HARD))
            for part in parts:
                if (part["task"], part["policy"], part["seed"]) == (task, policy, 0):
                    part["easy_hard_picture"] = value


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: round(value, DIGITS) if isinstance(value, float) and name != "share" else value
        for name, value in row.items()
        if name != "pools"
    }


def _pool_rows(part: Mapping[str, Any]) -> list[dict[str, Any]]:
    who = {name: part[name] for name in ("task", "policy", "seed")}
    return [_rounded(who | pool) for pool in part["pools"]]


def _clear(parts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge "clear separation": a structure in the embeddings' own space, on every task and seed."""
    known = [part for part in parts if part["easy_hard"] is not None]
    clear = [part for part in known if part["easy_hard"] >= STRUCTURE]
    cases = [
        f"{part['task']}, {part['policy']}, seed {part['seed']}: silhouette of easy against hard "
        f"{part['easy_hard']:.3f} (shuffled pools {_shuffled(part)}; a structure begins at "
        f'{STRUCTURE}); the router\'s AUC for "the mobile exit is right" is {_auc(part)}.'
        for part in known
    ]
    values = [part["easy_hard"] for part in known]
    most = f"; the largest is {max(values):.3f}" if values else ""
    summary = (
        f"In {len(clear)} of {len(known)} cases (task, method, seed) the silhouette of easy against hard reaches "
        f"{STRUCTURE}, where one speaks of a structure{most}."
    )
    ruling = ruling_of(len(clear), of=len(known))
    return verdict("clear-separation", ruling, [summary], cases=cases)


def _auc(part: Mapping[str, Any]) -> str:
    if part["auc"] is None:
        return "unknown, since a pool is empty"
    between = f"{part['auc_low']:.3f} to {part['auc_high']:.3f}"
    return f"{part['auc']:.3f} ({between}), that of its confidence {part['auc_confidence']:.3f}"


def _shuffled(part: Mapping[str, Any]) -> str:
    if part["easy_hard_shuffled"] is None:
        return "unknown"
    low, high = part["easy_hard_shuffled_low"], part["easy_hard_shuffled_high"]
    return f"{part['easy_hard_shuffled']:.3f}, {low:.3f} to {high:.3f}"


def _medium(parts: Sequence[Mapping[str, Any]]) -> Verdict:
    """Judge "medium overlaps more and spreads more": each half, against both other pools and beyond chance."""
    cases, overlapping, spreading, tested = [], 0, 0, 0
    for part in parts:
        easy, medium, hard = (part["pools"][pool] for pool in (EASY, MEDIUM, HARD))
        if any(pool["silhouette"] is None for pool in (easy, medium, hard)):
            cases.append(
                f"{part['task']}, {part['policy']}, seed {part['seed']}: a pool is empty, nothing to compare."
            )
            continue
        tested += 1
        by_chance = medium["silhouette_shuffled_low"]
        overlaps = medium["silhouette"] < min(easy["silhouette"], hard["silhouette"], by_chance)
        spreads = medium["spread_low"] > max(pool["spread_high"] for pool in (easy, hard))
        overlapping += overlaps
        spreading += spreads
        numbers = ", ".join(
            f"{pool['pool']} {pool['silhouette']:.3f} and {pool['spread']:.3f}"
            for pool in (easy, medium, hard)
        )
        cases.append(
            f"{part['task']}, {part['policy']}, seed {part['seed']}: silhouettes and spreads are {numbers}; medium "
            f"({by_chance:.3f} at the least in shuffled pools) {'overlaps' if overlaps else 'does not overlap'} "
            "most and "
            f"{'spreads most, beyond the intervals' if spreads else 'does not spread most beyond the intervals'}."
        )
    summary = (
        f"Of {tested} cases (task, method, seed) the medium pool overlaps most, and more than in any of {N_SHUFFLES} "
        f"shuffles of the pools, in {overlapping}; it spreads most, beyond the intervals, in {spreading}."
    )
    ruling = ruling_of(overlapping + spreading, of=2 * tested)
    return verdict("medium-overlap", ruling, [summary], cases=cases)


def _notes(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    notes = [
        "Pools are those of the validation split at each policy's own operating point; the router is judged on test.",
        "Pictures are of seed 0. Every seed is a fit and a split of its own, so that its validation samples are "
        "others.",
    ]
    cut = {part["task"]: part["n"] for part in parts if part["n_measured"] < part["n"]}
    notes += [
        f"{task}: {MOST_SAMPLES:,} of {n:,} validation samples were drawn (seed 0) for silhouettes and picture."
        for task, n in cut.items()
    ]
    return notes


STUDY = Study.of("embeddings", make)
