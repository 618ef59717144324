"""Replay: run a policy over an exit table, sample by sample in stream order, as a device would.

A policy that does not learn meets the samples in groups that have taken the same steps, so that 40,000 samples are a
matter of milliseconds; one that learns meets them one by one. Both ways call the same policy object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Step
from dimec.costs.model import CostModel, Use
from dimec.policies import Policy
from dimec.policies.walk import Path, walk_groups, walk_rows
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


class _Answers:
    """Gathers which exit answers each sample, with what, and at what cost."""

    def __init__(self, n: int) -> None:
        self.labels = np.zeros(n, dtype=np.int64)
        self.confidence = np.zeros(n)
        self.tiers = np.zeros(n, dtype=np.int8)
        self.layers = np.zeros(n, dtype=np.int64)
        self.paths: list[Path] = []
        self.took = np.zeros(n, dtype=np.int64)
        self._known: dict[int, int] = {}

    def number(self, path: Path) -> int:
        """Return a path's place among those that ended a sample."""
        place = self._known.setdefault(id(path), len(self.paths))
        if place == len(self.paths):
            self.paths.append(path)
        return place

    def collect(self, routing_scores: NDArray[np.float64] | None) -> Replay:
        """Return what was gathered."""
        costs = np.array([path.cost for path in self.paths], dtype=np.float64)
        return Replay(
            self.labels,
            self.confidence,
            self.tiers,
            self.layers,
            costs[self.took],
            tuple(path.steps for path in self.paths),
            self.took,
            routing_scores,
        )


def _in_groups(policy: Policy, tables: TierTables, costs: CostModel) -> Replay:
    answers = _Answers(len(tables))
    scores = policy.routing_score(tables.embeddings)
    for stop in walk_groups(policy, tables, costs):
        if not len(stop.answered):
            continue
        answer, slots = policy.answer_group(stop.group), stop.path.slots
        rows, place = stop.group.rows[stop.answered], answer.places[stop.answered]
        answers.labels[rows] = answer.labels[stop.answered]
        answers.confidence[rows] = answer.confidence[stop.answered]
        answers.tiers[rows] = np.array([TIERS.index(slot.tier) for slot in slots])[place]
        answers.layers[rows] = np.array([slot.layer for slot in slots])[place]
        answers.took[rows] = answers.number(stop.path)
    return answers.collect(scores)


def _one_by_one(policy: Policy, tables: TierTables, costs: CostModel) -> Replay:
    answers = _Answers(len(tables))
    routing_scores = np.full(len(tables), np.nan)
    for row, (path, view) in enumerate(walk_rows(policy, tables, costs)):
        score = policy.routing_score(view.embedding)
        if score is not None:
            routing_scores[row] = score
        answer = policy.answer(view)
        answers.labels[row] = answer.label
        answers.confidence[row] = answer.confidence
        answers.tiers[row] = TIERS.index(answer.tier)
        answers.layers[row] = answer.layer
        answers.took[row] = answers.number(path)
    return answers.collect(None if np.isnan(routing_scores).any() else routing_scores)
