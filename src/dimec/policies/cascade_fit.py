"""The points of a cascade, and their fit on validation by backward induction.

The borders minimise, at the common price,

    wrong + lambda * cost(trace)        with lambda in units of confidence.

From the last point to the first, each point's borders are the best ones given those after it, found exactly with
cumulative sums over the samples in order of confidence. For ``wrong`` stands the mean of what was seen (0 or 1) and
what the pool expects (1 - confidence).

With ``like``, each disagreement with all-cloud adds 1 to the loss, right or wrong, and in the cloud the last exit alone
may answer instead of the pool: a promise against all-cloud is easier to keep where little differs from it. A promise
need not hold where most texts are strange, so being wrong then counts ten times for these.

Where rows have weights, each row's loss is multiplied by its own, in the pools' log loss too: the sum is then the loss
to expect on texts that come as often as the weights say, and the induction stays exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import Depths, Step, Tier
from dimec.policies.base import Calibration
from dimec.policies.consensus import consensus, fit_consensus, log_opinions
from dimec.runs.exit_table import TierTables

CAUTION = 10  # how much more being wrong counts for strange texts under ``like``

Pools = dict[tuple[tuple[int, int], ...], NDArray[np.float64]]
"""Weights of pools, by what they hear: each exit's table and layer."""

