"""dimec-guarded: dimec-cascade that watches its own promise on the stream, without labels.

It holds a ladder of cascades, fitted at the chosen price and at lower ones, with all-cloud as the last rung.

*Audits.* A small random share of all samples runs as a rung wants it and then in the cloud as well, and is answered by
all-cloud. How often the rung's answer differs from the cloud's is an unbiased estimate of its disagreement with
all-cloud, and accuracy cannot drop by more than that. Allowed is what validation had at the chosen price, and some
slack. While a safer rung is played, every second audit asks about the rung below it.

*Drift.* The pooled confidence at every point is held against what validation had there, and so is the share of words
that are new to exit zero, which may rise where confidence stays.

Both are tests by betting (`dimec.policies.betting`), valid however long the stream is and whenever one looks. An alarm
moves one rung up, and confidence as it is from then on is the new normal. After a drift audits are more frequent for a
while. The policy goes down a rung once audits of the rung below have shown that it keeps within what is allowed.

*Recalibration*, if switched on: audits refit one scale of the pooled log-odds towards the cloud's labels, relative to
the scale that fits validation and never above 1, so that it only lowers confidence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.guard_settings import GUARDED, GuardSettings
from dimec.core.tiers import EXIT_ZERO, Depths, Reading, Step, Tier
from dimec.policies.base import Calibration, Policy, PolicyState, View
from dimec.policies.betting import FEWEST, FRACTIONS, UP, bet, drifts, total, wilson
from dimec.policies.cascade import DimecCascade
from dimec.policies.consensus import log_opinions
from dimec.policies.replay import walk_groups
from dimec.runs.exit_table import TierTables

SCALES = np.geomspace(0.1, 5.0, 40)  # what log-odds are multiplied by to see what fits

_PRIOR = 20.0
_FORGETS = 0.995
_CALM, _DRIFT, _AUDITS = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Rung:
    """One step of the ladder."""

    cascade: DimecCascade
    disagreement: (
        float  # on validation: the share of samples that it answers otherwise than all-cloud
    )


class DimecGuarded(Policy):
    """Play a cascade, audit it, watch for drift, and play a safer one where its promise is in danger."""

    name = GUARDED
    method = "ee"
    picks = "exits"
    any_model = True
    reads_embedding = False
    learns = True

    def __init__(
        self,
        depths: Depths,
        *,
        rungs: Sequence[Rung],
        allowed: float,
        reference: NDArray[np.float64],
        own_scale: float,
        settings: GuardSettings,
    ) -> None:
        """Take the ladder, from the chosen price to all-cloud, and what validation had.

        Args:
            allowed: The share of answers that may differ from all-cloud's.
            reference: [rungs, points + 1, 3], as in `_Validation`: of each point, last of the words.
            own_scale: The scale of log-odds that fits the cloud's labels on validation.
        """
        super().__init__(depths)
        self.rungs = tuple(rungs)
        self.allowed = min(max(allowed, 1e-4), 1 - 1e-4)
        self.guard = settings
        self._own_scale = own_scale
        self._reference = reference
        first = self.rungs[0].cascade
        self._points = first.stands
        self._words = len(self._points)
        self._place = {steps: place for place, steps in enumerate(self._points)}
        self._cloud = Step(Tier.CLOUD, depths.cloud)
        n, watched = reference.shape[:2]
        self._n_watched = max(1, int((reference[..., 0] >= FEWEST).sum(axis=1).max()))
        self._learnt: dict[str, NDArray[Any]] = {
            "rung": np.zeros(1, np.int64),
            "started": np.zeros(1, np.int64),
            "seen": np.zeros(1, np.int64),
            "alarms": np.zeros(3, np.int64),  # by drift, by audits, returns
            "cause": np.zeros(5, np.int64),  # kind, place in the reference, side, audits, differing
            "suspicion": np.zeros(1, np.int64),
            "reference": reference.copy(),
            "drift": np.zeros((n, watched, 2, len(FRACTIONS))),
            "danger": np.zeros((n, len(FRACTIONS))),
            "safety": np.zeros((n, len(FRACTIONS))),
            "audits": np.zeros((n, 2), np.int64),  # all, and those that differ
            "audited": np.zeros(2, np.int64),  # the same over all rungs and moves
            "loss": np.zeros((n, 2)),  # sums of the expected drop and of its square
            "fit": np.zeros(len(SCALES)),
        }
        self.scale = 1.0  # of the pooled log-odds; below 1 where audits have shown that they promise too much
        self._played: tuple[DimecCascade, ...] = tuple(rung.cascade for rung in self.rungs)

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Fit a cascade for every rung, and note what validation had."""
        prices = [share * calibration.price for share in calibration.guard.ladder]
        return cls.over([*DimecCascade.fit_at(prices, calibration)], calibration)

    @classmethod
    def over(cls, cascades: Sequence[DimecCascade], calibration: Calibration) -> Self:
        """Guard fitted cascades: the one to be played, then safer ones, which are kept as far as they protect."""
        depths, settings = calibration.depths[cls.method], calibration.guard
        tables = calibration.tables.with_exit_zero
        place = {steps: index for index, steps in enumerate(cascades[0].stands)}
        cloud = Step(Tier.CLOUD, depths.cloud)
        *own, last = (
            _validated(cascade, tables, calibration, place=place)
            for cascade in (*cascades, DimecCascade.always(cloud, depths, tables))
        )
        if settings.seed is None:
            settings = replace(settings, seed=calibration.seed)
        kept = own[:1]
        for rung in own[1:]:
            # A rung protects only where it is cheaper than all-cloud and differs from it less than the rung before.
            if rung.cost < last.cost and rung.rung.disagreement < kept[-1].rung.disagreement:
                kept.append(rung)
        kept.append(last)
        return cls(
            depths,
            rungs=[rung.rung for rung in kept],
            allowed=own[0].rung.disagreement + settings.slack,
            reference=np.stack([rung.reference for rung in kept]),
            own_scale=float(SCALES[own[0].fit.argmin()]),
            settings=settings,
        )

    @property
    def rung(self) -> int:
        """Which rung is played: 0 is the chosen price's, the last one all-cloud."""
        return int(self._learnt["rung"][0])

    def decide(self, view: View) -> Step | None:
        """Draw whether a new sample is audited; then do what its rung wants, and go to the cloud after an audit."""
        if not view.steps:
            rung, audited = self._draw()
            first = self._played[rung].points[0].steps[0]
            return replace(first, arm=2 * rung + audited)
        rung, audited = self._noted(view.steps)
        step = self._played[rung].decide(view)
        return self._played[rung].toward_cloud(view.steps) if step is None and audited else step

    def exit_thresholds(self, view: View, step: Step) -> Mapping[int, float]:
        """Return those of the sample's rung; an audit runs to the cloud's last exit."""
        rung, audited = self._noted([*view.steps, step])
        return {} if audited else self._played[rung].exit_thresholds(view, step)

    def answer(self, view: View) -> Reading:
        """Answer as the sample's rung does; after an audit as all-cloud does."""
        rung, audited = self._noted(view.steps)
        if audited:
            view = View([self._cloud], view.readings[-1:], embedding=view.embedding)
            return self._played[-1].answer(view)
        return self._played[rung].answer(view)

    def _draw(self) -> tuple[int, bool]:
        """Return a new sample's rung, and whether it is audited."""
        own, started = self.guard, int(self._learnt["started"][0])
        self._learnt["started"][0] += 1
        rate = own.audit_rate * (own.boost if self._learnt["suspicion"][0] else 1.0)
        draw = _uniform(own.seed or 0, started)
        if draw >= rate:
            return self.rung, False
        # The last rung has nothing to be audited for; on those between, the rung below gets every second audit.
        last = len(self.rungs) - 1
        below = self.rung > 0 and (self.rung == last or draw < rate / 2)
        return self.rung - below, True

    @staticmethod
    def _noted(steps: Sequence[Step]) -> tuple[int, bool]:
        arm = steps[0].arm
        assert arm is not None  # every first step of this policy carries it
        return arm // 2, bool(arm % 2)

    def learn(self, view: View) -> None:
        """Take note of an answered sample, and move where there is reason to."""
        self._learnt["seen"][0] += 1
        rung, audited = self._noted(view.steps)
        local = self._local(view, rung) if audited else view
        if rung == self.rung:
            self._watch(local, rung)
        if audited:
            self._audit(view, local, rung)

    def _local(self, view: View, rung: int) -> View:
        """Return a sample as its rung alone would have left it, without the audit's steps to the cloud."""
        for end in range(1, len(view.steps)):
            told = view.up_to(end)
            if self._played[rung].decide(told) is None:
                return told
        return view

    def _watch(self, view: View, rung: int) -> None:
        """Hold the words and the confidence at every point against the reference, up to an alarm."""
        cascade = self.rungs[rung].cascade
        if not math.isnan(view.unseen) and self._drifts(rung, self._words, view.unseen):
            return
        for told in _before_the_cloud(view):
            place = self._place[tuple(told.steps)]
            if self._drifts(rung, place, max(cascade.pooled(told))):
                return

    def _drifts(self, rung: int, place: int, value: float) -> bool:
        """Hold a value against its place in the reference, and move up where its mean is another one."""
        learnt, own = self._learnt, self.guard
        side = drifts(
            value,
            learnt["reference"][rung, place],
            learnt["drift"][rung, place],
            validation=self._reference[rung, place, 0],
            limit=math.log(2 * self._n_watched * own.drift_run),
            falls=place != self._words,  # fewer new words than validation had endanger nothing
        )
        if side is None:
            return False
        learnt["cause"][:] = _DRIFT, place, side, 0, 0
        learnt["alarms"][0] += 1
        learnt["suspicion"][0] = own.suspects
        self._move(rung + 1)
        return True

    def _audit(self, view: View, local: View, rung: int) -> None:
        """Count an audit, and see what follows."""
        learnt, own = self._learnt, self.guard
        cascade = self._played[rung]
        ours = cascade.answer(local).label
        theirs = view.readings[-1].label
        assert view.readings[-1].tier is Tier.CLOUD
        differs = ours != theirs
        believed = cascade.pooled(view)
        loss = believed[theirs] - believed[ours]
        learnt["audits"][rung] += 1, differs
        learnt["audited"] += 1, differs
        learnt["loss"][rung] += loss, loss * loss
        if learnt["suspicion"][0]:
            learnt["suspicion"][0] -= 1
        bet(learnt["danger"][rung], float(differs), self.allowed, self.allowed, top_up=True)
        bet(learnt["safety"][rung], float(differs), self.allowed, self.allowed - 1, top_up=False)
        if own.recalibrates:
            self._recalibrate(local, theirs)
        if rung == self.rung and total(learnt["danger"][rung]) >= math.log(own.audit_run):
            n, differing = learnt["audits"][rung].tolist()
            learnt["cause"][:] = _AUDITS, 0, 0, n, differing
            learnt["alarms"][1] += 1
            self._move(rung + 1)
        elif rung < self.rung and total(learnt["safety"][rung]) >= -math.log(own.relief):
            learnt["alarms"][2] += 1
            learnt["suspicion"][0] = 0
            if rung == 0:
                learnt["cause"][:] = 0
            self._move(rung)

    def _move(self, rung: int) -> None:
        """Play another rung; its evidence and that of the rung below, and what is normal on it, start afresh."""
        learnt = self._learnt
        learnt["rung"][0] = rung
        learnt["reference"][rung] = 0.0
        for kind in ("drift", "danger", "safety", "audits", "loss"):
            learnt[kind][max(rung - 1, 0) : rung + 1] = 0

    def _recalibrate(self, local: View, theirs: int) -> None:
        """Add what the scales lose on an audited sample, and play at the best one."""
        fit, first = self._learnt["fit"], self.rungs[0].cascade
        fit *= _FORGETS
        for told in _before_the_cloud(local):
            fit += _log_losses(np.array([first.pooled(told)]), np.array([theirs]))
        before = self.scale
        self._rescale()
        if self.scale != before:
            # Other samples come to the points after the first from now on.
            self._learnt["reference"][:, 1 : self._words] = 0.0

    def _rescale(self) -> None:
        """Play at the scale that fits best what was learnt."""
        penalty = _PRIOR * np.log(SCALES / self._own_scale) ** 2
        found = float(SCALES[(self._learnt["fit"] + penalty).argmin()]) / self._own_scale
        scale = min(found, 1.0) if self.guard.recalibrates else 1.0
        if scale != self.scale:
            self.scale = scale
            self._played = tuple(_scaled(rung.cascade, scale) for rung in self.rungs)

    def alarm(self) -> str | None:
        """Say which danger it has moved away from; None on the chosen price's rung."""
        if not self.rung:
            return None
        kind, place, side, n, differing = self._learnt["cause"].tolist()
        if kind == _DRIFT and place == self._words:
            why = "more words are new to exit zero than validation had"
        elif kind == _DRIFT:
            last = self._points[place][-1]
            where = "exit zero" if last.layer == 0 else f"the {last.tier} exit {last.layer}"
            way = "above" if side == UP else "below"
            why = f"confidence at {where} has drifted {way} what validation had"
        else:
            why = f"{differing} of {n} audited answers differ from the cloud's, where {self.allowed:.1%} are allowed"
        return f"{why}: playing rung {self.rung} of {len(self.rungs) - 1}"

    def health(self) -> dict[str, Any]:
        """Return what it knows of its promise: counts, and estimates for the rung that is played and the one below."""
        learnt = self._learnt
        by_drift, by_audits, returns = learnt["alarms"].tolist()
        audited = np.flatnonzero(learnt["audits"][:, 0]).tolist()
        return {
            "samples": int(learnt["seen"][0]),
            "rung": self.rung,
            "rungs": len(self.rungs),
            "alarm": self.alarm(),
            "alarms_by_drift": by_drift,
            "alarms_by_audits": by_audits,
            "returns": returns,
            "suspects": bool(learnt["suspicion"][0]),
            "allowed_disagreement": self.allowed,
            "scale": self.scale,
            "audits": int(learnt["audited"][0]),
            "differing": int(learnt["audited"][1]),
            "estimates": [self._estimate(rung) for rung in audited],
        }

    def _estimate(self, rung: int) -> dict[str, Any]:
        """Return what audits since the last move say about a rung.

        The drop of accuracy against all-cloud is at most ``disagreement``; ``drop`` is its expected value where the
        pooled probabilities that end in the cloud are true.
        """
        n, differing = self._learnt["audits"][rung].tolist()
        added, squares = self._learnt["loss"][rung].tolist()
        drop = added / n
        reach = 1.96 * math.sqrt(max(squares / n - drop**2, 0.0) / n)
        return {
            "rung": rung,
            "audits": n,
            "differing": differing,
            "disagreement": differing / n,
            "disagreement_ci95": wilson(differing, n),
            "drop": drop,
            "drop_ci95": (drop - reach, drop + reach),
        }

    def endpoints(self) -> tuple[Step, ...]:
        """Return every step that may be the last one on some rung."""
        return tuple(
            dict.fromkeys(step for rung in self.rungs for step in rung.cascade.endpoints())
        )

    def operating_point(self) -> dict[str, float]:
        """Return the chosen cascade's thresholds, and what is allowed and audited."""
        own = {"allowed": self.allowed, "audit_rate": self.guard.audit_rate}
        return self.rungs[0].cascade.operating_point() | own

    def state(self) -> PolicyState:
        """Return the ladder and everything learnt."""
        settings = {
            "guard": asdict(self.guard) | {"ladder": list(self.guard.ladder)},
            "allowed": self.allowed,
            "own_scale": self._own_scale,
            "rungs": [
                rung.cascade.settings() | {"disagreement": rung.disagreement} for rung in self.rungs
            ],
        }
        learnt = {name: array.copy() for name, array in self._learnt.items()}
        return PolicyState(settings, learnt | {"validation": self._reference.copy()})

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild the policy."""
        settings, arrays = state.settings, dict(state.arrays)
        guard = settings["guard"]
        cascades = [
            DimecCascade.from_state(depths, PolicyState(entry, {})) for entry in settings["rungs"]
        ]
        differs = [float(entry["disagreement"]) for entry in settings["rungs"]]
        policy = cls(
            depths,
            rungs=list(map(Rung, cascades, differs)),
            allowed=float(settings["allowed"]),
            reference=arrays.pop("validation"),
            own_scale=float(settings["own_scale"]),
            settings=GuardSettings(**guard | {"ladder": tuple(guard["ladder"])}),
        )
        policy._take(arrays)
        policy._rescale()
        return policy

    def _take(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what was learnt."""
        own = self._learnt
        others = [name for name in own if arrays[name].shape != own[name].shape]
        stands = {steps for rung in self.rungs for steps in rung.cascade.stands}
        strangers = [steps for steps in stands - {*self._points} if steps[-1].tier != Tier.CLOUD]
        n, places = len(self.rungs), len(self._points) + 1
        if others or strangers or self._reference.shape != (n, places, 3):
            raise ContractError(f"what it learnt is not of its {n} rungs and {places} places")
        if not 0 <= int(arrays["rung"][0]) < n or any(
            (arrays[name] < 0).any()
            for name in ("started", "seen", "alarms", "suspicion", "audits")
        ):
            raise ContractError(f"a count is negative, or a rung is none of its {n}")
        self._learnt = {name: arrays[name].astype(own[name].dtype) for name in own}

    def fresh(self) -> Self:
        """Return a copy that learns on its own; what never changes is shared."""
        twin = copy.copy(self)
        twin._learnt = {name: array.copy() for name, array in self._learnt.items()}
        return twin


