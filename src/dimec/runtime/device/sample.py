"""One text on its way through a device: the policy's steps, run one after the other, with a pause at every request.

Nothing here does input or output: `Sample.advance` returns an `Ask` where a server is to be asked, is called again with
its `Outcome`, and returns the `Answer` in the end.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from dimec.core import tracing
from dimec.core.errors import ContractError
from dimec.core.tiers import TIERS, Answer, Reading, Step, Tier, check_step, layers_done, softmax
from dimec.core.tokens import TokenBatch
from dimec.policies import View
from dimec.runtime.device.client import Ask, Outcome, Resumption
from dimec.runtime.device.resilience import stand_ins
from dimec.runtime.wire import CODE, HIDDEN, TEXT, encode_hidden

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from dimec.runtime.device.device import Device

Text: TypeAlias = str | tuple[str, str]
"""What is classified: a text, or two where the task is about pairs."""


@dataclass(slots=True)
class _Stand:
    """A tier's hidden state after ``layer``; ``restored`` from a bottleneck, behind which it has own weights."""

    layer: int
    hidden: NDArray[np.float32]
    restored: bool = False


_UNREAD = np.empty(0, dtype=np.float32)
"""The embedding of a sample whose policy does not look at it."""

_Steps = Generator[Ask, Outcome | None, Answer]


