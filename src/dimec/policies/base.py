"""The seam between a decision rule and whatever runs it: replay over an exit table, or a live device.

A policy looks at a `View` of one sample (its embedding, the steps run so far, what the exits said) and returns
the next `Step`, or None when the sample is to be answered. Replay and the device call the same objects.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from inspect import Parameter, signature
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.guard_settings import GuardSettings
from dimec.core.options import Spread
from dimec.core.tiers import TIERS, Depths, Method, Reading, Step, Tier, Trace
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.policies.thresholds import ThresholdSearch
from dimec.runs.exit_table import ExitTable, Restored, TierTables


@dataclass(slots=True)
class View(Trace):
    """What a policy may look at for one sample: its trace so far, and what is known before the first layer.

    Attributes:
        embedding: [width] float32, the mean embedding before any encoder layer.
        unseen: The share of its features of which exit zero knows nothing, once that was read; NaN where it is not
            known.
    """

    embedding: NDArray[np.float32] = field(kw_only=True)
    unseen: float = field(default=math.nan, kw_only=True)

    def up_to(self, end: int) -> View:
        """Return the sample as it stood after its first ``end`` steps, where each step read one exit."""
        return replace(self, steps=self.steps[:end], readings=self.readings[:end])


@dataclass(frozen=True, slots=True, eq=False)
class GroupReading:
    """A `Reading` of many samples: label [k], confidence [k], probabilities [k, classes]."""

    tier: Tier
    layer: int
    label: NDArray[np.int64]
    confidence: NDArray[np.float64]
    probabilities: NDArray[np.float64]

    @classmethod
    def of(
        cls, tier: Tier, table: ExitTable, position: int, rows: NDArray[np.integer]
    ) -> GroupReading:
        """Return what the exit at a position of a tier's table said about some rows."""
        return cls(
            tier,
            table.layers[position],
            table.predictions[rows, position],
            table.confidence[rows, position],
            table.probabilities[rows, position],
        )

    def row(self, index: int) -> Reading:
        """Return one sample's reading."""
        return Reading(
            self.tier,
            self.layer,
            int(self.label[index]),
            float(self.confidence[index]),
            self.probabilities[index],
        )


@dataclass(frozen=True, eq=False)
class Group:
    """A `View` of many samples that have taken the same steps.

    Attributes:
        stream: [n, width] float32, the embeddings of the whole stream.
        rows: [k], which samples of it these are, in stream order.
        unseen: [n], of the whole stream, as in `View`; None where it is not known.
    """

    stream: NDArray[np.float32]
    rows: NDArray[np.integer]
    steps: tuple[Step, ...]
    readings: tuple[GroupReading, ...]
    unseen: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def embeddings(self) -> NDArray[np.float32]:
        """[k, width]; copied out of the stream only for those who ask."""
        return self.stream if len(self.rows) == len(self.stream) else self.stream[self.rows]

    def row(self, index: int) -> View:
        """Return one sample's view."""
        return View(
            list(self.steps),
            [reading.row(index) for reading in self.readings],
            embedding=self.stream[self.rows[index]],
            unseen=math.nan if self.unseen is None else float(self.unseen[self.rows[index]]),
        )