@dataclass(frozen=True, slots=True, eq=False)
class _Validation:
    """What validation had with a rung.

    Attributes:
        cost: The mean, in lambda.
        reference: [points + 1, 3], the count of samples that come to a point, and the sums of their pooled confidence
            and of its square. The last are of the samples' unseen shares; zeros where they are not known, or exit zero
            is not read.
        fit: [scales], what each scale of the log-odds loses on the cloud's labels.
    """

    rung: Rung
    cost: float
    reference: NDArray[np.float64]
    fit: NDArray[np.float64]


def _validated(
    cascade: DimecCascade,
    tables: TierTables,
    calibration: Calibration,
    *,
    place: Mapping[tuple[Step, ...], int],
) -> _Validation:
    """Run a cascade over validation's tables, exit zero among them; ``place`` numbers the points."""
    reference, fit = np.zeros((len(place) + 1, 3)), np.zeros(len(SCALES))
    cloud = tables.of(Tier.CLOUD)
    sure = cloud.predictions[:, cloud.exit(cascade.depths.cloud)]
    differs, cost = 0, 0.0
    for stop in walk_groups(cascade, tables, calibration.costs):
        steps, rows = stop.path.steps, stop.group.rows
        if not steps:
            continue
        pooled = cascade.answer_group(stop.group).probabilities
        labels = pooled[stop.answered].argmax(axis=1)
        differs += int((labels != sure[rows[stop.answered]]).sum())
        cost += stop.path.cost * len(labels)
        if steps[-1].tier is not Tier.CLOUD:
            top = pooled.max(axis=1)
            reference[place[steps]] += len(top), top.sum(), (top**2).sum()
            fit += _log_losses(pooled, sure[rows])
    unseen = tables.of(Tier.MOBILE).unseen
    if unseen is not None and cascade.points[0].steps == (EXIT_ZERO,):
        shares = unseen.astype(np.float64)
        reference[-1] = len(shares), shares.sum(), (shares**2).sum()
    n = len(tables)
    return _Validation(Rung(cascade, differs / n), cost / n, reference, fit)


