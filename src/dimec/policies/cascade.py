"""dimec-cascade: from exit zero on, answer, run the next exit, go to the edge, or go to the cloud.

At every point of a sample's way the exits read so far are pooled into one calibrated confidence
(`dimec.policies.consensus`). Intervals of that confidence, from the lowest up, belong to the cloud, the edge, the next
exit here, and the answer. The cloud is left at its first exit that is sure enough by itself, so that a server needs to
know nothing of what was read before. `dimec.policies.cascade_fit` chooses the borders of the intervals.

On unfamiliar text exit zero is often confidently wrong. A text is *strange* if its share of words that are new to exit
zero is above that of 95 % of validation's texts. For strange texts exit zero neither answers nor counts, and the
borders are those of a cascade that does not read it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import EXIT_ZERO, Depths, Reading, Step, Tier
from dimec.policies.base import (
    Calibration,
    Choices,
    Group,
    GroupAnswer,
    Groups,
    Policy,
    PolicyState,
    View,
)
from dimec.policies.cascade_fit import CAUTION, Point, PointTree, Pools
from dimec.policies.consensus import consensus_of_one, fit_consensus, log_opinions, normalised
from dimec.runs.exit_table import TierTables

_FAMILIAR = 0.95


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
        self._abreast = _Abreast(self.points)

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
                raise ContractError(f"the cascade has no way on from {point.steps}")
        if math.isfinite(self.unseen_limit) and (True, (self._start,)) not in self._at:
            raise ContractError("the cascade has no points for strange texts")

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
        pools: Pools | None = None,
    ) -> Iterator[Self]:
        """Fit a cascade at each price, whatever the calibration's own; the pools are fitted once for all of them.

        Each answer that differs from ``like`` [n], such as all-cloud's, counts as one more mistake, right or wrong.
        Rows count by the calibration's weights, also for which texts are strange.
        ``pools`` keeps what was fitted for fits at other depths on the same tables.
        """
        depths = calibration.depths[cls.method]
        pools = {} if pools is None else pools
        usual = PointTree(calibration, depths, like=like, pools=pools)
        strange, limit = None, math.inf
        unseen = calibration.tables.of(Tier.MOBILE).unseen
        if unseen is not None and usual.starts_at == EXIT_ZERO:
            strange = PointTree(calibration, depths, like=like, strange=True, pools=pools)
            limit = _limit(unseen, calibration.weights)
        units = [replace(calibration, price=price).unit for price in prices]
        found = usual.points(units)
        if strange is not None:
            apart = strange.points([unit if like is None else unit / CAUTION for unit in units])
            found = [one + two for one, two in zip(found, apart, strict=True)]
        for points in found:
            yield cls(depths, points, unseen_limit=limit)

    @classmethod
    def always(
        cls,
        step: Step,
        depths: Depths,
        tables: TierTables,
        *,
        shares: NDArray[np.float64] | None = None,
    ) -> Self:
        """Return the cascade that answers everything after one step, its confidence calibrated like any other.

        ``shares`` are those of `fit_consensus`.
        """
        table = tables.of(step.tier)
        opinions = log_opinions(table.probabilities[:, [table.exit(step.layer)]])
        # A weight of zero would know no label: where validation gives none, the exit is taken at its word.
        weights = np.where(
            (found := fit_consensus(opinions, table.labels, shares=shares)) > 0, found, 1.0
        )
        return cls(depths, [Point((step,), tuple(weights.tolist()), (None,), ())])

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
        return self.decide_groups(_alone(group))

    def decide_groups(self, groups: Groups) -> Choices:
        """Decide for several groups at once."""
        if groups.ways == ((),):
            return Choices((self._start,), np.zeros(len(groups), dtype=np.intp))
        points = self._points(groups)
        confidence = self._pooled(groups, points).max(axis=1)
        for index, steps in enumerate(groups.ways):
            if steps and steps[-1].tier is Tier.CLOUD:
                here = groups.way == index
                confidence[here] = groups.said[steps[-1]][groups.rows[here]].max(axis=1)
        return self._abreast.choose(points, confidence)

    def _is_strange(self, view: View) -> bool:
        return view.unseen > self.unseen_limit  # never where it is not known: NaN

    def _point(self, view: View) -> Point:
        return self._at[self._is_strange(view), tuple(view.steps)]

    def _points(self, groups: Groups) -> NDArray[np.intp]:
        """Return the places of the points at which samples stand: [k]."""
        strange = np.zeros(len(groups), dtype=np.intp)
        if groups.unseen is not None:
            strange = (groups.unseen[groups.rows] > self.unseen_limit).astype(np.intp)
        of = [
            [self._abreast.place.get((kind, each), -1) for each in groups.ways]
            for kind in (False, True)
        ]
        found: NDArray[np.intp] = np.array(of, dtype=np.intp)[strange, groups.way]
        if (found < 0).any():
            raise ContractError("a sample stands where the cascade has no point")
        return found

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
        return self.answer_groups(_alone(group))

    def answer_groups(self, groups: Groups) -> GroupAnswer:
        """Answer several groups at once."""
        pooled = self._pooled(groups, self._points(groups))
        places = np.array([len(steps) - 1 for steps in groups.ways])[groups.way]
        return GroupAnswer(places, pooled.argmax(axis=1), pooled.max(axis=1), pooled)

    def pooled(self, view: View) -> list[float]:
        """Return what the exits read so far say together: the classes' probabilities."""
        weights = self._point(view).weights
        return consensus_of_one([each.probabilities for each in view.readings], weights)

    def _pooled(self, groups: Groups, points: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return `pooled` for several groups, whose samples stand at points: [k, classes]."""
        read = dict.fromkeys(step for steps in groups.ways for step in steps)
        return self._abreast.pool(points, {step: groups.said[step][groups.rows] for step in read})

    def fresh(self) -> Self:
        """Return itself: no stream changes it."""
        return self

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


class _Abreast:
    """The points of a cascade as arrays, one row a point, so that samples at different points are decided together.

    The last row is where every sample begins.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        self.place = {(point.strange, point.steps): row for row, point in enumerate(points)}
        self.place |= {(strange, ()): len(points) for strange in (False, True)}
        steps = dict.fromkeys(step for point in points for step in point.steps)
        self._column = {step: column for column, step in enumerate(steps)}
        self._weights = np.zeros((len(points) + 1, len(steps)))
        most = max(len(each.borders) for each in points)
        self._borders = np.full((len(points) + 1, most), np.inf)
        for row, point in enumerate(points):
            columns = [self._column[step] for step in point.steps]
            self._weights[row, columns] = point.weights
            self._borders[row, : len(point.borders)] = point.borders
        options: list[Step | None] = [option for point in points for option in point.options]
        self._options = (*options, points[0].steps[0])
        counts = [len(point.options) for point in points] + [1]
        self._first = np.cumsum(counts) - counts

    def choose(self, points: NDArray[np.intp], confidence: NDArray[np.float64]) -> Choices:
        """Look up in which interval of its point each confidence lies: both [k]."""
        passed = (confidence[:, None] >= self._borders[points]).sum(axis=1)
        return Choices(self._options, self._first[points] + passed)

    def pool(
        self, points: NDArray[np.intp], said: Mapping[Step, NDArray[np.float64]]
    ) -> NDArray[np.float64]:
        """Pool by the points' weights what exits have said, each [k, classes]: returns [k, classes]."""
        pooled = np.zeros(next(iter(said.values())).shape)
        for step, probabilities in said.items():
            weights = self._weights[points, self._column[step], None]
            opinions = log_opinions(probabilities)
            pooled += np.where(weights != 0, weights * opinions, 0.0)  # NaN where it was not read
        return normalised(pooled)


def _alone(group: Group) -> Groups:
    """Return a group as the only one of several."""
    said = {
        step: reading.probabilities
        for step, reading in zip(group.steps, group.readings, strict=True)
    }
    unseen = None if group.unseen is None else group.unseen[group.rows]
    everyone = np.arange(len(group))
    return Groups(group.stream, everyone, (group.steps,), np.zeros_like(everyone), said, unseen)


def _limit(unseen: NDArray[np.float32], weights: NDArray[np.float64] | None) -> float:
    """Return the share of new words that 95 % of texts do not exceed."""
    if weights is None:
        return float(np.quantile(unseen, _FAMILIAR, method="higher"))
    return float(np.quantile(unseen, _FAMILIAR, method="inverted_cdf", weights=weights))


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
