"""Policies run over exit tables: all samples together, step by step, or one after another, as on a device.

Both ways call the same policy object, check every step, and price every sequence of steps once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Reading, Step, Tier, check_step, layers_done
from dimec.costs.model import N_USED, CostModel, Use
from dimec.policies.base import Group, GroupReading, Policy, View
from dimec.runs.exit_table import ExitTable, TierTables


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """An exit that was read: on which tier, in which table, at which position there."""

    tier: Tier
    table: ExitTable
    position: int

    @property
    def layer(self) -> int:
        """The exit's layer."""
        return self.table.layers[self.position]


@dataclass(eq=False, slots=True)
class Path:
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
    read: tuple[Slot, ...] = ()
    slots: tuple[Slot, ...] = ()
    next: dict[Step, Path] = field(default_factory=dict)

    def then(self, step: Step, tables: TierTables, costs: CostModel) -> Path:
        """Return the path that goes on by one step.

        Raises:
            ContractError: If the step is not legal, or the path has more steps than all tiers have exits.
        """
        known = self.next.get(step)
        if known is None:
            known = self.next[step] = self._extend(step, tables, costs)
        return known

    def _extend(self, step: Step, tables: TierTables, costs: CostModel) -> Path:
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
            Slot(step.tier, table, table.exit(layer))
            for layer in table.layers
            if passed < layer <= step.layer
        )
        return Path(steps, costs.of(steps), read, (*self.slots, *read))


@dataclass(frozen=True, slots=True, eq=False)
class Stop:
    """Samples that have taken the same steps.

    Attributes:
        path: The steps.
        group: The samples.
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
    said: dict[int, _Rows] = {}
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
            for slot in path.read:
                known = said.get(id(slot.table))
                if known is None:
                    known = said[id(slot.table)] = _Rows(slot.table)
                view.readings.append(known.reading(slot.tier, row, slot.position))
        yield path, view
        policy.learn(view)


class _Rows:
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


def answers_of(
    policy: Policy, tables: TierTables, costs: CostModel
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return with what confidence [n] a policy answers samples, and what each uses [n, 8], as in `Use`."""
    confidence = np.zeros(len(tables))
    use = np.zeros((len(tables), N_USED))
    for stop in walk_groups(policy, tables, costs):
        if len(stop.answered):
            rows = stop.group.rows[stop.answered]
            confidence[rows] = policy.answer_group(stop.group).confidence[stop.answered]
            use[rows] = Use.of(stop.path.steps).vector
    return confidence, use
