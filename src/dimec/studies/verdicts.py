"""Verdicts on the papers' claims: each follows from a rule in this file and the figures beside it.

The notes' own tables speak first, then what was measured. A rule looks at every task. A difference between two rules
inside its paired interval is none; trends over a cost are ruled on by their point estimates, and say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dimec.reporting.results import Ruling, Verdict
from dimec.studies.notes import notes_verdicts
from dimec.studies.published import claim

Rows = Sequence[Mapping[str, Any]]

_CUT = -0.43
_MAX_DROPS = {"cost-paper-1": 0.005, "cost-paper-2": 0.003}
_METHODS = {"cost-paper-1": "dimec-dc", "cost-paper-2": "dimee"}
_SMALL = 0.01
"""The largest change of a score that counts as none."""
_BY_CHANCE = 0.025
"""How often a 95 % interval lies above zero by chance."""


def verdict(
    claim_id: str, ruling: Ruling, evidence: Iterable[str], *, cases: Iterable[str] = ()
) -> Verdict:
    """Rule on a claim of the notes. The evidence of the notes' own tables comes first."""
    said = claim(claim_id)
    return Verdict(
        claim=said.text,
        source=said.source,
        ruling=ruling,
        evidence=(*notes_verdicts(claim_id), *evidence),
        cases=tuple(cases),
    )


def ruling_of(agreeing: int, *, of: int) -> Ruling:
    """Return the ruling on a claim that ``agreeing`` of the cases support."""
    if not of:
        return "could not be tested"
    if agreeing == of:
        return "holds"
    return "holds in part" if agreeing else "does not hold here"


def main_claims(rows: Rows, pairs: Rows) -> list[Verdict]:
    """Rule on what the papers' main tables claim."""
    return [
        *(_saving(name, rows, pairs) for name in _MAX_DROPS),
        _adaptive(pairs),
        _outperforms(pairs),
        _better_than_full(pairs),
    ]


def _saving(name: str, rows: Rows, pairs: Rows) -> Verdict:
    """Compare a method's rows with the saving and the drop that its paper claims."""
    drops = _against(pairs, "all-cloud")
    most = _MAX_DROPS[name]
    found = [row for row in rows if str(row["policy"]) in _kinds(_METHODS[name])]
    kept, above_random, lines = set(), set(), []
    for row in found:
        drop = drops[row["task"], row["policy"]]
        holds = row["cost_change"] < _CUT and -drop["difference"] < most
        if holds:
            kept.add((row["task"], row["policy"]))
            if row["random_at_cost_high"] is not None and row["score"] > row["random_at_cost_high"]:
                above_random.add((row["task"], row["policy"]))
        lines.append(
            f"{row['task']}, {row['policy']}: {100 * row['cost_change']:+.0f} % at {_points(drop['difference'])} "
            f"points ({_interval(drop)}; n {row['n']:,}), {'as claimed' if holds else 'not as claimed'}; random at its "
            f"cost at {_points(row['random_at_cost'] - row['score'] + drop['difference'])}"
        )
    summary = (
        f"Here {len(kept)} of {len(found)} rows do as claimed, by their point estimates; {len(above_random)} of these "
        "are above what 95 % of random assignments at the same cost reach."
    )
    return verdict(name, ruling_of(len(kept), of=len(found)), [summary], cases=lines)


def _adaptive(pairs: Rows) -> Verdict:
    """Count where adaptive centroids are better than fixed ones, beyond the interval."""
    found = [row for row in pairs if _is_adaptive(row)]
    better = [row for row in found if row["low"] > 0]
    worse = [row for row in found if row["high"] < 0]
    cheaper = [row for row in found if row["cost_difference"] < 0]
    ruling: Ruling = "holds in part" if len(better) > len(worse) else "does not hold here"
    if len(better) == len(found):
        ruling = ruling_of(len(found), of=len(found))
    summary = (
        f"Here adaptive centroids score higher than fixed ones in {len(better)} of {len(found)} pairs beyond the "
        f"interval, and lower in {len(worse)}; they are cheaper in {len(cheaper)}."
    )
    cases = (
        f"{row['task']}, {row['policy']}: {_points(row['difference'])} points ({_interval(row)}) at "
        f"{row['cost_difference']:+.2f} λ"
        for row in found
    )
    return verdict("adaptive-beats-fixed", ruling, [summary], cases=cases)


