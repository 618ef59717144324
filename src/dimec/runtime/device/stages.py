"""Many texts at once: a chunk of them goes stage by stage, each stage for all texts that have come to it.

Words are read of the whole chunk together. The undecided then go from exit to exit in batches of like length, all that
need the same graph together, whichever tiers they are on: tiers that hold the same layers go on from one another's
hidden states. The policy decides for groups, as in a replay, so that labels, tiers, layers and costs are those of texts
one by one. What a server is to be asked for, or what goes wrong, goes on one by one, by `Sample`.

A policy that learns meets texts one after the other, and one that ships hidden states needs them: neither runs here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import TIERS, Step, Tier, check_step, softmax
from dimec.core.tokens import batches_by_length
from dimec.policies import Policy
from dimec.policies.base import Group, GroupReading
from dimec.runtime.device.sample import Sample

if TYPE_CHECKING:
    from dimec.runtime.device.device import Device

BATCH_TOKENS = 256
"""Tokens of a batch, padding included: more of them take longer each, since padding grows and caches overflow."""

_SLICE_TOKENS = 32_768
"""Tokens of the texts that are run together, whose hidden states are kept."""

_Rows = NDArray[np.intp]


def can_run(policy: Policy) -> bool:
    """Tell whether a policy decides for each text alone and from nothing but tokens, so that stages change nothing."""
    return not policy.learns and not any(step.resumes for step in policy.endpoints())


def run_stages(device: Device, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Take samples as far as this machine can; after every batch give those that go on one by one from there.

    The others have their answer in the end. Where something is raised, all that is left goes one by one from its
    start, so that it is raised again for the text that has provoked it, and for no other.
    """
    chunk = _Chunk(device, samples)
    try:
        yield from chunk.run()
    except Exception:
        rows = np.flatnonzero(chunk.left)
        yield [samples[row] for row in rows.tolist()]


@dataclass(frozen=True, slots=True)
class _Way:
    """Steps that some samples have taken, and the step that they take next."""

    steps: tuple[Step, ...]
    step: Step


@dataclass(frozen=True, slots=True)
class _Leg:
    """Layers that run without a decision in between: those after ``after`` up to ``to``, by the engine of a tier."""

    tier: Tier
    after: int
    to: int


_Waiting = dict[_Leg, list[tuple[_Way, _Rows]]]


