"""What the numbers of a learned bottleneck travel as: bytes, those that a replay counts.

One sample at a time, without padding: t tokens, t' = ceil(t / pool) of them left, w numbers each. What comes in is not
trusted: no more is inflated than the sample's tokens can take.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["bottlenet", "bottlenet-pp", "bottlefit"]
"""The system that a bottleneck is learnt by; it says how numbers become bytes."""

Floats = NDArray[np.float32]

_RANGE = np.dtype("<f4")
RANGE_BYTES = 2 * _RANGE.itemsize
"""What the range of a sample's numbers takes before them, where the kind sends one."""


class CodeError(ValueError):
    """Bytes that no sample of so many tokens has; the message goes on after the name of a tensor."""


@dataclass(frozen=True, slots=True)
class Code:
    """How a bottleneck's numbers become bytes.

    - bottlenet: numbers from -1 to 1, rounded to ``levels``, transposed to [w, t'] and deflated without a header;
    - bottlenet-pp: numbers from 0 to 1, a byte each;
    - bottlefit: the sample's least and largest number as two little-endian float32, then 256 values between them.

    Attributes:
        width: Numbers of a token.
        pool: How many tokens in a row are averaged to one before they are reduced.
        levels: How many values a number has.
    """

    kind: Kind
    width: int
    pool: int = 1
    levels: int = 256

    def length(self, n_tokens: int) -> int:
        """Return how many tokens are left of so many: t'."""
        return -(-n_tokens // self.pool)

    def pooled(self, hidden: Floats) -> Floats:
        """Average each pool of a sample's states [t, d]: [t', d]; the last may be of fewer tokens."""
        if self.pool == 1:
            return hidden
        starts = np.arange(0, len(hidden), self.pool)
        counts = np.diff([*starts, len(hidden)])[:, None]
        means: Floats = (np.add.reduceat(hidden, starts, axis=0) / counts).astype(np.float32)
        return means

    def pack(self, numbers: Floats) -> bytes:
        """Return the bytes of a sample's numbers [t', w]."""
        numbers = np.asarray(numbers, dtype=np.float32)
        if self.kind == "bottlenet":
            codes = _rounded((np.clip(numbers, -1, 1) + 1) / 2 * np.float32(self.levels - 1))
            packer = zlib.compressobj(9, zlib.DEFLATED, -15)
            return packer.compress(np.ascontiguousarray(codes.T).tobytes()) + packer.flush()
        if self.kind == "bottlenet-pp":
            return _rounded(numbers * np.float32(255)).tobytes()
        low, high = numbers.min(), numbers.max()
        codes = _rounded((numbers - low) / _step(low, high))
        return np.array([low, high], dtype=_RANGE).tobytes() + codes.tobytes()

    def unpack(self, data: bytes, *, n_tokens: int) -> Floats:
        """Return what arrives of a sample's numbers: [t', w]. Zeros behind the bytes are padding of a longer row.

        Raises:
            CodeError: If the bytes are not those of a sample of so many tokens.
        """
        shape = (self.length(n_tokens), self.width)
        size = shape[0] * shape[1]
        if self.kind == "bottlenet":
            codes = _inflated(data, size).reshape(shape[::-1]).T
            if codes.max() >= self.levels:
                raise CodeError(f"holds a code above {self.levels - 1}")
            return codes.astype(np.float32) * np.float32(2 / (self.levels - 1)) - np.float32(1)
        start = RANGE_BYTES if self.kind == "bottlefit" else 0
        _check_padding(data, start + size)
        codes = np.frombuffer(data, np.uint8, size, offset=start).reshape(shape)
        if self.kind == "bottlenet-pp":
            return codes.astype(np.float32) / np.float32(255)
        low, high = np.frombuffer(data, _RANGE, 2).astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            numbers: Floats = codes.astype(np.float32) * _step(low, high) + low
        if not (low <= high and np.isfinite(numbers).all()):
            raise CodeError(f"holds the range {low:g} to {high:g}: it must be finite, and ascend")
        return numbers


def _step(low: np.float32, high: np.float32) -> np.float32:
    return max((high - low) / np.float32(255), np.float32(1e-12))


def _rounded(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Round half to even, as torch does."""
    codes: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return codes


def _inflated(data: bytes, size: int) -> NDArray[np.uint8]:
    inflater = zlib.decompressobj(-15)
    try:
        raw = inflater.decompress(data, size + 1)
    except zlib.error as exc:
        raise CodeError("is no valid deflate stream") from exc
    if len(raw) != size or not inflater.eof:
        given = "more" if len(raw) > size else f"{len(raw):,}"
        raise CodeError(f"inflates to {given} bytes, its tokens take {size:,}")
    _check_padding(inflater.unused_data, 0)
    return np.frombuffer(raw, np.uint8)


def _check_padding(data: bytes, size: int) -> None:
    if len(data) < size:
        raise CodeError(f"has {len(data):,} bytes, its tokens take {size:,}")
    if any(data[size:]):
        raise CodeError("goes on after its last number")
