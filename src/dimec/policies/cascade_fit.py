"""The points of a cascade, and their fit on validation by backward induction.

The borders minimise, at the common price,

    wrong + lambda * cost(trace)        with lambda in units of confidence.

From the last point to the first, each point's borders are the best ones given those after it, found exactly with
cumulative sums over the samples in order of confidence. For ``wrong`` stands the mean of what was seen (0 or 1) and
what the pool expects (1 - confidence).

With ``like``, each disagreement with all-cloud adds 1 to the loss, right or wrong, and in the cloud the last exit alone
may answer instead of the pool: a promise against all-cloud is easier to keep where little differs from it. A promise
need not hold where most texts are strange, so being wrong then counts ten times for these.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.base import Calibration
from dimec.policies.consensus import consensus, fit_consensus, log_opinions
from dimec.runs.exit_table import TierTables

CAUTION = 10
"""How much more being wrong counts for strange texts under ``like``."""

Pools = dict[tuple[tuple[int, int], ...], NDArray[np.float64]]
"""Weights of pools, by what they hear: each exit's table and layer."""

_SWEEPS = 10
_FEWEST = 30
_ALWAYS, _NEVER = 0.0, 2.0
_FORBIDDEN = 1e3


@dataclass(frozen=True, slots=True)
class Point:
    """Where a sample may stand.

    Attributes:
        steps: The steps that lead there, each of which has been read.
        weights: How much each of these readings counts in the pool.
        options: What may be done, for the least sure samples first; None answers.
        borders: The confidence from which the next option is taken: one fewer than options, ascending. It is the
            pooled confidence, but in the cloud that of its last exit alone.
        strange: Whether it is there for strange texts.
    """

    steps: tuple[Step, ...]
    weights: tuple[float, ...]
    options: tuple[Step | None, ...]
    borders: tuple[float, ...]
    strange: bool = False


