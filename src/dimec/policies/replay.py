"""Replay: run a policy over an exit table, sample by sample in stream order, as a device would.

A policy that does not learn meets the samples in groups that have taken the same steps, so that 40,000 samples are a
matter of milliseconds; one that learns meets them one by one. Both ways call the same policy object, check every step,
and price every sequence of steps once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Reading, Step, Tier, check_step, layers_done
from dimec.costs.model import CostModel, Use
from dimec.policies.base import Group, GroupReading, Policy, View
from dimec.runs.exit_table import ExitTable, TierTables


class Slot(NamedTuple):
    """An exit that was read: on which tier, after which layer, in which table, at which position there."""

    tier: Tier
    layer: int
    table: ExitTable
    position: int


@dataclass(eq=False, slots=True)
class Path:
    """A sequence of steps, checked and priced once for all samples that take it.

    Attributes:
        cost: In lambda.
        read: Which exits its last step reads.
        slots: Which exits all of its steps have read.
    """

    steps: tuple[Step, ...] = ()
    cost: float = 0.0
    read: tuple[Slot, ...] = ()
    slots: tuple[Slot, ...] = ()
    next: dict[Step, Path] = field(default_factory=dict)

    def then(self, step: Step, tables: TierTables, costs: CostModel) -> Path:
        """Return the path that goes on by one step.

        Raises:
            ContractError: If the step is not legal, or the path has more steps than all tiers have exits.
        """
        if step in self.next:
            return self.next[step]
        done = layers_done(self.steps, step)
        check_step(self.steps, step, exits=tables.of(step.tier).layers)
        table = tables.read_by(step, after=done)
        steps = (*self.steps, step)
        if len(steps) > len(TIERS) * max(len(tables.of(tier).layers) for tier in TIERS):
            raise ContractError(
                f"a policy does not come to an end: {len(steps)} steps on one sample"
            )
        passed = done if step.side_readings else step.layer - 1
        read = tuple(
            Slot(step.tier, layer, table, table.exit(layer))
            for layer in table.layers
            if passed < layer <= step.layer
        )
        self.next[step] = Path(steps, costs.of(steps), read, (*self.slots, *read))
        return self.next[step]


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """Samples that have taken the same steps.

    Attributes:
        answered: [k], the places in the group of those that are answered here.
    """

    path: Path
    group: Group
    answered: NDArray[np.intp]


def walk_groups(policy: Policy, tables: TierTables, costs: CostModel) -> Iterator[Stop]:
    """Run a policy that does not learn over all samples, group by group."""
    unseen = tables.of(Tier.MOBILE).unseen
    waiting = [(np.arange(len(tables)), Path())] if len(tables) else []
    while waiting:
        rows, path = waiting.pop()
        said = [GroupReading.of(each.tier, each.table, each.position, rows) for each in path.slots]
        group = Group(tables.embeddings, rows, path.steps, tuple(said), unseen)
        choices = policy.decide_group(group)
        answered = np.zeros(len(group), dtype=bool)
        for index, option in enumerate(choices.options):
            chosen = choices.picks == index
            if option is None:
                answered |= chosen
            elif chosen.any():
                waiting.append((rows[chosen], path.then(option, tables, costs)))
        yield Stop(path, group, np.flatnonzero(answered))


def walk_rows(policy: Policy, tables: TierTables, costs: CostModel) -> Iterator[tuple[Path, View]]:
    """Run a policy over the samples one by one, in stream order; it learns from each after it was given out."""

    @cache
    def listed(table: ExitTable) -> tuple[list[list[int]], list[list[float]]]:
        """Return labels and confidence as lists, which a loop over single samples reads several times faster."""
        return table.predictions.tolist(), table.confidence.tolist()

    start = Path()
    unseen = tables.of(Tier.MOBILE).unseen
    shares = [math.nan] * len(tables) if unseen is None else unseen.tolist()
    for row, (embedding, share) in enumerate(zip(tables.embeddings, shares, strict=True)):
        view = View(embedding=embedding)
        path = start
        while (step := policy.decide(view)) is not None:
            path = path.then(step, tables, costs)
            view.steps.append(step)
            if step.layer == 0:
                view.unseen = share
            for tier, layer, table, at in path.read:
                labels, confidence = listed(table)
                said = table.probabilities[row, at]
                view.readings.append(
                    Reading(tier, layer, labels[row][at], confidence[row][at], said)
                )
        yield path, view
        policy.learn(view)


_Answered = tuple[Any, Path, Any, Any, Any, Any]
"""Rows, their path, their labels and confidence, and the tiers and layers that answered: numbers, or arrays of them."""


@dataclass(frozen=True, eq=False)
class Replay:
    """What a policy did with every sample of a table.

    Attributes:
        predictions: [n] int64, the answers.
        confidence: [n] float64, that of the answering exit.
        tiers: [n] int8, the tier that answered, in the order of `TIERS`.
        layers: [n] int64, the exit that answered.
        costs: [n] float64, in lambda.
        traces: The different sequences of steps that samples took.
        took: [n] int64, which of these each sample took.
        routing_scores: [n] float64, how much the router preferred mobile; None without a router.
    """

    predictions: NDArray[np.int64]
    confidence: NDArray[np.float64]
    tiers: NDArray[np.int8]
    layers: NDArray[np.int64]
    costs: NDArray[np.float64]
    traces: tuple[tuple[Step, ...], ...]
    took: NDArray[np.int64]
    routing_scores: NDArray[np.float64] | None

    @property
    def uses(self) -> NDArray[np.float64]:
        """[n, 8], what each sample uses, as in `Use`."""
        return np.array([Use.of(trace).vector for trace in self.traces])[self.took]

    @property
    def use(self) -> Use:
        """What a sample uses in the mean."""
        return Use(*self.uses.mean(axis=0).tolist())


def replay(policy: Policy, tables: ExitTable | TierTables, *, costs: CostModel) -> Replay:
    """Run a policy from the state it is in; the policy itself is left as it was.

    Raises:
        ContractError: If the policy takes an illegal step, or the tables are not those that it ships hidden states for.
    """
    policy = policy.fresh()
    tables = TierTables.of_all(tables)
    through = tables.restored and tables.restored.kind
    if through != policy.bottleneck:
        raise ContractError(
            f"{policy.name} ships hidden states through {policy.bottleneck or 'no bottleneck'}, and these tables "
            f"are of {through or 'none'}"
        )
    tables = tables.with_exit_zero
    n = len(tables)
    predictions, layers, took = (np.zeros(n, dtype=np.int64) for _ in range(3))
    confidence, scores, tiers = np.zeros(n), np.full(n, np.nan), np.zeros(n, dtype=np.int8)
    paths: dict[Path, int] = {}
    play = _one_by_one if policy.learns else _in_groups
    for rows, path, label, sure, tier, layer in play(policy, tables, costs):
        predictions[rows], confidence[rows], tiers[rows], layers[rows] = label, sure, tier, layer
        took[rows] = paths.setdefault(path, len(paths))
        if policy.learns and (score := policy.routing_score(tables.embeddings[rows])) is not None:
            scores[rows] = score
    if not policy.learns and (found := policy.routing_score(tables.embeddings)) is not None:
        scores = found
    return Replay(
        predictions,
        confidence,
        tiers,
        layers,
        np.array([path.cost for path in paths], dtype=np.float64)[took],
        tuple(path.steps for path in paths),
        took,
        None if np.isnan(scores).any() else scores,
    )


def _in_groups(policy: Policy, tables: TierTables, costs: CostModel) -> Iterator[_Answered]:
    for stop in walk_groups(policy, tables, costs):
        if not len(stop.answered):
            continue
        answer, slots = policy.answer_group(stop.group), stop.path.slots
        place = answer.places[stop.answered]
        yield (
            stop.group.rows[stop.answered],
            stop.path,
            answer.labels[stop.answered],
            answer.confidence[stop.answered],
            np.array([TIERS.index(slot.tier) for slot in slots])[place],
            np.array([slot.layer for slot in slots])[place],
        )


def _one_by_one(policy: Policy, tables: TierTables, costs: CostModel) -> Iterator[_Answered]:
    for row, (path, view) in enumerate(walk_rows(policy, tables, costs)):
        answer = policy.answer(view)
        tier = TIERS.index(answer.tier)
        yield row, path, answer.label, answer.confidence, tier, answer.layer
