"""The honest controls: what random routing and perfect knowledge reach at the tier shares, or at the cost, of a policy.

They are no policies, since they look at labels or at another row. A *single exit* answers every sample the same
way; a random mixture of them needs to know nothing, and the oracle knows which of them is right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.metrics import Metric, score
from dimec.core.tiers import TIERS, Depths, Step, Tier
from dimec.costs.model import CostModel
from dimec.runs.exit_table import ExitTable, TierTables

N_DRAWS = 1000
_STEPS = 64


@dataclass(frozen=True, eq=False)
class SingleExit:
    """One way to answer every sample: its predictions [n] and what each costs, in lambda."""

    predictions: NDArray[np.int64]
    cost: float


def single_exit(tables: ExitTable | TierTables, step: Step, *, costs: CostModel) -> SingleExit:
    """Answer everything after one step; behind a bottleneck, after the step on the device that it needs."""
    tables = TierTables.of_all(tables)
    steps = way_to(step, tables)
    table = tables.of(step.tier).with_exit_zero
    if len(steps) > 1:
        table = tables.read_by(step, after=steps[0].layer)
    return SingleExit(table.predictions[:, table.exit(step.layer)], costs.of(steps))


def way_to(step: Step, tables: TierTables) -> list[Step]:
    """Return the steps that lead to a single exit: behind a bottleneck, the device's up to the split comes first."""
    if step.resumes and tables.restored is not None:
        return [Step(Tier.MOBILE, tables.restored.after), step]
    return [step]


def majority(table: ExitTable) -> SingleExit:
    """Answer everything with the class that this table holds most of, at no cost."""
    most = np.bincount(table.labels, minlength=table.n_classes).argmax()
    return SingleExit(np.full(len(table), most, dtype=np.int64), 0.0)


@dataclass(frozen=True, eq=False)
class Mixture:
    """Single exits with the share of samples that each is to answer, adding up to one."""

    exits: tuple[SingleExit, ...]
    shares: tuple[float, ...]

    def expected_score(self, metric: Metric, table: ExitTable) -> float:
        """Score the expected confusion matrix: for accuracy the expectation, for others its value on many samples."""
        expected = sum(
            share * table.confusion(each.predictions)
            for each, share in zip(self.exits, self.shares, strict=True)
        )
        return float(score(metric, np.asarray(expected)))

    def draw_scores(
        self, metric: Metric, table: ExitTable, *, rng: np.random.Generator, n: int = N_DRAWS
    ) -> NDArray[np.float64]:
        """Score ``n`` random assignments of these very samples to the exits at these shares: [n].

        Samples with the same label and the same predictions are alike, so an assignment is drawn as counts
        (multivariate hypergeometric): exactly what shuffling the assignment over the samples does.
        """
        labels, n_classes = table.labels, table.n_classes
        predictions = np.stack([labels, *(each.predictions for each in self.exits)], axis=1)
        kinds, counts = np.unique(predictions, axis=0, return_counts=True)
        wanted = np.diff(np.rint(np.cumsum([0.0, *self.shares]) * len(labels)).astype(np.int64))
        matrices = np.zeros((n, n_classes * n_classes))
        left = np.broadcast_to(counts, (n, len(counts)))
        for position in range(len(self.exits)):
            last = position == len(self.exits) - 1
            taken = left if last else _draw(left, int(wanted[position]), rng=rng)
            cells = kinds[:, 0] * n_classes + kinds[:, 1 + position]
            for kind, cell in enumerate(cells):
                matrices[:, cell] += taken[:, kind]
            left = left - taken
        return score(metric, matrices.reshape(n, n_classes, n_classes))


def _draw(
    counts: NDArray[np.integer], total: int, *, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Draw ``total`` samples without replacement from each row of counts [n, kinds]: how many of each kind.

    Kind by kind for all rows at once, since numpy's own multivariate draw takes one row at a time.
    """
    taken = np.zeros(counts.shape, dtype=np.int64)
    wanted = np.full(len(counts), total)
    beyond = counts.sum(axis=1)
    for kind in range(counts.shape[1]):
        here = counts[:, kind]
        beyond = beyond - here
        taken[:, kind] = rng.hypergeometric(here, beyond, wanted)
        wanted = wanted - taken[:, kind]
    return taken


def random_at_cost(
    exits: Sequence[SingleExit], cost: float, *, metric: Metric, table: ExitTable
) -> Mixture:
    """Return the best random mixture of single exits that costs at most so much in the mean, of at most two of them.

    A cost below the cheapest exit's meets the cheapest. Accuracy is linear in the shares, so that the largest share of
    the dearer exit or none is best. Other metrics may be best in between: shares in steps of 1/64 are tried too, so
    that more cost never means a lower score (but for what lies between two steps).
    """
    cost = max(cost, min(each.cost for each in exits))
    mixtures = [Mixture((each,), (1.0,)) for each in exits if each.cost <= cost]
    best = max(mixtures, key=lambda each: each.expected_score(metric, table))
    most = best.expected_score(metric, table)
    matrices = [table.confusion(each.predictions) for each in exits]
    for cheap, first in zip(exits, matrices, strict=True):
        for dear, second in zip(exits, matrices, strict=True):
            if not (cheap.cost < dear.cost and cheap.cost <= cost):
                continue
            most_dear = min(1.0, (cost - cheap.cost) / (dear.cost - cheap.cost))
            shares = np.array([most_dear])
            if metric not in ("accuracy", "balanced-accuracy"):
                steps = np.arange(1, _STEPS) / _STEPS
                shares = np.append(steps[steps < most_dear], most_dear)
            mixed = first + shares[:, None, None] * (second - first)
            scores = score(metric, mixed)
            place = int(scores.argmax())
            if scores[place] > most:
                share = float(shares[place])
                most, best = float(scores[place]), Mixture((cheap, dear), (1 - share, share))
    return best


def oracle_at_cost(exits: Sequence[SingleExit], cost: float, *, labels: NDArray[np.int64]) -> float:
    """Return the largest accuracy that picking one exit per sample can reach at a mean cost.

    Every sample starts at the cheapest exit. Making one right costs the way up to its cheapest right exit and is
    worth the same for all, so the cheapest ways are taken first; the last one in part.
    """
    base = min(each.cost for each in exits)
    extra = np.full(len(labels), np.inf)
    for each in exits:
        better = (each.predictions == labels) & (each.cost - base < extra)
        extra[better] = each.cost - base
    steps = np.sort(extra[np.isfinite(extra)])
    budget = max(cost - base, 0.0) * len(labels) * (1 + 1e-12)
    spent = np.cumsum(steps)
    affordable = int(np.searchsorted(spent, budget, side="right"))
    reached = float(affordable)
    if affordable < len(steps):
        before = float(spent[affordable - 1]) if affordable else 0.0
        reached += (budget - before) / float(steps[affordable])
    return reached / len(labels)


def oracle(tables: ExitTable | TierTables, depths: Depths, *, costs: CostModel) -> NDArray[np.int8]:
    """Return for every sample the cheapest tier that is right, mobile where none is: [n], in the order of `TIERS`."""
    tables = TierTables.of_all(tables)
    exits = [single_exit(tables, Step(tier, depths.of(tier)), costs=costs) for tier in TIERS]
    right = np.stack([each.predictions == tables.encoder.labels for each in exits], axis=1)
    price = np.where(right, [each.cost for each in exits], np.inf)
    return np.where(right.any(axis=1), price.argmin(axis=1), 0).astype(np.int8)
