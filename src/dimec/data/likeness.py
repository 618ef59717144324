"""What the texts of a data set share: equal ones, parts of longer ones, and nearly equal ones.

Texts are compared by their words, case folded; a pair is both texts with a separator between. A text is *part* of
another whose words hold its own one after another. Two texts of five words or more are *nearly equal* where of the
words of both at least four fifths are in each (their Jaccard index is 0.8 or more; of a pair that of both texts).

Nearly equal texts are looked for by MinHash and locality-sensitive hashing, and each pair found is checked. Among
70,000 phrases that takes some ten seconds of one core. Two limits bound it whatever the texts are: a set of texts that
are all alike is represented by `_REPRESENTATIVES` of them, and after `_MOST_COMPARISONS` no more are looked for.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dimec.core.extras import needs_training
from dimec.data.dataset import TextDataset

NEARLY_EQUAL = 0.8
"""The least Jaccard index of nearly equal texts."""
FEWEST_WORDS = 5
"""Texts of fewer different words are nearly equal to none."""

# Of two texts with an index of 0.8, 99.2 % share one of 16 bands of 6 hashes; of two with 0.5, 22 %.
_BANDS, _HASHES_PER_BAND = 16, 6
_REPRESENTATIVES = 20
_MOST_COMPARISONS = 5_000_000

# `str.split` splits at this character too, so that no folded text can hold it.
SEPARATOR = "\x1f"
# Rows are looked up by their first words: enough of them that few rows open alike.
_OPENING_WORDS = 3

_EXAMPLES = 3
_SHOWN_WORDS = 8

Words = tuple[str, ...]
Sides = tuple[frozenset[str], frozenset[str]]


@dataclass(frozen=True, eq=False)
class Leakage:
    """How many held-out rows a model may know from training.

    Attributes:
        n_leaking: Those that equal a training row, are part of one, or are nearly equal to one.
        examples: Up to three of them, each with the training row, shortened.
    """

    n_held_out: int
    n_leaking: int
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        """The share of held-out rows that leak; 0 where there are none."""
        return self.n_leaking / self.n_held_out if self.n_held_out else 0.0

    @property
    def words(self) -> str:
        """Say how many leak, with the examples."""
        such_as = f", such as {'; '.join(self.examples)}" if self.examples else ""
        return (
            f"{self.n_leaking:,} of {self.n_held_out:,} held-out rows ({100 * self.share:.1f} %) are part of a "
            f"training row or nearly equal to one{such_as}"
        )


@dataclass(frozen=True, eq=False)
class Likeness:
    """What the rows of a data set share.

    Attributes:
        texts: The different texts, in the order of their first rows.
        numbers: [rows], which of them each row has.
        near: [pairs, 2], numbers of nearly equal texts.
    """

    texts: Sequence[Words]
    numbers: NDArray[np.int64]
    near: NDArray[np.int64]

    @classmethod
    def of(cls, dataset: TextDataset) -> Likeness:
        """Compare the rows of a data set.

        Raises:
            MissingExtraError: If datasketch, of the training extra, is not installed.
        """
        folded = fold(dataset)
        seen: dict[Words, int] = {}
        numbers = np.fromiter(
            (seen.setdefault(words, len(seen)) for words in folded), np.int64, len(folded)
        )
        texts = list(seen)
        pairs = np.asarray(find_nearly_equal(texts), dtype=np.int64).reshape(-1, 2)
        return cls(texts, numbers, pairs)

    @cached_property
    def groups(self) -> NDArray[np.int64]:
        """[rows]: the group of each, of texts with the longest that holds them and of nearly equal ones."""
        return _components(tie_to_holders(self.texts), self.near)[self.numbers]

    def leakage(self, train: NDArray[np.int64], held_out: NDArray[np.int64]) -> Leakage:
        """Count the held-out rows that training knows; both are positions of rows."""
        known = np.zeros(len(self.texts), dtype=bool)
        known[self.numbers[train]] = True
        sources = tie_to_holders(self.texts, among=known)
        for one, other in (self.near.T, self.near.T[::-1]):
            new = known[other] & (sources[one] < 0)
            sources[one[new]] = other[new]
        leaking = held_out[sources[self.numbers[held_out]] >= 0]
        return Leakage(len(held_out), len(leaking), self._examples(leaking, sources))

    def _examples(self, leaking: NDArray[np.int64], sources: NDArray[np.int64]) -> tuple[str, ...]:
        """Show the first rows of several words, each from another training row."""
        told: dict[int, str] = {}
        for number in self.numbers[leaking].tolist():
            source = int(sources[number])
            if len(self.texts[number]) > 1 and source not in told:
                told[source] = _beside(self.texts[number], self.texts[source])
            if len(told) == _EXAMPLES:
                break
        return tuple(told.values())


def stand_in(dataset: TextDataset, others: TextDataset) -> NDArray[np.bool_]:
    """Tell of each row whether its text, or its pair, is one of another data set too: [rows]."""
    known = set(fold(others))
    return np.fromiter((words in known for words in fold(dataset)), bool, len(dataset))


def fold(dataset: TextDataset) -> list[Words]:
    """Give each row's words, case folded; a pair is both texts with a separator between."""
    first = (tuple(text.casefold().split()) for text in dataset.first)
    if dataset.second is None:
        return list(first)
    second = (tuple(text.casefold().split()) for text in dataset.second)
    return [(*one, SEPARATOR, *two) for one, two in zip(first, second, strict=True)]


