"""Exit zero: the classifier before the first layer, linear in hashed token n-grams, with a dense part where that helps.

It reads the token ids of a whole sample and takes microseconds. A text is its tokens and pairs of
neighbouring tokens; of two texts counts what they share, what only one of them has, and how much they overlap. Each of
these is hashed into one of 2^18 buckets, weighted by the bucket's inverse document frequency and scaled to length one:
TF-IDF, then a linear layer. The dense part, of single texts, has a vector for each token and one hidden layer on their
mean. All is fitted in `dimec.training.exit_zero`; here it is scored, saved and read.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import RunError
from dimec.core.tensors import ArraySpecs, Header, check_arrays, read_arrays, write_tensors
from dimec.core.untrusted import trusting_nothing

FORMAT = 1
EXIT_ZERO_FILE = "exit-zero.safetensors"

BITS = 18
N_BUCKETS = 1 << BITS

_SHIFT = np.uint32(32 - BITS)
# Odd multipliers whose high bits mix well: those of multiplicative hashing and of MurmurHash3.
_ONE = np.uint32(0x9E3779B1)
_TWO = np.uint32(0x85EBCA6B)
_STEP = np.uint32(1)
# What tells a pair's features from shared ones: only in the first text, only in the second, an overlap.
_FIRST, _SECOND, _OVERLAP = map(np.uint32, (0xC2B2AE35, 0x27D4EB2F, 0x165667B1))
_OVERLAP_STEPS = 10
_SHORTEST = 1e-3
# Of many samples; each takes some kilobytes meanwhile where there is a dense part.
_TOKENS_AT_ONCE = 16_384


@dataclass(frozen=True, eq=False)
class DensePart:
    """One hidden layer on the mean vector of a text's tokens; its logits are added to those of the n-grams.

    Attributes:
        vectors: [vocabulary, width] float16, what the trained encoder makes of each token alone.
        shares: [vocabulary] float16, how much a token counts in the mean: its inverse document frequency, 0 for
            special tokens.
    """

    vectors: NDArray[np.float16]
    shares: NDArray[np.float16]
    hidden: NDArray[np.float32]
    hidden_bias: NDArray[np.float32]
    output: NDArray[np.float32]

    def means(self, input_ids: NDArray[np.integer], ends: Sequence[int]) -> NDArray[np.float32]:
        """Return the mean vectors of texts that stand one after the other, each up to an end: [n, width].

        They are zeros where no token counts.
        """
        # Clipped, so that no id can point beyond the vocabulary.
        read = self._read.take(input_ids, axis=0, mode="clip")
        means = np.empty((len(ends), read.shape[1] - 1), dtype=np.float32)
        start = 0
        for row, end in enumerate(ends):
            part = read[start:end]
            shares = part[:, -1]
            sums = _by_one_thread(shares, part)
            means[row] = sums[:-1] / np.float32(max(float(shares.sum()), _SHORTEST))
            start = end
        return means

    @cached_property
    def _read(self) -> NDArray[np.float32]:
        """[vocabulary, width + 1], vectors and shares side by side, in float32, which is faster to compute in."""
        columns = [self.vectors, self.shares[:, None]]
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def read_means(self, means: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logits of texts with these mean vectors: [..., classes] of [..., width]."""
        if means.ndim == 1 or len(means) <= _ROWS_OF_ONE_THREAD:
            units = np.tanh(means @ self.hidden + self.hidden_bias)
            logits: NDArray[np.float32] = units @ self.output
            return logits
        starts = range(0, len(means), _ROWS_OF_ONE_THREAD)
        parts = [self.read_means(means[start : start + _ROWS_OF_ONE_THREAD]) for start in starts]
        return np.concatenate(parts)


_ROWS_OF_ONE_THREAD = 32
"""Rows of a product with a matrix of 128 by 64, and tokens of one with vectors of 129, that OpenBLAS leaves to one
thread. After a larger one its other threads spin for some 25 ms each, which is more than a chunk of texts takes."""