@dataclass(frozen=True, eq=False)
class Groups:
    """Samples that have taken different steps, side by side: several `Group` in one.

    Attributes:
        stream: [n, width] float32, the embeddings of the whole stream.
        rows: [k], which samples of it these are.
        ways: The steps that some of them have taken, each once, with one reading for every step.
        way: [k], which of the ways each has taken.
        said: By step, what its exit has said of the whole stream: [n, classes]; NaN where it was not read.
        unseen: [n], of the whole stream, as in `View`; None where it is not known.
    """

    stream: NDArray[np.float32]
    rows: NDArray[np.integer]
    ways: tuple[tuple[Step, ...], ...]
    way: NDArray[np.integer]
    said: Mapping[Step, NDArray[np.float64]]
    unseen: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[np.integer] | NDArray[np.bool_]) -> Groups:
        """Return it with some of the samples alone."""
        return replace(self, rows=self.rows[places], way=self.way[places])

    def each(self) -> Iterator[tuple[NDArray[np.integer], Group]]:
        """Give every group that has samples, and which places they have here."""
        for index, steps in enumerate(self.ways):
            places = np.flatnonzero(self.way == index)
            if len(places):
                rows = self.rows[places]
                readings = []
                for step in steps:
                    said = self.said[step][rows]
                    labels, confidence = said.argmax(axis=1), said.max(axis=1)
                    readings.append(GroupReading(step.tier, step.layer, labels, confidence, said))
                yield places, Group(self.stream, rows, steps, tuple(readings), self.unseen)


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The decisions for a group: sample i takes ``options[picks[i]]``; picks [k]."""

    options: tuple[Step | None, ...]
    picks: NDArray[np.integer]

    @classmethod
    def same(cls, option: Step | None, group: Group) -> Choices:
        """Take one option for all samples of a group."""
        return cls((option,), np.zeros(len(group), dtype=np.intp))


@dataclass(frozen=True, slots=True, eq=False)
class GroupAnswer:
    """What answers a group's samples.

    Attributes:
        places: [k], which of the readings answers each sample.
        labels: [k] int64, the answers.
        confidence: [k] float64.
        probabilities: [k, classes] float64.
    """

    places: NDArray[np.integer]
    labels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    probabilities: NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What a policy is fitted from; nothing in it comes from the test split.

    Attributes:
        table: The validation split's exit table, with its training dynamics.
        price: What the full model on the mobile device costs in units of confidence.
        spread: What beta is held against in data cartography.
        models: The validation split's tables of the tiers that hold another model than a prefix of the encoder.
        restored: What the cloud's exits say of the validation split behind a learned bottleneck, where there is one.
        weights: [n], how much each row counts; None all alike. Only `DimecCascade` and the dial heed them.
    """

    table: ExitTable
    depths: Mapping[Method, Depths]
    costs: CostModel = field(default_factory=CostModel)
    price: float = DEFAULT_PRICE
    spread: Spread = "deviation"
    seed: int = 0
    guard: GuardSettings = field(default_factory=GuardSettings)
    models: Mapping[Tier, ExitTable] = field(default_factory=dict)
    restored: Restored | None = None
    weights: NDArray[np.float64] | None = None

    @property
    def tables(self) -> TierTables:
        """What every tier's exits said about the validation split."""
        return TierTables(self.table, self.models)

    def take(self, rows: NDArray[np.integer]) -> Calibration:
        """Return it with the given rows alone, in their order."""
        models = {tier: each.take(rows) for tier, each in self.models.items()}
        restored = self.restored and self.restored.take(rows)
        weights = None if self.weights is None else self.weights[rows]
        return replace(
            self, table=self.table.take(rows), models=models, restored=restored, weights=weights
        )

    @property
    def shares(self) -> NDArray[np.float64] | None:
        """The weights as shares of their sum: [n]; None where all rows count alike."""
        return None if self.weights is None else self.weights / self.weights.sum()

    @property
    def unit(self) -> float:
        """Lambda in units of confidence.

        Raises:
            OptionError: If the price is negative or not finite.
        """
        return self.costs.unit_price(self.table.n_layers, price=self.price)


@dataclass(frozen=True, slots=True)
class MissingInput:
    """Why a policy cannot be fitted from a calibration.

    Attributes:
        needs: What it needs, as a noun.
        option: The option of a fit that gives it, and its value.
        tier: Where that fit is then to stand in for a prefix; None where it replaces the run.
    """

    needs: str
    option: tuple[str, str | int]
    tier: Tier | None = None
    command: Literal["fit", "compress"] = "fit"


@dataclass(frozen=True, slots=True, eq=False)
class PolicyState:
    """A fitted policy as plain values, for JSON, and arrays, for safetensors."""

    settings: dict[str, Any]
    arrays: dict[str, NDArray[Any]]


