"""Many texts at once: a chunk of them goes stage by stage, each stage for all texts that have come to it.

Words are read of the whole chunk together. The undecided then go from exit to exit in batches of like length, all that
need the same graph together, whichever tiers they are on: tiers that hold the same layers go on from one another's
hidden states. Batches run side by side on all cores. The policy decides for groups, as in a replay, so that labels,
tiers, layers and costs are those of texts one by one. What a server is to be asked for, or what goes wrong, goes on one
by one, by `Sample`.

A policy that learns meets texts one after the other, and one that ships hidden states needs them: neither runs here.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Step, Tier, check_step, softmax
from dimec.core.tokens import batches_by_length
from dimec.policies import Policy
from dimec.policies.base import Groups
from dimec.runtime.device.sample import Sample

if TYPE_CHECKING:
    from dimec.runtime.device.device import Device

BATCH_TOKENS = 256
"""Tokens of a batch, padding included: more of them take longer each, since padding grows and caches overflow."""

_SLICE_TOKENS = 32_768
"""Tokens of the texts that are run together, whose hidden states are kept."""

_Rows = NDArray[np.intp]
_NO_ROWS = np.empty(0, dtype=np.intp)

_ANSWERED, _RELEASED = -1, -2
"""What is decided for samples that go on by no way here."""

_Logits = dict[int, NDArray[np.float32]]
_Kind = TypeVar("_Kind")


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


_Way = tuple[Step, ...]
"""The steps that samples have taken, the one that they take now included."""


@dataclass(frozen=True, slots=True)
class _Leg:
    """Layers that run without a decision in between: those after ``after`` up to ``to``, by the engine of a tier."""

    tier: Tier
    after: int
    to: int


class _Chunk:
    """Some samples on their way together."""

    def __init__(self, device: Device, samples: Sequence[Sample]) -> None:
        self.left = np.ones(len(samples), dtype=bool)
        """Which samples are neither answered nor released."""
        self._device = device
        self._engines, self._n_workers = device.engines_for(len(samples))
        self._samples = samples
        self._spent_s = np.zeros(len(samples))
        self._ways: list[_Way] = [()]
        self._numbers: dict[_Way, int] = {(): 0}
        self._way = np.zeros(len(samples), dtype=np.intp)
        """Which of the ways each sample is on."""
        self._said: dict[tuple[Tier, int], NDArray[np.float64]] = {}
        """By graphs and layer, the probabilities that its exit gives: [n, classes]; NaN where it was not run."""
        self._unseen = np.full(len(samples), np.nan, dtype=np.float32)
        self._states: dict[int, NDArray[np.float32]] = {}
        """By sample, its hidden states where it has come to, [t, width]: its part of what a batch left, not a copy."""

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
                    parts.append(self._engines[Tier.MOBILE].embed(self._tokens.batch(rows))[1])
                yield []
            self._embeddings = np.concatenate(parts)[np.argsort(np.concatenate(order))]
        released, onward = self._decide(everyone)
        yield released
        on_words = self._by(onward, lambda way: way[-1].layer == 0)
        begin = on_words.get(False, _NO_ROWS)
        if (rows := on_words.get(True, _NO_ROWS)).size:
            whole = [self._tokens.whole[row] for row in rows.tolist()]
            with self._timed(rows):
                logits, self._unseen[rows] = own.exit_zero.read_all(whole)
                self._hear(own.lines[Tier.MOBILE], 0, rows, logits)
            released, onward = self._decide(rows)
            yield released
            begin = np.concatenate([begin, onward])
        begin = begin[np.argsort(self._tokens.lengths[begin], kind="stable")]
        slices = np.cumsum(self._tokens.lengths[begin]) // _SLICE_TOKENS
        for part in np.split(begin, np.flatnonzero(np.diff(slices)) + 1):
            yield from self._run_layers(part)

    def _run_layers(self, rows: _Rows) -> Iterator[list[Sample]]:
        """Run samples to their answers, those at the first layers before those that are ahead of them."""
        own = self._device
        waiting: dict[_Leg, list[_Rows]] = defaultdict(list)
        stands: _Leg | None = None
        while True:
            while rows.size:
                ready = _NO_ROWS
                for next_leg, part in self._by(rows, partial(self._next, stands=stands)).items():
                    if next_leg is None:
                        ready = part
                    else:
                        waiting[next_leg].append(part)
                released, rows = self._decide(ready)
                yield released
            if not waiting:
                return
            leg = stands = min(waiting, key=lambda each: (each.after, each.to))
            rows = np.sort(np.concatenate(waiting.pop(leg)))
            places = batches_by_length(self._tokens.lengths[rows], max_tokens=BATCH_TOKENS)
            batches = [rows[each] for each in places]
            said = self._side_by_side(partial(self._run, leg), batches)
            for batch, logits in zip(batches, said, strict=True):
                for layer, each in logits.items():
                    self._hear(own.lines[leg.tier], layer, batch, each)
                yield []

    def _side_by_side(
        self, run: Callable[[_Rows], _Logits], batches: list[_Rows]
    ) -> Iterator[_Logits]:
        """Run batches at the same time, as many as the device says, and give what comes of each in order."""
        if self._n_workers == 1:
            yield from map(run, batches)
            return
        with ThreadPoolExecutor(self._n_workers, thread_name_prefix="dimec-batch") as pool:
            yield from pool.map(run, batches)

    def _next(self, way: _Way, *, stands: _Leg | None) -> _Leg | None:
        """Return what runs next for samples that stand at the end of a leg, or at their tokens; None if all is read."""
        own, step = self._device, way[-1]
        line = own.lines[step.tier]
        after = stands.to if stands and own.lines[stands.tier] is line else 0
        if after >= step.layer:  # these graphs have been run as far for another tier
            return None
        if self._engines[step.tier].is_one_graph(after, step.layer):
            return _Leg(step.tier, after, step.layer)
        return _Leg(line, after, next(each for each in self._engines[line].layers if each > after))

    def _run(self, leg: _Leg, rows: _Rows) -> _Logits:
        """Run a batch of samples through a leg; returns by layer the logits of its exits: [b, classes]."""
        engine, line = self._engines[leg.tier], self._device.lines[leg.tier]
        with self._timed(rows):
            if leg.after == 0:
                batch = self._tokens.batch(rows)
                hidden, _ = engine.embed(batch)
                mask = batch.attention_mask
            else:
                hidden, mask = self._take_states(rows)
            hidden, logits = engine.run(hidden, mask, after=leg.after, layer=leg.to)
            if leg.to < self._engines[line].layers[-1]:  # else nothing goes on from there
                self._states.update(zip(rows.tolist(), hidden, strict=True))
        return logits

    def _take_states(self, rows: _Rows) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return the states of a batch, padded with zeros, [b, t, width], and their mask, [b, t]."""
        lengths = self._tokens.lengths[rows]
        mask = np.arange(lengths.max()) < lengths[:, None]
        states = [self._states.pop(row) for row in rows.tolist()]
        hidden = np.zeros((*mask.shape, states[0].shape[1]), dtype=np.float32)
        for place, length in enumerate(lengths.tolist()):
            hidden[place, :length] = states[place][:length]
        return hidden, mask.astype(np.int64)

    def _by(self, rows: _Rows, kind: Callable[[_Way], _Kind]) -> dict[_Kind, _Rows]:
        """Part samples by what holds of the ways that they are on."""
        numbers, which = np.unique(self._way[rows], return_inverse=True)
        kinds: dict[_Kind, int] = {}
        of = [kinds.setdefault(kind(self._ways[each]), len(kinds)) for each in numbers.tolist()]
        if len(kinds) < 2:
            return dict.fromkeys(kinds, rows)
        place = np.array(of)[which]
        return {each: rows[place == number] for each, number in kinds.items()}

    def _decide(self, rows: _Rows) -> tuple[list[Sample], _Rows]:
        """Ask the policy and give its answers; return who goes on one by one, and who goes on here, by another way."""
        own = self._device
        released: list[Sample] = []
        if not rows.size:
            return released, rows
        numbers, which = np.unique(self._way[rows], return_inverse=True)
        ways = tuple(self._ways[each] for each in numbers.tolist())
        said = {step: self._said[own.lines[step.tier], step.layer] for way in ways for step in way}
        for index, way in enumerate(ways):
            if way and np.isnan(said[way[-1]][rows[which == index]]).any():
                raise ContractError(f"a text has not been run as far as {way[-1]} reads")
        groups = Groups(self._embeddings, rows, ways, which, said, self._unseen)
        with own.lock:
            choices = own.policy.decide_groups(groups)
        n = len(choices.options)
        found, of = np.unique(which * n + choices.picks, return_inverse=True)
        onward = np.full(len(found), _ANSWERED)
        for place, (way, pick) in enumerate((ways[each // n], each % n) for each in found.tolist()):
            option = choices.options[pick]
            if option is None:
                continue
            if (
                option.side_readings
                or (option.layer > 0 and option.tier not in own.engines)
                or len(way) > len(TIERS) * own.policy.depths.cloud  # it does not come to an end
            ):
                onward[place] = _RELEASED
                released += self._release(groups.take(of == place), option)
                continue
            onward[place] = self._number((*way, option))
        taken = onward[of]
        if (answered := taken == _ANSWERED).any():
            self._answer(groups.take(answered))
        goes_on = taken >= 0
        self._way[rows[goes_on]] = taken[goes_on]
        return released, rows[goes_on]

    def _number(self, way: _Way) -> int:
        """Return the number of a way, which is checked when it is first taken."""
        number = self._numbers.get(way)
        if number is None:
            check_step(way[:-1], way[-1], exits=self._device.exits[way[-1].tier])
            number = self._numbers[way] = len(self._ways)
            self._ways.append(way)
        return number

    def _release(self, groups: Groups, step: Step) -> list[Sample]:
        """Let samples go on one by one, by a step that is decided."""
        self.left[groups.rows] = False
        released = []
        for _, group in groups.each():
            for place, row in enumerate(group.rows.tolist()):
                sample = self._samples[row]
                self._states.pop(row, None)
                batch, whole = self._tokens.batch([row]), self._tokens.whole[row]
                sample.go_on(
                    group.row(place), step, batch, whole, spent_s=float(self._spent_s[row])
                )
                released.append(sample)
        return released

    def _answer(self, groups: Groups) -> None:
        own = self._device
        answer = own.policy.answer_groups(groups)
        costs = [own.manifest.costs.of(steps) for steps in groups.ways]
        self.left[groups.rows] = False
        for row, way, place, probabilities, spent_s in zip(
            groups.rows.tolist(),
            groups.way.tolist(),
            answer.places.tolist(),
            answer.probabilities.tolist(),
            self._spent_s[groups.rows].tolist(),
            strict=True,
        ):
            by, sample = groups.ways[way][place], self._samples[row]
            self._states.pop(row, None)
            sample.answer = sample.answered(
                probabilities, by.tier, by.layer, cost=costs[way], latency_s=spent_s
            )

    def _hear(self, line: Tier, layer: int, rows: _Rows, logits: NDArray[np.float32]) -> None:
        """Keep what an exit of some graphs says, whether or not a policy looks at it."""
        if (line, layer) not in self._said:
            self._said[line, layer] = np.full((len(self._samples), logits.shape[1]), np.nan)
        self._said[line, layer][rows] = softmax(logits)

    @contextmanager
    def _timed(self, rows: _Rows) -> Iterator[None]:
        """Charge each sample its share of the time that a batch takes."""
        began = time.perf_counter()
        yield
        self._spent_s[rows] += (time.perf_counter() - began) / len(rows)
