"""What runs together and what does not; every row its own answer; queue, deadlines, cancelling, faults."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from dimec.core.errors import RefusedError
from dimec.runtime.server.batching import Batcher, Job
from dimec.runtime.server.scheduling import Piece, Scheduler, cut, join, padded_tokens
from dimec.runtime.server.settings import ServerSettings

Inputs = dict[str, NDArray[np.int64]]
LIMITS = ServerSettings(
    tier="edge",
    bundle=Path(),
    max_batch_tokens=64,
    max_wait_ms=1000.0,
    max_padding=0.25,
    queue_requests=1000,
    queue_tokens=100_000,
)


def rows(*lengths: int, width: int | None = None, first: int = 1) -> Inputs:
    """Rows whose tokens all hold the row's number, counted from ``first``."""
    ids = np.zeros((len(lengths), width or max(lengths)), dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = row + first
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def piece(length: int, start: int = 0) -> Piece[str]:
    return cut("", rows(length), LIMITS, start=start)[0]


def scheduler_of(*pieces: Piece[str]) -> Scheduler[str]:
    scheduler: Scheduler[str] = Scheduler(LIMITS)
    for each in pieces:
        scheduler.add(each, 0.0)
    return scheduler


def batch_of(scheduler: Scheduler[Any], now: float) -> list[Piece[Any]]:
    batch = scheduler.take(now)
    assert isinstance(batch, list)
    return batch


# --- the scheduler, with time as a number


def test_a_piece_waits_for_company_but_not_for_ever() -> None:
    scheduler: Scheduler[str] = Scheduler(LIMITS)
    assert scheduler.take(0.0) is None
    scheduler.add(piece(8), 10.0)
    assert scheduler.take(10.5) == 11.0
    assert len(batch_of(scheduler, 11.0)) == 1
    assert scheduler.take(11.0) is None
    assert scheduler.padded == 0


def test_a_full_batch_does_not_wait() -> None:
    scheduler = scheduler_of(*(piece(8) for _ in range(9)))
    assert len(batch_of(scheduler, 0.0)) == 8  # 8 x 8 tokens
    assert scheduler.take(0.0) == 1.0
    assert scheduler.padded == 8


def test_like_lengths_run_together_and_the_oldest_is_among_them() -> None:
    scheduler = scheduler_of(*map(piece, (8, 30, 9, 31, 8, 3)))
    batches = []
    while scheduler.padded:
        batches.append([piece.length for piece in batch_of(scheduler, 5.0)])
    assert batches == [[8, 8, 9], [30, 31], [3]]


def test_a_row_longer_than_the_budget_runs_alone_and_at_once() -> None:
    scheduler = scheduler_of(piece(100), piece(99))
    assert [piece.length for piece in batch_of(scheduler, 0.0)] == [100]
    assert [piece.length for piece in batch_of(scheduler, 0.0)] == [99]


LENGTHS_AND_STARTS = st.tuples(st.integers(1, 80), st.sampled_from((0, 1, 3)))


@given(st.lists(st.tuples(LENGTHS_AND_STARTS, st.booleans(), st.booleans()), max_size=60))
def test_nothing_starves_is_lost_runs_twice_or_beside_another_start(
    events: list[tuple[tuple[int, int], bool, bool]],
) -> None:
    scheduler: Scheduler[int] = Scheduler(LIMITS)
    assert scheduler.take(0.0) is None
    waiting: list[Piece[int]] = []

    def check(batch: list[Piece[int]]) -> None:
        assert waiting[0] in batch  # the one that has waited longest
        padded = len(batch) * max(piece.length for piece in batch)
        real = sum(piece.real for piece in batch)
        assert len(batch) == 1 or padded <= min(LIMITS.max_batch_tokens, 1.25 * real)
        assert len({id(piece) for piece in batch}) == len(batch)
        assert len({piece.start for piece in batch}) == 1
        for ran in batch:
            waiting.remove(ran)

    for now, ((length, start), take, drop) in enumerate(events):
        (added,) = cut(now, rows(length), LIMITS, start=start)
        scheduler.add(added, float(now))
        waiting.append(added)
        if drop:
            gone = waiting.pop(len(waiting) // 2)
            assert scheduler.remove(gone)
            assert not scheduler.remove(gone)
        if take and waiting:
            batch = scheduler.take(now + 1.0)
            assert batch is not None
            if isinstance(batch, list):
                check(batch)
        assert scheduler.padded == sum(piece.padded for piece in waiting)
    while waiting:
        check(batch_of(scheduler, 1e6))
    assert scheduler.take(1e6) is None


def test_a_full_batch_of_one_start_waits_for_no_other() -> None:
    scheduler = scheduler_of(piece(8))
    for _ in range(8):
        scheduler.add(piece(8, start=2), 0.5)
    assert [each.start for each in batch_of(scheduler, 0.5)] == [2] * 8
    assert scheduler.take(0.5) == 1.0  # the first of the other start is due then
    scheduler.limits = LIMITS.model_copy(update={"max_wait_ms": 0.0})
    assert len(batch_of(scheduler, 0.5)) == 1


def test_hidden_states_are_joined_in_single_precision() -> None:
    pieces = []
    for number, (length, kind) in enumerate(((2, np.float16), (3, np.float32)), 1):
        inputs = {
            "hidden": np.full((1, length, 4), number, dtype=kind),
            "attention_mask": np.ones((1, length), dtype=np.int8),
        }
        pieces += cut("r", inputs, LIMITS, start=1)
    batch = join(pieces, {"input_ids": 7})
    assert batch["hidden"].dtype == np.float32
    assert batch["hidden"].shape == (2, 3, 4)
    assert batch["attention_mask"].dtype == np.int64
    assert batch["hidden"][0, :, 0].tolist() == [1, 1, 0]
    assert batch["hidden"][1, :, 3].tolist() == [2, 2, 2]
    assert join([pieces[0]], {})["hidden"].dtype == np.float32


@given(st.lists(st.integers(1, 90), min_size=1, max_size=40), st.integers(0, 5))
def test_cutting_keeps_every_row_and_drops_the_padding(lengths: list[int], extra: int) -> None:
    inputs = rows(*lengths, width=max(lengths) + extra)
    pieces = cut("r", inputs, LIMITS)
    assert sorted(row for piece in pieces for row in piece.rows) == list(range(len(lengths)))
    for part in pieces:
        assert part.length == max(lengths[row] for row in part.rows)
        assert part.real == sum(lengths[row] for row in part.rows)
        assert np.array_equal(
            part.inputs["input_ids"], inputs["input_ids"][part.rows, : part.length]
        )
        assert len(part.rows) == 1 or part.padded <= min(LIMITS.max_batch_tokens, 1.25 * part.real)


def test_a_mask_with_holes_reaches_to_its_last_token() -> None:
    inputs = rows(6)
    inputs["attention_mask"][0, 1:4] = 0
    (part,) = cut("r", inputs, LIMITS)
    assert (part.length, part.real) == (6, 3)


def test_joining_pads_with_each_tensors_value() -> None:
    joined = join([piece(2), piece(3)], {"input_ids": 7})
    assert joined["input_ids"].tolist() == [[1, 1, 7], [1, 1, 1]]
    assert joined["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


# --- the batcher, with threads


class Engine:
    """Says for every row and exit the sum of its tokens; can be held shut; fails on token 666."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.batches: list[NDArray[np.int64]] = []

    def __call__(
        self, inputs: Mapping[str, NDArray[np.int64]], thresholds: NDArray[np.float64] | None
    ) -> NDArray[np.float32]:
        self.batches.append(inputs["input_ids"])
        assert self.open.wait(60)
        if (inputs["input_ids"] == 666).any():
            raise ValueError("the engine does not like 666")
        sums = (inputs["input_ids"] * inputs["attention_mask"]).sum(axis=1).astype(np.float32)
        logits = np.stack([sums, -sums], axis=1)[:, None, :].repeat(2, axis=1)
        if thresholds is not None:
            logits[sums >= thresholds[:, 0], 1] = np.nan
        return logits


Use = Callable[[Batcher, Engine], Awaitable[None]]


def run_with_batcher(use: Use, **changes: int) -> list[Sequence[Piece[Job]]]:
    batches: list[Sequence[Piece[Job]]] = []

    async def session() -> None:
        engine = Engine()
        batcher = Batcher(
            {0: engine},
            settings=LIMITS.model_copy(update={"max_wait_ms": 1.0, **changes}),
            padding={},
            report=batches.append,
        )
        try:
            await use(batcher, engine)
        finally:
            engine.open.set()
            await asyncio.to_thread(batcher.close)

    asyncio.run(session())
    return batches


def with_batcher(use: Use) -> Callable[[], None]:
    """Make a test of a session with a batcher and its engine."""

    def test() -> None:
        run_with_batcher(use)

    return test


async def ask(
    batcher: Batcher, inputs: Inputs, *, seconds: float = 60, threshold: float | None = None
) -> NDArray[np.float32]:
    thresholds = None if threshold is None else np.array([threshold, np.inf])
    deadline = time.monotonic() + seconds
    return await batcher.answer(batcher.submit(inputs, thresholds=thresholds, deadline=deadline))


async def held(batcher: Batcher, engine: Engine) -> asyncio.Future[NDArray[np.float32]]:
    """Shut the engine while it runs a first request, and return that request."""
    engine.open.clear()
    first = asyncio.ensure_future(ask(batcher, rows(60)))
    await until(lambda: len(engine.batches) == 1)
    return first


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_request_gets_its_own_rows_in_order(workers: int) -> None:
    rng = np.random.default_rng(0)

    async def one(batcher: Batcher, first: int) -> None:
        lengths = rng.integers(1, 90, size=rng.integers(1, 12)).tolist()
        logits = await ask(batcher, rows(*lengths, first=first))
        sums = [length * (first + row) for row, length in enumerate(lengths)]
        assert logits[:, 1, 0].tolist() == sums

    async def use(batcher: Batcher, engine: Engine) -> None:
        await asyncio.gather(*(one(batcher, int(rng.integers(1, 500))) for _ in range(150)))
        assert (batcher.waiting_requests, batcher.waiting_tokens) == (0, 0)

    batches = run_with_batcher(use, workers=workers)
    assert sum(len(piece.rows) for batch in batches for piece in batch) > len(batches)
    for batch in batches:
        assert sum(piece.real for piece in batch) <= padded_tokens(batch) <= max(90, 64)


@with_batcher
async def test_thresholds_hold_per_row(batcher: Batcher, engine: Engine) -> None:
    asked = [(5, None), (5, 6.0), (7, 6.0)]
    got = await asyncio.gather(
        *(ask(batcher, rows(length), threshold=threshold) for length, threshold in asked)
    )
    assert [bool(np.isnan(logits[0, 1]).all()) for logits in got] == [False, False, True]


def test_a_full_queue_refuses_with_429_and_when_to_come_back() -> None:
    async def use(batcher: Batcher, engine: Engine) -> None:
        asked = [await held(batcher, engine)]
        asked += [asyncio.ensure_future(ask(batcher, rows(60))) for _ in range(2)]
        await until(lambda: batcher.waiting_requests == 2)
        with pytest.raises(RefusedError, match="queue is full") as refused:
            await ask(batcher, rows(1))
        assert refused.value.status == 429
        assert (refused.value.retry_after_s or 0) >= 1
        engine.open.set()
        assert [logits[0, 0, 0] for logits in await asyncio.gather(*asked)] == [60, 60, 60]
        await ask(batcher, rows(1))

    run_with_batcher(use, queue_requests=2)
    run_with_batcher(use, queue_tokens=120)


@with_batcher
async def test_what_expires_in_the_queue_is_never_run(batcher: Batcher, engine: Engine) -> None:
    first = await held(batcher, engine)
    with pytest.raises(RefusedError, match="deadline") as refused:
        await ask(batcher, rows(60, first=9), seconds=0.01)
    assert refused.value.status == 504
    assert batcher.waiting_requests == 0
    with pytest.raises(RefusedError, match="deadline"):
        await ask(batcher, rows(60, first=9), seconds=-1)
    engine.open.set()
    await first
    await ask(batcher, rows(60, first=2))
    assert not any((batch == 9).any() for batch in engine.batches)


@with_batcher
async def test_a_late_timer_does_not_let_an_expired_request_run(
    batcher: Batcher, engine: Engine
) -> None:
    first = await held(batcher, engine)
    second = asyncio.ensure_future(ask(batcher, rows(60, first=9), seconds=0.05))
    await until(lambda: batcher.waiting_requests == 1)
    time.sleep(0.1)  # the loop is busy: no timer can fire
    engine.open.set()
    while batcher.waiting_requests:
        time.sleep(0.001)
    with pytest.raises(RefusedError):
        await second
    await first
    assert not any((batch == 9).any() for batch in engine.batches)


@with_batcher
async def test_a_cancelled_request_leaves_the_queue(batcher: Batcher, engine: Engine) -> None:
    first = await held(batcher, engine)
    second = asyncio.ensure_future(ask(batcher, rows(60, 60, first=9)))
    await until(lambda: batcher.waiting_requests == 1)
    second.cancel()
    await until(lambda: batcher.waiting_tokens == 0)
    assert batcher.waiting_requests == 0
    engine.open.set()
    await first
    assert not any((batch == 9).any() for batch in engine.batches)


@with_batcher
async def test_a_fault_hits_only_the_request_that_causes_it(
    batcher: Batcher, engine: Engine
) -> None:
    blocker = await held(batcher, engine)
    asked = [asyncio.ensure_future(ask(batcher, rows(6, first=first))) for first in (1, 666, 3)]
    await until(lambda: batcher.waiting_requests == 3)
    engine.open.set()
    await blocker
    good, bad, fine = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert not isinstance(good, BaseException) and good[0, 0, 0] == 6
    assert not isinstance(fine, BaseException) and fine[0, 0, 0] == 18
    await ask(batcher, rows(4))


@with_batcher
async def test_what_waits_can_be_refused_at_once(batcher: Batcher, engine: Engine) -> None:
    first = await held(batcher, engine)
    second = asyncio.ensure_future(ask(batcher, rows(60)))
    await until(lambda: batcher.waiting_requests == 1)
    batcher.refuse_waiting()
    with pytest.raises(RefusedError) as refused:
        await second
    assert refused.value.status == 503
    engine.open.set()
    assert (await first).shape == (1, 2, 2)