class _Chunk:
    """Some samples on their way together."""

    def __init__(self, device: Device, samples: Sequence[Sample]) -> None:
        self.left = np.ones(len(samples), dtype=bool)
        """Which samples are neither answered nor released."""
        self._device = device
        self._samples = samples
        self._spent_s = np.zeros(len(samples))
        self._said: dict[Step, NDArray[np.float64]] = {}
        self._unseen = np.full(len(samples), np.nan, dtype=np.float32)

    def run(self) -> Iterator[list[Sample]]:
        """Run stage after stage: the words of all, then by length what fits into memory, from exit to exit."""
        own, everyone = self._device, np.arange(len(self._samples))
        with self._timed(everyone):
            texts = [sample.text for sample in self._samples]
            seconds = [text[1] for text in texts] if own.pairs else None
            firsts = [text if isinstance(text, str) else text[0] for text in texts]
            self._tokens = own.tokenizer.encode(firsts, seconds)
        self._embeddings = np.empty((len(texts), 0), dtype=np.float32)
        if own.policy.reads_embedding:
            parts = []
            order = batches_by_length(self._tokens.lengths, max_tokens=BATCH_TOKENS)
            for rows in order:
                with self._timed(rows):
                    parts.append(own.engines[Tier.MOBILE].embed(self._tokens.batch(rows))[1])
                yield []
            self._embeddings = np.concatenate(parts)[np.argsort(np.concatenate(order))]
        released, onward = self._decide(everyone, ())
        yield released
        begins: list[tuple[_Way, _Rows]] = []
        while onward:
            way, rows = onward.pop()
            if way.step.layer > 0:
                begins.append((way, rows))
                continue
            with self._timed(rows):
                self._read_words(way.step, rows)
            released, more = self._decide(rows, (*way.steps, way.step))
            onward += more
            yield released
        if not begins:
            return
        undecided = np.sort(np.concatenate([rows for _, rows in begins]))
        lengths = self._tokens.lengths[undecided]
        for places in batches_by_length(lengths, max_tokens=_SLICE_TOKENS):
            inside = np.zeros(len(texts), dtype=bool)
            inside[undecided[places]] = True
            yield from self._run_layers(
                [(way, part) for way, rows in begins if len(part := rows[inside[rows]])]
            )

    def _run_layers(self, begins: list[tuple[_Way, _Rows]]) -> Iterator[list[Sample]]:
        """Run samples to their answers, those at the first layers before those that are ahead of them."""
        rows = np.concatenate([each for _, each in begins])
        states = _States(rows, self._tokens.lengths)
        waiting: _Waiting = defaultdict(list)
        for way, part in begins:
            waiting[self._next(way)].append((way, part))
        while waiting:
            leg = min(waiting, key=lambda each: (each.after, each.to))
            parts = waiting.pop(leg)
            rows = np.sort(np.concatenate([part for _, part in parts]))
            logits = np.empty((len(self._samples), len(self._device.label_names)), dtype=np.float32)
            for places in batches_by_length(self._tokens.lengths[rows], max_tokens=BATCH_TOKENS):
                batch = rows[places]
                with self._timed(batch):
                    logits[batch] = self._run(leg, batch, states)
                yield []
            for way, part in parts:
                if way.step.layer > leg.to:
                    waiting[self._next(way, leg)].append((way, part))
                    continue
                self._keep(way.step, part, logits[part])
                released, onward = self._decide(part, (*way.steps, way.step))
                for each, chosen in onward:
                    waiting[self._next(each, leg)].append((each, chosen))
                yield released

    def _next(self, way: _Way, stands: _Leg | None = None) -> _Leg:
        """Return what runs next of a step, for samples that stand at the end of a leg, or at their tokens."""
        own, step = self._device, way.step
        line = own.lines[step.tier]
        after = stands.to if stands and own.lines[stands.tier] is line else 0
        if after >= step.layer:  # its tier has been run further, and starts again
            after = 0
        if own.engines[step.tier].is_one_graph(after, step.layer):
            return _Leg(step.tier, after, step.layer)
        return _Leg(line, after, next(each for each in own.engines[line].layers if each > after))

    def _run(self, leg: _Leg, rows: _Rows, states: _States) -> NDArray[np.float32]:
        """Run a batch of samples through a leg; returns the logits of the exit at its end: [b, classes]."""
        own = self._device
        engine = own.engines[leg.tier]
        if leg.after == 0:
            batch = self._tokens.batch(rows)
            hidden, _ = engine.embed(batch)
            mask = batch.attention_mask
        else:
            hidden, mask = states.take(rows)
        hidden, logits = engine.run(hidden, mask, after=leg.after, layer=leg.to)
        if leg.to < own.engines[own.lines[leg.tier]].layers[-1]:  # else nothing goes on from there
            states.put(rows, hidden)
        return logits[leg.to]

    def _release(self, group: Group, places: _Rows, step: Step) -> list[Sample]:
        """Let some samples of a group go on one by one, by a step that is decided."""
        rows = group.rows[places]
        self.left[rows] = False
        released = [self._samples[row] for row in rows.tolist()]
        for sample, place, row in zip(released, places.tolist(), rows.tolist(), strict=True):
            batch, whole = self._tokens.batch([row]), self._tokens.whole[row]
            spent_s = float(self._spent_s[row])
            sample.go_on(group.row(place), step, batch, whole, spent_s=spent_s)
        return released

    def _decide(
        self, rows: _Rows, steps: tuple[Step, ...]
    ) -> tuple[list[Sample], list[tuple[_Way, _Rows]]]:
        """Ask the policy and give its answers; return who goes on one by one, and who goes which way here."""
        own = self._device
        released: list[Sample] = []
        onward: list[tuple[_Way, _Rows]] = []
        group = self._group(rows, steps)
        with own.lock:
            choices = own.policy.decide_group(group)
        for index, option in enumerate(choices.options):
            places = np.flatnonzero(choices.picks == index)
            if not len(places):
                continue
            if option is None:
                self._answer(group, places)
            elif (
                option.side_readings
                or (option.layer > 0 and option.tier not in own.engines)
                or len(steps) > len(TIERS) * own.policy.depths.cloud  # it does not come to an end
            ):
                released += self._release(group, places, option)
            else:
                check_step(steps, option, exits=own.exits[option.tier])
                onward.append((_Way(steps, option), rows[places]))
        return released, onward

    def _group(self, rows: _Rows, steps: tuple[Step, ...]) -> Group:
        readings = []
        for step in steps:
            said = self._said[step][rows]
            readings.append(
                GroupReading(step.tier, step.layer, said.argmax(axis=1), said.max(axis=1), said)
            )
        return Group(self._embeddings, rows, steps, tuple(readings), self._unseen)

    def _answer(self, group: Group, places: _Rows) -> None:
        own = self._device
        answer = own.policy.answer_group(group)
        cost = own.manifest.costs.of(group.steps)
        rows = group.rows[places]
        self.left[rows] = False
        for row, reading, probabilities in zip(
            rows.tolist(),
            answer.places[places].tolist(),
            answer.probabilities[places].tolist(),
            strict=True,
        ):
            by = group.readings[reading]
            sample = self._samples[row]
            latency_s = float(self._spent_s[row])
            sample.answer = sample.answered(
                probabilities, by.tier, by.layer, cost=cost, latency_s=latency_s
            )

    def _read_words(self, step: Step, rows: _Rows) -> None:
        whole = self._tokens.whole
        logits, unseen = self._device.exit_zero.read_all([whole[row] for row in rows.tolist()])
        self._keep(step, rows, logits)
        self._unseen[rows] = unseen

    def _keep(self, step: Step, rows: _Rows, logits: NDArray[np.float32]) -> None:
        """Take note of what the exit at the end of a step has said of some samples."""
        if step not in self._said:
            self._said[step] = np.full((len(self._samples), logits.shape[1]), np.nan)
        self._said[step][rows] = softmax(logits)

    @contextmanager
    def _timed(self, rows: _Rows) -> Iterator[None]:
        """Charge each sample its share of the time that a batch takes."""
        began = time.perf_counter()
        yield
        self._spent_s[rows] += (time.perf_counter() - began) / len(rows)


