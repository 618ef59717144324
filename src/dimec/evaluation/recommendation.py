"""The recommendation: what to deploy, what it loses on held-out rows, what it costs, and why, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import Metric, drops, interval, paired_differences
from dimec.core.tiers import EXIT_ZERO, TIERS, Step, Tier
from dimec.costs.billing import Billing
from dimec.costs.model import CostModel
from dimec.evaluation.dial import RECOMMENDED, Choice
from dimec.evaluation.meter import Meter
from dimec.evaluation.results import Evaluation, Interval, Recommendation, TierShares, Way
from dimec.policies.replay import Replay, replay
from dimec.runs.exit_table import ExitTable, TierTables

FULL_MODEL, CLOUD_MODEL = "full model (all-cloud)", "cloud model (all-cloud)"
AT_COST = "random at its cost"

_CLASS_DROP = 2.0
"""From how many points of recall on a class are named, where they are more than chance explains."""


def recommend(
    choice: Choice,
    tables: ExitTable | TierTables,
    *,
    metric: Metric,
    max_drop: float,
    costs: CostModel,
    billing: Billing | None = None,
    weights: NDArray[np.float64] | None = None,
    cloud_model: str | None = None,
    seed: int = 0,
) -> Recommendation:
    """Say what was chosen, and what it does on rows that chose nothing.

    Args:
        weights: [n], how much each held-out row would count if it were weighed as those that chose were.
    """
    tables = TierTables.of_all(tables)
    table, policy, way = tables.encoder, choice.policy, choice.candidate.way
    played = replay(policy, tables, costs=costs)
    own, cloud = played.predictions, table.predictions[:, -1]
    test_drop, test_interval = _lost(metric, table, own, seed=seed)
    like_drop, like_interval = None, None
    if weights is not None:
        like_drop, like_interval = _lost(metric, table, own, weights=weights, seed=seed)
    shares, by_words = answered_by(played)
    timing = Billing.of_latency(billing)
    meter = Meter.of(timing, tables, costs=costs)
    full = Step(Tier.CLOUD, table.n_layers)
    cost, all_cloud = float(played.costs.mean()), costs.of([full])
    depths = choice.candidate.depths
    return Recommendation(
        policy=way,
        max_drop_points=max_drop,
        price=choice.candidate.price,
        depths=depths,
        on_device_alone=way in ("words-only", "all-mobile")
        or (way == "dimec-cascade" and depths.device_alone),
        undecided=choice.undecided,
        metric=metric,
        n_validation=choice.n,
        n_effective=choice.n_effective,
        expected_drop_points=choice.expected_drop,
        expected_drop_ci95=choice.ci95,
        n_test=len(table),
        score=table.score(metric, own),
        cloud_score=table.score(metric, cloud),
        test_drop_points=test_drop,
        test_drop_ci95=test_interval,
        test_drop_like_points=like_drop,
        test_drop_like_ci95=like_interval,
        cost=cost,
        cost_vs_cloud=cost / all_cloud if all_cloud else float("nan"),
        shares=shares,
        exit_zero_share=by_words,
        latency_ms=meter.replay(policy, played).cost,
        cloud_latency_ms=meter.steps([full]).cost,
        latency_profile=timing.profile.name,
        falls=_falls(table, own, cloud),
        cloud_model=cloud_model,
    )


def replayed_sentence(
    name: str, table: ExitTable, played: Replay, *, metric: Metric, costs: CostModel, seed: int = 0
) -> str:
    """Say what a policy that was fitted elsewhere loses and costs on labelled texts, and who answers."""
    own, cloud = played.predictions, table.predictions[:, -1]
    drop, (low, high) = _lost(metric, table, own, seed=seed)
    all_cloud = costs.of([Step(Tier.CLOUD, table.n_layers)])
    share = float(played.costs.mean()) / all_cloud if all_cloud else float("nan")
    return (
        f"{name} is {_points(drop)} ({low:z.1f} to {high:z.1f}) under the full model on {len(table):,} texts, at "
        f"{100 * share:.0f} % of its cost; {_who(*answered_by(played))}.{_paid(_falls(table, own, cloud))}"
    )


def _lost(
    metric: Metric,
    table: ExitTable,
    own: NDArray[np.int64],
    *,
    weights: NDArray[np.float64] | None = None,
    seed: int,
) -> tuple[float, Interval]:
    """Return the points by which answers are under all-cloud's, and the 95 % interval."""
    labels, cloud, n_classes = table.labels, table.predictions[:, -1], table.n_classes
    lost = drops(metric, labels, own[None], cloud, n_classes=n_classes, weights=weights)
    points, rng = float(lost[0]), np.random.default_rng(seed)
    drawn = paired_differences(
        metric, labels, [own], cloud, n_classes=n_classes, rng=rng, weights=weights
    )
    low, high = interval(drawn)
    return points, (-100 * high, -100 * low)


def answered_by(played: Replay) -> tuple[TierShares, float]:
    """Return which share of the texts each tier answered, and which words alone did."""
    shares = np.bincount(played.tiers, minlength=len(TIERS)) / len(played.tiers)
    return TierShares.of(shares), float((played.layers == EXIT_ZERO.layer).mean())


def _falls(
    table: ExitTable, own: NDArray[np.int64], cloud: NDArray[np.int64]
) -> Mapping[str, float]:
    """Return the classes that pay for a drop: points of recall that each loses, beyond two standard errors."""
    falls = {}
    for label, name in enumerate(table.label_names):
        here = table.labels == label
        if not here.any():
            continue
        lost = (cloud[here] == label).astype(float) - (own[here] == label)
        points, error = 100 * lost.mean(), 100 * lost.std() / np.sqrt(here.sum())
        if points >= _CLASS_DROP and points > 2 * error:
            falls[name] = float(points)
    return falls