def _log_losses(pooled: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the summed log loss of pooled probabilities [k, classes] at each scale of their log-odds: [scales]."""
    logs = log_opinions(pooled)[None] * SCALES[:, None, None]
    logs -= logs.max(axis=2, keepdims=True)
    spread = np.log(np.exp(logs).sum(axis=2))
    told = logs[:, np.arange(len(labels)), labels]
    losses: NDArray[np.float64] = (spread - told).sum(axis=1)
    return losses


def _before_the_cloud(view: View) -> Iterator[View]:
    """Give a sample as it stood after each of its steps up to the first in the cloud."""
    for end, step in enumerate(view.steps, 1):
        if step.tier is Tier.CLOUD:
            return
        yield view.up_to(end)


def _scaled(cascade: DimecCascade, scale: float) -> DimecCascade:
    """Return a cascade whose pooled log-odds are multiplied by a scale."""
    points = [
        replace(point, weights=tuple(scale * weight for weight in point.weights))
        for point in cascade.points
    ]
    return DimecCascade(cascade.depths, points, unseen_limit=cascade.unseen_limit)


def _uniform(seed: int, place: int) -> float:
    """Return a number in [0, 1) that looks drawn (SplitMix64): the same for the same seed and place."""
    mask = (1 << 64) - 1
    state = (seed * 0xD1342543DE82EF95 + (place + 1) * 0x9E3779B97F4A7C15) & mask
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return ((state ^ (state >> 31)) >> 11) / (1 << 53)