def _outperforms(pairs: Rows) -> Verdict:
    """Count methods that are better, beyond the interval, and cheaper than every baseline on a task."""
    found = [
        row
        for row in pairs
        if row["policy"] in _kinds("dimec-dc", "dimee") and row["against"] != "all-cloud"
        if not _is_adaptive(row)
    ]
    both = [row for row in found if row["low"] > 0 and row["cost_difference"] < 0]
    pointwise = [row for row in found if row["difference"] > 0 and row["cost_difference"] < 0]
    beaten = [row for row in found if row["high"] < 0 and row["cost_difference"] > 0]
    contests = list(dict.fromkeys((row["task"], row["policy"]) for row in found))
    baselines = dict.fromkeys(str(row["against"]) for row in found)
    won_all = [
        contest
        for contest in contests
        if len([row for row in both if (row["task"], row["policy"]) == contest]) == len(baselines)
    ]
    summary = (
        f"Here {len(won_all)} of {len(contests)} methods on a task are better, beyond the interval, and cheaper than "
        f"all of {', '.join(baselines)}. Of the {len(found)} pairs of method and baseline {len(pointwise)} are better "
        f"and cheaper by their point estimates, {len(both)} of them beyond the interval; in {len(beaten)} it is the "
        "baseline that is better beyond the interval and cheaper."
    )
    cases = []
    for other in baselines:
        mine = [row for row in found if row["against"] == other]
        won = [row for row in mine if row in both]
        lost = [row for row in mine if row in beaten]
        cases.append(
            f"against {other}: better and cheaper in {len(won)} of {len(mine)}, beaten on both in {len(lost)}"
            + (f" ({', '.join(sorted({str(row['task']) for row in lost}))})" if lost else "")
        )
    ruling = ruling_of(len(won_all), of=len(contests))
    return verdict("outperforms-baselines", ruling, [summary], cases=cases)


def _better_than_full(pairs: Rows) -> Verdict:
    """Count methods above the full model, beyond the interval."""
    found = [
        row
        for row in pairs
        if row["against"] == "all-cloud" and row["policy"] in _kinds("dimec-dc", "dimee")
    ]
    above = [row for row in found if row["low"] > 0]
    pointwise = [row for row in found if row["difference"] > 0]
    below = [row for row in found if row["high"] < 0]
    ruling: Ruling = "holds in part" if above else "does not hold here"
    if not found:
        ruling = "could not be tested"
    summary = (
        f"Here {len(pointwise)} of {len(found)} rows are above the full model by their point estimates, {len(above)} "
        f"beyond the interval (chance alone makes {_BY_CHANCE * len(found):.1f} so); {len(below)} are below it beyond "
        "the interval."
    )
    cases = (
        f"{row['task']}, {row['policy']}: {_points(row['difference'])} points ({_interval(row)})"
        for row in pointwise
    )
    return verdict("better-than-full", ruling, [summary], cases=cases)


def tiers_alone(rows: Rows) -> Verdict:
    """Rule on the order of the tiers, each alone."""
    lines, holding = [], 0
    tasks = list(dict.fromkeys(str(row["task"]) for row in rows))
    for task in tasks:
        mobile, edge, cloud = (
            next(row for row in rows if row["task"] == task and row["policy"] == f"all-{tier}")
            for tier in ("mobile", "edge", "cloud")
        )
        holds = mobile["score"] < edge["score"] < cloud["score"]
        holding += holds
        scores = " / ".join(f"{100 * row['score']:.2f}" for row in (mobile, edge, cloud))
        order = "in this order" if holds else "not in this order"
        lines.append(f"{task}: mobile / edge / cloud {scores} (n {mobile['n']:,}), {order}")
    summary = (
        f"Here the tiers are in this order on {holding} of {len(tasks)} tasks, by point estimates."
    )
    return verdict("tier-order", ruling_of(holding, of=len(tasks)), [summary], cases=lines)


def cost_claims(rows: Rows) -> list[Verdict]:
    """Rule on what the papers say of one cost varied at a time."""
    return [
        _robust(rows),
        _trend("mobile-price", "λ_m", +1, rows),
        _trend("cloud-transfer-price", "o_c", -1, rows),
    ]


