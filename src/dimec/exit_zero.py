"""Exit zero: the classifier before the first layer, linear in hashed token n-grams.

It reads what every tier reads, a sample's token ids, and takes microseconds. A text is its tokens and pairs of
neighbouring tokens; of two texts counts what they share, what only one of them has, and how much they overlap. Each of
these is hashed into one of 2^18 buckets, weighted by the bucket's inverse document frequency and scaled to length one:
TF-IDF, then a linear layer. It is fitted in `dimec.training.exit_zero`; here it is scored, saved and read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dimec.errors import DimecError, RunError
from dimec.files import check_format, write_atomically

FORMAT = 1
FILE = "exit-zero.safetensors"

BITS = 18
N_BUCKETS = 1 << BITS

_SHIFT = np.uint32(32 - BITS)
# Odd multipliers whose high bits mix well: those of multiplicative hashing and of MurmurHash3.
_ONE = np.uint32(0x9E3779B1)
_TWO = np.uint32(0x85EBCA6B)
# What tells a pair's features apart: shared, only in the first text, only in the second, an overlap.
_SHARED, _FIRST, _SECOND, _OVERLAP = 0, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1
_OVERLAP_STEPS = 10
_SHORTEST = np.float32(1e-3)


@dataclass(frozen=True, eq=False)
class ExitZero:
    """A linear classifier on hashed token n-grams.

    Attributes:
        weights: [2^18, classes] float16, with the buckets' inverse document frequencies multiplied in.
        squares: [2^18] float16, the squares of these frequencies: what a text's length is computed from.
        bias: [classes] float32.
        frame: The special tokens around a text, which also part the texts of a pair.
        pairs: Whether it reads pairs of texts.
    """

    weights: NDArray[np.float16]
    squares: NDArray[np.float16]
    bias: NDArray[np.float32]
    frame: tuple[int, ...]
    pairs: bool

    def logits_of(self, rows: Sequence[NDArray[np.integer]]) -> NDArray[np.float32]:
        """Score samples: [n, classes] for each one's token ids."""
        n_classes = self.weights.shape[1]
        return np.array([self.logits(ids) for ids in rows], np.float32).reshape(-1, n_classes)

    def logits(self, input_ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Score one sample: [classes] for token ids [t], special tokens included and padding not."""
        buckets = features(input_ids, frame=self.frame, pairs=self.pairs)
        length = np.sqrt(self.squares[buckets].sum(dtype=np.float32))
        scores: NDArray[np.float32] = self.weights[buckets].sum(axis=0, dtype=np.float32)
        scores /= max(length, _SHORTEST)
        scores += self.bias
        return scores

    def save(self, path: Path) -> None:
        """Write it as one safetensors file; it is whole or not there."""
        header = {"format": FORMAT, "frame": list(self.frame), "pairs": self.pairs}
        tensors: dict[str, NDArray[Any]] = {
            "weights": self.weights,
            "squares": self.squares,
            "bias": self.bias,
        }
        metadata = {"dimec": json.dumps(header)}
        write_atomically(path, lambda partial: save_file(tensors, partial, metadata=metadata))

    @classmethod
    def load(cls, path: Path, *, n_classes: int) -> ExitZero:
        """Read one.

        Raises:
            RunError: If the file is missing, is no exit zero for so many classes, or has a newer format.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("dimec", "null"))
                check_format(path, header["format"], known=FORMAT)
                own = cls(
                    weights=file.get_tensor("weights"),
                    squares=file.get_tensor("squares"),
                    bias=file.get_tensor("bias"),
                    frame=tuple(int(token) for token in header["frame"]),
                    pairs=bool(header["pairs"]),
                )
        except FileNotFoundError as exc:
            raise RunError(f"{path} is missing: fit the run again, or give another folder") from exc
        except DimecError:
            raise
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as exc:
            raise RunError(
                f"{path} cannot be read ({exc}): it is damaged, fit the run again"
            ) from exc
        wanted = {
            "weights": (np.float16, (N_BUCKETS, n_classes)),
            "squares": (np.float16, (N_BUCKETS,)),
            "bias": (np.float32, (n_classes,)),
        }
        for name, (dtype, shape) in wanted.items():
            array = getattr(own, name)
            if array.dtype != dtype or array.shape != shape or not np.isfinite(array).all():
                raise RunError(
                    f"{path} holds {name} {array.dtype} {list(array.shape)} where finite {np.dtype(dtype)} "
                    f"{list(shape)} must be: it is damaged, fit the run again"
                )
        return own


def features(
    input_ids: NDArray[np.integer], *, frame: tuple[int, ...], pairs: bool
) -> NDArray[np.uint32]:
    """Return the buckets of one sample's features: [k], the same one as often as it occurs.

    Args:
        input_ids: [t], special tokens included and padding not.
        frame: The special tokens around a text.
        pairs: Whether there are two texts, which are then compared.
    """
    if not pairs:
        return np.concatenate(_hashes(input_ids)) >> _SHIFT
    first, second = _sides(input_ids, frame)
    hashes: list[int] = []
    salts: list[int] = []
    overlaps: list[int] = []
    for kind, (ours, theirs) in enumerate(zip(_hashes(first), _hashes(second), strict=True)):
        a, b = set(ours.tolist()), set(theirs.tolist())
        shared = a & b
        for salt, part in ((_SHARED, shared), (_FIRST, a - shared), (_SECOND, b - shared)):
            hashes += part
            salts += [salt] * len(part)
        n, n_a, n_b = len(shared), len(a), len(b)
        for which, whole in enumerate((n_a + n_b - n, n_a, n_b)):
            step = _OVERLAP_STEPS * n // whole if whole else _OVERLAP_STEPS
            overlaps.append((3 * kind + which) * 64 + step)
    overlaps.append(6 * 64 + min(max(len(first) - len(second) + 32, 0), 63))
    hashed = np.array(hashes + overlaps, dtype=np.uint32)
    hashed ^= np.array(salts + [_OVERLAP] * len(overlaps), dtype=np.uint32)
    return (hashed * _TWO) >> _SHIFT


def _hashes(input_ids: NDArray[np.integer]) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Hash single tokens, [t], and pairs of neighbours, [t - 1], to 32 bits."""
    ids = input_ids.astype(np.uint32)
    ones = (ids + np.uint32(1)) * _ONE
    return ones, (ones[:-1] ^ (ids[1:] * _TWO)) * _ONE


def _sides(
    input_ids: NDArray[np.integer], frame: tuple[int, ...]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Part the token ids of a pair into those of its texts."""
    ids = input_ids.tolist()
    inner = [place for place, token in enumerate(ids) if token not in frame]
    if not inner:
        return input_ids[:0], input_ids[:0]
    start, last = inner[0], inner[-1] + 1
    border = next((place for place in range(start, last) if ids[place] in frame), last)
    after = next((place for place in range(border, last) if ids[place] not in frame), last)
    return input_ids[start:border], input_ids[after:last]
