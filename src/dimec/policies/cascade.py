"""dimec-cascade: from exit zero on, answer, run the next exit, go to the edge, or go to the cloud.

At every point of a sample's way the exits read so far are pooled into one calibrated confidence
(`dimec.policies.consensus`). Intervals of that confidence, from the lowest up, belong to the cloud, the edge, the next
exit here, and the answer. The cloud is left at its first exit that is sure enough by itself, so that a server needs to
know nothing of what was read before. The borders minimise on validation, at the common price,

    wrong + lambda * cost(trace)        with lambda in units of confidence,

by backward induction: from the last point to the first, each point's borders are the best ones given those after it,
found exactly with cumulative sums over the samples in order of confidence. For ``wrong`` stands the mean of what was
seen (0 or 1) and what the pool expects (1 - confidence).

On unfamiliar text exit zero is often confidently wrong. A text is *strange* if its share of words that are new to exit
zero is above that of 95 % of validation's texts. For strange texts exit zero neither answers nor counts, and the
borders are those of a cascade that does not read it.

With ``like``, each disagreement with all-cloud adds 1 to the loss, right or wrong, and in the cloud the last exit alone
may answer instead of the pool: a promise against all-cloud is easier to keep where little differs from it. A promise
need not hold where most texts are strange, so being wrong then counts ten times for these.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import EXIT_ZERO, Depths, Reading, Step, Tier
from dimec.policies.base import Calibration, Choices, Group, GroupAnswer, Policy, PolicyState, View
from dimec.policies.consensus import consensus, consensus_of_one, fit_consensus, log_opinions
from dimec.runs.exit_table import TierTables

_SWEEPS = 10
_FEWEST = 30
_ALWAYS, _NEVER = 0.0, 2.0
_FORBIDDEN = 1e3
_FAMILIAR = 0.95
_CAUTION = 10


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


class DimecCascade(Policy):
    """Send a sample as far as it takes until the exits read so far are sure together."""

    name = "dimec-cascade"
    method = "ee"
    picks = "exits"
    any_model = True
    reads_embedding = False

    def __init__(
        self, depths: Depths, points: Sequence[Point], *, unseen_limit: float = math.inf
    ) -> None:
        """Take the points, those for strange texts among them where an unseen share beyond a limit makes one strange.

        The first point's single step is where every sample starts.
        """
        super().__init__(depths)
        self.points = tuple(points)
        self.unseen_limit = unseen_limit
        self._start = self.points[0].steps[0]
        self._at = {(point.strange, point.steps): point for point in self.points}
        self._check()
        self._leaves = {at: self._leaving(point) for at, point in self._at.items()}

    def _check(self) -> None:
        """Refuse points between which a sample could get lost."""
        for point in self.points:
            onward = [(*point.steps, option) for option in point.options if option is not None]
            if (
                not point.steps
                or point.steps[0] != self._start
                or len(point.weights) != len(point.steps)
                or len(point.options) != len(point.borders) + 1
                or list(point.borders) != sorted(point.borders)
                or any((point.strange, steps) not in self._at for steps in onward)
                or None in point.options[:-1]
            ):
                raise ContractError(f"a sample would get lost at {point.steps}")
        if math.isfinite(self.unseen_limit) and (True, (self._start,)) not in self._at:
            raise ContractError("a strange text would get lost")

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Fit the pools, then the borders by backward induction; the same for strange texts, if those can be told."""
        return next(cls.fit_at([calibration.price], calibration))

    @classmethod
    def fit_at(
        cls,
        prices: Iterable[float],
        calibration: Calibration,
        *,
        like: NDArray[np.int64] | None = None,
    ) -> Iterator[Self]:
        """Fit a cascade at each price, whatever the calibration's own; the pools are fitted once for all of them.

        Each answer that differs from ``like`` [n], such as all-cloud's, counts as one more mistake, right or wrong.
        """
        depths = calibration.depths[cls.method]
        usual, strange, limit = _Tree(calibration, depths, like=like), None, math.inf
        unseen = calibration.tables.of(Tier.MOBILE).unseen
        if unseen is not None and usual.starts_at == EXIT_ZERO:
            strange = _Tree(calibration, depths, like=like, strange=True)
            limit = float(np.quantile(unseen, _FAMILIAR, method="higher"))
        for price in prices:
            unit = replace(calibration, price=price).unit
            points = usual.points(unit)
            if strange is not None:
                points += strange.points(unit if like is None else unit / _CAUTION)
            yield cls(depths, points, unseen_limit=limit)

    def decide(self, view: View) -> Step | None:
        """Look up in which interval the pooled confidence lies."""
        if not view.steps:
            return self._start
        point = self._point(view)
        if not point.borders:
            return point.options[0]
        in_cloud = point.steps[-1].tier is Tier.CLOUD
        confidence = view.readings[-1].confidence if in_cloud else max(self.pooled(view))
        return point.options[bisect_right(point.borders, confidence)]

    def decide_group(self, group: Group) -> Choices:
        """Decide for a group at once."""
        if not group.steps:
            return Choices.same(self._start, group)
        in_cloud = group.steps[-1].tier is Tier.CLOUD
        confidence = (
            group.readings[-1].confidence if in_cloud else self.pooled_group(group).max(axis=1)
        )
        options: tuple[Step | None, ...] = ()
        picks = np.empty(len(group), dtype=np.intp)
        for strange, rows in self._kinds(group):
            point = self._at[strange, group.steps]
            found = np.searchsorted(point.borders, confidence[rows], side="right")
            picks[rows] = len(options) + found
            options += point.options
        return Choices(options, picks)

    def _is_strange(self, view: View) -> bool:
        return view.unseen > self.unseen_limit  # never where it is not known: NaN

    def _point(self, view: View) -> Point:
        return self._at[self._is_strange(view), tuple(view.steps)]

    def _kinds(self, group: Group) -> Iterator[tuple[bool, NDArray[np.bool_]]]:
        """Give the kinds of text in a group, and which rows of it they are."""
        strange = np.zeros(len(group), dtype=bool)
        if group.unseen is not None:
            strange = group.unseen[group.rows] > self.unseen_limit
        for kind in (False, True):
            rows = strange == kind
            if rows.any():
                yield kind, rows

    def exit_thresholds(self, view: View, step: Step) -> Mapping[int, float]:
        """Return the borders of the cloud's exits; no other tier runs more than one at a time."""
        return self._leaves.get((self._is_strange(view), (*view.steps, step)), {})

    def _leaving(self, point: Point) -> dict[int, float]:
        found: dict[int, float] = {}
        while point.steps[-1].tier is Tier.CLOUD and point.borders:
            found[point.steps[-1].layer] = point.borders[-1]
            onward = point.options[0]
            assert onward is not None  # where there is a border, there is a way on
            point = self._at[point.strange, (*point.steps, onward)]
        return found

    def toward_cloud(self, steps: Sequence[Step]) -> Step | None:
        """Return the next step towards the cloud's last exit, whatever was read; None at that exit."""
        return self._at[False, tuple(steps)].options[0]

    @property
    def stands(self) -> tuple[tuple[Step, ...], ...]:
        """What a sample may have run, each once."""
        return tuple(dict.fromkeys(point.steps for point in self.points))

    def answer(self, view: View) -> Reading:
        """Answer with what the exits say together, in the name of the last one."""
        pooled = self.pooled(view)
        confidence = max(pooled)
        last = view.readings[-1]
        return Reading(
            last.tier, last.layer, pooled.index(confidence), confidence, np.array(pooled)
        )

    def answer_group(self, group: Group) -> GroupAnswer:
        """Answer a group at once."""
        pooled = self.pooled_group(group)
        places = np.full(len(group), len(group.readings) - 1)
        return GroupAnswer(places, pooled.argmax(axis=1), pooled.max(axis=1))

    def pooled(self, view: View) -> list[float]:
        """Return what the exits read so far say together: the classes' probabilities."""
        weights = self._point(view).weights
        return consensus_of_one([each.probabilities for each in view.readings], weights)

    def pooled_group(self, group: Group) -> NDArray[np.float64]:
        """Return `pooled` for a group: [k, classes]."""
        opinions = log_opinions(np.stack([each.probabilities for each in group.readings], axis=1))
        pooled = np.empty((len(group), opinions.shape[2]))
        for strange, rows in self._kinds(group):
            weights = np.array(self._at[strange, group.steps].weights)
            pooled[rows] = consensus(opinions[rows], weights)
        return pooled

    def endpoints(self) -> tuple[Step, ...]:
        """Return every step that may be the last one."""
        return tuple(dict.fromkeys(point.steps[-1] for point in self.points))

    def operating_point(self) -> dict[str, float]:
        """Return the pooled confidence from which each exit answers."""
        found: dict[str, float] = {}
        for point in self.points:
            if point.borders:
                last = point.steps[-1]
                found.setdefault(f"{last.tier}_{last.layer}", point.borders[-1])
        return found | ({"unseen": self.unseen_limit} if math.isfinite(self.unseen_limit) else {})

    def settings(self) -> dict[str, Any]:
        """Return the points, and the limit where there is one."""
        settings: dict[str, Any] = {"points": [plain_point(point) for point in self.points]}
        if math.isfinite(self.unseen_limit):
            settings["unseen_limit"] = self.unseen_limit
        return settings

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        points = [point_of(entry) for entry in state.settings["points"]]
        limit = float(state.settings.get("unseen_limit", math.inf))
        return cls(depths, points, unseen_limit=limit)