def _by_one_thread(shares: NDArray[np.float32], part: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the weighted sum of a text's vectors: [width] of shares [t] and vectors [t, width]."""
    sums: NDArray[np.float32] = shares[:_ROWS_OF_ONE_THREAD] @ part[:_ROWS_OF_ONE_THREAD]
    for start in range(_ROWS_OF_ONE_THREAD, len(part), _ROWS_OF_ONE_THREAD):
        end = start + _ROWS_OF_ONE_THREAD
        sums += shares[start:end] @ part[start:end]
    return sums


_DENSE = tuple(each.name for each in fields(DensePart))


@dataclass(frozen=True, eq=False)
class ExitZero:
    """A linear classifier on hashed token n-grams.

    Attributes:
        weights: [2^18, classes] float16, with the buckets' inverse document frequencies multiplied in.
        squares: [2^18] float16, the squares of these frequencies: what a text's length is computed from.
        bias: [classes] float32.
        frame: The special tokens around a text, which also part the texts of a pair.
        dense: What is added to the logits of the n-grams; None where it does not help.
    """

    weights: NDArray[np.float16]
    squares: NDArray[np.float16]
    bias: NDArray[np.float32]
    frame: tuple[int, ...]
    pairs: bool
    dense: DensePart | None = None

    def read_all(
        self, rows: Sequence[NDArray[np.integer]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read samples by their token ids, many at once; return their logits, [n, classes], and unseen shares, [n].

        They are those of `read`; the dense part's share of the logits may differ in the last digits of float32.
        """
        logits = np.empty((len(rows), self.weights.shape[1]), dtype=np.float32)
        unseen = np.empty(len(rows), dtype=np.float32)
        ends = np.cumsum([len(ids) for ids in rows])
        start = 0
        while start < len(rows):
            before = ends[start - 1] if start else 0
            end = max(int(np.searchsorted(ends, before + _TOKENS_AT_ONCE, "right")), start + 1)
            part = rows[start:end]
            logits[start:end], unseen[start:end] = self._read_part(part, ends[start:end] - before)
            start = end
        return logits, unseen

    def _read_part(
        self, rows: Sequence[NDArray[np.integer]], ends: NDArray[np.integer]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Read samples whose token ids end at ``ends`` [n] where they stand one after the other."""
        n, ids = len(rows), np.concatenate(rows)
        if self.pairs:
            parts = [features(each, frame=self.frame, pairs=True) for each in rows]
            buckets = np.concatenate(parts)
            owners = np.repeat(np.arange(n), [len(each) for each in parts])
        else:
            of_token = np.repeat(np.arange(n), np.diff(ends, prepend=0))
            ones, twos = _hashes(ids)
            neighbours = of_token[1:] == of_token[:-1]
            buckets = np.concatenate((ones, twos[neighbours])) >> _SHIFT
            owners = np.concatenate((of_token, of_token[1:][neighbours]))
        read = self._read.take(buckets, axis=0)
        sums = np.stack([np.bincount(owners, column, minlength=n) for column in read.T], axis=1)
        lengths = np.maximum(np.sqrt(sums[:, -2]), _SHORTEST)
        logits = (sums[:, :-2] / lengths[:, None] + self.bias).astype(np.float32)
        if self.dense is not None:
            logits += self.dense.read_means(self.dense.means(ids, ends.tolist()))
        counts = np.maximum(np.bincount(owners, minlength=n), 1)
        return logits, (sums[:, -1] / counts).astype(np.float32)

    def read(self, input_ids: NDArray[np.integer]) -> tuple[NDArray[np.float32], float]:
        """Read one sample: token ids [t], special tokens included and padding not.

        Returns the logits, [classes], and the unseen share: the share of the text's features in buckets without
        weight, which no training row had. Sums of float16 are exact in float64, whatever the order of the features.
        """
        buckets = features(input_ids, frame=self.frame, pairs=self.pairs)
        sums: NDArray[np.float64] = np.add.reduce(
            self._read.take(buckets, axis=0), axis=0, dtype=np.float64
        )
        logits: NDArray[np.float32] = (
            sums[:-2] / max(math.sqrt(sums[-2]), _SHORTEST) + self.bias
        ).astype(np.float32)
        if self.dense is not None:
            (mean,) = self.dense.means(input_ids, [len(input_ids)])
            logits += self.dense.read_means(mean)
        # In the float32 of exit tables: what is held against a limit on the device must be what replay holds there.
        return logits, float(np.float32(sums[-1] / max(len(buckets), 1)))

    @cached_property
    def _read(self) -> NDArray[np.float32]:
        """[2^18, classes + 2], what is read of a bucket: weights, square, whether it weighs nothing.

        Side by side, and in float32, since float16 is slow to add.
        """
        nothing = (self.weights == 0).all(axis=1)
        columns = [self.weights, self.squares[:, None], nothing[:, None]]
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write it as one safetensors file; it is whole or not there."""
        header = {"format": FORMAT, "frame": list(self.frame), "pairs": self.pairs}
        tensors: dict[str, NDArray[Any]] = {
            "weights": self.weights,
            "squares": self.squares,
            "bias": self.bias,
            **({} if self.dense is None else {each: getattr(self.dense, each) for each in _DENSE}),
        }
        write_tensors(path, tensors, header=header)

    @classmethod
    def load(cls, path: Path, *, n_classes: int) -> ExitZero:
        """Read one.

        Raises:
            RunError: If the file is missing, is no exit zero for so many classes, or has a newer format.
        """
        wanted: ArraySpecs = {
            "weights": (np.float16, (N_BUCKETS, n_classes)),
            "squares": (np.float16, (N_BUCKETS,)),
            "bias": (np.float32, (n_classes,)),
            "vectors": (np.float16, (None, None)),
            "shares": (np.float16, (None,)),
            "hidden": (np.float32, (None, None)),
            "hidden_bias": (np.float32, (None,)),
            "output": (np.float32, (None, n_classes)),
        }
        with trusting_nothing(path, RunError, remedy="fit the run again"):
            header, tensors = read_arrays(path, _Header, known=FORMAT)
            check_arrays(tensors, wanted, optional=_DENSE)
            dense = _dense_of(tensors)
        return cls(**tensors, frame=header.frame, pairs=header.pairs, dense=dense)


def _dense_of(tensors: dict[str, NDArray[Any]]) -> DensePart | None:
    """Take the dense part out of a file's arrays, within `trusting_nothing`."""
    own = {name: tensors.pop(name) for name in _DENSE if name in tensors}
    if not own:
        return None
    part = DensePart(**own)
    if not (
        len(part.vectors) == len(part.shares) > 0
        and part.vectors.shape[1] == len(part.hidden)
        and part.hidden.shape[1] == len(part.hidden_bias) == len(part.output)
        and (part.shares >= 0).all()
    ):
        raise ValueError("the shapes of its dense part do not fit")
    return part


class _Header(Header):
    frame: tuple[int, ...]
    pairs: bool


def features(
    input_ids: NDArray[np.integer], *, frame: tuple[int, ...], pairs: bool
) -> NDArray[np.uint32]:
    """Return the buckets of one sample's features: [k], the same one as often as it occurs.

    Args:
        input_ids: [t], special tokens included and padding not.
    """
    ones, twos = _hashes(input_ids)
    if not pairs:
        return np.concatenate((ones, twos)) >> _SHIFT
    start, border, after, last = _sides(input_ids, frame)
    # Python's sets are faster than numpy on so few.
    shared: list[set[int]] = []
    first: list[set[int]] = []
    second: list[set[int]] = []
    overlaps: list[int] = []
    for kind, hashes in enumerate((ones, twos)):
        # The last token of a text has no neighbour in it.
        a = set(hashes[start : max(border - kind, start)].tolist())
        b = set(hashes[after : max(last - kind, after)].tolist())
        both = a & b
        shared.append(both)
        first.append(a - both)
        second.append(b - both)
        n, n_a, n_b = len(both), len(a), len(b)
        for which, whole in enumerate((n_a + n_b - n, n_a, n_b)):
            step = _OVERLAP_STEPS * n // whole if whole else _OVERLAP_STEPS
            overlaps.append((3 * kind + which) * 64 + step)
    overlaps.append(6 * 64 + min(max((border - start) - (last - after) + 32, 0), 63))
    hashed = np.array(array("I", chain(*shared, *first, *second, overlaps)), dtype=np.uint32)
    n_shared, n_first = (len(part[0]) + len(part[1]) for part in (shared, first))
    hashed[n_shared : n_shared + n_first] ^= _FIRST
    hashed[n_shared + n_first : -len(overlaps)] ^= _SECOND
    hashed[-len(overlaps) :] ^= _OVERLAP
    hashed *= _TWO
    hashed >>= _SHIFT
    return hashed


def _hashes(input_ids: NDArray[np.integer]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Hash single tokens, [t], and pairs of neighbours, [t - 1], to 32 bits."""
    ids = input_ids.astype(np.uint32)
    ones = (ids + _STEP) * _ONE
    twos = ids[1:] * _TWO
    twos ^= ones[:-1]
    twos *= _ONE
    return ones, twos


def _sides(input_ids: NDArray[np.integer], frame: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return where the first text of a pair starts and ends, and where the second one does."""
    ids = input_ids.tolist()
    start, last = 0, len(ids)
    while start < last and ids[start] in frame:
        start += 1
    while last > start and ids[last - 1] in frame:
        last -= 1
    border = start
    while border < last and ids[border] not in frame:
        border += 1
    after = border
    while after < last and ids[after] in frame:
        after += 1
    return start, border, after, last