class Policy(ABC):
    """A whole decision rule: where a sample starts, when it exits, when it is offloaded.

    A subclass gives `fit` and `decide`; the rest has defaults. It keeps each keyword argument of its constructor under
    the argument's name: these are the settings that rebuild it. `decide_group` only makes replay, and devices with many
    texts, faster and must agree with `decide` on every sample.
    """

    name: ClassVar[str]
    method: ClassVar[Method] = "dc"
    learns: bool = False
    """Whether `learn` changes later decisions: samples are then replayed one by one, in stream order."""
    learnt: ClassVar[tuple[str, ...]] = ()
    """The attributes that hold what it has learnt: numbers, or lists of them."""
    answers_with: Literal["last", "most confident"] = "last"
    """Which reading answers the sample once `decide` returns None; the first of equals."""
    picks: ClassVar[Literal["tiers", "exits"]] = "tiers"
    """What it picks for a sample: random at its shares shuffles this over the samples."""
    reads_embedding: ClassVar[bool] = True
    """Whether it looks at embeddings; where not, a device does not compute them before the first layer."""
    bottleneck: ClassVar[str | None] = None
    """The kind of learned bottleneck that its cloud resumes behind; None where it needs none."""
    every_exit: ClassVar[bool] = False  # whether it needs an exit after every layer
    any_model: ClassVar[bool] = False
    """Whether every tier starts from the tokens, so that one may hold another model than a prefix of the encoder."""

    def __init__(self, depths: Depths) -> None:
        self.depths = depths
        self.search: ThresholdSearch | None = None

    @classmethod
    def missing_input(cls, calibration: Calibration) -> MissingInput | None:
        """Return what a calibration lacks for this policy; None where it can be fitted."""
        table = calibration.table
        if cls.every_exit and len(table.layers) < table.n_layers:
            return MissingInput("an exit after every layer", ("exits", "all"))
        return None

    @classmethod
    @abstractmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Choose everything that is tunable on the validation split."""

    @abstractmethod
    def decide(self, view: View) -> Step | None:
        """Return the next step for a sample, or None to answer it; never changes the view."""

    def learn(self, view: View) -> None:  # noqa: B027  a policy that does not learn leaves it empty
        """Take note of an answered sample; labels are not to be seen."""

    def decide_group(self, group: Group) -> Choices:
        """Return `decide` for every sample of a group."""
        options: list[Step | None] = []
        picks = np.empty(len(group), dtype=np.intp)
        for index in range(len(group)):
            step = self.decide(group.row(index))
            if step not in options:
                options.append(step)
            picks[index] = options.index(step)
        return Choices(tuple(options), picks)

    def decide_groups(self, groups: Groups) -> Choices:
        """Return `decide` for every sample of several groups."""
        options: list[Step | None] = []
        picks = np.empty(len(groups), dtype=np.intp)
        for places, group in groups.each():
            choices = self.decide_group(group)
            picks[places] = len(options) + choices.picks
            options += choices.options
        return Choices(tuple(options), picks)

    def answer(self, view: View) -> Reading:
        """Return what answers a sample once `decide` has returned None.

        Raises:
            ContractError: If no exit was read.
        """
        if not view.readings:
            raise self._answers_nothing()
        if self.answers_with == "most confident":
            return max(view.readings, key=self.confidence_of)
        return view.readings[-1]

    def answer_group(self, group: Group) -> GroupAnswer:
        """Return `answer` for every sample of a group."""
        if not group.readings:
            raise self._answers_nothing()
        if self.answers_with == "last":
            last = group.readings[-1]
            places = np.full(len(group), len(group.readings) - 1)
            return GroupAnswer(places, last.label, last.confidence, last.probabilities)
        ranked = np.stack([self.confidence_of(each) for each in group.readings])
        everyone, places = np.arange(len(group)), ranked.argmax(axis=0)
        labels, confidence, probabilities = (
            np.stack([getattr(each, name) for each in group.readings])[places, everyone]
            for name in ("label", "confidence", "probabilities")
        )
        return GroupAnswer(places, labels, confidence, probabilities)

    def answer_groups(self, groups: Groups) -> GroupAnswer:
        """Return `answer` for every sample of several groups, of which none is empty."""
        found = [(places, self.answer_group(group)) for places, group in groups.each()]
        order = np.argsort(np.concatenate([places for places, _ in found]))
        return GroupAnswer(
            *(
                np.concatenate([getattr(answer, each.name) for _, answer in found])[order]
                for each in fields(GroupAnswer)
            )
        )

    def _answers_nothing(self) -> ContractError:
        return ContractError(f"the policy {self.name} answers a sample without running any exit")

    def confidence_of(self, reading: Reading | GroupReading) -> float | NDArray[np.float64]:
        """Return what readings are compared by where the most confident one answers."""
        return reading.confidence

    def arms(self) -> Mapping[str, Policy]:
        """Return the fixed rules that a policy learns to choose among, by name; none for one that learns no arm."""
        return {}

    def endpoints(self) -> tuple[Step, ...]:
        """Return the single exits this policy may answer from, for the controls that it is held against."""
        return tuple(Step(tier, self.depths.of(tier)) for tier in TIERS)

    def exit_thresholds(self, view: View, step: Step) -> Mapping[int, float]:
        """Return the confidence from which a sample leaves the exits of the tier that is about to run ``step``.

        By layer, ascending; so that a server need run no further than the first exit that reaches its own.
        """
        return {}

    def routing_score(self, embeddings: NDArray[np.floating]) -> NDArray[np.float64] | None:
        """Return how much the router prefers mobile, [...] for embeddings [..., width]; None without a router."""
        return None

    def operating_point(self) -> dict[str, float]:
        """Return the thresholds that the policy runs at."""
        return {}

    def alarm(self) -> str | None:
        """Say on one line which danger to its promise a policy has answered with caution, if there is one."""
        return None

    def health(self) -> dict[str, Any]:
        """Return what a policy knows of its own promise, as plain values; empty where it does not watch itself."""
        return {}

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that rebuild the policy, beside its depths, as plain values."""
        arguments = signature(type(self)).parameters.values()
        return {
            each.name: getattr(self, each.name)
            for each in arguments
            if each.kind is Parameter.KEYWORD_ONLY
        }

    def state(self) -> PolicyState:
        """Return everything that `from_state` needs beside the depths."""
        arrays = {name: np.atleast_1d(getattr(self, name)) for name in self.learnt}
        return PolicyState(self.settings(), arrays)

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Self:
        """Rebuild a policy from its depths and its state.

        Raises:
            ContractError: If what it has learnt does not fit its settings.
        """
        policy = cls(depths, **state.settings)
        for name in cls.learnt:
            array, own = state.arrays[name], getattr(policy, name)
            if array.shape != (shape := np.atleast_1d(own).shape):
                raise ContractError(f"what it learnt as {name} is {array.shape}, not {shape}")
            setattr(policy, name, array.tolist() if isinstance(own, list) else type(own)(array[0]))
        return policy

    def fresh(self) -> Self:
        """Return a copy as it stands now, so that a stream can be run without changing this one."""
        return copy.deepcopy(self)