def _robust(rows: Rows) -> Verdict:
    """Compare the range of a method's score over all variations with one point."""
    lines, holding, total = [], 0, 0
    for task, policy, own in _methods_by_task(rows):
        scores = [row["score"] for row in own]
        costs = [row["cost_change"] for row in own]
        spread = max(scores) - min(scores)
        total += 1
        holding += spread <= _SMALL
        lines.append(
            f"{task}, {policy}: scores {100 * min(scores):.2f} to {100 * max(scores):.2f}, costs "
            f"{100 * min(costs):+.0f} to {100 * max(costs):+.0f} % against BERT"
        )
    summary = (
        f"Here the score moves by at most {100 * _SMALL:g} point over all variations in {holding} of {total} rows (a "
        "quarter to four times each cost)."
    )
    return verdict("robust-to-costs", ruling_of(holding, of=total), [summary], cases=lines)


def _trend(name: str, varied: str, sign: int, rows: Rows) -> Verdict:
    """Compare the score at the largest factor with that at the papers' value."""
    lines, holding, total = [], 0, 0
    for task, policy, own in _methods_by_task(rows):
        along = sorted(
            (row for row in own if row["varied"] == varied), key=lambda row: row["factor"]
        )
        start = next(row for row in along if row["factor"] == 1)
        end = along[-1]
        moved = end["score"] - start["score"]
        total += 1
        holding += moved * sign > 0
        lines.append(
            f"{task}, {policy}: {_points(moved)} points from {varied} = {start['value']:g} to {end['value']:g} λ "
            f"(intervals at either end {_interval(start, signed=False)} and {_interval(end, signed=False)})"
        )
    # Half of the rows would move that way if nothing were behind it.
    ruling = ruling_of(holding, of=total) if 2 * holding > total else ruling_of(0, of=total)
    summary = f"Here the score moves that way in {holding} of {total} rows, by point estimates."
    return verdict(name, ruling, [summary], cases=lines)


def pool_claims(rows: Rows) -> list[Verdict]:
    """Rule on which tasks have more hard samples."""
    pools = [row for row in rows if row["what"].startswith("pools")]
    lines, holding, total = [], 0, 0
    for policy in dict.fromkeys(str(row["policy"]) for row in pools):
        own = {str(row["task"]): row for row in pools if row["policy"] == policy}
        by_hard = sorted(own, key=lambda task: -own[task]["hard"])
        by_easy = sorted(own, key=lambda task: -own[task]["easy"])
        if {"rte", "mrpc", "qnli"} <= set(own):
            total += 2
            holding += {"rte", "mrpc"} <= set(by_hard[:3])
            holding += "qnli" in by_easy[:2]
        listed = ", ".join(f"{task} {100 * own[task]['hard']:.0f} %" for task in by_hard)
        lines.append(f"{policy}, hard samples: {listed}")
        listed = ", ".join(f"{task} {100 * own[task]['easy']:.0f} %" for task in by_easy)
        lines.append(f"{policy}, easy samples: {listed}")
    return [verdict("harder-data", ruling_of(holding, of=total), lines)]


def _methods_by_task(rows: Rows) -> Iterable[tuple[str, str, Rows]]:
    kinds = _kinds("dimec-dc", "dimee")
    keys = dict.fromkeys(
        (str(row["task"]), str(row["policy"])) for row in rows if row["policy"] in kinds
    )
    for task, policy in keys:
        yield task, policy, [row for row in rows if row["task"] == task and row["policy"] == policy]


def _kinds(*methods: str) -> set[str]:
    return {f"{method}-{kind}" for method in methods for kind in ("fixed", "adaptive")}


def _is_adaptive(row: Mapping[str, Any]) -> bool:
    return str(row["against"]) == str(row["policy"]).replace("adaptive", "fixed")


def _against(pairs: Rows, other: str) -> dict[tuple[str, str], Mapping[str, Any]]:
    return {(row["task"], row["policy"]): row for row in pairs if row["against"] == other}


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _interval(row: Mapping[str, Any], *, signed: bool = True) -> str:
    form = "+.2f" if signed else ".2f"
    return f"{format(100 * row['low'], form)} to {format(100 * row['high'], form)}"
