r"""Train, validation and test: 80/10/10, stratified by label, with no text on two sides.

A `TextDataset` goes in, a `Split` of row positions comes out. Rows that belong together form a group, and a group is
never torn:

- ``random``: exact duplicates, after folding case and white space, are one group.
- ``grouped``: besides, a row that is a contiguous part of a longer one belongs to the longest row that holds it, and to
  that one only: over all holders, short phrases ("the film") would tie a whole corpus together. So a held row may still
  be part of some other row on another side.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DataError, OptionError
from dimec.data.dataset import TextDataset

SplitKind = Literal["random", "grouped"]
SPLIT_KINDS: tuple[SplitKind, ...] = get_args(SplitKind)

_TRAIN, _VALIDATION, _TEST = range(3)
_HELD_OUT_SHARE = 0.1
_MIN_ROWS_PER_CLASS = 3
_ATTEMPTS = 20

# `str.split` splits at this character too, so that no folded text can hold it.
_SEPARATOR = "\x1f"
# Rows are looked up by their first words: enough of them that few rows open alike.
_OPENING_WORDS = 3

Words = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Split:
    """Positions into a data set, sorted, each in one of the three parts.

    ``n_duplicates`` counts rows beyond the first of their set of exact duplicates, ``n_conflicts`` such sets with
    more than one label, ``n_groups`` the groups that were kept whole.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    kind: SplitKind
    seed: int
    n_duplicates: int
    n_conflicts: int
    n_groups: int


def split_dataset(dataset: TextDataset, *, kind: SplitKind = "random", seed: int = 0) -> Split:
    """Split rows 80/10/10, the same way for the same rows, kind and seed.

    Raises:
        DataError: a class has too few rows, or too few groups, to be in all three parts.
        OptionError: there is no such kind.
    """
    if kind not in SPLIT_KINDS:
        raise OptionError(f"the split {kind!r} is not one of {', '.join(SPLIT_KINDS)}")
    n_classes = dataset.task.n_classes
    texts = _folded(dataset)
    first_seen: dict[Words, int] = {}
    duplicates = np.fromiter(
        (first_seen.setdefault(words, len(first_seen)) for words in texts), np.int64, len(texts)
    )
    label_counts = _count_labels(duplicates, dataset.labels, n_classes)
    groups = duplicates
    if kind == "grouped":
        holders = np.unique(tie_to_holders(list(first_seen)), return_inverse=True)[1]
        groups = holders.astype(np.int64)[duplicates]
    counts = _count_labels(groups, dataset.labels, n_classes)
    _check_enough(dataset, counts)

    # Without a group that is in the way the first attempt always serves.
    rng = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        parts = _assign(counts, rng)[groups]
        if _has_every_class(parts, dataset):
            break
    else:
        raise DataError(
            f"{len(counts):,} groups of rows that belong together cannot be shared out so that each part has "
            "every class; use --split random, or give more rows",
            source=dataset.source,
        )
    return Split(
        train=np.flatnonzero(parts == _TRAIN),
        validation=np.flatnonzero(parts == _VALIDATION),
        test=np.flatnonzero(parts == _TEST),
        kind=kind,
        seed=seed,
        n_duplicates=len(dataset) - len(label_counts),
        n_conflicts=int(((label_counts > 0).sum(axis=1) > 1).sum()),
        n_groups=len(counts),
    )


def tie_to_holders(texts: Sequence[Words]) -> NDArray[np.int64]:
    """Give, per distinct text, the longest text that holds it as a contiguous part, the earliest of equals."""
    numbers = {words: number for number, words in enumerate(texts)}
    # A text is found in another by its opening; only the lengths of texts that open alike are tried.
    lengths: defaultdict[Words, set[int]] = defaultdict(set)
    for words in texts:
        lengths[words[:_OPENING_WORDS]].add(len(words))
    holders = np.full(len(texts), -1, dtype=np.int64)
    for number in sorted(range(len(texts)), key=lambda number: -len(texts[number])):
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


def _folded(dataset: TextDataset) -> list[Words]:
    """Give each row's words, case folded; a pair is both texts with a separator between."""
    first = (tuple(text.casefold().split()) for text in dataset.first)
    if dataset.second is None:
        return list(first)
    second = (tuple(text.casefold().split()) for text in dataset.second)
    return [(*one, _SEPARATOR, *two) for one, two in zip(first, second, strict=True)]


def _count_labels(
    groups: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Count labels per group, [groups, classes]."""
    n_groups = int(groups.max(initial=-1)) + 1
    flat = np.bincount(groups * n_classes + labels, minlength=n_groups * n_classes)
    return flat.reshape(n_groups, n_classes)


def _check_enough(dataset: TextDataset, counts: NDArray[np.int64]) -> None:
    rows, groups = counts.sum(axis=0), (counts > 0).sum(axis=0)
    if (groups >= _MIN_ROWS_PER_CLASS).all():
        return
    listed = ", ".join(
        f"{name} {n_rows} ({n_groups} that may be parted)"
        if n_rows != n_groups
        else f"{name} {n_rows}"
        for name, n_rows, n_groups in zip(dataset.task.label_names, rows, groups, strict=True)
    )
    raise DataError(
        f"too few rows to split: {listed}; each class needs at least {_MIN_ROWS_PER_CLASS} rows that are not tied to "
        "one another, one each for training, validation and test: add rows or remove the class",
        source=dataset.source,
    )


def _assign(counts: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Share groups out so that each part comes as near as possible to its rows per class.

    ``counts`` are rows [groups, classes]. Groups of several rows go first, the biggest ahead: each to the part where it
    lessens the sum over parts and classes of need² / target most, where need is target less what is there. Then single
    rows, which most are, fill exactly what is left.
    """
    rows_of_class = counts.sum(axis=0)
    held_out = np.maximum(1, np.rint(_HELD_OUT_SHARE * rows_of_class).astype(np.int64))
    targets = np.stack([rows_of_class - 2 * held_out, held_out, held_out])
    needs = targets.astype(np.float64)
    weights = 1.0 / np.maximum(targets, 0.5)
    sizes = counts.sum(axis=1)
    parts = np.zeros(len(counts), dtype=np.int64)
    order = rng.permutation(len(counts))
    several = order[sizes[order] > 1]
    for group in several[np.argsort(-sizes[several], kind="stable")]:
        rows = counts[group]
        gains = ((2.0 * needs - rows) * rows * weights).sum(axis=1)
        part = int(np.argmax(gains))
        needs[part] -= rows
        parts[group] = part
    singles = order[sizes[order] == 1]
    for label in range(counts.shape[1]):
        members = singles[counts[singles, label] == 1]
        takes = _takes(needs[:, label].astype(np.int64), len(members))
        parts[members] = np.repeat([_TRAIN, _VALIDATION, _TEST], takes)
    return parts


def _takes(needs: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    """Share ``n_rows`` single rows out by need; where groups have overfilled a part, training bears it."""
    takes = np.maximum(needs, 0)
    for part in (_TRAIN, _VALIDATION, _TEST):
        takes[part] -= min(takes[part], takes.sum() - n_rows)
    return takes


def _has_every_class(parts: NDArray[np.int64], dataset: TextDataset) -> bool:
    n_classes = dataset.task.n_classes
    return len(np.unique(parts * n_classes + dataset.labels)) == 3 * n_classes
