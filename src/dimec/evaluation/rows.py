"""Replay fitted policies over an exit table and set each beside the honest controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dimec.costs import CostModel
from dimec.errors import OptionError
from dimec.evaluation import controls
from dimec.evaluation.controls import Mixture, SingleExit
from dimec.evaluation.replay import Replay, replay
from dimec.evaluation.results import Evaluation, Row, TierShares
from dimec.exits import ExitTable
from dimec.metrics import Metric, auc, bootstrap_interval, confusion, interval, score
from dimec.policies import Policy
from dimec.tiers import TIERS, Depths, Step, Tier


def evaluate(
    table: ExitTable,
    policies: Mapping[str, Policy],
    *,
    task: str,
    source: str,
    metric: Metric,
    costs: CostModel,
    price: float,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Evaluate policies on a table that nothing was chosen on.

    Args:
        table: The exits' readings, in stream order.
        policies: Fitted policies by name.
        task: Name of the task, for the record.
        source: Where the samples come from, for the record.
        metric: The task's metric.
        costs: The cost model.
        price: What the policies were fitted at, for the record.
        seed: For bootstrap and shuffles.
        done: Called after each policy.

    Raises:
        OptionError: If the table or the list of policies is empty.
    """
    if not len(table) or not policies:
        raise OptionError("there is nothing to evaluate: give at least one sample and one policy")
    judge = _Judge(table, metric=metric, costs=costs, seed=seed)
    rows = []
    for policy in policies.values():
        rows.append(judge.policy_row(policy, replay(policy, table, costs=costs)))
        done()
    for depths in dict.fromkeys(policy.depths for policy in policies.values()):
        rows.extend(judge.tier_rows(depths))
    rows.extend(judge.constant_rows())
    return Evaluation(
        task=task,
        source=source,
        n=len(table),
        metric=metric,
        price=price,
        reference_cost=costs.reference(table.n_layers),
        rows=rows,
    )