class PointTree:
    """The tree of points over a validation split, each with what it says of every sample.

    For strange texts exit zero is read, since every text's is, but weighs nothing and cannot answer.
    """

    def __init__(
        self,
        calibration: Calibration,
        depths: Depths,
        *,
        like: NDArray[np.int64] | None,
        strange: bool = False,
        pools: Pools | None = None,
    ) -> None:
        """Grow the tree, for texts as usual or for strange ones; ``pools`` keeps weights for other trees."""
        self._tables: TierTables = calibration.tables.with_exit_zero
        self._labels = self._tables.encoder.labels
        self._costs = calibration.costs
        self._depths = depths
        self._like = like
        self._strange = strange
        self._pools: Pools = {} if pools is None else pools
        self._nodes: list[_Node] = []
        self.starts_at = Step(Tier.MOBILE, self._tables.of(Tier.MOBILE).layers[0])
        self._root = self._grow((self.starts_at,))

    def _grow(self, steps: tuple[Step, ...]) -> _Node:
        """Make the point that steps lead to, and all that follow it."""
        opinions = np.stack([self._opinion(step) for step in steps], axis=1)
        first = int(self._strange)
        node = self._node(steps, opinions, first)
        if self._like is not None and steps[-1].tier is Tier.CLOUD:
            # A pool is a little better than its last exit, and answers otherwise now and then.
            alone = self._node(steps, opinions, len(steps) - 1)
            node = min(node, alone, key=lambda each: float(each.wrong.mean()))
        self._nodes.append(node)
        paid = self._costs.of(steps)
        for step in self._onward(steps[-1]):
            cost = self._costs.of([*steps, step]) - paid
            node.onward.append((step, cost, self._grow((*steps, step))))
        return node

    def _node(self, steps: tuple[Step, ...], opinions: NDArray[np.float64], first: int) -> _Node:
        """Make a point where the readings from the ``first`` one on are heard."""
        heard = tuple((id(self._tables.of(step.tier)), step.layer) for step in steps[first:])
        if heard not in self._pools:
            self._pools[heard] = fit_consensus(opinions[:, first:], self._labels)
        weights = np.zeros(len(steps))
        weights[first:] = self._pools[heard]
        pooled = consensus(opinions, weights)
        label, confidence = pooled.argmax(axis=1), pooled.max(axis=1)
        wrong = ((label != self._labels) + 1 - confidence) / 2
        if self._like is not None:
            wrong += (label != self._like) / (CAUTION if self._strange else 1)
        if len(steps) == first:
            wrong += _FORBIDDEN
        return _Node(steps, weights, self._judged(steps[-1], confidence), wrong)

    def _onward(self, last: Step) -> list[Step]:
        """Return where a sample may go from a step, the farthest first."""
        if self._depths.device_alone:
            return self._deeper(Tier.MOBILE, last)[:1]
        onward = self._deeper(Tier.CLOUD, last)[:1]
        if last.tier is Tier.MOBILE:
            onward += self._deeper(Tier.EDGE, last)[-1:]
            onward += self._deeper(Tier.MOBILE, last)[:1]
        return onward

    def _deeper(self, tier: Tier, last: Step) -> list[Step]:
        """Return a tier's exits beyond the layer that was read last: those before it say nothing new."""
        depth = self._depths.of(tier)
        found = [
            Step(tier, each) for each in self._tables.of(tier).layers if last.layer < each <= depth
        ]
        # A tier with a model of its own may end before that layer, and know something else all the same.
        return found or ([] if tier is last.tier else [Step(tier, depth)])

    def _judged(self, step: Step, pooled: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the confidence that is held against the borders after a step."""
        if step.tier is not Tier.CLOUD:
            return pooled
        table = self._tables.of(Tier.CLOUD)
        return table.confidence[:, table.exit(step.layer)]

    def _opinion(self, step: Step) -> NDArray[np.float64]:
        table = self._tables.of(step.tier)
        return log_opinions(table.probabilities[:, table.exit(step.layer)])

    def points(self, unit: float) -> list[Point]:
        """Return the points with the best borders found where lambda is worth ``unit`` in confidence."""
        for node in self._nodes:
            node.here = np.ones(len(self._labels), dtype=bool)
        best, least = self._points_now(), np.inf
        for _ in range(_SWEEPS):
            loss = float(self._root.solve(unit).mean())
            if loss >= least - 1e-12:
                break
            best, least = self._points_now(), loss
            self._root.arrive(np.ones(len(self._labels), dtype=bool))
        return best

    def _points_now(self) -> list[Point]:
        return [node.point(strange=self._strange) for node in self._nodes]


@dataclass(eq=False)
class _Node:
    """A point being fitted."""

    steps: tuple[Step, ...]
    weights: NDArray[np.float64]
    confidence: NDArray[np.float64]
    wrong: NDArray[np.float64]
    onward: list[tuple[Step, float, _Node]] = field(default_factory=list)
    borders: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        self._by_confidence = np.argsort(self.confidence, kind="stable")
        self.here = np.ones(len(self.confidence), dtype=bool)

    def solve(self, unit: float) -> NDArray[np.float64]:
        """Choose the borders of this point and of all after it; return what each sample loses from here on: [n]."""
        if not self.onward:
            return self.wrong
        onward = (unit * cost + node.solve(unit) for _, cost, node in self.onward)
        losses = np.stack([*onward, self.wrong])
        who = self.here if self.here.sum() >= _FEWEST else np.ones_like(self.here)
        who = self._by_confidence[who[self._by_confidence]]  # in order already: quick to sort
        self.borders = best_borders(self.confidence[who], losses[:, who])
        return losses[self._picks(), np.arange(losses.shape[1])]

    def arrive(self, here: NDArray[np.bool_]) -> None:
        """Note which samples come here, and pass them on."""
        self.here = here
        picks = self._picks()
        for place, (_, _, node) in enumerate(self.onward):
            node.arrive(here & (picks == place))

    def _picks(self) -> NDArray[np.intp]:
        return np.searchsorted(self.borders, self.confidence, side="right")

    def point(self, *, strange: bool) -> Point:
        """Return the point as it stands."""
        options = (*(step for step, _, _ in self.onward), None)
        weights, borders = tuple(self.weights.tolist()), tuple(self.borders.tolist())
        return Point(self.steps, weights, options, borders, strange)


def best_borders(
    confidence: NDArray[np.float64], losses: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Cut the axis of confidence into one interval per option, in their order, at the least total loss.

    Args:
        confidence: [n].
        losses: [options, n], what each sample would lose with each option.

    Returns:
        [options - 1] ascending: from which confidence on the next option is taken.
    """
    order = np.argsort(confidence, kind="stable")
    ranked = confidence[order]
    n = len(ranked)
    # A cut between equal confidences is no cut.
    legal = np.concatenate([[True], ranked[1:] > ranked[:-1], [True]])
    sums = np.concatenate([np.zeros((len(losses), 1)), losses[:, order].cumsum(axis=1)], axis=1)
    total, cuts = sums[0], []
    for own in sums[1:]:
        # The best place to begin this option among those up to each sample.
        gain = np.where(legal, total - own, np.inf)
        least = np.minimum.accumulate(gain)
        at = np.where(gain <= least, np.arange(n + 1), 0)
        cuts.append(np.maximum.accumulate(at))
        total = least + own
    places, end = [], n
    for cut in reversed(cuts):
        end = int(cut[end])
        places.append(end)
    return np.array([_border(ranked, place) for place in reversed(places)])


def _border(ranked: NDArray[np.float64], place: int) -> float:
    if place == 0:
        return _ALWAYS
    return _NEVER if place == len(ranked) else float(ranked[place - 1 : place + 1].mean())
