"""Texts of all requests on their way through one device, whichever requests they came with.

Worker threads take what waits and run it together; what a server is to be asked for goes on when it has answered, while
the workers run other texts. The event loop alone touches futures.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from dimec.core.errors import RefusedError
from dimec.core.tiers import Answer
from dimec.runtime.device.client import Ask
from dimec.runtime.device.device import IN_FLIGHT, Device
from dimec.runtime.device.sample import Sample, Text
from dimec.runtime.device.stages import can_run, run_stages
from dimec.runtime.server.batching import queue_full
from dimec.runtime.server.settings import ServerSettings

if TYPE_CHECKING:
    from opentelemetry.trace import Span

CHARACTERS_PER_TOKEN = 4
"""What a token is worth where texts wait that are not tokenised yet."""

_CHUNK = 64
_CHUNK_CHARACTERS = 100_000


@dataclass(slots=True, eq=False)
class _Task:
    """A text on its way, and who waits for its answer: nobody once the future is done."""

    sample: Sample
    size: int
    future: asyncio.Future[Answer]


class TextPool:
    """A bounded queue in front of a device; made and used in a running event loop."""

    def __init__(self, device: Device, *, settings: ServerSettings) -> None:
        """Start the worker threads; one where the policy learns, which meets texts one after the other."""
        self._device, self._settings = device, settings
        self._loop = asyncio.get_running_loop()
        self._stages = can_run(device.policy)
        self._learns = learns = device.policy.learns
        self._in_flight = device.settings.in_flight or (1 if learns else IN_FLIGHT)
        self._changed = threading.Condition()
        self._closed = False
        self._fresh: deque[_Task] = deque()
        """What has not begun."""
        self._asks: deque[tuple[_Task, Ask]] = deque()
        """What waits for its turn to ask a server."""
        self._answered: deque[_Task] = deque()
        """What a server has answered."""
        self._asking = 0
        self.waiting_requests = 0
        """Requests that are not answered."""
        self._characters = 0
        self._open: set[_Task] = set()
        self._text_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"texts-{number}", daemon=True)
            for number in range(1 if learns else settings.workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_texts(self) -> int:
        """Their texts that are not answered."""
        return len(self._open)

    @contextlib.contextmanager
    def place(self, characters: int) -> Iterator[None]:
        """Take a place in the queue for a request of so many characters.

        Raises:
            RefusedError: If there is none (429).
        """
        most = self._settings
        tokens = (self._characters + characters) // CHARACTERS_PER_TOKEN
        if self.waiting_requests and (
            self.waiting_requests >= most.queue_requests or tokens > most.queue_tokens
        ):
            clears_s = len(self._open) * self._text_s / len(self._threads)
            waits = f"{self.waiting_requests} requests with {self._characters} characters"
            may = f"{most.queue_requests} and {most.queue_tokens * CHARACTERS_PER_TOKEN}"
            raise queue_full(waits, may, clears_s)
        self.waiting_requests += 1
        self._characters += characters
        try:
            yield
        finally:
            self.waiting_requests -= 1
            self._characters -= characters

    def submit(
        self, texts: Sequence[Text], *, request_id: str, first: int = 0, span: Span | None = None
    ) -> list[asyncio.Future[Answer]]:
        """Queue texts of a request that has a place; a future that is cancelled takes its text out.

        The servers' logs call a text by the request's id and its index, which is counted from ``first``.
        """
        tasks = []
        for index, text in enumerate(texts, start=first):
            called = f"{request_id[:96]}.{index}"
            sample = Sample(self._device, index, text, request_id=called, parent=span)
            task = _Task(sample, size_of(text), self._loop.create_future())
            task.future.add_done_callback(partial(self._forget, task))
            self._open.add(task)
            tasks.append(task)
        with self._changed:
            self._fresh += tasks
            self._changed.notify_all()
        return [task.future for task in tasks]

    def refuse_waiting(self) -> None:
        """Answer what is not answered with 503."""
        for task in list(self._open):
            if not task.future.done():
                told = "the server stopped before the text was answered"
                task.future.set_exception(RefusedError(503, "draining", told))

    def close(self, limit_s: float) -> None:
        """Stop the workers, waiting so long for what runs, and close the device."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(limit_s)
        self._device.close()

    # --- in the event loop

    def _forget(self, task: _Task, done: asyncio.Future[Answer]) -> None:
        self._open.discard(task)
        reply = task.sample.reply
        if reply is not None and not reply.done():
            reply.cancel()

    def _deliver(self, done: Sequence[tuple[_Task, Answer | Exception]], each_s: float) -> None:
        self._text_s += (each_s - self._text_s) * (0.1 if self._text_s else 1)
        for task, outcome in done:
            if task.future.done():
                continue
            if isinstance(outcome, Exception):
                task.future.set_exception(outcome)
            else:
                task.future.set_result(outcome)

    # --- in the workers

    def _work(self) -> None:
        while (tasks := self._next()) is not None:
            began = time.monotonic()
            for done in self._run(tasks):
                if done and not self._loop.is_closed():
                    each_s = (time.monotonic() - began) / len(tasks)
                    self._loop.call_soon_threadsafe(self._deliver, done, each_s)

    def _next(self) -> list[_Task] | None:
        """Wait for texts that can be run together; None once the pool is closed."""
        with self._changed:
            while not self._closed:
                if self._answered:
                    return [self._answered.popleft()]
                # A policy that learns is to have met a text before it decides for the next.
                if self._fresh and not (self._learns and self._asking >= self._in_flight):
                    return self._chunk()
                self._changed.wait()
        return None

    def _chunk(self) -> list[_Task]:
        tasks: list[_Task] = []
        characters = 0
        most = _CHUNK if self._stages else 1
        while self._fresh and len(tasks) < most and characters < _CHUNK_CHARACTERS:
            tasks.append(self._fresh.popleft())
            characters += tasks[-1].size
        return tasks

    def _run(self, tasks: list[_Task]) -> Iterator[list[tuple[_Task, Answer | Exception]]]:
        """Take texts as far as they go; gives those that are done as soon as they are."""
        tasks = [task for task in tasks if not task.future.done()]
        if len(tasks) < 2:
            yield self._advance(tasks)
            return
        under_way = {task.sample: task for task in tasks}
        for released in run_stages(self._device, list(under_way)):
            yield self._advance([under_way.pop(sample) for sample in released])
            yield _taken(under_way)
        yield _taken(under_way)

    def _advance(self, tasks: Sequence[_Task]) -> list[tuple[_Task, Answer | Exception]]:
        """Go on with texts one by one, up to the answer or the next request; gives those that are done."""
        done: list[tuple[_Task, Answer | Exception]] = []
        for task in tasks:
            sample = task.sample
            try:
                outcome = None if sample.reply is None else sample.reply.result()
                sample.reply = None
                wanted = sample.advance(outcome)
                if isinstance(wanted, Answer):
                    done.append((task, wanted))
                else:
                    self._ask(task, wanted)
            except Exception as exc:  # the text's own: the others go on
                done.append((task, exc))
        return done

    def _ask(self, task: _Task, ask: Ask) -> None:
        with self._changed:
            if self._asking >= self._in_flight:
                self._asks.append((task, ask))
                return
            self._asking += 1
        self._send(task, ask)

    def _send(self, task: _Task, ask: Ask) -> None:
        reply = task.sample.reply = self._device.ask(ask)
        reply.add_done_callback(lambda done: self._back(task))

    def _back(self, task: _Task) -> None:
        """Take up a text that a server has answered, and ask for the next; in the thread of the requests."""
        following = None
        with self._changed:
            self._answered.append(task)
            while self._asks and following is None:
                each, ask = self._asks.popleft()
                following = None if each.future.done() else (each, ask)
            if following is None:
                self._asking -= 1
            self._changed.notify_all()
        if following is not None and not self._closed:
            self._send(*following)


def _taken(under_way: dict[Sample, _Task]) -> list[tuple[_Task, Answer | Exception]]:
    """Take out and return what is answered."""
    found = [(sample, sample.answer) for sample in under_way if sample.answer is not None]
    return [(under_way.pop(sample), answer) for sample, answer in found]


def size_of(text: Text) -> int:
    """Return the characters of a text, or of a pair."""
    return len(text) if isinstance(text, str) else sum(map(len, text))