_SWEEPS = 10
_FEWEST = 30
_AT_ONCE = 40_000
"""How many samples times worths of lambda are solved for at once: what the processor's cache holds."""
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
        self._shares = calibration.shares
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
            self._pools[heard] = fit_consensus(
                opinions[:, first:], self._labels, shares=self._shares
            )
        weights = np.zeros(len(steps))
        weights[first:] = self._pools[heard]
        pooled = consensus(opinions, weights)
        label, confidence = pooled.argmax(axis=1), pooled.max(axis=1)
        wrong = ((label != self._labels) + 1 - confidence) / 2
        if steps[-1].tier is Tier.CLOUD:  # whose borders are of the last exit alone
            table = self._tables.of(Tier.CLOUD)
            confidence = table.confidence[:, table.exit(steps[-1].layer)]
        if self._like is not None:
            wrong += (label != self._like) / (CAUTION if self._strange else 1)
        if len(steps) == first:
            wrong += _FORBIDDEN
        counts = 1.0 if self._shares is None else self._shares * len(wrong)
        return _Node(steps, weights, confidence, wrong * counts, counts)

    def _onward(self, last: Step) -> list[Step]:
        """Return where a sample may go from a step, the farthest first."""
        if self._depths.device_alone:
            return self._deeper(Tier.MOBILE, last)[:1]
        onward = self._deeper(Tier.CLOUD, last)
        onward = onward[-1:] if self._depths.cloud_model else onward[:1]
        if last.tier is Tier.MOBILE:
            own = self._tables.of(Tier.EDGE) is not self._tables.of(Tier.MOBILE)
            if own or self._depths.edge > self._depths.mobile:  # else it knows nothing else
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

    def _opinion(self, step: Step) -> NDArray[np.float64]:
        table = self._tables.of(step.tier)
        return log_opinions(table.probabilities[:, table.exit(step.layer)])

    def points(self, units: Sequence[float]) -> list[list[Point]]:
        """Return the points with the best borders found, for each worth of lambda in units of confidence."""
        n = len(self._labels)
        at_once = max(1, _AT_ONCE // max(1, n))
        blocks = (units[start : start + at_once] for start in range(0, len(units), at_once))
        return [points for block in blocks for points in self._points_at(np.array(block))]

    def _points_at(self, units: NDArray[np.float64]) -> list[list[Point]]:
        for node in self._nodes:
            node.here = np.ones((len(units), len(self._labels)), dtype=bool)
        best: list[list[Point]] = [[] for _ in units]
        least = np.full(len(units), np.inf)
        going = np.arange(len(units))  # those whose loss still falls
        for _ in range(_SWEEPS):
            loss = self._root.solve(units[going]).mean(axis=1)
            falls = loss < least[going] - 1e-12
            going, loss = going[falls], loss[falls]
            if not len(going):
                break
            least[going] = loss
            for node in self._nodes:
                node.keep(falls)
            for place, unit in enumerate(going):
                best[unit] = [node.point(place, strange=self._strange) for node in self._nodes]
            self._root.arrive(np.ones((len(going), len(self._labels)), dtype=bool))
        return best


@dataclass(eq=False)
class _Node:
    """A point being fitted, at several worths of lambda at once."""

    steps: tuple[Step, ...]
    weights: NDArray[np.float64]
    confidence: NDArray[np.float64]
    wrong: NDArray[np.float64]
    counts: NDArray[np.float64] | float  # how much each row counts, in `wrong` too
    onward: list[tuple[Step, float, _Node]] = field(default_factory=list)
    borders: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    here: NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, 0), dtype=bool))

    def __post_init__(self) -> None:
        self._by_confidence = np.argsort(self.confidence, kind="stable")

    def solve(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
        """Choose the borders of this point and of all after it; return what each sample loses from here: [units, n]."""
        size = len(units), len(self.wrong)
        if not self.onward:
            return np.broadcast_to(self.wrong, size)
        losses = np.empty((len(self.onward) + 1, *size))
        for own, (_, cost, node) in zip(losses, self.onward, strict=False):
            np.add((units * cost)[:, None] * self.counts, node.solve(units), out=own)
        losses[-1] = self.wrong
        here = self.here | (self.here.sum(axis=1) < _FEWEST)[:, None]
        order = self._by_confidence
        order = order[here.any(axis=0)[order]]
        self.borders = best_borders(
            self.confidence[order], losses.take(order, axis=2), here.take(order, axis=1)
        )
        found: NDArray[np.float64] = losses[-1]
        for own, border in zip(losses[-2::-1], self.borders.T[::-1], strict=True):
            found = np.where(self.confidence < border[:, None], own, found)
        return found

    def arrive(self, here: NDArray[np.bool_]) -> None:
        """Note which samples come here, [units, n], and pass them on."""
        self.here = here
        if not self.onward:
            return
        picks = np.zeros(here.shape, dtype=np.intp)
        for border in self.borders.T:
            picks += self.confidence >= border[:, None]
        for place, (_, _, node) in enumerate(self.onward):
            node.arrive(here & (picks == place))

    def keep(self, units: NDArray[np.bool_]) -> None:
        """Forget the borders at the other worths of lambda."""
        if self.onward:
            self.borders = self.borders[units]

    def point(self, place: int, *, strange: bool) -> Point:
        """Return the point as it stands at one worth of lambda."""
        options = (*(step for step, _, _ in self.onward), None)
        borders = tuple(self.borders[place].tolist()) if self.onward else ()
        return Point(self.steps, tuple(self.weights.tolist()), options, borders, strange)


def best_borders(
    ranked: NDArray[np.float64], losses: NDArray[np.float64], here: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Cut the axis of confidence into one interval per option, in their order, at the least total loss.

    Args:
        ranked: [n], the samples' confidence, ascending.
        losses: [options, units, n], what each loses with each option at several worths of lambda; overwritten.
        here: [units, n], which samples count; some do in every row.

    Returns:
        [units, options - 1] ascending: from which confidence on the next option is taken.
    """
    options, units, n = losses.shape
    sums = np.zeros((options, units, n + 1))
    # The samples that count on both sides of a cut. One between equal confidences is no cut.
    ends = 1 if here.all() else units
    below, above = np.full((ends, n + 1), -np.inf), np.full((ends, n + 1), np.inf)
    if ends == 1:
        np.cumsum(losses, axis=2, out=sums[..., 1:])
        below[:, 1:] = above[:, :-1] = ranked
    else:
        np.cumsum(np.multiply(losses, here, out=losses), axis=2, out=sums[..., 1:])
        below[:, 1:] = np.maximum.accumulate(np.where(here, ranked, -np.inf), axis=1)
        shown = np.where(here, ranked, np.inf)[:, ::-1]
        above[:, :-1] = np.minimum.accumulate(shown, axis=1)[:, ::-1]
    no_cut = np.broadcast_to(below == above, (units, n + 1))
    total, gains = sums[0], []
    for own in sums[1:]:
        gain = total - own
        gain[no_cut] = np.inf
        gains.append(gain)
        if len(gains) < options - 1:
            total = np.minimum.accumulate(gain, axis=1) + own
    at, end = np.arange(units) % ends, np.full(units, n)
    borders = np.empty((units, options - 1))
    for option in reversed(range(options - 1)):
        # The best place to begin this option among those up to where the next one begins, the last of equals.
        gain = gains[option]
        if option < options - 2:
            gain[np.arange(n + 1) > end[:, None]] = np.inf
        end = n - gain[:, ::-1].argmin(axis=1)
        low, high = below[at, end], above[at, end]
        with np.errstate(invalid="ignore"):
            between = (low + high) / 2
        borders[:, option] = np.where(
            np.isneginf(low), _ALWAYS, np.where(np.isposinf(high), _NEVER, between)
        )
    return borders