class _States:
    """The hidden states of some samples, one row a token, without padding."""

    def __init__(self, rows: _Rows, lengths: NDArray[np.int32]) -> None:
        self._lengths = lengths
        self._starts = np.zeros(len(lengths), dtype=np.intp)
        self._starts[rows] = np.cumsum(lengths[rows]) - lengths[rows]
        self._n_tokens = int(lengths[rows].sum())
        self._states: NDArray[np.float32] | None = None

    def put(self, rows: _Rows, hidden: NDArray[np.float32]) -> None:
        """Keep the states of a batch: [b, t, width], padded."""
        if self._states is None:
            self._states = np.empty((self._n_tokens, hidden.shape[2]), dtype=np.float32)
        for row, start, length in self._places(rows):
            self._states[start : start + length] = hidden[row, :length]

    def take(self, rows: _Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the states of a batch, padded with zeros, [b, t, width], and their mask, [b, t]."""
        assert self._states is not None
        shape = len(rows), int(self._lengths[rows].max())
        hidden = np.zeros((*shape, self._states.shape[1]), dtype=np.float32)
        mask = np.zeros(shape, dtype=np.int64)
        for row, start, length in self._places(rows):
            hidden[row, :length] = self._states[start : start + length]
            mask[row, :length] = 1
        return hidden, mask

    def _places(self, rows: _Rows) -> Iterator[tuple[int, int, int]]:
        return zip(
            range(len(rows)), self._starts[rows].tolist(), self._lengths[rows].tolist(), strict=True
        )
