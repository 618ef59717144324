"""Many texts at once: a chunk of them goes stage by stage, each stage for all texts that have come to it.

Words are read of the whole chunk together, the undecided go through the next exits in batches of like length. The
policy decides for groups, as in a replay, so that labels, tiers, layers and costs are those of texts one by one. What a
server is to be asked for, or what goes wrong, goes on one by one, by `Sample`.

A policy that learns meets texts one after the other, and one that ships hidden states needs them: neither runs here.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dimec.core.tiers import TIERS, Step, Tier, check_step, softmax
from dimec.core.tokens import batches_by_length
from dimec.policies import Group, GroupReading, Policy
from dimec.runtime.device.sample import Sample

if TYPE_CHECKING:
    from dimec.runtime.device.device import Device

BATCH_TOKENS = 256
"""Tokens of a batch, padding included: more of them take longer each, since padding grows and caches overflow."""

_SLICE_TOKENS = 16_384
"""Tokens of the texts whose hidden states are kept at a time."""

_Rows = NDArray[np.intp]
_Hidden = list[NDArray[np.float32]]


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


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """Samples that have taken the same steps, and the step that they take next.

    ``hidden`` has a state [t, width] for each of the rows where the step goes on from the one before: on the same tier,
    or on another one of this machine that holds the same layers. Costs are those of a tier that starts anew.
    """

    rows: _Rows
    steps: tuple[Step, ...]
    step: Step
    hidden: _Hidden | None = None


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
        """Run stage after stage, the deepest first, so that few hidden states are kept."""
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
        waiting: list[_Job] = []
        yield self._decide(everyone, (), None, waiting)
        while waiting:
            job = waiting.pop()
            hidden = None
            if job.step.layer == 0:
                with self._timed(job.rows):
                    self._read_words(job)
            elif job.hidden is None and (more := self._cut(job)):
                waiting += more
                continue
            else:
                hidden = yield from self._run(job)
            yield self._decide(job.rows, (*job.steps, job.step), hidden, waiting)

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
        self,
        rows: _Rows,
        steps: tuple[Step, ...],
        hidden: _Hidden | None,
        waiting: list[_Job],
    ) -> list[Sample]:
        """Ask the policy: answer, put what runs here to what waits, and return those that go on one by one."""
        own, released = self._device, []
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
                kept = None
                if (
                    hidden is not None
                    and steps[-1].layer < option.layer
                    and (steps[-1].tier, option.tier) in own.continues
                ):
                    kept = [hidden[place] for place in places.tolist()]
                waiting.append(_Job(rows[places], steps, option, kept))
        return released

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

    def _read_words(self, job: _Job) -> None:
        whole = self._tokens.whole
        logits, unseen = self._device.exit_zero.read_all([whole[row] for row in job.rows.tolist()])
        self._keep(job, job.rows, logits)
        self._unseen[job.rows] = unseen

    def _cut(self, job: _Job) -> list[_Job]:
        """Cut a job of more texts than have their hidden states kept at a time, the short texts to the end."""
        lengths = self._tokens.lengths[job.rows]
        slices = batches_by_length(lengths, max_tokens=_SLICE_TOKENS)
        if len(slices) == 1:
            return []
        return [_Job(job.rows[np.sort(places)], job.steps, job.step) for places in reversed(slices)]

    def _run(self, job: _Job) -> Generator[list[Sample], None, _Hidden | None]:
        """Run a step in batches; returns the hidden states of all rows after it, where a tier can go on from them."""
        own, step = self._device, job.step
        engine = own.engines[step.tier]
        lengths = self._tokens.lengths[job.rows]
        after = job.steps[-1].layer if job.hidden is not None else 0
        goes_on = any(
            step.layer < other.layers[-1] and (step.tier, tier) in own.continues
            for tier, other in own.engines.items()
        )
        states: dict[int, NDArray[np.float32]] = {}
        for places in batches_by_length(lengths, max_tokens=BATCH_TOKENS):
            rows = job.rows[places]
            with self._timed(rows):
                batch = self._tokens.batch(rows)
                if job.hidden is None:
                    hidden, _ = engine.embed(batch)
                else:
                    hidden = _padded([job.hidden[place] for place in places.tolist()])
                mask = batch.attention_mask
                hidden, logits = engine.run(hidden, mask, after=after, layer=step.layer)
                self._keep(job, rows, logits[step.layer])
                if goes_on:
                    for state, place in zip(hidden, places.tolist(), strict=True):
                        states[place] = state[: lengths[place]]
            yield []
        return [states[place] for place in range(len(job.rows))] if goes_on else None

    def _keep(self, job: _Job, rows: _Rows, logits: NDArray[np.float32]) -> None:
        """Take note of what the exit at the end of a job's step has said of some of its rows."""
        if job.step not in self._said:
            self._said[job.step] = np.full((len(self._samples), logits.shape[1]), np.nan)
        self._said[job.step][rows] = softmax(logits)

    @contextmanager
    def _timed(self, rows: _Rows) -> Iterator[None]:
        """Charge each sample its share of the time that a batch takes."""
        began = time.perf_counter()
        yield
        self._spent_s[rows] += (time.perf_counter() - began) / len(rows)


def _padded(states: _Hidden) -> NDArray[np.float32]:
    """Put states [t, width] into one array, padded with zeros: [b, longest t, width]."""
    longest = max(map(len, states))
    padded = np.zeros((len(states), longest, states[0].shape[1]), dtype=np.float32)
    for row, state in enumerate(states):
        padded[row, : len(state)] = state
    return padded