def tie_to_holders(
    texts: Sequence[Words], *, among: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Give, per different text, the longest text that holds it as a contiguous part, the earliest of equals.

    A text holds itself. With ``among`` only those texts may hold others, and -1 stands where none of them does.
    """
    numbers = {words: number for number, words in enumerate(texts)}
    # A text is found in another by its opening; only the lengths of texts that open alike are tried.
    lengths: defaultdict[Words, set[int]] = defaultdict(set)
    for words in texts:
        lengths[words[:_OPENING_WORDS]].add(len(words))
    holders = np.full(len(texts), -1, dtype=np.int64)
    holding = range(len(texts)) if among is None else np.flatnonzero(among).tolist()
    for number in sorted(holding, key=lambda number: -len(texts[number])):
        if holders[number] >= 0:  # its holder holds all that it holds
            continue
        words = texts[number]
        for start in range(len(words)):
            for size in range(1, min(_OPENING_WORDS, len(words) - start) + 1):
                for length in lengths.get(words[start : start + size], ()):
                    held = numbers.get(words[start : start + length])
                    if held is not None and holders[held] < 0:
                        holders[held] = number
    return holders


def find_nearly_equal(texts: Sequence[Words]) -> list[tuple[int, int]]:
    """Find pairs of nearly equal texts; of more than twenty that are all alike, pairs that tie them together.

    Raises:
        MissingExtraError: If datasketch, of the training extra, is not installed.
    """
    with needs_training():
        from datasketch import MinHash, MinHashLSH

    sides = {number: _sides(words) for number, words in enumerate(texts)}
    wanted = [number for number, both in sides.items() if len(_tagged(both)) >= FEWEST_WORDS]
    n_hashes = _BANDS * _HASHES_PER_BAND
    sketches = MinHash.generator(
        ([word.encode() for word in _tagged(sides[number])] for number in wanted),
        num_perm=n_hashes,
        hashfunc=zlib.crc32,
    )
    index = MinHashLSH(num_perm=n_hashes, params=(_BANDS, _HASHES_PER_BAND))
    leaders = list(range(len(texts)))
    n_indexed: defaultdict[int, int] = defaultdict(int)
    pairs: list[tuple[int, int]] = []
    n_compared = 0
    for number, sketch in zip(wanted, sketches, strict=True):
        for other in sorted(index.query(sketch)):
            n_compared += 1
            if _index(sides[number], sides[other]) >= NEARLY_EQUAL:
                pairs.append((number, other))
                leaders[number] = min(leaders[number], leaders[other])
        if n_compared > _MOST_COMPARISONS:
            break
        if n_indexed[leaders[number]] < _REPRESENTATIVES:
            n_indexed[leaders[number]] += 1
            index.insert(number, sketch)
    return pairs


def _sides(words: Words) -> Sides:
    """Return the different words of both texts of a pair; of a single text the second has none."""
    place = words.index(SEPARATOR) if SEPARATOR in words else len(words)
    return frozenset(words[:place]), frozenset(words[place + 1 :])


def _tagged(sides: Sides) -> list[str]:
    return [*sides[0], *(SEPARATOR + word for word in sides[1])]


def _index(ours: Sides, theirs: Sides) -> float:
    """Return the Jaccard index of two texts; of pairs the smaller one of both."""
    return min(
        len(one & other) / max(len(one | other), 1) if one or other else 1.0
        for one, other in zip(ours, theirs, strict=True)
    )


def _components(holders: NDArray[np.int64], near: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the sets of texts that holders and near pairs tie together."""
    parents = holders.copy()

    def root(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = int(parents[number])
        return number

    for one, other in near.tolist():
        parents[root(one)] = root(other)
    roots = [root(number) for number in range(len(parents))]
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


def _beside(words: Words, source: Words) -> str:
    """Show a held-out text and the place of the training text that it is like."""
    at = next((k for k in range(len(source)) if source[k : k + len(words)] == words), 0)
    before = "… " if at > 2 else ""
    return f"{_short(words)!r} (in training: {before + _short(source[max(at - 2, 0) :])!r})"


def _short(words: Words) -> str:
    shown = ["|" if word == SEPARATOR else word[:20] for word in words[:_SHOWN_WORDS]]
    return " ".join(shown) + (" …" if len(words) > _SHOWN_WORDS else "")
