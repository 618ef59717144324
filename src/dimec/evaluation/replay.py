"""Replay: run a policy over an exit table, sample by sample in stream order, as a device would.

A policy that does not learn meets the samples in groups that have taken the same steps, so that 40,000 samples are a
matter of milliseconds; one that learns meets them one by one. Both ways call the same policy object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.costs import CostModel
from dimec.errors import ContractError
from dimec.exits import ExitTable
from dimec.policies import Group, GroupReading, Policy, View
from dimec.tiers import TIERS, Reading, Step, check_step


@dataclass(frozen=True, eq=False)
class Replay:
    """What a policy did with every sample of a table.

    Attributes:
        predictions: [n] int64, the answers.
        confidence: [n] float64, that of the answering exit.
        tiers: [n] int8, the tier that answered, in the order of `TIERS`.
        layers: [n] int64, the exit that answered.
        costs: [n] float64, in lambda.
        routing_scores: [n] float64, how much the router preferred mobile; None without a router.
    """

    predictions: NDArray[np.int64]
    confidence: NDArray[np.float64]
    tiers: NDArray[np.int8]
    layers: NDArray[np.int64]
    costs: NDArray[np.float64]
    routing_scores: NDArray[np.float64] | None


def replay(policy: Policy, table: ExitTable, *, costs: CostModel) -> Replay:
    """Run a policy from the state it is in; the policy itself is left as it was.

    Raises:
        ContractError: If the policy takes an illegal step.
    """
    policy = policy.fresh()
    return (_one_by_one if policy.learns else _in_groups)(policy, table, costs)


class _Paths:
    """Checks and prices each sequence of steps once."""

    def __init__(self, table: ExitTable, costs: CostModel) -> None:
        self._table = table
        self._costs = costs
        self._known: dict[tuple[Step, ...], float] = {}

    def cost(self, steps: tuple[Step, ...]) -> float:
        known = self._known.get(steps)
        if known is None:
            for index, step in enumerate(steps):
                check_step(steps[:index], step, exits=self._table.layers)
            if len(steps) > len(TIERS) * len(self._table.layers):
                raise ContractError(
                    f"a policy does not come to an end: {len(steps)} steps on one sample"
                )
            known = self._known[steps] = self._costs.of(steps)
        return known


def _in_groups(policy: Policy, table: ExitTable, costs: CostModel) -> Replay:
    n = len(table)
    answering_tier = np.zeros(n, dtype=np.int8)
    answering_exit = np.zeros(n, dtype=np.int64)
    spent = np.zeros(n)
    paths = _Paths(table, costs)
    scores = policy.routing_score(table.embeddings)
    waiting: list[tuple[NDArray[np.intp], tuple[Step, ...]]] = [(np.arange(n), ())] if n else []
    while waiting:
        rows, steps = waiting.pop()
        cost = paths.cost(steps)
        exits = [table.exit(step.layer) for step in steps]
        choices = policy.decide_group(_group(table, rows, steps))
        for index, option in enumerate(choices.options):
            chosen = rows[choices.picks == index]
            if not len(chosen):
                continue
            if option is not None:
                waiting.append((chosen, (*steps, option)))
                continue
            place = _answering(policy, table.confidence[chosen][:, exits])
            answering_tier[chosen] = np.array([TIERS.index(step.tier) for step in steps])[place]
            answering_exit[chosen] = np.array(exits)[place]
            spent[chosen] = cost
    return _collect(table, answering_tier, answering_exit, spent, scores)


def _one_by_one(policy: Policy, table: ExitTable, costs: CostModel) -> Replay:
    n = len(table)
    answering_tier = np.zeros(n, dtype=np.int8)
    answering_exit = np.zeros(n, dtype=np.int64)
    spent = np.zeros(n)
    routing_scores = np.full(n, np.nan)
    paths = _Paths(table, costs)
    exit_of = {layer: position for position, layer in enumerate(table.layers)}
    predictions, confidence = table.predictions.tolist(), table.confidence.tolist()
    probabilities = table.probabilities
    for row, embedding in enumerate(table.embeddings):
        view = View(embedding=embedding)
        score = policy.routing_score(embedding)
        if score is not None:
            routing_scores[row] = score
        while (step := policy.decide(view)) is not None:
            view.steps.append(step)
            cost = paths.cost(tuple(view.steps))
            position = exit_of[step.layer]
            view.readings.append(
                Reading(
                    step.layer,
                    predictions[row][position],
                    confidence[row][position],
                    probabilities[row, position],
                )
            )
        sure = np.array([[reading.confidence for reading in view.readings]])
        place = int(_answering(policy, sure)[0])
        answering_tier[row] = TIERS.index(view.steps[place].tier)
        answering_exit[row] = exit_of[view.steps[place].layer]
        spent[row] = cost
        policy.learn(view)
    scores = None if np.isnan(routing_scores).any() else routing_scores
    return _collect(table, answering_tier, answering_exit, spent, scores)


def _group(table: ExitTable, rows: NDArray[np.intp], steps: tuple[Step, ...]) -> Group:
    readings = []
    for step in steps:
        position = table.exit(step.layer)
        readings.append(
            GroupReading(
                step.layer,
                table.predictions[rows, position],
                table.confidence[rows, position],
                table.probabilities[rows, position],
            )
        )
    return Group(table.embeddings, rows, steps, tuple(readings))


def _answering(policy: Policy, confidence: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return which reading answers, for confidences [k, readings]: [k]."""
    if confidence.shape[1] == 0:
        raise ContractError(f"the policy {policy.name} answers a sample without running any exit")
    if policy.answers_with == "most confident":
        most: NDArray[np.intp] = confidence.argmax(axis=1)
        return most
    return np.full(len(confidence), confidence.shape[1] - 1)


def _collect(
    table: ExitTable,
    answering_tier: NDArray[np.int8],
    answering_exit: NDArray[np.int64],
    spent: NDArray[np.float64],
    routing_scores: NDArray[np.float64] | None,
) -> Replay:
    everyone = np.arange(len(table))
    return Replay(
        predictions=table.predictions[everyone, answering_exit],
        confidence=table.confidence[everyone, answering_exit],
        tiers=answering_tier,
        layers=np.array(table.layers)[answering_exit],
        costs=spent,
        routing_scores=routing_scores,
    )
