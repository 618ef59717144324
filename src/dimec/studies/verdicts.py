"""Verdicts on the papers' claims: each follows from a rule in this file and the figures beside it.

The notes' own tables speak first, then what was measured. A rule looks at every task. A difference between two rules
inside its paired interval is none; trends over a cost are ruled on by their point estimates, and say so. Claims about
costs are ruled at several prices: where the rulings differ, the claim depends on the price.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dimec.core.tiers import TIERS
from dimec.reporting.results import Ruling, Verdict
from dimec.studies.notes import notes_verdicts
from dimec.studies.published import claim

Rows = Sequence[Mapping[str, Any]]

_CUT = -0.43
_MAX_DROPS = {"cost-paper-1": 0.005, "cost-paper-2": 0.003}
_METHODS = {"cost-paper-1": "dimec-dc", "cost-paper-2": "dimee"}
_SMALL = 0.01
"""The largest change of a score that counts as none where a claim is that it hardly moves."""
_STILL = 0.0005
"""The largest change of a score that counts as none where a claim is that it moves: half a tenth of a point."""
_LEAST_DROP, _MOST_DROP = 0.002, 0.006
_BY_CHANCE = 0.025  # how often a 95 % interval lies above zero by chance


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


def over_prices(by_price: Mapping[float, Sequence[Verdict]], *, own: float) -> list[Verdict]:
    """Make one verdict of those at several prices; the cases are those at the study's own price.

    Prices at which nothing moved, or nothing could be tested, have no say.
    """
    found = []
    for at_own in by_price[own]:
        each = {
            price: next(other for other in verdicts if other.claim == at_own.claim)
            for price, verdicts in by_price.items()
        }
        rulings = [verdict.ruling for verdict in each.values()]
        decided = set(rulings) - {"unmoved", "could not be tested"}
        ruling: Ruling = "depends on the price"
        if not decided:
            ruling = "unmoved" if "unmoved" in rulings else "could not be tested"
        elif len(decided) == 1:
            (ruling,) = decided
        said = [line for line in at_own.evidence if all(line in v.evidence for v in each.values())]
        said += [
            f"Price {price:g}, {verdict.ruling}: {line}"
            for price, verdict in each.items()
            for line in verdict.evidence
            if line not in said
        ]
        changes = {"ruling": ruling, "evidence": tuple(said)}
        found.append(at_own.model_copy(update=changes))
    return found


def main_claims(rows: Rows, pairs: Rows) -> list[Verdict]:
    """Rule on what the papers' main tables claim."""
    return [
        *(_saving(name, rows, pairs) for name in _MAX_DROPS),
        _drop_range(pairs),
        _adaptive(pairs),
        _outperforms(pairs),
        _better_than_full(pairs),
    ]


def _saving(name: str, rows: Rows, pairs: Rows) -> Verdict:
    """Compare a method's rows with the saving and the drop that its paper claims."""
    drops = _against_full(pairs)
    most = _MAX_DROPS[name]
    found = [row for row in rows if str(row["policy"]) in _kinds(_METHODS[name])]
    kept, above_random, lines = 0, 0, []
    for row in found:
        drop, highest = drops[row["task"], row["policy"]], row["random_at_cost_high"]
        holds = row["cost_change"] < _CUT and -drop["difference"] < most
        kept += holds
        above_random += holds and highest is not None and row["score"] > highest
        lines.append(
            f"{row['task']}, {row['policy']}: {100 * row['cost_change']:+.0f} % at {_points(drop['difference'])} "
            f"points ({_interval(drop)}; n {row['n']:,}), {'as claimed' if holds else 'not as claimed'}; random at its "
            f"cost at {_points(row['random_at_cost'] - row['score'] + drop['difference'])}"
        )
    summary = (
        f"Here {kept} of {len(found)} rows do as claimed, by their point estimates; {above_random} of these "
        "are above what 95 % of random assignments at the same cost reach."
    )
    return verdict(name, ruling_of(kept, of=len(found)), [summary], cases=lines)


def _drop_range(pairs: Rows) -> Verdict:
    """Count rows of paper 1's method at most 0.6 points under the full model, where they answer otherwise at all."""
    every = [row for row in _against_full(pairs).values() if row["policy"] in _kinds("dimec-dc")]
    found = [row for row in every if not _same(row)]
    kept = [row for row in found if -row["difference"] <= _MOST_DROP]
    within = [row for row in kept if -row["difference"] >= _LEAST_DROP]
    ruling = "unmoved" if every and not found else ruling_of(len(kept), of=len(found))
    summary = (
        f"Here {len(kept)} of {len(found)} rows lie at most {100 * _MOST_DROP:g} points under the full model, "
        f"{len(within)} of these at least {100 * _LEAST_DROP:g}; {len(every) - len(found)} more send everything to "
        "the cloud."
    )
    return verdict("drop-range", ruling, [summary], cases=map(_case, found))


def _same(row: Mapping[str, Any]) -> bool:
    """Tell whether two systems of a pair give the same answers at the same cost."""
    moved = row["low"] != 0 or row["high"] != 0 or row["difference"] != 0
    return not moved and bool(abs(row["cost_difference"]) < 1e-9)


