"""Replay: run a policy over an exit table, sample by sample in stream order, as a device would.

A policy that does not learn meets the samples in groups that have taken the same steps, so that 40,000 samples are a
matter of milliseconds; one that learns meets them one by one. Both ways call the same policy object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Reading, Step, Tier, check_step, layers_done
from dimec.costs.model import CostModel, Use
from dimec.policies import Group, GroupReading, Policy, View
from dimec.runs.exit_table import ExitTable, TierTables


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
    def use(self) -> Use:
        """What a sample uses in the mean."""
        counts = np.bincount(self.took, minlength=len(self.traces))
        used = np.array([Use.of(trace).vector for trace in self.traces])
        return Use(*(counts @ used / counts.sum()).tolist())


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
    play = _one_by_one if policy.learns else _in_groups
    return play(policy, tables.with_exit_zero, costs)


@dataclass(frozen=True, slots=True, eq=False)
class _Slot:
    """An exit that was read: on which tier, in which table, at which position there."""

    tier: Tier
    table: ExitTable
    position: int

    @property
    def layer(self) -> int:
        return self.table.layers[self.position]


@dataclass(eq=False, slots=True)
class _Path:
    """A sequence of steps, checked and priced once for all samples that take it.

    Attributes:
        steps: The steps.
        cost: In lambda.
        read: Which exits its last step reads.
        slots: Which exits all of its steps have read.
        next: The paths that go on from here.
    """

    steps: tuple[Step, ...] = ()
    cost: float = 0.0
    read: tuple[_Slot, ...] = ()
    slots: tuple[_Slot, ...] = ()
    next: dict[Step, _Path] = field(default_factory=dict)

    def then(self, step: Step, tables: TierTables, costs: CostModel) -> _Path:
        """Return the path that goes on by one step."""
        known = self.next.get(step)
        if known is None:
            known = self.next[step] = self._extend(step, tables, costs)
        return known

    def _extend(self, step: Step, tables: TierTables, costs: CostModel) -> _Path:
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
            _Slot(step.tier, table, table.exit(layer))
            for layer in table.layers
            if passed < layer <= step.layer
        )
        return _Path(steps, costs.of(steps), read, (*self.slots, *read))


class _Answers:
    """Gathers which exit answers each sample, with what, and at what cost."""

    def __init__(self, n: int) -> None:
        self.labels = np.zeros(n, dtype=np.int64)
        self.confidence = np.zeros(n)
        self.tier = np.zeros(n, dtype=np.int8)
        self.layers = np.zeros(n, dtype=np.int64)
        self.paths: list[_Path] = []
        self.took = np.zeros(n, dtype=np.int64)
        self._known: dict[int, int] = {}

    def number(self, path: _Path) -> int:
        """Return a path's place among those that ended a sample."""
        place = self._known.setdefault(id(path), len(self.paths))
        if place == len(self.paths):
            self.paths.append(path)
        return place

    def collect(self, routing_scores: NDArray[np.float64] | None) -> Replay:
        """Return what was gathered."""
        costs = np.array([path.cost for path in self.paths])
        return Replay(
            self.labels,
            self.confidence,
            self.tier,
            self.layers,
            costs[self.took] if len(costs) else np.zeros(0),
            tuple(path.steps for path in self.paths),
            self.took,
            routing_scores,
        )


def _in_groups(policy: Policy, tables: TierTables, costs: CostModel) -> Replay:
    answers = _Answers(len(tables))
    scores = policy.routing_score(tables.embeddings)
    waiting = [(np.arange(len(tables)), _Path())] if len(tables) else []
    while waiting:
        rows, path = waiting.pop()
        group = _group(tables, rows, path)
        choices = policy.decide_group(group)
        for index, option in enumerate(choices.options):
            chosen = np.flatnonzero(choices.picks == index)
            if not len(chosen):
                continue
            if option is not None:
                waiting.append((rows[chosen], path.then(option, tables, costs)))
                continue
            answer = policy.answer_group(group)
            where, place = rows[chosen], answer.places[chosen]
            answers.labels[where] = answer.labels[chosen]
            answers.confidence[where] = answer.confidence[chosen]
            answers.tier[where] = np.array([TIERS.index(slot.tier) for slot in path.slots])[place]
            answers.layers[where] = np.array([slot.layer for slot in path.slots])[place]
            answers.took[where] = answers.number(path)
    return answers.collect(scores)


def _one_by_one(policy: Policy, tables: TierTables, costs: CostModel) -> Replay:
    answers = _Answers(len(tables))
    routing_scores = np.full(len(tables), np.nan)
    said: dict[int, _Said] = {}
    start = _Path()
    unseen = tables.of(Tier.MOBILE).unseen
    shares = [math.nan] * len(tables) if unseen is None else unseen.tolist()
    for row, (embedding, share) in enumerate(zip(tables.embeddings, shares, strict=True)):
        view = View(embedding=embedding)
        score = policy.routing_score(embedding)
        if score is not None:
            routing_scores[row] = score
        path = start
        while (step := policy.decide(view)) is not None:
            path = path.then(step, tables, costs)
            view.steps.append(step)
            if step.layer == 0:
                view.unseen = share
            for slot in path.read:
                known = said.get(id(slot.table))
                if known is None:
                    known = said[id(slot.table)] = _Said(slot.table)
                view.readings.append(known.reading(slot.tier, row, slot.position))
        answer = policy.answer(view)
        answers.labels[row] = answer.label
        answers.confidence[row] = answer.confidence
        answers.tier[row] = TIERS.index(answer.tier)
        answers.layers[row] = answer.layer
        answers.took[row] = answers.number(path)
        policy.learn(view)
    return answers.collect(None if np.isnan(routing_scores).any() else routing_scores)


class _Said:
    """A table as Python values, which a loop over single samples reads several times faster."""

    def __init__(self, table: ExitTable) -> None:
        self._layers = table.layers
        self._predictions = table.predictions.tolist()
        self._confidence = table.confidence.tolist()
        self._probabilities = table.probabilities

    def reading(self, tier: Tier, row: int, position: int) -> Reading:
        return Reading(
            tier,
            self._layers[position],
            self._predictions[row][position],
            self._confidence[row][position],
            self._probabilities[row, position],
        )


def _group(tables: TierTables, rows: NDArray[np.intp], path: _Path) -> Group:
    readings = [GroupReading.of(slot.tier, slot.table, slot.position, rows) for slot in path.slots]
    unseen = tables.of(Tier.MOBILE).unseen
    return Group(tables.embeddings, rows, path.steps, tuple(readings), unseen)
