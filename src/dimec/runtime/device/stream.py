"""Texts under way through a device: read ahead, in chunks or one by one, and answered in their order."""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import TYPE_CHECKING, Any

from dimec.core.errors import OptionError
from dimec.core.tiers import Answer
from dimec.runtime.device.loop import Feed, closed_device
from dimec.runtime.device.sample import Sample, Text
from dimec.runtime.device.stages import run_stages

if TYPE_CHECKING:
    from dimec.runtime.device.device import Device

AHEAD = 4_096
"""Texts that are read ahead where all are there, in two chunks: one is run while the other waits for servers."""

# The first chunks of a stream are smaller, so that the first answers come soon.
_FIRST_CHUNK = 64
_GROWTH = 4
_CHUNK_CHARACTERS = 1_000_000


class Stream:
    """Texts on their way; what is raised on one of them is raised behind the answers to those before."""

    def __init__(
        self,
        device: Device,
        texts: Iterator[Text],
        *,
        requests: int,
        ahead: int,
        apart: bool,
        at_once: bool = False,
        stop: threading.Event | None = None,
    ) -> None:
        """Take checked texts.

        Args:
            requests: How many texts may wait for servers at once.
            ahead: How many may be read and run in chunks before they are answered; 1 runs them one by one, as many as
                ``requests``.
            apart: Read the texts in a thread of their own.
            at_once: Nobody waits for the first answers: begin with a whole chunk.
            stop: Ends the stream soon after it is set.
        """
        self._device = device
        self._texts = texts
        self._feed = Feed(texts) if apart else None
        self._coming: Future[Text | None] | None = None
        self._more = True
        self._numbers = itertools.count()
        self._requests = requests
        self._stop = stop or threading.Event()
        self._most = requests if ahead == 1 else ahead
        self._largest = max(1, ahead // 2)
        self._size = self._largest if at_once else min(_FIRST_CHUNK, self._largest)
        self._window: deque[Sample] = deque()
        """All texts that are read and not given an answer for, in order."""
        self._stages: Iterator[list[Sample]] | None = None
        self._free: deque[Sample] = deque()
        """Those that go on one by one as soon as they may."""
        self._asked: list[Sample] = []
        """Those that wait for a server."""
        self._fault: BaseException | None = None

    def answers(self) -> Iterator[Answer]:
        """Give the answers in the order of the texts, each as soon as it and those before are there."""
        process = os.getpid()
        try:
            while (self._more or self._window) and not self._stop.is_set():
                if self._device.pid != process:
                    raise OptionError(
                        "this stream began before a fork, in another process: begin one here"
                    )
                try:
                    self._wait()  # not behind a yield, where a fork may have come
                    self._read()
                    self._advance()
                    while self._window and (answer := self._window[0].answer) is not None:
                        self._window.popleft()
                        yield answer
                except GeneratorExit:
                    raise
                except BaseException as exc:
                    if self._fault is not None:
                        raise
                    self._cut(exc)
            if self._fault is not None:
                raise self._fault
        finally:
            if self._feed is not None:
                self._feed.close()
            for sample in self._asked if self._device.pid == process else ():
                if sample.reply is not None:
                    sample.reply.cancel()

    @property
    def _reads(self) -> bool:
        """Whether more texts may be read now."""
        room = self._size <= self._most - len(self._window)
        return self._more and self._stages is None and room

    def _read(self) -> None:
        """Take the texts that are there, as many as make a chunk."""
        chunk: list[Sample] = []
        characters = 0
        while self._reads and len(chunk) < self._size and characters < _CHUNK_CHARACTERS:
            try:
                if self._feed is None:
                    text = next(self._texts, None)
                else:
                    coming = self._coming or self._feed.ask()
                    self._coming = None if coming.done() else coming
                    if self._coming is not None:
                        break
                    text = coming.result()
            except Exception as exc:  # the input's own: what was read before it is answered
                self._fault, self._more, self._coming = exc, False, None
                break
            if text is None:
                self._more = False
                break
            chunk.append(self._device.sample(next(self._numbers), text))
            characters += len(text) if isinstance(text, str) else sum(map(len, text))
        self._window += chunk
        if len(chunk) > 1:
            self._stages = run_stages(self._device, chunk)
            self._size = min(_GROWTH * self._size, self._largest)
        else:
            self._free += chunk

    def _advance(self) -> None:
        """Run a batch of the chunk, take up what servers have answered, and ask them for what goes on."""
        if self._stages is not None:
            released = next(self._stages, None)
            if released is None:
                self._stages = None
            else:
                self._free += released
        for sample in [each for each in self._asked if each.reply and each.reply.done()]:
            self._asked.remove(sample)
            self._move(sample)
        while self._free and len(self._asked) < self._requests:
            sample = self._free.popleft()
            self._move(sample)
            if sample.answer is not None:
                break  # given before the next is run

    def _move(self, sample: Sample) -> None:
        """Go on with a sample up to its answer or its next request."""
        reply, sample.reply = sample.reply, None
        try:
            outcome = None if reply is None else reply.result()
        except CancelledError:
            raise closed_device() from None
        wanted = sample.advance(outcome)
        if isinstance(wanted, Answer):
            sample.answer = wanted
        else:
            sample.reply = self._device.ask(wanted)
            self._asked.append(sample)

    def _wait(self) -> None:
        """Wait for a server or a text, where there is nothing else to do."""
        moves = self._free and len(self._asked) < self._requests
        if self._stages is None and not moves and (self._coming or not self._reads):
            awaited: list[Future[Any]] = [each.reply for each in self._asked if each.reply]
            wait([*awaited, self._coming] if self._coming else awaited, return_when=FIRST_COMPLETED)

    def _cut(self, fault: BaseException) -> None:
        """Drop a text that something was raised on, which has no way on, and all behind it."""
        self._fault, self._more, self._coming, self._stages = fault, False, None, None
        if not isinstance(fault, Exception):  # an interrupt: nothing is begun any more
            self._free.clear()
        free = set(self._free)
        whole = list(
            itertools.takewhile(
                lambda each: each.answer is not None or each.reply is not None or each in free,
                self._window,
            )
        )
        self._window = deque(whole)
        kept = set(whole)
        self._free = deque(each for each in self._free if each in kept)