@dataclass(frozen=True)
class Reached:
    """What one way to answer comes to on held-out rows.

    Attributes:
        score: Its score, a fraction of 1.
        drop: How far it is under all-cloud, a fraction of 1.
        cost: Its mean cost, in the evaluation's unit.
    """

    name: str
    score: float
    ci95: Interval | None
    drop: float
    cost: float
    cost_vs_cloud: float


def reached(evaluation: Evaluation) -> list[Reached]:
    """Return what was recommended, the full model, each way alone, and random at the cost of what was recommended."""
    rows = {row.policy: row for row in evaluation.rows}
    told = evaluation.recommendation
    named = {
        RECOMMENDED: RECOMMENDED,
        CLOUD_MODEL if told and told.cloud_model else FULL_MODEL: "all-cloud",
        "edge alone": "all-edge",
        "device alone": "all-mobile",
        "words alone": "exit-zero",
    }
    cloud = rows["all-cloud"].score
    found = []
    for name, policy in named.items():
        row = rows.get(f"{policy}+models") or rows.get(policy)
        if row is None or row.score is None or cloud is None:
            continue
        cost = row.cost, row.cost_vs_cloud
        found.append(Reached(name, row.score, row.score_ci95, cloud - row.score, *cost))
    own = rows[RECOMMENDED]
    if own.random_at_cost is not None and cloud is not None:
        drop, ci95 = cloud - own.random_at_cost, own.random_at_cost_ci95
        cost = own.cost, own.cost_vs_cloud
        found.append(Reached(AT_COST, own.random_at_cost, ci95, drop, *cost))
    return found


def basis(found: Recommendation) -> str:
    """Say what validation expected, and how long a device waits."""
    low, high = found.expected_drop_ci95
    weighed, held_out = "", ""
    if found.n_effective is not None:
        weighed = f", weighed by --like and worth {found.n_effective:,.0f} of them,"
        held_out = "All figures of held-out texts count these alike"
        if found.test_drop_like_points is not None and found.test_drop_like_ci95 is not None:
            from_, to = found.test_drop_like_ci95
            held_out += f"; weighed likewise the drop is {found.test_drop_like_points:.2f} ({from_:z.1f} to {to:z.1f})"
        held_out += ". "
    return (
        f"Chosen on {found.n_validation:,} validation texts{weighed} for a drop of at most {found.max_drop_points:g} "
        f"(--max-drop), expected there: {found.expected_drop_points:.2f} ({low:z.1f} to {high:z.1f}). {held_out}"
        f"A device waits {found.latency_ms:.0f} ms, for all-cloud {found.cloud_latency_ms:.0f} ms, by the profile "
        f"{found.latency_profile}."
    )


def sentence(found: Recommendation) -> str:
    """Say what to deploy, what it loses and costs on held-out rows, and why."""
    low, high = found.test_drop_ci95
    full = found.cloud_model or "the full model"
    lost = (
        f"{_points(found.test_drop_points)} ({low:z.1f} to {high:z.1f}) under {full} on "
        f"{found.n_test:,} held-out texts"
    )
    cost = f"{100 * found.cost_vs_cloud:.0f} % of its cost"
    words: dict[Way, str] = {
        "dimec-cascade": f"Recommended: {_cascade(found)}, {lost} at {cost}; "
        f"{_who(found.shares, found.exit_zero_share)}.",
        "words-only": f"You need no tiers: the word classifier alone is {lost}, at {cost}.",
        "all-mobile": "Recommended: the device alone, up to its last layer there; it is "
        f"{lost}, at {cost}.",
        "all-edge": f"The edge alone does what the cloud does: it is {lost}, at {cost}.",
        "all-cloud": f"Recommended: {full} for every text (all-cloud). No cheaper way is expected to stay "
        f"within {_points(found.max_drop_points)}.",
    }
    told = words[found.policy]
    if found.undecided:
        told = (
            f"Recommended: {full} for every text (all-cloud). These {found.n_validation:,} validation rows "
            f"cannot tell whether a cheaper way stays within {_points(found.max_drop_points)}: label more, or allow "
            "more with --max-drop."
        )
    return told + _paid(found.falls)


def _paid(falls: Mapping[str, float]) -> str:
    paid = ", ".join(f"{name} ({fall:.0f} points of recall)" for name, fall in falls.items())
    return f" Most of the drop is paid by {paid}." if paid else ""


def _cascade(found: Recommendation) -> str:
    if found.on_device_alone:
        return "a cascade on the device alone, which asks no server"
    if found.depths.mobile == found.depths.edge:
        return "a cascade with the whole encoder on the device"
    return f"a cascade with {found.depths.mobile} layers on the device and {found.depths.edge} on the edge"


def _who(shares: TierShares, by_words: float) -> str:
    """Say which share of the texts each part answers."""
    parts = {
        "words alone": by_words,
        "the device's layers": shares.mobile - by_words,
        "the edge": shares.edge,
        "the cloud": shares.cloud,
    }
    told = [f"{100 * share:.0f} % by {name}" for name, share in parts.items() if share >= 0.005]
    return f"answered are {', '.join(told)}"


def _points(points: float) -> str:
    shown = f"{points:.2f}".rstrip("0").rstrip(".")
    return f"{'0' if shown == '-0' else shown} point{'' if shown == '1' else 's'}"
