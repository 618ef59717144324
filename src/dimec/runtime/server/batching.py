"""Dynamic batching: requests queue here, and worker threads run them together on the engine.

The event loop only ever takes a lock for a moment. A worker that is done picks its next batch itself, so that the
engine does not stand still while answers are written; results go back to the event loop, which alone touches futures.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import ContractError, RefusedError
from dimec.runtime.server.scheduling import Arrays, Piece, Scheduler, cut, join, padded_tokens
from dimec.runtime.server.settings import ServerSettings

Run = Callable[[Mapping[str, NDArray[Any]], NDArray[np.float64] | None], NDArray[np.float32]]
"""Inputs [b, t, ...] and thresholds [b, exits] (None: every row runs all exits) to logits [b, exits, classes]."""


@dataclass(slots=True, eq=False)
class Job:
    """A request in the queue or in work.

    All times are seconds of the monotonic clock.

    Attributes:
        thresholds: [exits], the confidence from which its rows leave each; None where all exits are wanted.
        deadline: The time from which nobody waits for it.
        future: Resolves to logits [rows, exits, classes] in the event loop.
        queued: Its waiting pieces; under the batcher's lock.
        open: How many of its pieces have no logits yet; the event loop's alone.
        parts: The logits of the others, with their rows.
    """

    thresholds: NDArray[np.float64] | None
    deadline: float
    future: asyncio.Future[NDArray[np.float32]]
    queued: list[Piece[Job]] = field(default_factory=list)
    open: int = 0
    parts: list[tuple[NDArray[np.intp], NDArray[np.float32]]] = field(default_factory=list)
    arrived: float = 0.0
    started: float | None = None
    finished: float = 0.0


class Batcher:
    """A bounded queue in front of an engine; made and used in a running event loop."""

    def __init__(
        self,
        runs: Mapping[int, Run],
        *,
        settings: ServerSettings,
        padding: Mapping[str, int],
        report: Callable[[Sequence[Piece[Job]]], None],
    ) -> None:
        """Start the worker threads, each of which runs one batch at a time.

        Args:
            runs: What runs rows, by the layer that they stand at: tokens at 0, hidden states behind it.
            padding: The value that fills each tensor up, by name; 0 by default.
            report: Is told of every batch that was run.
        """
        self._runs, self._settings, self._padding = runs, settings, padding
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._scheduler: Scheduler[Job] = Scheduler(settings)
        self._waiting: set[Job] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._tokens_per_s = 0.0
        self._threads = [
            threading.Thread(target=self._work, name=f"engine-{number}", daemon=True)
            for number in range(settings.workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def waiting_requests(self) -> int:
        """Requests of which something waits."""
        return len(self._waiting)

    @property
    def waiting_tokens(self) -> int:
        """Padded tokens that wait."""
        return self._scheduler.padded

    def submit(
        self,
        inputs: Arrays,
        *,
        thresholds: NDArray[np.float64] | None,
        deadline: float,
        from_layer: int = 0,
    ) -> Job:
        """Queue a request's rows; whoever does so has to wait for the `answer`.

        Args:
            inputs: Tensors [rows, t, ...].
            thresholds: [exits], the confidence from which a row leaves each; None to read all exits.
            deadline: In seconds of `time.monotonic`.
            from_layer: The layer that the rows stand at; 0 for rows of tokens.

        Raises:
            RefusedError: If the queue is full (429), or the deadline has passed (504).
        """
        job = Job(thresholds, deadline, self._loop.create_future())
        pieces = cut(job, inputs, self._settings, start=from_layer)
        tokens = sum(piece.padded for piece in pieces)
        now = time.monotonic()
        if deadline <= now:
            raise expired()
        with self._changed:
            waiting, waiting_tokens = len(self._waiting), self._scheduler.padded
            if (
                waiting < self._settings.queue_requests
                and waiting_tokens + tokens <= self._settings.queue_tokens
            ):
                job.arrived = now
                job.queued = list(pieces)
                job.open = len(pieces)
                self._waiting.add(job)
                for piece in pieces:
                    self._scheduler.add(piece, now)
                self._changed.notify()
                return job
        clears_s = waiting_tokens / self._tokens_per_s if self._tokens_per_s else 1
        waits = f"{waiting} requests with {waiting_tokens} tokens"
        may = f"{self._settings.queue_requests} and {self._settings.queue_tokens}"
        raise queue_full(waits, may, clears_s)

    async def answer(self, job: Job) -> NDArray[np.float32]:
        """Return the logits [rows, exits, classes] of a job, NaN where an exit was not reached.

        Cancelling this, or the job's future, takes it out of the queue.

        Raises:
            RefusedError: Once the deadline has passed (504).
            Exception: What the engine raised.
        """
        left_s = job.deadline - time.monotonic()
        timer = self._loop.call_later(left_s, lambda: self._fail(job, expired()))
        try:
            return await job.future
        finally:
            timer.cancel()
            self._withdraw(job)

    def hurry(self) -> None:
        """Wait for company no longer: what is queued runs as soon as the engine is free."""
        with self._changed:
            self._scheduler.limits = self._settings.model_copy(update={"max_wait_ms": 0.0})
            self._changed.notify_all()

    def refuse_waiting(self) -> None:
        """Answer what has not begun to run with 503."""
        told = "the server stopped before the request was run"
        for job in list(self._waiting):
            self._fail(job, RefusedError(503, "draining", told))

    def close(self, limit_s: float | None = None) -> None:
        """Stop the workers, waiting so long for what runs; what waits is not run."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(limit_s)

    # --- in the event loop

    def _fail(self, job: Job, error: Exception) -> None:
        self._withdraw(job)
        if not job.future.done():
            job.future.set_exception(error)

    def _withdraw(self, job: Job) -> None:
        with self._changed:
            for piece in job.queued:
                self._scheduler.remove(piece)
            job.queued.clear()
            self._waiting.discard(job)

    def _deliver(
        self, pieces: Sequence[Piece[Job]], outcome: NDArray[np.float32] | Exception, took: float
    ) -> None:
        now = time.monotonic()
        if took > 0:
            rate = padded_tokens(pieces) / took * len(self._threads)
            self._tokens_per_s += (rate - self._tokens_per_s) * (0.1 if self._tokens_per_s else 1)
        self._report(pieces)
        begin = 0
        for piece in pieces:
            job, end = piece.owner, begin + len(piece.rows)
            job.open -= 1
            job.finished = now
            if isinstance(outcome, Exception):
                self._fail(job, outcome)
            else:
                job.parts.append((piece.rows, outcome[begin:end]))
                if not job.open and not job.future.done():
                    job.future.set_result(_whole(job.parts))
            begin = end

    # --- in the workers

    def _work(self) -> None:
        while (pieces := self._next()) is not None:
            began = time.monotonic()
            outcome = self._attempt(pieces)
            if isinstance(outcome, Exception) and len(pieces) > 1:
                # One request must not spoil the answers of those it happened to share a batch with.
                for piece in pieces:
                    began = time.monotonic()
                    self._send([piece], self._attempt([piece]), began)
            else:
                self._send(pieces, outcome, began)

    def _send(
        self, pieces: list[Piece[Job]], outcome: NDArray[np.float32] | Exception, began: float
    ) -> None:
        took = time.monotonic() - began
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._deliver, pieces, outcome, took)

    def _next(self) -> list[Piece[Job]] | None:
        """Wait for the next batch; None once the batcher is closed."""
        with self._changed:
            while not self._closed:
                now = time.monotonic()
                found = self._scheduler.take(now)
                if not isinstance(found, list):
                    self._changed.wait(None if found is None else max(0.0, found - now))
                    continue
                for piece in found:
                    piece.owner.queued.remove(piece)
                    if not piece.owner.queued:
                        self._waiting.discard(piece.owner)
                # Those that are too late are answered by their timers, which a busy loop may have delayed.
                pieces = [piece for piece in found if piece.owner.deadline > now]
                for piece in pieces:
                    piece.owner.started = piece.owner.started or now
                if pieces:
                    return pieces
        return None

    def _attempt(self, pieces: Sequence[Piece[Job]]) -> NDArray[np.float32] | Exception:
        try:
            inputs = join(pieces, self._padding)
            logits = self._runs[pieces[0].start](inputs, _thresholds(pieces))
            rows = len(next(iter(inputs.values())))
            if logits.ndim != 3 or len(logits) != rows:
                raise ContractError(
                    f"the engine gave logits of shape {logits.shape} for {rows} rows"
                )
            return logits
        except Exception as exc:
            return exc