def _adaptive(pairs: Rows) -> Verdict:
    """Count where adaptive centroids are better than fixed ones, beyond the interval."""
    every = [row for row in pairs if _is_adaptive(row)]
    found = [row for row in every if not _same(row)]
    better = [row for row in found if row["low"] > 0]
    worse = [row for row in found if row["high"] < 0]
    cheaper = [row for row in found if row["cost_difference"] < 0]
    ruling: Ruling = "holds in part" if len(better) > len(worse) else "does not hold here"
    if len(better) == len(found):
        ruling = "unmoved" if every and not found else ruling_of(len(found), of=len(found))
    summary = (
        f"Here adaptive centroids score higher than fixed ones in {len(better)} of {len(found)} pairs beyond the "
        f"interval, and lower in {len(worse)}; they are cheaper in {len(cheaper)}. "
        f"{len(every) - len(found)} more do the same."
    )
    cases = (f"{_case(row)} at {row['cost_difference']:+.2f} λ" for row in found)
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
    baselines = dict.fromkeys(str(row["against"]) for row in found)
    contests = {(row["task"], row["policy"]) for row in found}
    wins = Counter((row["task"], row["policy"]) for row in both)
    won_all = sum(n == len(baselines) for n in wins.values())
    summary = (
        f"Here {won_all} of {len(contests)} methods on a task are better, beyond the interval, and cheaper than "
        f"all of {', '.join(baselines)}. Of the {len(found)} pairs of method and baseline {len(pointwise)} are better "
        f"and cheaper by their point estimates, {len(both)} of them beyond the interval. In {len(beaten)} the baseline "
        "is better beyond the interval, and cheaper."
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
    ruling = ruling_of(won_all, of=len(contests))
    return verdict("outperforms-baselines", ruling, [summary], cases=cases)


def _better_than_full(pairs: Rows) -> Verdict:
    """Count methods above the full model, beyond the interval."""
    methods = _kinds("dimec-dc", "dimee")
    every = [row for row in _against_full(pairs).values() if row["policy"] in methods]
    found = [row for row in every if not _same(row)]
    above = [row for row in found if row["low"] > 0]
    pointwise = [row for row in found if row["difference"] > 0]
    below = [row for row in found if row["high"] < 0]
    ruling: Ruling = "holds in part" if above else "does not hold here"
    if not found:
        ruling = "unmoved" if every else "could not be tested"
    summary = (
        f"Here {len(pointwise)} of {len(found)} rows are above the full model by their point estimates. Beyond the "
        f"interval {len(above)} are above it, where chance alone makes {_BY_CHANCE * len(found):.1f} so, and "
        f"{len(below)} below. {len(every) - len(found)} more send everything to the cloud."
    )
    return verdict("better-than-full", ruling, [summary], cases=map(_case, pointwise))


def tiers_alone(rows: Rows, counts: Rows = ()) -> list[Verdict]:
    """Rule on the tiers, each alone: the order of their scores, their costs, and where deep layers undo an answer."""
    by_name = {(row["task"], row["policy"]): row for row in rows}
    alone = {
        task: [by_name[task, f"all-{tier}"] for tier in TIERS]
        for task, name in by_name
        if name == f"all-{TIERS[0]}"
    }
    return [_order(alone), _dearest(alone), *([_overthinking(counts)] if counts else [])]


def _order(alone: Mapping[str, Rows]) -> Verdict:
    lines, holding = [], 0
    for task, (mobile, edge, cloud) in alone.items():
        holds = mobile["score"] < edge["score"] < cloud["score"]
        holding += holds
        scores = " / ".join(f"{100 * row['score']:.2f}" for row in (mobile, edge, cloud))
        order = "in this order" if holds else "not in this order"
        lines.append(f"{task}: mobile / edge / cloud {scores} (n {mobile['n']:,}), {order}")
    summary = (
        f"Here the tiers are in this order on {holding} of {len(alone)} tasks, by point estimates."
    )
    return verdict("tier-order", ruling_of(holding, of=len(alone)), [summary], cases=lines)


def _dearest(alone: Mapping[str, Rows]) -> Verdict:
    costs = [[row["cost"] for row in own] for own in alone.values()]
    holding = sum(cloud > max(mobile, edge) for mobile, edge, cloud in costs)
    shown = dict.fromkeys(" / ".join(f"{cost:g}" for cost in own) for own in costs)
    summary = (
        f"Here it is so on {holding} of {len(alone)} tasks: mobile / edge / cloud {', '.join(shown)} λ. It follows "
        "from the prices and the depths alone."
    )
    return verdict("cloud-dearest", ruling_of(holding, of=len(alone)), [summary])


def _overthinking(counts: Rows) -> Verdict:
    """Count what the last layer makes wrong and what it makes right, after each of the two earlier tiers."""
    lines, holding = [], set()
    tasks = dict.fromkeys(str(row["task"]) for row in counts)
    for row in counts:
        if row["undone"] > row["mended"]:
            holding.add(row["task"])
        lines.append(
            f"{row['task']}, after the {row['policy']} tier's last layer: {row['undone']:.0f} right there and wrong "
            f"at the end, {row['mended']:.0f} wrong there and right at the end, of {row['n']:,}. Right at some earlier "
            f"exit and wrong at the end: {row['undone_by_any']:.0f}"
        )
    summary = (
        f"On {len(holding)} of {len(tasks)} tasks an earlier tier is right more often than the full model where the "
        "two differ. Where it is not, only a rule that tells the two kinds of samples apart can gain."
    )
    return verdict("overthinking", ruling_of(len(holding), of=len(tasks)), [summary], cases=lines)


def cost_claims(rows: Rows) -> list[Verdict]:
    """Rule on what the papers say of one cost varied at a time, at one price."""
    return [
        _robust(rows),
        _trend("mobile-price", "λ_m", +1, rows),
        _trend("edge-price", "λ_e", +1, rows),
        _trend("cloud-transfer-price", "o_c", -1, rows),
    ]


def _robust(rows: Rows) -> Verdict:
    """Compare the range of a method's score over all variations with one point, where what it does changes at all."""
    lines, holding, moving, total = [], 0, 0, 0
    for task, policy, own in _methods_by_task(rows):
        scores = [row["score"] for row in own]
        shares = {tuple(round(row[tier], 6) for tier in TIERS) for row in own}
        spread = max(scores) - min(scores)
        total += 1
        moves = spread > 0 or len(shares) > 1
        moving += moves
        holding += moves and spread <= _SMALL
        costs = [row["cost_change"] for row in own]
        lines.append(
            f"{task}, {policy}: scores {100 * min(scores):.2f} to {100 * max(scores):.2f}, costs "
            f"{100 * min(costs):+.0f} to {100 * max(costs):+.0f} % against BERT"
        )
    summary = (
        f"Here the score moves by at most {100 * _SMALL:g} point over all variations in {holding} of {moving} rows (a "
        f"quarter to four times each cost). {total - moving} more do the same throughout."
    )
    ruling = "unmoved" if total and not moving else ruling_of(holding, of=moving)
    return verdict("robust-to-costs", ruling, [summary], cases=lines)


def _trend(name: str, varied: str, sign: int, rows: Rows) -> Verdict:
    """Compare the score at the largest factor with that at the papers' value."""
    lines, claimed, against, total, beyond = [], 0, 0, 0, 0
    for task, policy, own in _methods_by_task(rows):
        along = sorted(
            (row for row in own if row["varied"] == varied), key=lambda row: row["factor"]
        )
        start = next(row for row in along if row["factor"] == 1)
        end = along[-1]
        moved = sign * (end["score"] - start["score"])
        total += 1
        claimed += moved > _STILL
        against += moved < -_STILL
        beyond += end["moved_low"] > 0 or end["moved_high"] < 0
        interval = {"low": end["moved_low"], "high": end["moved_high"]}
        lines.append(
            f"{task}, {policy}: {_points(sign * moved)} points ({_interval(interval)}) from {varied} = "
            f"{start['value']:g} to {end['value']:g} λ; in the cloud {100 * start['cloud']:.0f} % to "
            f"{100 * end['cloud']:.0f} %"
        )
    # Of rows that move, half would move that way if nothing were behind it.
    ruling: Ruling = "does not hold here"
    if not claimed + against:
        ruling = "unmoved" if total else "could not be tested"
    elif claimed > against:
        ruling = ruling_of(claimed, of=total)
    summary = (
        f"Here the score moves that way in {claimed} of {total} rows, the other way in {against}, and not at all (up "
        f"to {100 * _STILL:g} points) in {total - claimed - against}, by point estimates. Beyond the paired interval "
        f"it moves in {beyond}."
    )
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
        for pool, tasks in (("hard", by_hard), ("easy", by_easy)):
            listed = ", ".join(f"{task} {100 * own[task][pool]:.0f} %" for task in tasks)
            lines.append(f"{policy}, {pool} samples: {listed}")
    return [verdict("harder-data", ruling_of(holding, of=total), lines), _bell(pools)]


def _bell(pools: Rows) -> Verdict:
    """Count where the medium pool is the largest: the middle of a bell is its highest part."""
    holding = [row for row in pools if row["medium"] > max(row["easy"], row["hard"])]
    cases = (
        f"{row['task']}, {row['policy']}: easy / medium / hard {100 * row['easy']:.0f} / "
        f"{100 * row['medium']:.0f} / {100 * row['hard']:.0f} %"
        for row in pools
    )
    summary = f"Here the medium pool is the largest in {len(holding)} of {len(pools)} cases (task, method)."
    return verdict("bell-shape", ruling_of(len(holding), of=len(pools)), [summary], cases=cases)


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


def _against_full(pairs: Rows) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return the pairs with the full model, by task and policy."""
    return {(row["task"], row["policy"]): row for row in pairs if row["against"] == "all-cloud"}


def _case(row: Mapping[str, Any]) -> str:
    return f"{row['task']}, {row['policy']}: {_points(row['difference'])} points ({_interval(row)})"


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _interval(row: Mapping[str, Any]) -> str:
    return f"{_points(row['low'])} to {_points(row['high'])}"