class Sample:
    """One text on its way; its caller keeps in ``reply`` what it waits for, and in ``answer`` the result."""

    def __init__(
        self, device: Device, index: int, text: Text, *, request_id: str, parent: Span | None = None
    ) -> None:
        """Take a text; nothing is run before `advance`, and its span, where somebody traces, ends with the answer."""
        self.reply: Future[Outcome] | None = None
        self.answer: Answer | None = None
        self.text = text
        self._device = device
        self._index = index
        self._request_id = request_id
        self._span = tracing.begin("classify", "INTERNAL", parent=parent)
        self._spent_s = 0.0
        self._resumed_at = 0.0
        self._failed_cost = 0.0
        self._notes: list[str] = []
        self._trouble: tuple[Tier, str] | None = None
        self._unseen = math.nan
        self._stands: dict[Tier, _Stand] = {}
        self._said: dict[Tier, dict[int, NDArray[np.float64]]] = {tier: {} for tier in TIERS}
        self._view: View | None = None
        self._decided: Step | None = None
        self._steps: _Steps | None = None

    def go_on(
        self,
        view: View,
        step: Step,
        batch: TokenBatch,
        whole: NDArray[np.integer],
        *,
        spent_s: float,
    ) -> None:
        """Take up a text that has been run up to a view, where the policy has decided, before the first `advance`.

        Its token ids are there as an encoder takes them, and ``whole`` [t], as exit zero does.
        """
        self._view, self._decided, self._batch, self._whole = view, step, batch, whole
        self._unseen, self._spent_s = view.unseen, spent_s
        for each in view.readings:
            self._said[each.tier][each.layer] = each.probabilities

    def advance(self, outcome: Outcome | None) -> Ask | Answer:
        """Go on, with what came of the last request, up to the next one or the answer."""
        self._resumed_at = time.perf_counter()
        if outcome is not None:
            self._spent_s += outcome.elapsed_s
        if self._steps is None:  # not before, since it refers to this object
            self._steps = self._run()
        try:
            return self._steps.send(outcome)
        except StopIteration as done:
            answer: Answer = done.value
            return answer
        finally:
            self._spent_s += time.perf_counter() - self._resumed_at

    @property
    def _now_spent_s(self) -> float:
        """How long this sample was worked on or waited for a tier; not how long it waited for its turn."""
        return self._spent_s + time.perf_counter() - self._resumed_at

    def _run(self) -> _Steps:
        own = self._device
        policy = own.policy
        view = self._view
        if view is None:
            first, second = (self.text, None) if isinstance(self.text, str) else self.text
            self._batch, self._whole = own.tokenizer.encode_one(first, second)
            view = View(embedding=self._enter(Tier.MOBILE) if policy.reads_embedding else _UNREAD)
        while True:
            step, self._decided = self._decided, None
            if step is None:
                with own.lock:
                    step = policy.decide(view)
            if step is None:
                break
            exits = own.exits.get(step.tier, (step.layer,))
            check_step(view.steps, step, exits=exits)
            if len(view.steps) > len(TIERS) * policy.depths.cloud:
                raise ContractError(
                    f"a policy does not come to an end: {len(view.steps)} steps on one sample"
                )
            if not (yield from self._get(view, step)):
                return (yield from self._stand_in(view, step))
            said = self._said[step.tier]
            passed = layers_done(view.steps, step) if step.side_readings else step.layer - 1
            view.steps.append(step)
            view.unseen = self._unseen
            view.readings.extend(
                _reading(step.tier, layer, said[layer])
                for layer in sorted(said)
                if passed < layer <= step.layer
            )
        answering = policy.answer(view)
        if policy.learns:
            with own.lock:
                own.learn(view)
        return self._answered(answering, view.steps)

    def _enter(self, tier: Tier) -> NDArray[np.float32]:
        """Embed the tokens on a tier that runs in-process and return the mean embedding: [width]."""
        hidden, embedding = self._device.engines[tier].embed(self._batch)
        self._stands[tier] = _Stand(0, hidden)
        return np.asarray(embedding[0], dtype=np.float32)

    def _get(
        self, view: View, step: Step, *, leaves: Mapping[int, float] | None = None
    ) -> Generator[Ask, Outcome | None, bool]:
        """Read the exit at the end of a step, or an earlier one that is sure enough by ``leaves``; False on failure."""
        own, tier, layer, before = self._device, step.tier, step.layer, view.steps
        said = self._said[tier]
        if layer in said:
            return True
        if layer == 0:
            logits, self._unseen = own.exit_zero.read(self._whole)
            said[0] = softmax(logits)
            return True
        state = None
        if step.resumes and before[-1].layer > 0:
            state = self._state_of(before[-1])
            if state is None:
                words = (
                    f"the hidden state of the {before[-1].tier} tier is not on this device, so that the {tier} tier "
                    "cannot go on from it"
                )
                self._note(tier, "no_state", words)
                return False
        if tier in own.engines:
            if state is not None:
                self._stands[tier] = self._arrived(tier, state)
            self._run_local(tier, layer, leaves or {})
            return True
        if tier not in own.clients:
            why = "another model holds it" if tier in own.asked else "the bundle lacks it"
            why += " and no URL of a server is given"
            self._note(tier, "no_tier", f"there is no {tier} tier, since {why}")
            return False
        left_s = own.settings.deadline_ms / 1_000 - self._now_spent_s
        # Half of what is left, so that a tier that stands in has as much again.
        budget_s = left_s / 2
        if budget_s <= 0:
            self._note(tier, "no_time", f"no time was left to ask the {tier} tier")
            return False
        exits = own.clients[tier].layers
        wanted = layer if not leaves or exits is None else exits[0]
        if leaves is None:
            with own.lock:
                leaves = own.policy.exit_thresholds(view, step)
        resumes = None if state is None else self._sent(state)
        inputs: Mapping[str, NDArray[Any]] = self._batch.named()
        if tier in own.asked:  # it asks another model, which reads texts
            text = self.text if isinstance(self.text, str) else [self.text]
            inputs = {TEXT: np.array(text, dtype=object, ndmin=1)}
        outcome = yield Ask(
            tier, inputs, self._request_id, wanted, leaves, budget_s, resumes, self._span
        )
        assert outcome is not None
        answered = outcome.probabilities is not None
        stood = before[-1:] if step.resumes else ()
        once = own.manifest.costs.of([*stood, step]) - own.manifest.costs.of(stood)
        fee = own.asked.get(tier, 0.0)
        self._failed_cost += (once - fee) * (outcome.attempts - answered)
        if outcome.billed is not None:  # of an answer, costs hold what one costs in the mean
            self._failed_cost += outcome.billed - fee * answered
        if outcome.probabilities is None:
            last = outcome.failures[-1]
            self._note(tier, last.fault, last.words(tier, outcome.attempts))
            return False
        if outcome.failures:
            first = outcome.failures[0]
            words = f"{first.words(tier, 1)} at first, and answered at attempt {outcome.attempts}"
            self._note(tier, first.fault, words)
        said.update(outcome.probabilities)
        return True

    def _note(self, tier: Tier, kind: str, words: str) -> None:
        self._notes.append(words)
        self._trouble = self._trouble or (tier, str(kind))

    def _state_of(self, step: Step) -> _Stand | None:
        """Return the hidden state at the end of a step that has been run; None where it is not on this device."""
        if step.tier not in self._device.engines:
            return None
        if self._stands[step.tier].layer != step.layer:  # the tier has been run further since
            self._enter(step.tier)
            self._run_local(step.tier, step.layer, {})
        stand = self._stands[step.tier]
        return _Stand(stand.layer, stand.hidden)

    def _sent(self, state: _Stand) -> Resumption:
        """Return a state as it goes to a server."""
        own = self._device
        if own.code is None:
            return Resumption(HIDDEN, encode_hidden(state.hidden, own.hidden_type), state.layer)
        data = own.engines[Tier.MOBILE].ship(state.hidden, own.code)
        return Resumption(CODE, np.frombuffer(data, np.uint8)[None], state.layer)

    def _arrived(self, tier: Tier, state: _Stand) -> _Stand:
        """Return a state as a tier that runs in-process goes on from it: through a bottleneck it goes here too."""
        own = self._device
        if own.code is None:
            return state
        data = own.engines[Tier.MOBILE].ship(state.hidden, own.code)
        hidden = own.engines[tier].arrive(data, own.code, n_tokens=state.hidden.shape[1])
        return _Stand(state.layer, hidden, restored=True)

    def _run_local(self, tier: Tier, layer: int, leaves: Mapping[int, float]) -> None:
        """Run a tier in-process from where it stands to the exit after ``layer``, or to one before that is enough."""
        own, said = self._device, self._said[tier]
        engine = own.engines[tier]
        if tier not in self._stands:
            self._enter(tier)
        stand, mask = self._stands[tier], self._batch.attention_mask
        for stop in engine.layers if leaves else (layer,):
            if stand.layer < stop <= layer:
                stand.hidden, logits = engine.run(
                    stand.hidden, mask, after=stand.layer, layer=stop, restored=stand.restored
                )
                stand.layer = stop
                said.update((each, softmax(read[0])) for each, read in logits.items())
                if said[stop].max() >= leaves.get(stop, math.inf):
                    return

    def _stand_in(self, view: View, step: Step) -> _Steps:
        """Answer by the nearest tier that answers; the policy has no say any more, and learns nothing."""
        own = self._device
        for tier in stand_ins(step, last=own.last):
            last = own.last[tier]
            with own.lock:
                leaves = own.policy.exit_thresholds(view, Step(tier, last, arm=step.arm))
            afresh = View(embedding=view.embedding)
            there = yield from self._get(afresh, Step(tier, last), leaves=leaves)
            said = {layer: each for layer, each in self._said[tier].items() if layer <= last}
            if not there or not said:
                continue
            sure = (
                layer for layer in sorted(said) if said[layer].max() >= leaves.get(layer, math.inf)
            )
            layer = next(sure, max(said))
            steps = list(view.steps)
            taken = Step(tier, layer)
            if layer > layers_done(steps, taken):
                steps.append(taken)
            self._notes.append(f"so the {tier} tier answered")
            return self._answered(_reading(tier, layer, said[layer]), steps)
        raise ContractError("the mobile tier gave no answer")

    def _answered(self, reading: Reading, steps: Sequence[Step]) -> Answer:
        cost = max(0.0, self._device.manifest.costs.of(steps) + self._failed_cost)
        return self.answered(
            reading.probabilities.tolist(),
            reading.tier,
            reading.layer,
            cost=cost,
            latency_s=self._now_spent_s,
        )

    def answered(
        self,
        probabilities: Sequence[float],
        tier: Tier,
        layer: int,
        *,
        cost: float,
        latency_s: float,
    ) -> Answer:
        """Return the answer that an exit gives to this text at a cost in lambda, and count it."""
        own = self._device
        with own.lock:
            alarm = own.policy.alarm()
        confidence = max(probabilities)
        answer = Answer(
            index=self._index,
            label=own.label_names[probabilities.index(confidence)],
            confidence=confidence,
            tier=tier,
            layer=layer,
            cost=cost,
            latency_ms=1_000 * latency_s,
            degraded=", ".join(self._notes) or None,
            request_id=self._request_id,
            probabilities=tuple(probabilities),
            alarm=alarm,
        )
        own.metrics.answered(answer, self._trouble)
        tracing.end(
            self._span,
            tier=str(tier),
            layer=layer,
            cost=cost,
            degraded=answer.degraded,
            alarm=alarm,
            request_id=self._request_id,
        )
        return answer


def _reading(tier: Tier, layer: int, probabilities: NDArray[np.float64]) -> Reading:
    label = int(probabilities.argmax())
    return Reading(tier, layer, label, float(probabilities[label]), probabilities)