class _Judge:
    """Turns answers to one table into rows."""

    def __init__(self, table: ExitTable, *, metric: Metric, costs: CostModel, seed: int) -> None:
        self.table = table
        self.metric = metric
        self.costs = costs
        self.seed = seed
        self.reference = costs.reference(table.n_layers)
        self.all_cloud = costs.of([Step(Tier.CLOUD, table.n_layers)])

    def policy_row(self, policy: Policy, played: Replay) -> Row:
        """Hold a policy's replay against chance and oracle at its shares and at its cost."""
        table, depths = self.table, policy.depths
        cost = float(played.costs.mean())
        accuracy = float((played.predictions == table.labels).mean())
        shares = np.bincount(played.tiers, minlength=len(TIERS)) / len(table)
        tiers = tuple(self._single(Step(tier, depths.of(tier))) for tier in TIERS)
        at_shares = Mixture(tiers, tuple(shares.tolist()))
        exits = [self._single(step) for step in policy.endpoints()]
        may_use = [controls.majority(table), *exits]
        affordable = min(cost, self.all_cloud)  # a policy dearer than all-cloud meets all-cloud
        at_cost = self._mixture(may_use, affordable, metric=self.metric)
        oracle = controls.oracle_at_cost(exits, cost, labels=table.labels)
        fairest = self._mixture(may_use, affordable, metric="accuracy")
        by_chance = self._expected(fairest, "accuracy")
        reasons = {}
        if oracle - by_chance <= 1e-9:
            reasons["gap_closed"] = "the oracle at this cost is no better than chance at it"
        mobile_right = table.right[:, table.exit(depths.mobile)]
        ranked = None if played.routing_scores is None else auc(played.routing_scores, mobile_right)
        if ranked is None:
            reasons["auc_mobile_right"] = (
                "it has no router, or a pool that it ranks by is empty"
                if played.routing_scores is None
                else "the mobile exit is right on all samples, or on none"
            )
        return self._row(
            policy.name,
            "policy",
            played.predictions,
            cost,
            shares=shares,
            random_at_shares=self._expected(at_shares, self.metric),
            random_at_shares_ci95=self._spread(at_shares),
            random_at_cost=self._expected(at_cost, self.metric),
            random_at_cost_ci95=self._spread(at_cost),
            oracle_at_cost=oracle,
            gap_closed=None
            if "gap_closed" in reasons
            else (accuracy - by_chance) / (oracle - by_chance),
            auc_mobile_right=ranked,
            depths=depths,
            operating_point=policy.operating_point(),
            null_because=reasons,
        )

    def tier_rows(self, depths: Depths) -> list[Row]:
        """Return everything on one tier, and the oracle over the tiers."""
        rows = []
        for position, tier in enumerate(TIERS):
            single = self._single(Step(tier, depths.of(tier)))
            shares = np.eye(len(TIERS))[position]
            rows.append(
                self._row(
                    f"all-{tier}",
                    "control",
                    single.predictions,
                    single.cost,
                    shares=shares,
                    depths=depths,
                )
            )
        picks = controls.oracle(self.table, depths, costs=self.costs)
        steps = [Step(tier, depths.of(tier)) for tier in TIERS]
        exits = np.array([self.table.exit(step.layer) for step in steps])[picks]
        predictions = self.table.predictions[np.arange(len(picks)), exits]
        cost = float(np.array([self.costs.of([step]) for step in steps])[picks].mean())
        shares = np.bincount(picks, minlength=len(TIERS)) / len(picks)
        row = self._row("oracle", "control", predictions, cost, shares=shares, depths=depths)
        if self.metric != "accuracy":
            why = f"an oracle is on accuracy: {self.metric} does not add up over samples"
            row = row.model_copy(
                update={"score": None, "score_ci95": None, "null_because": {"score": why}}
            )
        return [*rows, row]

    def constant_rows(self) -> list[Row]:
        """Return the controls that know no tiers: the reference on the device, and the most common class."""
        reference = self._single(Step(Tier.MOBILE, self.table.n_layers))
        majority = controls.majority(self.table)
        return [
            self._row(
                "bert-on-mobile",
                "control",
                reference.predictions,
                reference.cost,
                shares=np.array([1.0, 0.0, 0.0]),
            ),
            self._row("majority", "control", majority.predictions, majority.cost),
        ]

    def _row(
        self,
        name: str,
        kind: Literal["policy", "control"],
        predictions: NDArray[np.int64],
        cost: float,
        *,
        shares: NDArray[np.float64] | None = None,
        **fields: Any,  # noqa: ANN401  further fields of Row
    ) -> Row:
        matrix = confusion(self.table.labels, predictions, n_classes=self.table.n_classes)
        return Row(
            policy=name,
            kind=kind,
            score=float(score(self.metric, matrix)),
            score_ci95=bootstrap_interval(self.metric, matrix, rng=self._rng()),
            accuracy=float(score("accuracy", matrix)),
            accuracy_ci95=bootstrap_interval("accuracy", matrix, rng=self._rng()),
            cost=cost,
            cost_change=cost / self.reference - 1,
            cost_vs_cloud=cost / self.all_cloud if self.all_cloud else float("nan"),
            shares=None
            if shares is None
            else TierShares(**dict(zip(TIERS, shares.tolist(), strict=True))),
            **fields,
        )

    def _single(self, step: Step) -> SingleExit:
        return controls.single_exit(self.table, step, costs=self.costs)

    def _mixture(self, exits: list[SingleExit], cost: float, *, metric: Metric) -> Mixture:
        return controls.mixture_at_cost(
            exits, cost, metric=metric, labels=self.table.labels, n_classes=self.table.n_classes
        )

    def _expected(self, mixture: Mixture, metric: Metric) -> float:
        return mixture.expected_score(metric, self.table.labels, n_classes=self.table.n_classes)

    def _spread(self, mixture: Mixture) -> tuple[float, float]:
        drawn = mixture.draw_scores(
            self.metric, self.table.labels, n_classes=self.table.n_classes, rng=self._rng()
        )
        return interval(drawn)

    def _rng(self) -> np.random.Generator:
        """Start every interval from the seed, so that a row does not depend on those before it."""
        return np.random.default_rng(self.seed)