class _Tree:
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
    ) -> None:
        self._tables: TierTables = calibration.tables.with_exit_zero
        self._labels = self._tables.encoder.labels
        self._costs = calibration.costs
        self._depths = depths
        self._like = like
        self._strange = strange
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
        weights = np.zeros(len(steps))
        weights[first:] = fit_consensus(opinions[:, first:], self._labels)
        pooled = consensus(opinions, weights)
        label, confidence = pooled.argmax(axis=1), pooled.max(axis=1)
        wrong = ((label != self._labels) + 1 - confidence) / 2
        if self._like is not None:
            wrong += (label != self._like) / (_CAUTION if self._strange else 1)
        if len(steps) == first:
            wrong += _FORBIDDEN
        return _Node(steps, weights, self._judged(steps[-1], confidence), wrong)

    def _onward(self, last: Step) -> list[Step]:
        """Return where a sample may go from a step, the farthest first."""
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


class _Node:
    """A point being fitted."""

    def __init__(
        self,
        steps: tuple[Step, ...],
        weights: NDArray[np.float64],
        confidence: NDArray[np.float64],
        wrong: NDArray[np.float64],
    ) -> None:
        self.steps = steps
        self.weights = weights
        self.confidence = confidence
        self._by_confidence = np.argsort(confidence, kind="stable")
        self.wrong = wrong
        self.onward: list[tuple[Step, float, _Node]] = []
        self.borders = np.empty(0)
        self.here = np.ones(len(confidence), dtype=bool)

    def solve(self, unit: float) -> NDArray[np.float64]:
        """Choose the borders of this point and of all after it; return what each sample loses from here on: [n]."""
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


def plain_point(point: Point) -> dict[str, Any]:
    """Return a point as plain values."""

    def step(each: Step | None) -> list[Any] | None:
        return None if each is None else [str(each.tier), each.layer]

    return {
        "steps": [step(each) for each in point.steps],
        "weights": list(point.weights),
        "options": [step(each) for each in point.options],
        "borders": list(point.borders),
        **({"strange": True} if point.strange else {}),
    }


def point_of(entry: dict[str, Any]) -> Point:
    """Rebuild a point from its plain values."""

    def step(each: Sequence[Any]) -> Step:
        return Step(Tier(each[0]), int(each[1]))

    return Point(
        tuple(step(each) for each in entry["steps"]),
        tuple(map(float, entry["weights"])),
        tuple(None if each is None else step(each) for each in entry["options"]),
        tuple(map(float, entry["borders"])),
        bool(entry.get("strange", False)),
    )