class Searched(Policy):
    """A policy whose thresholds are the best point of a grid on the validation split."""

    @classmethod
    @abstractmethod
    def search_in(cls, calibration: Calibration) -> ThresholdSearch:
        """Hold every point of the grid against the common reward."""

    @classmethod
    @abstractmethod
    def at(cls, calibration: Calibration, *thresholds: float) -> Self:
        """Build the policy at a point of the grid, whatever it earns."""

    @classmethod
    def fit(cls, calibration: Calibration) -> Self:
        """Search the thresholds and build the policy there."""
        search = cls.search_in(calibration)
        policy = cls.at(calibration, *search.point)
        policy.search = search
        return policy


class FirstSure(Policy):
    """A policy that runs exit by exit and answers a sample at the first reading that is sure enough.

    A subclass gives `onward`, and `is_sure` unless every sample goes on to the end.
    """

    @abstractmethod
    def onward(self, steps: Sequence[Step]) -> Step | None:
        """Return the step that follows these for a sample that is not answered; None at the end."""

    def is_sure(self, reading: Reading | GroupReading) -> bool | NDArray[np.bool_]:
        """Tell whether samples with this reading are answered before the end."""
        return False

    def are_enough(self, readings: Sequence[Reading | GroupReading]) -> bool | NDArray[np.bool_]:
        """Tell whether samples with these readings are answered before the end: where the last one is sure."""
        return self.is_sure(readings[-1])

    def decide(self, view: View) -> Step | None:
        """Go on, unless the readings are enough."""
        step = self.onward(view.steps)
        sure = step is not None and view.readings and self.are_enough(view.readings)
        return None if sure else step

    def decide_group(self, group: Group) -> Choices:
        """Decide for a group at once."""
        step = self.onward(group.steps)
        if step is None or not group.readings:
            return Choices.same(step, group)
        sure = np.broadcast_to(self.are_enough(group.readings), len(group))
        return Choices((step, None), sure.astype(np.intp))


class OneWay(FirstSure):
    """A policy that takes all samples the same way, as far as they go on it."""

    def __init__(self, depths: Depths, way: tuple[Step, ...]) -> None:
        super().__init__(depths)
        self.way = way

    def onward(self, steps: Sequence[Step]) -> Step | None:
        """Take the next step of the way."""
        return self.way[len(steps)] if len(steps) < len(self.way) else None
