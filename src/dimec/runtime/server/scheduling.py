"""Which waiting rows run next, together: pure bookkeeping, without clock, threads or engine.

A request's rows are cut into pieces of like length. A batch starts with the piece that has waited longest, so nothing
starves, and takes in the pieces nearest to it in length while the padded tokens stay within the budget and the padding
within its share. It runs once it is full, once as much waits as fills a batch, or once its first piece has waited
long enough. Rows that start at different layers never share a batch: `Schedulers` keeps a queue for each start.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dimec.runtime.wire.extensions import MASK

Owner = TypeVar("Owner")

Arrays = Mapping[str, NDArray[Any]]
"""Tensors of a request, [rows, length] integers or [rows, length, width] floats."""


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """How large a batch may get and how long it may be waited for.

    Attributes:
        tokens: Rows times the longest row of a batch; a longer row runs alone.
        wait_s: How long a piece waits for others while the engine is idle.
        padding: Padded over real tokens, less one, that a batch may reach by taking in more.
    """

    tokens: int
    wait_s: float
    padding: float


@dataclass(slots=True, eq=False)
class Piece(Generic[Owner]):
    """Rows of one request that run together.

    Attributes:
        owner: The request.
        rows: [b], which of its rows these are.
        inputs: Tensors [b, length, ...], cut to the longest row.
        length: Tokens of the longest row.
        real: Tokens that are no padding.
        start: The layer that its rows stand at; 0 starts from the tokens.
        number: Its place in the order of arrival, once it is queued.
        since: When it was queued, in seconds.
    """

    owner: Owner
    rows: NDArray[np.intp]
    inputs: Arrays
    length: int
    real: int
    start: int = 0
    number: int = -1
    since: float = 0.0

    @property
    def padded(self) -> int:
        """Tokens that an engine sees."""
        return len(self.rows) * self.length


def cut(owner: Owner, inputs: Arrays, limits: BatchLimits, *, start: int = 0) -> list[Piece[Owner]]:
    """Cut a request's rows [b, t, ...] into pieces of like length that each fit a batch; padding columns fall off."""
    mask = inputs[MASK]
    # A row reaches to its last token: a mask may have holes.
    lengths = mask.shape[1] - np.argmax(mask[:, ::-1] != 0, axis=1)
    real = (mask != 0).sum(axis=1)
    if len(lengths) == 1:
        length = int(lengths[0])
        whole = {name: array[:, :length].copy() for name, array in inputs.items()}
        return [Piece(owner, np.zeros(1, dtype=np.intp), whole, length, int(real[0]), start)]
    order = np.argsort(lengths, kind="stable")
    pieces: list[Piece[Owner]] = []
    begin, sum_real = 0, 0
    for end, row in enumerate(order):
        longest = int(lengths[row])
        more_real = sum_real + int(real[row])
        if end > begin and not _fits(end - begin + 1, longest, more_real, limits):
            rows = order[begin:end]
            longest = int(lengths[rows[-1]])
            pieces.append(
                Piece(owner, rows, _rows(inputs, rows, longest), longest, sum_real, start)
            )
            begin, more_real = end, int(real[row])
        sum_real = more_real
    rows, longest = order[begin:], int(lengths[order[-1]])
    pieces.append(Piece(owner, rows, _rows(inputs, rows, longest), longest, sum_real, start))
    return pieces


def _rows(inputs: Arrays, rows: NDArray[np.intp], length: int) -> Arrays:
    return {name: array[rows, :length] for name, array in inputs.items()}


def _fits(rows: int, longest: int, real: int, limits: BatchLimits) -> bool:
    padded = rows * longest
    return padded <= limits.tokens and padded <= real * (1 + limits.padding)


