r"""Train, validation and test: rows of a data set shared out, by label, by group, or by time.

A `TextDataset` goes in, a `Split` of row positions comes out; 80/10/10 where no other sizes are asked for. Rows that
belong together form a group:

- ``random``: exact duplicates, after folding case and white space, are one group.
- ``grouped``: besides, a row that is a contiguous part of a longer one belongs to the longest row that holds it, and to
  that one only: over all holders, short phrases ("the film") would tie a whole corpus together. So a held row may still
  be part of some other row on another side. Nearly equal rows are one group too (`dimec.data.likeness`).
- ``time``: the oldest rows train, then come validation and the newest for the test. Nothing is kept together, since
  texts that return are part of what comes.

Groups are never torn, and labels are spread evenly over the parts, but for ``time``. A row that a file of its own has
given to a part stays there (``given``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DataError
from dimec.core.progress import SILENT, Progress
from dimec.core.split_choice import SIZES, Sizes, SplitChoice, SplitMade
from dimec.data.dataset import TextDataset
from dimec.data.likeness import Leakage, Likeness

TRAIN, VALIDATION, TEST = PARTS = range(3)
NOT_GIVEN = -1
"""Stands for a row that is to be shared out."""

MOST_LEAKING = 0.05
"""Where more of the held-out rows of a random split leak, `--split auto` groups rows."""

_ATTEMPTS = 20


@dataclass(frozen=True, eq=False)
class Split:
    """Positions into a data set, sorted, each in one of the three parts.

    Of the rows that were shared out ``n_duplicates`` counts those beyond the first of their set of exact duplicates,
    ``n_conflicts`` such sets with more than one label, ``n_groups`` the groups that were kept whole. ``groups`` [rows]
    is the group of each row of the data set in a grouped split, None in any other.
    """

    train: NDArray[np.int64]
    validation: NDArray[np.int64]
    test: NDArray[np.int64]
    kind: SplitMade
    seed: int
    n_duplicates: int
    n_conflicts: int
    n_groups: int
    groups: NDArray[np.int64] | None = None

    @property
    def held_out(self) -> NDArray[np.int64]:
        """The rows of validation and test."""
        return np.concatenate([self.validation, self.test])


def choose_split(
    dataset: TextDataset,
    choice: SplitChoice,
    *,
    seed: int = 0,
    given: NDArray[np.int64] | None = None,
    likeness: Likeness | None = None,
    progress: Progress = SILENT,
) -> tuple[Split, Leakage]:
    """Split rows as a user chose, and say which of the held-out ones training knows.

    Args:
        choice: How; auto groups rows where more than `MOST_LEAKING` of a random split leak.
        given: [rows], the part that a row has already, or `NOT_GIVEN`.

    Raises:
        DataError: As `split_dataset` does.
    """
    known = likeness or Likeness.of(dataset)

    def made(kind: SplitMade) -> tuple[Split, Leakage]:
        split = split_dataset(
            dataset, kind=kind, seed=seed, sizes=choice.sizes, given=given, likeness=known
        )
        return split, known.leakage(split.train, split.held_out)

    split, leakage = made("random" if choice.kind == "auto" else choice.kind)
    progress.say(f"{split.kind} split: {leakage.words}")
    if choice.kind != "auto" or split.kind == "files" or leakage.share <= MOST_LEAKING:
        return split, leakage
    try:
        split, leakage = made("grouped")
    except DataError as exc:
        progress.warn(
            f"the random split leaks, and a grouped one cannot be had ({exc}): scores on validation and test will be "
            "better than on new texts; give files of your own with --validation and --test"
        )
        return split, leakage
    progress.say(
        f"these would flatter the model, so that such rows are kept together: {leakage.words}"
    )
    return split, leakage


def split_dataset(
    dataset: TextDataset,
    *,
    kind: SplitMade = "random",
    seed: int = 0,
    sizes: Sizes = SIZES,
    given: NDArray[np.int64] | None = None,
    likeness: Likeness | None = None,
) -> Split:
    """Split rows, the same way for the same rows, kind, sizes and seed.

    Args:
        kind: How, where a row is left to share out.
        sizes: Percent for training, validation and test. A part that has rows given gets no others, and the rows that
            it would have had train.

    Raises:
        DataError: a class has too few rows, or too few groups, to be in every part.
    """
    parts = np.full(len(dataset), NOT_GIVEN) if given is None else given.copy()
    likeness = likeness or Likeness.of(dataset)
    rest = np.flatnonzero(parts == NOT_GIVEN)
    shares = [size / 100 for size in sizes]
    for part in (VALIDATION, TEST):
        if (parts == part).any():
            shares[TRAIN] += shares[part]
            shares[part] = 0.0
    duplicates = np.unique(likeness.numbers[rest], return_inverse=True)[1]
    rows = dataset.take(rest)
    label_counts = _count_labels(duplicates, rows.labels, dataset.task.n_classes)
    n_groups = len(rest)
    if shares[TRAIN] >= 1 - 1e-9:
        parts[rest], kind = TRAIN, "files"
    elif kind == "time":
        parts[rest] = _by_time(rows, shares)
    else:
        groups = duplicates
        if kind == "grouped":
            groups = np.unique(likeness.groups[rest], return_inverse=True)[1]
        counts = _count_labels(groups, rows.labels, dataset.task.n_classes)
        parts[rest], n_groups = _by_group(rows, groups, counts, shares, seed=seed), len(counts)
    return Split(
        train=np.flatnonzero(parts == TRAIN),
        validation=np.flatnonzero(parts == VALIDATION),
        test=np.flatnonzero(parts == TEST),
        kind=kind,
        seed=seed,
        n_duplicates=len(rows) - len(label_counts),
        n_conflicts=int(((label_counts > 0).sum(axis=1) > 1).sum()),
        n_groups=n_groups,
        groups=likeness.groups if kind == "grouped" else None,
    )


def _by_time(rows: TextDataset, shares: list[float]) -> NDArray[np.int64]:
    """Give the newest rows to the test, those before them to validation, and the others to training."""
    assert rows.times is not None, "a split by time needs a column of times"
    takes = [max(1, round(share * len(rows))) if share else 0 for share in shares]
    n_train = len(rows) - takes[VALIDATION] - takes[TEST]
    in_order = np.repeat(PARTS, [n_train, takes[VALIDATION], takes[TEST]])
    parts = np.empty(len(rows), dtype=np.int64)
    parts[np.argsort(rows.times, kind="stable")] = in_order
    if unknown := rows.take(np.flatnonzero(parts == TRAIN)).absent_classes:
        raise DataError(
            f"the oldest {n_train:,} rows, which train, have none of the class {', '.join(unknown)}: give more of "
            "the older rows, remove the class, or use --split grouped",
            source=rows.source,
        )
    return parts


def _by_group(
    rows: TextDataset,
    groups: NDArray[np.int64],
    counts: NDArray[np.int64],
    shares: list[float],
    *,
    seed: int,
) -> NDArray[np.int64]:
    """Share groups out, so that every part that takes rows has every class."""
    filled = [part for part in PARTS if shares[part]]
    _check_enough(rows, counts, n_parts=len(filled))
    # Without a group that is in the way the first attempt always serves.
    rng = np.random.default_rng(seed)
    for _ in range(_ATTEMPTS):
        parts = _assign(counts, shares, rng)[groups]
        n_classes = rows.task.n_classes
        if len(np.unique(parts * n_classes + rows.labels)) == len(filled) * n_classes:
            return parts
    raise DataError(
        f"{len(counts):,} groups of rows that belong together cannot be shared out so that each part has "
        "every class; use --split random, or give more rows",
        source=rows.source,
    )


def _count_labels(
    groups: NDArray[np.int64], labels: NDArray[np.int64], n_classes: int
) -> NDArray[np.int64]:
    """Count labels per group, [groups, classes]."""
    n_groups = int(groups.max(initial=-1)) + 1
    flat = np.bincount(groups * n_classes + labels, minlength=n_groups * n_classes)
    return flat.reshape(n_groups, n_classes)


def _check_enough(dataset: TextDataset, counts: NDArray[np.int64], *, n_parts: int) -> None:
    rows, groups = counts.sum(axis=0), (counts > 0).sum(axis=0)
    if (groups >= n_parts).all():
        return
    listed = ", ".join(
        f"{name} {n_rows} ({n_groups} that may be parted)"
        if n_rows != n_groups
        else f"{name} {n_rows}"
        for name, n_rows, n_groups in zip(dataset.task.label_names, rows, groups, strict=True)
    )
    raise DataError(
        f"too few rows to split: {listed}; each class needs at least {n_parts} rows that are not tied to "
        "one another, one for each part that is split off and one for training: add rows or remove the class",
        source=dataset.source,
    )


def _assign(
    counts: NDArray[np.int64], shares: list[float], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Share groups out so that each part comes as near as possible to its rows per class.

    ``counts`` are rows [groups, classes]. Groups of several rows go first, the biggest ahead: each to the part where it
    lessens the sum over parts and classes of need² / target most, where need is target less what is there. Then single
    rows, which most are, fill exactly what is left.
    """
    rows_of_class = counts.sum(axis=0)
    held_out = [
        np.maximum(1, np.rint(share * rows_of_class).astype(np.int64))
        if share
        else 0 * rows_of_class
        for share in shares[VALIDATION:]
    ]
    targets = np.stack([rows_of_class - sum(held_out), *held_out])
    closed = np.array([not share for share in shares])
    needs = targets.astype(np.float64)
    weights = 1.0 / np.maximum(targets, 0.5)
    sizes = counts.sum(axis=1)
    parts = np.zeros(len(counts), dtype=np.int64)
    order = rng.permutation(len(counts))
    several = order[sizes[order] > 1]
    for group in several[np.argsort(-sizes[several], kind="stable")]:
        rows = counts[group]
        gains = ((2.0 * needs - rows) * rows * weights).sum(axis=1)
        part = int(np.argmax(np.where(closed, -np.inf, gains)))
        needs[part] -= rows
        parts[group] = part
    singles = order[sizes[order] == 1]
    for label in range(counts.shape[1]):
        members = singles[counts[singles, label] == 1]
        takes = _takes(needs[:, label].astype(np.int64), len(members))
        parts[members] = np.repeat(PARTS, takes)
    return parts


def _takes(needs: NDArray[np.int64], n_rows: int) -> NDArray[np.int64]:
    """Share ``n_rows`` single rows out by need; where groups have overfilled a part, training bears it."""
    takes = np.maximum(needs, 0)
    for part in PARTS:
        takes[part] -= min(takes[part], takes.sum() - n_rows)
    return takes
