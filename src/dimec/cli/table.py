"""The table of an evaluation, at most 100 columns wide, and how costs are printed in each unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dimec.cli.console import open_table, out
from dimec.core.metrics import metric_words

if TYPE_CHECKING:  # what `--help` needs not
    from dimec.costs.pricing import Unit
    from dimec.evaluation.results import Evaluation, Interval, Recommendation, Row

_COLUMNS = (
    "policy",
    "score",
    "95 % int.",
    "cost",
    "bert",
    "cloud",
    "m/e/c %",
    "random\n@shares",
    "random\n@cost",
    "oracle",
    "gap",
    "AUC",
)
_SHORT = {"gap_closed": "gap", "auc_mobile_right": "AUC"}
_LEGEND = (
    "score: {metric}, {n:,} samples · cost: mean, in {unit}{plus_minus} · bert, cloud: change against {reference} "
    "and all-cloud · m/e/c: tier shares · random @shares, random @cost: random at its shares, random at its cost · "
    "oracle: best accuracy at its cost · gap: share of the way from random at its cost to oracle, on accuracy · "
    "{auc}scores and gap × 100"
)
_SCALE: dict[Unit, float] = {"joules": 1e3, "money": 1e3}
_DIGITS: dict[Unit, int] = {"lambda": 2, "ms": 2, "bytes": 0, "joules": 2}


def print_evaluation(evaluation: Evaluation) -> None:
    """Print policies, controls, what the columns mean, and the operating points."""
    in_lambda = evaluation.unit == "lambda"
    columns = [each for each in _COLUMNS if in_lambda or each != "AUC"]  # else it gets too wide
    if not in_lambda:
        columns.insert(columns.index("cost") + 1, "±")
    elif with_money := _shows_money(evaluation):
        columns.insert(columns.index("cost") + 1, with_money)
    table = open_table(*columns, left=columns[:1], padding=1)
    for kind in ("policy", "control"):
        for row in evaluation.rows:
            if row.kind == kind:
                table.add_row(*_cells(row, evaluation), style="dim" if kind == "control" else None)
        if kind == "policy":
            table.add_section()
            table.add_row("")
    title = f"{evaluation.task}: {evaluation.source}; thresholds at price {evaluation.price:g}"
    out.print(title)
    out.print()
    out.print(table)
    out.print()
    out.print(
        _LEGEND.format(
            metric=_metric(evaluation),
            n=evaluation.n,
            unit=unit_words(evaluation.unit, currency=evaluation.currency)
            + ("" if in_lambda else profile_words(evaluation.profile)),
            plus_minus="" if in_lambda else "; ±: 95 % of its interval",
            reference=reference_words(evaluation),
            auc='AUC: of the router, for "the mobile exit is right", × 100 · ' if in_lambda else "",
        ),
        style="dim",
    )
    silent: dict[str, list[str]] = {}
    for row in evaluation.rows:
        if row.kind != "policy" or row.depths is None:
            continue
        out.print(_footnote(row), style="dim")
        for field, why in row.null_because.items():
            if field == "auc_mobile_right" and not in_lambda:
                continue
            silent.setdefault(f"no {_SHORT.get(field, field)}, since {why}", []).append(row.policy)
    for tier, name in evaluation.models.items():
        out.print(f"+models: the {tier} tier holds {name}", style="dim")
    for reason, names in silent.items():
        out.print(f"{', '.join(names)}: {reason}", style="dim")
    lacking: dict[tuple[str, str], list[str]] = {}
    for each in evaluation.not_run:
        lacking.setdefault((each.needs, each.command), []).append(each.policy)
    for (needs, command), names in lacking.items():
        out.print()
        out.print(f"not run: {', '.join(names)}, for want of {needs}; to run:")
        out.print(f"  {command}", soft_wrap=True)


def print_recommendation(evaluation: Evaluation) -> None:
    """Print the recommendation in a sentence, and what else could be deployed in five rows; at most 80 columns."""
    from dimec.evaluation.dial import RECOMMENDED
    from dimec.evaluation.recommendation import AT_COST, reached

    found = evaluation.recommendation
    assert found is not None  # the caller has asked
    columns = ("score", "95 % interval", "drop", "cost", "of all-cloud")
    table = open_table("what answers", *columns, left=("what answers",))
    styles = {RECOMMENDED: "bold", AT_COST: "dim"}
    for row in reached(evaluation):
        table.add_row(
            row.name,
            percent(row.score),
            interval(row.ci95),
            f"{100 * row.drop:.2f}",
            amount(row.cost, evaluation.unit),
            f"{100 * row.cost_vs_cloud:.0f} %",
            style=styles.get(row.name),
        )
    out.print(f"{evaluation.task}: {evaluation.source}")
    out.print()
    out.print(table)
    out.print()
    out.print(
        f"score: {_metric(evaluation)} x 100 on {evaluation.n:,} texts · drop: points under all-cloud · cost: mean, in "
        f"{unit_words(evaluation.unit, currency=evaluation.currency)}"
        f"{' (one edge layer on one text)' if evaluation.unit == 'lambda' else profile_words(evaluation.profile)}",
        style="dim",
    )
    out.print()
    say_recommendation(found)


def say_recommendation(found: Recommendation) -> None:
    """Print the sentence, and what validation expected."""
    from dimec.evaluation.recommendation import basis, sentence

    out.print(sentence(found), style="bold")
    out.print(basis(found), style="dim")


def _metric(evaluation: Evaluation) -> str:
    """Name the metric, the class of an F1 by its name where the classes are told."""
    if evaluation.classes is None:
        return evaluation.metric
    return metric_words(evaluation.metric, [row.name for row in evaluation.classes.rows])


def _footnote(row: Row) -> str:
    """Say where a policy ran and what it learnt there."""
    assert row.depths is not None  # every policy has its depths
    parts = [f"layers {row.depths.mobile}/{row.depths.edge}/{row.depths.cloud}"]
    parts += [f"{key} = {value:.3g}" for key, value in (row.operating_point or {}).items()]
    if row.shipped_bytes is not None:
        parts.append(f"ships {row.shipped_bytes:.0f} bytes")
    text = f"{row.policy}: {', '.join(parts)}"
    if (learnt := row.learning) is not None:
        text += (
            f"; mean of {learnt.shuffles} shuffles, score ± {100 * learnt.score_sd:.2f}, cost ± {learnt.cost_sd:.2f}; "
            f"regret {learnt.regret:.1f} ± {learnt.regret_sd:.1f} against {learnt.best_arm}"
        )
    return text


def _cells(row: Row, evaluation: Evaluation) -> list[str]:
    shares = row.shares
    in_lambda = evaluation.unit == "lambda"
    beside: list[str] = []
    if row.measured is not None and not in_lambda:
        found = row.measured.of(evaluation.unit)
        beside = [f"±{amount(found.ci95[1] - found.mean, evaluation.unit)}"]
    elif row.measured is not None and _shows_money(evaluation):
        beside = [amount(row.measured.money.mean, "money")]
    return [
        row.policy,
        percent(row.score),
        interval(row.score_ci95),
        amount(row.cost, evaluation.unit),
        *beside,
        change(row.cost_change),
        change(row.cost_vs_cloud - 1),
        ""
        if shares is None
        else "/".join(f"{100 * each:.0f}" for each in (shares.mobile, shares.edge, shares.cloud)),
        percent(row.random_at_shares),
        percent(row.random_at_cost),
        percent(row.oracle_at_cost),
        _rounded(row.gap_closed),
        *([_rounded(row.auc_mobile_right)] if in_lambda else []),
    ]


def _shows_money(evaluation: Evaluation) -> str:
    """Return the head of a column of money beside λ; empty where the profile has no prices, or there is none."""
    spent = [row.measured.money.mean for row in evaluation.rows if row.measured is not None]
    return f"{evaluation.currency}\n/1,000" if any(spent) and evaluation.unit == "lambda" else ""


def _rounded(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}"


def percent(value: float | None) -> str:
    """Write a fraction times 100; nothing for None."""
    return "" if value is None else f"{100 * value:.2f}"


def interval(value: Interval | None) -> str:
    """Write an interval times 100; nothing for None."""
    return "" if value is None else f"{100 * value[0]:.1f}–{100 * value[1]:.1f}"


def change(value: float) -> str:
    """Write a relative change in percent."""
    return f"{100 * value:+.0f}%"


def amount(value: float, unit: Unit) -> str:
    """Write a cost: joules in thousandths, money for a thousand texts."""
    scaled = value * _SCALE.get(unit, 1.0)
    return f"{scaled:,.3g}" if unit == "money" else f"{scaled:,.{_DIGITS[unit]}f}"


def cost_words(cost: float, currency: str | None) -> str:
    """Write the cost of a text, in lambda where there is no currency."""
    return f"{cost:.2f} λ" if currency is None else f"{cost:.3g} {currency}"


def unit_words(unit: Unit, *, currency: str | None) -> str:
    """Say what `amount` writes."""
    words = {
        "lambda": "λ",
        "ms": "ms",
        "bytes": "bytes that the device sends",
        "joules": "mJ of the device's battery",
        "money": f"{currency} a thousand texts",
    }
    return words[unit]


def profile_words(profile: str | None) -> str:
    """Say by which profile costs are told, if there is one."""
    return "" if profile is None else f" by the profile {profile}"


def reference_words(evaluation: Evaluation) -> str:
    """Name what the relative costs are held against."""
    at = amount(evaluation.reference_cost, evaluation.unit)
    if evaluation.unit in ("bytes", "money"):
        return f"all-cloud ({at}), since the device works for nothing in this unit"
    return f"bert-on-mobile ({at}{' λ' if evaluation.unit == 'lambda' else ''})"
