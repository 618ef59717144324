"""Which waiting rows run next, together: pure bookkeeping, without clock, threads or engine.

A request's rows are cut into pieces of like length. A batch starts with the piece that has waited longest, so nothing
starves, and takes in the pieces nearest to it in length while the padded tokens stay within the budget and the padding
within its share. It runs once it is full, once as much waits as fills a batch, or once its first piece has waited
long enough. Rows that start at different layers never share a batch.
"""

from __future__ import annotations

import bisect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import MASK

Owner = TypeVar("Owner")

Arrays = Mapping[str, NDArray[Any]]
"""Tensors of a request, [rows, length] integers or [rows, length, width] floats."""


@dataclass(slots=True, eq=False)
class Piece(Generic[Owner]):
    """Rows of one request that run together.

    Attributes:
        rows: [b], which of its rows these are.
        inputs: Tensors [b, length, ...], cut to the longest row.
        length: Tokens of the longest row.
        real: Tokens that are no padding.
        start: The layer that its rows stand at; 0 starts from the tokens.
        number: Its place in the order of arrival; set with ``since``, in seconds, when it is queued.
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


def cut(
    owner: Owner, inputs: Arrays, limits: ServerSettings, *, start: int = 0
) -> list[Piece[Owner]]:
    """Cut a request's rows [b, t, ...] into pieces of like length that each fit a batch; padding columns fall off."""
    mask = inputs[MASK]
    # A row reaches to its last token: a mask may have holes.
    lengths = mask.shape[1] - np.argmax(mask[:, ::-1] != 0, axis=1)
    real = (mask != 0).sum(axis=1)
    if len(lengths) == 1:
        length = int(lengths[0])
        whole = {name: array[:, :length].copy() for name, array in inputs.items()}
        return [Piece(owner, np.zeros(1, dtype=np.intp), whole, length, int(real[0]), start)]

    def piece(rows: NDArray[np.intp]) -> Piece[Owner]:
        longest = int(lengths[rows[-1]])
        own = {name: array[rows, :longest] for name, array in inputs.items()}
        return Piece(owner, rows, own, longest, int(real[rows].sum()), start)

    order = np.argsort(lengths, kind="stable")
    pieces: list[Piece[Owner]] = []
    begin, sum_real = 0, 0
    for end, row in enumerate(order):
        sum_real += int(real[row])
        if end > begin and not _fits(end - begin + 1, int(lengths[row]), sum_real, limits):
            pieces.append(piece(order[begin:end]))
            begin, sum_real = end, int(real[row])
    return [*pieces, piece(order[begin:])]


def _fits(rows: int, longest: int, real: int, limits: ServerSettings) -> bool:
    padded = rows * longest
    return padded <= limits.max_batch_tokens and padded <= real * (1 + limits.max_padding)


def padded_tokens(pieces: Sequence[Piece[Owner]]) -> int:
    """Return how many tokens an engine sees of pieces that run together."""
    return max(piece.length for piece in pieces) * sum(len(piece.rows) for piece in pieces)


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
    """Hold what waits and say what runs next. Not thread-safe: its user locks it."""

    def __init__(self, limits: ServerSettings) -> None:
        """Start empty; the limits may be changed at any time."""
        self.limits = limits
        self.padded = 0
        """Padded tokens that wait."""
        self._queues: dict[int, _Queue[Owner]] = {}
        self._next_number = 0

    def add(self, piece: Piece[Owner], now: float) -> None:
        """Queue a piece."""
        piece.number, piece.since = self._next_number, now
        self._next_number += 1
        queue = self._queues.setdefault(piece.start, _Queue())
        queue.by_arrival[piece.number] = piece
        bisect.insort(queue.by_length, (piece.length, piece.number))
        queue.padded += piece.padded
        self.padded += piece.padded

    def remove(self, piece: Piece[Owner]) -> bool:
        """Take a piece out that is not to run; return whether it still waited."""
        queue = self._queues.get(piece.start)
        if queue is None or piece.number not in queue.by_arrival:
            return False
        place = bisect.bisect_left(queue.by_length, (piece.length, piece.number))
        self._pop(queue, place, place + 1)
        return True

    def take(self, now: float) -> list[Piece[Owner]] | float | None:
        """Return the batch to run now, else when to ask again at the latest, or None where nothing waits.

        Of batches that are ready, it is the one whose oldest piece has waited longest.
        """
        waiting = [
            (next(iter(queue.by_arrival.values())), queue)
            for queue in self._queues.values()
            if queue.by_arrival
        ]
        waiting.sort(key=lambda each: each[0].number)
        wait_s = self.limits.max_wait_ms / 1000
        for first, queue in waiting:
            begin, end, full = _around(first, queue, self.limits)
            due = first.since + wait_s
            if full or now >= due or queue.padded >= self.limits.max_batch_tokens:
                return self._pop(queue, begin, end)
        return waiting[0][0].since + wait_s if waiting else None

    def _pop(self, queue: _Queue[Owner], begin: int, end: int) -> list[Piece[Owner]]:
        """Take out a part of the order by length."""
        taken = [queue.by_arrival.pop(number) for _, number in queue.by_length[begin:end]]
        del queue.by_length[begin:end]
        padded = sum(piece.padded for piece in taken)
        queue.padded -= padded
        self.padded -= padded
        return taken


@dataclass(slots=True)
class _Queue(Generic[Owner]):
    """What waits of one start, by number of arrival, and by (length, number)."""

    by_arrival: OrderedDict[int, Piece[Owner]] = field(default_factory=OrderedDict)
    by_length: list[tuple[int, int]] = field(default_factory=list)
    padded: int = 0


def _around(
    first: Piece[Owner], queue: _Queue[Owner], limits: ServerSettings
) -> tuple[int, int, bool]:
    """Return which part of the order by length runs with ``first``, and whether the budget ended it."""
    order = queue.by_length
    begin = bisect.bisect_left(order, (first.length, first.number))
    end = begin + 1
    rows, real, full = len(first.rows), first.real, first.padded >= limits.max_batch_tokens
    longest = first.length
    shorter, longer = begin > 0, end < len(order)
    while shorter or longer:
        down = not longer or (shorter and longest - order[begin - 1][0] <= order[end][0] - longest)
        length, number = order[begin - 1] if down else order[end]
        piece = queue.by_arrival[number]
        more_rows, more_real = rows + len(piece.rows), real + piece.real
        if _fits(more_rows, max(longest, length), more_real, limits):
            rows, real, longest = more_rows, more_real, max(longest, length)
            begin, end = (begin - 1, end) if down else (begin, end + 1)
            shorter = shorter and begin > 0
            longer = longer and end < len(order)
        else:
            full = full or more_rows * max(longest, length) > limits.max_batch_tokens
            shorter, longer = (False, longer) if down else (shorter, False)
    return begin, end, full