def join(pieces: Sequence[Piece[Owner]], padding: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    """Return the pieces' rows as one batch [rows, longest, ...], filled up with each tensor's padding value.

    Integers become int64 and floats float32, of whatever width they came.
    """
    if len(pieces) == 1:
        return {
            name: array.astype(_wide(array), copy=False) for name, array in pieces[0].inputs.items()
        }
    longest = max(piece.length for piece in pieces)
    rows = sum(len(piece.rows) for piece in pieces)
    joined = {
        name: np.full((rows, longest, *array.shape[2:]), padding.get(name, 0), dtype=_wide(array))
        for name, array in pieces[0].inputs.items()
    }
    begin = 0
    for piece in pieces:
        end = begin + len(piece.rows)
        for name, array in piece.inputs.items():
            joined[name][begin:end, : piece.length] = array
        begin = end
    return joined


def _wide(array: NDArray[Any]) -> type[np.int64] | type[np.float32]:
    return np.float32 if array.dtype.kind == "f" else np.int64


class Scheduler(Generic[Owner]):
    """Hold what waits of one start and say what runs next. Not thread-safe: its user locks it."""

    def __init__(self, limits: BatchLimits) -> None:
        """Start empty."""
        self.limits = limits
        self._by_arrival: OrderedDict[int, Piece[Owner]] = OrderedDict()
        self._by_length: list[tuple[int, int]] = []
        self._next_number = 0
        self.padded = 0
        """Padded tokens that wait."""

    def __len__(self) -> int:
        """Return how many pieces wait."""
        return len(self._by_arrival)

    def __iter__(self) -> Iterator[Piece[Owner]]:
        """Go through what waits, the longest waiting first."""
        return iter(self._by_arrival.values())

    def add(self, piece: Piece[Owner], now: float) -> None:
        """Queue a piece."""
        piece.number, piece.since = self._next_number, now
        self._next_number += 1
        self._by_arrival[piece.number] = piece
        bisect.insort(self._by_length, (piece.length, piece.number))
        self.padded += piece.padded

    def remove(self, piece: Piece[Owner]) -> bool:
        """Take a piece out that is not to run; return whether it still waited."""
        if self._by_arrival.pop(piece.number, None) is None:
            return False
        place = bisect.bisect_left(self._by_length, (piece.length, piece.number))
        del self._by_length[place]
        self.padded -= piece.padded
        return True

    def take(self, now: float) -> list[Piece[Owner]] | float | None:
        """Return the batch to run now, else when to ask again at the latest, or None where nothing waits."""
        if not self._by_arrival:
            return None
        first = next(iter(self._by_arrival.values()))
        due = first.since + self.limits.wait_s
        begin, end, full = self._around(first)
        if not (full or now >= due or self.padded >= self.limits.tokens):
            return due
        batch = [self._by_arrival.pop(number) for _, number in self._by_length[begin:end]]
        del self._by_length[begin:end]
        self.padded -= sum(piece.padded for piece in batch)
        return batch

    def _around(self, first: Piece[Owner]) -> tuple[int, int, bool]:
        """Return which part of the order by length runs with ``first``, and whether the budget ended it."""
        order, limits = self._by_length, self.limits
        begin = bisect.bisect_left(order, (first.length, first.number))
        end = begin + 1
        rows, real, full = len(first.rows), first.real, first.padded >= limits.tokens
        longest = first.length
        shorter, longer = begin > 0, end < len(order)
        while shorter or longer:
            down = not longer or (
                shorter and longest - order[begin - 1][0] <= order[end][0] - longest
            )
            length, number = order[begin - 1] if down else order[end]
            piece = self._by_arrival[number]
            more_rows, more_real = rows + len(piece.rows), real + piece.real
            if _fits(more_rows, max(longest, length), more_real, limits):
                rows, real, longest = more_rows, more_real, max(longest, length)
                begin, end = (begin - 1, end) if down else (begin, end + 1)
                shorter = shorter and begin > 0
                longer = longer and end < len(order)
            else:
                full = full or more_rows * max(longest, length) > limits.tokens
                shorter, longer = (False, longer) if down else (shorter, False)
        return begin, end, full


class Schedulers(Generic[Owner]):
    """A `Scheduler` for each layer that rows may start from. Not thread-safe: its user locks it."""

    def __init__(self, limits: BatchLimits, *, starts: Iterable[int] = (0,)) -> None:
        """Start empty."""
        self._by_start: dict[int, Scheduler[Owner]] = {start: Scheduler(limits) for start in starts}

    @property
    def padded(self) -> int:
        """Padded tokens that wait."""
        return sum(each.padded for each in self._by_start.values())

    def limit(self, limits: BatchLimits) -> None:
        """Change the limits for what runs from now on."""
        for each in self._by_start.values():
            each.limits = limits

    def add(self, piece: Piece[Owner], now: float) -> None:
        """Queue a piece."""
        self._by_start[piece.start].add(piece, now)

    def remove(self, piece: Piece[Owner]) -> bool:
        """Take a piece out that is not to run; return whether it still waited."""
        return self._by_start[piece.start].remove(piece)

    def take(self, now: float) -> list[Piece[Owner]] | float | None:
        """Do what `Scheduler.take` does; of batches that are ready, the one whose oldest piece has waited longest."""
        if len(self._by_start) == 1:
            (only,) = self._by_start.values()
            return only.take(now)
        waiting = [each for each in self._by_start.values() if len(each)]
        due: float | None = None
        for each in sorted(waiting, key=lambda scheduler: next(iter(scheduler)).since):
            found = each.take(now)
            if isinstance(found, list):
                return found
            if found is not None:
                due = found if due is None else min(due, found)
        return due
