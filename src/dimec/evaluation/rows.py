"""Replay fitted policies over an exit table and set each beside the honest controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import InitVar, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.core.metrics import Metric, auc, bootstrap_interval, interval, score
from dimec.core.tiers import EXIT_ZERO, TIERS, Depths, Step, Tier
from dimec.costs.billing import Billing
from dimec.costs.model import CostModel
from dimec.evaluation import controls
from dimec.evaluation.controls import Mixture, SingleExit
from dimec.evaluation.meter import Meter, Spent
from dimec.evaluation.options import SHUFFLES
from dimec.evaluation.results import Evaluation, Learning, Row, TierShares
from dimec.policies import Policy, Replay, replay
from dimec.runs.exit_table import ExitTable, TierTables


@dataclass(frozen=True, eq=False)
class Lineup:
    """Policies with what the tiers hold for them.

    Attributes:
        tables: What the exits on each tier said about the samples, in stream order.
        policies: Policies fitted for these tiers, by the names of their rows.
        costs: The cost model, a layer of each tier's own model priced.
        mark: What is added to the names of its rows, controls among them, where some tiers hold another model.
    """

    tables: TierTables
    policies: Mapping[str, Policy]
    costs: CostModel
    mark: str = ""


def evaluate(
    table: ExitTable | TierTables,
    policies: Mapping[str, Policy],
    *,
    task: str,
    source: str,
    metric: Metric,
    costs: CostModel,
    price: float,
    billing: Billing | None = None,
    lineups: Sequence[Lineup] = (),
    shuffles: int = SHUFFLES,
    seed: int = 0,
    done: Callable[[], object] = lambda: None,
) -> Evaluation:
    """Evaluate policies on a table that nothing was chosen on.

    Args:
        table: The exits' readings, in stream order; a table per tier where they hold quantised graphs.
        price: What the full model on the mobile device costs in units of confidence.
        lineups: Policies for other tables of the same samples: tiers with another model, learned bottlenecks.

    Raises:
        OptionError: If there is nothing to evaluate, or the profile is of another encoder.
    """
    tables = TierTables.of_all(table)
    n_layers = tables.encoder.n_layers
    lineups = (Lineup(tables, policies, costs), *lineups)
    if not len(tables) or not any(lineup.policies for lineup in lineups):
        raise OptionError("there is nothing to evaluate: give at least one sample and one policy")
    if shuffles < 1:
        raise OptionError(f"--shuffles {shuffles}: it must be at least 1")
    unit = costs.unit_price(n_layers, price=price)
    judges = [_Judge(each, metric, unit, billing, shuffles, seed) for each in lineups]
    own = judges[0]
    rows: list[Row] = []
    for judge in judges:
        for name, policy in judge.lineup.policies.items():
            rows.append(judge.policy_row(name, policy))
            done()
    # A bottleneck's policy is held against the tiers of the same encoder as all without a mark.
    for mark in dict.fromkeys(each.mark for each in lineups):
        judge = next(each for each in judges if each.lineup.mark == mark)
        alike = [each.policies.values() for each in lineups if each.mark == mark]
        for depths in dict.fromkeys(policy.depths for fitted in alike for policy in fitted):
            rows.extend(judge.tier_rows(depths))
    rows.extend(own.constant_rows())
    return Evaluation(
        task=task,
        source=source,
        n=len(tables),
        metric=metric,
        price=price,
        reference_cost=own.reference,
        unit="lambda" if billing is None else billing.unit,
        profile=None if billing is None else billing.profile.name,
        currency=None if billing is None else billing.profile.money.currency,
        rows=rows,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Play:
    """One replay, the confusion matrix of its answers, and what it cost."""

    replay: Replay
    matrix: NDArray[np.int64]
    spent: Spent

    def reward(self, unit: float) -> float:
        """Return the mean of r = C - lambda cost, with lambda in units of confidence."""
        return float(self.replay.confidence.mean() - unit * self.replay.costs.mean())


@dataclass(eq=False)
class _Judge:
    """Turns answers to one table into rows."""

    lineup: Lineup
    metric: Metric
    unit: float
    billing: InitVar[Billing | None]
    shuffles: int
    seed: int

    def __post_init__(self, billing: Billing | None) -> None:
        lineup = self.lineup
        self.tables, self.table, self.costs = lineup.tables, lineup.tables.encoder, lineup.costs
        self.meter = Meter.of(billing, lineup.tables, costs=lineup.costs)
        self.all_cloud = self._spent(Step(Tier.CLOUD, self.table.n_layers)).cost
        # Of the encoder itself, whatever a tier of this lineup holds.
        plain = replace(lineup.costs, mobile_work=1.0, edge_work=1.0)
        whole = Step(plain.held_against, self.table.n_layers)
        self.reference = Meter.of(billing, lineup.tables, costs=plain).steps([whole]).cost

    def policy_row(self, name: str, policy: Policy) -> Row:
        """Replay a policy and hold it against random and oracle at its shares and at its cost."""
        arms = policy.arms()
        orders: list[NDArray[np.integer] | None] = [None]
        if arms:
            draws = (np.random.default_rng([self.seed, each]) for each in range(self.shuffles))
            orders = [draw.permutation(len(self.table)) for draw in draws]
        plays = [self._play(policy, order) for order in orders]
        matrix = np.mean([play.matrix for play in plays], axis=0)
        spent = Spent.mean_of([play.spent for play in plays])
        tiers = np.concatenate([play.replay.tiers for play in plays])
        shares = np.bincount(tiers, minlength=len(TIERS)) / len(tiers)
        at_shares = self._at_shares(policy, plays)
        exits = [self._single(step) for step in policy.endpoints()]
        may_use = [controls.majority(self.table), *exits]
        affordable = min(spent.cost, self.all_cloud)  # a dearer policy meets all-cloud
        at_cost, fairest = (
            controls.random_at_cost(may_use, affordable, metric=metric, table=self.table)
            for metric in (self.metric, "accuracy")
        )
        oracle = controls.oracle_at_cost(exits, spent.cost, labels=self.table.labels)
        by_random = fairest.expected_score("accuracy", self.table)
        reasons = {}
        gap = None
        if oracle - by_random <= 1e-9:
            reasons["gap_closed"] = "the oracle at this cost is no better than random at it"
        else:
            gap = (float(score("accuracy", matrix)) - by_random) / (oracle - by_random)
        behind = self.tables.restored
        ranked, why = self._auc(policy, plays[0].replay)
        if why:
            reasons["auc_mobile_right"] = why
        return self._row(
            name,
            "policy",
            matrix,
            spent,
            shares=shares,
            random_at_shares=at_shares.expected_score(self.metric, self.table),
            random_at_shares_ci95=self._spread(at_shares),
            random_at_cost=at_cost.expected_score(self.metric, self.table),
            random_at_cost_ci95=self._spread(at_cost),
            oracle_at_cost=oracle,
            gap_closed=gap,
            auc_mobile_right=ranked,
            depths=policy.depths,
            operating_point=policy.operating_point(),
            shipped_bytes=None if behind is None else float(behind.table.payload_bytes.mean()),
            learning=self._learning(plays, arms) if arms else None,
            null_because=reasons,
        )

    def tier_rows(self, depths: Depths) -> list[Row]:
        """Return everything on one tier, and the oracle over the tiers; of marked rows those that differ."""
        steps = [Step(tier, depths.of(tier)) for tier in TIERS]
        singles = [self._single(step) for step in steps]
        rows = [
            self._row(
                f"all-{step.tier}",
                "control",
                self.table.confusion(single.predictions),
                self._spent(step),
                shares=shares,
                depths=depths,
            )
            for step, single, shares in zip(steps, singles, np.eye(len(TIERS)), strict=True)
            if not self.lineup.mark or step.tier in self.tables.models
        ]
        picks = controls.oracle(self.tables, depths, costs=self.costs)
        predictions = np.choose(picks, [single.predictions for single in singles])
        shares = np.bincount(picks, minlength=len(TIERS)) / len(picks)
        row = self._row(
            "oracle",
            "control",
            self.table.confusion(predictions),
            self.meter.choice(steps, picks),
            shares=shares,
            depths=depths,
        )
        if self.metric != "accuracy":
            why = f"an oracle is on accuracy: {self.metric} does not add up over samples"
            row = row.model_copy(
                update={"score": None, "score_ci95": None, "null_because": {"score": why}}
            )
        return [*rows, row]

    def constant_rows(self) -> list[Row]:
        """Return the controls that know no tiers: the reference on the device, and the most common class."""
        # The encoder's own table: the mobile tier may hold another, with fewer exits.
        step = Step(Tier.MOBILE, self.table.n_layers)
        constant: dict[str, tuple[SingleExit, Step | None]] = {
            "bert-on-mobile": (controls.single_exit(self.table, step, costs=self.costs), step),
            "majority": (controls.majority(self.table), None),
        }
        if self.tables.of(Tier.MOBILE).exit_zero is not None:
            constant = {"exit-zero": (self._single(EXIT_ZERO), EXIT_ZERO)} | constant
        return [
            self._row(
                name,
                "control",
                self.table.confusion(each.predictions),
                self._spent(step),
                shares=None if step is None else np.array([1.0, 0.0, 0.0]),
            )
            for name, (each, step) in constant.items()
        ]

    def _play(self, policy: Policy, order: NDArray[np.integer] | None = None) -> _Play:
        """Replay a policy in stream order or another one, from the policy's own state."""
        tables = self.tables if order is None else self.tables.take(order)
        played = replay(policy, tables, costs=self.costs)
        matrix = tables.encoder.confusion(played.predictions)
        return _Play(played, matrix, self.meter.replay(policy, played, order=order))

    def _learning(self, plays: Sequence[_Play], arms: Mapping[str, Policy]) -> Learning:
        """Hold the rewards of a policy that learns arms against those of its best one."""
        earned = {name: self._play(arm).reward(self.unit) for name, arm in arms.items()}
        best = max(earned, key=lambda name: earned[name])
        rewards = np.array([play.reward(self.unit) for play in plays])
        regrets = (earned[best] - rewards) * len(self.table)
        matrices = np.array([play.matrix for play in plays])
        return Learning(
            shuffles=len(plays),
            score_sd=float(score(self.metric, matrices).std()),
            accuracy_sd=float(score("accuracy", matrices).std()),
            cost_sd=float(np.std([play.spent.cost for play in plays])),
            reward=float(rewards.mean()),
            best_arm=best,
            best_arm_reward=earned[best],
            regret=float(regrets.mean()),
            regret_sd=float(regrets.std()),
        )

    def _at_shares(self, policy: Policy, plays: Sequence[_Play]) -> Mixture:
        """Return the mixture that answers as often as the policy on each tier, or at each exit where it picks exits."""
        if policy.picks == "tiers":
            steps = [Step(tier, policy.depths.of(tier)) for tier in TIERS]
            used = [play.replay.tiers for play in plays]
            counts = np.bincount(np.concatenate(used), minlength=len(TIERS))
        else:
            used = [np.stack([play.replay.tiers, play.replay.layers], axis=1) for play in plays]
            exits, counts = np.unique(np.concatenate(used), axis=0, return_counts=True)
            # Behind a bottleneck the same exit of the cloud says something else than from the tokens.
            answers = {(step.tier, step.layer): step for step in policy.endpoints() if step.resumes}
            steps = [
                answers.get((TIERS[tier], layer), Step(TIERS[tier], layer))
                for tier, layer in exits.tolist()
            ]
        shares = counts / counts.sum()
        return Mixture(tuple(self._single(step) for step in steps), tuple(shares.tolist()))

    def _auc(self, policy: Policy, played: Replay) -> tuple[float | None, str]:
        """Return how well the router ranks the samples that the mobile exit gets right, or why there is no figure."""
        if played.routing_scores is None:
            return None, "it has no router, or a pool that it ranks by is empty"
        mobile = self._single(Step(Tier.MOBILE, policy.depths.mobile))
        ranked = auc(played.routing_scores, mobile.predictions == self.table.labels)
        why = "the mobile exit is right on all samples, or on none" if ranked is None else ""
        return ranked, why

    def _row(
        self,
        name: str,
        kind: Literal["policy", "control"],
        matrix: NDArray[np.number],
        spent: Spent,
        *,
        shares: NDArray[np.float64] | None = None,
        **fields: Any,  # noqa: ANN401  further fields of Row
    ) -> Row:
        return Row(
            policy=name + self.lineup.mark,
            kind=kind,
            score=float(score(self.metric, matrix)),
            score_ci95=bootstrap_interval(self.metric, matrix, rng=self._rng()),
            accuracy=float(score("accuracy", matrix)),
            accuracy_ci95=bootstrap_interval("accuracy", matrix, rng=self._rng()),
            cost=spent.cost,
            cost_change=spent.cost / self.reference - 1,
            cost_vs_cloud=spent.cost / self.all_cloud if self.all_cloud else float("nan"),
            measured=spent.measures,
            shares=None if shares is None else TierShares.of(shares),
            **fields,
        )

    def _single(self, step: Step) -> SingleExit:
        single = controls.single_exit(self.tables, step, costs=self.costs)
        return replace(single, cost=self._spent(step).cost)

    def _spent(self, step: Step | None) -> Spent:
        """Return what one step, or none, costs."""
        return self.meter.steps([] if step is None else controls.way_to(step, self.tables))

    def _spread(self, mixture: Mixture) -> tuple[float, float]:
        return interval(mixture.draw_scores(self.metric, self.table, rng=self._rng()))

    def _rng(self) -> np.random.Generator:
        """Start every interval from the seed, so that a row does not depend on those before it."""
        return np.random.default_rng(self.seed)