def _thresholds(pieces: Sequence[Piece[Job]]) -> NDArray[np.float64] | None:
    given = [piece.owner.thresholds for piece in pieces]
    some = next((each for each in given if each is not None), None)
    if some is None:
        return None
    never = np.full_like(some, math.inf)
    return np.repeat(
        [never if each is None else each for each in given],
        [len(piece.rows) for piece in pieces],
        axis=0,
    )


def _whole(parts: Sequence[tuple[NDArray[np.intp], NDArray[np.float32]]]) -> NDArray[np.float32]:
    """Put the rows of a request back in their order."""
    if len(parts) == 1 and len(parts[0][0]) == 1:
        return parts[0][1]
    rows = np.concatenate([rows for rows, _ in parts])
    values = np.concatenate([values for _, values in parts])
    whole: NDArray[Any] = np.empty_like(values)
    whole[rows] = values
    return whole


def queue_full(waits: str, may: str, clears_s: float) -> RefusedError:
    """Return the refusal of a full queue (429): what waits, what may at most, and the seconds until that is done."""
    return RefusedError(
        429,
        "queue full",
        f"the queue is full: {waits} wait, at most {may} may; come back later",
        retry_after_s=max(1, min(60, math.ceil(clears_s))),
    )


def expired() -> RefusedError:
    """Return the refusal of a request whose time is over (504)."""
    return RefusedError(504, "deadline", "the deadline passed before the request was answered")
