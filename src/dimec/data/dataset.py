"""The labelled texts every later step works on.

`sources` and `builtin` make a `TextDataset`; splits, tokenising and training read it and never change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.data.folding import folded, spelled_out
from dimec.data.tasks import Task

MAX_LISTED = 50
"""How many classes or labels a line for people lists."""


def listed(names: Sequence[str]) -> str:
    """List names for people, at most `MAX_LISTED` of them."""
    more = len(names) - MAX_LISTED
    return ", ".join(names[:MAX_LISTED]) + (f" and {more:,} more" if more > 0 else "")


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Rows of one task: one text each, or two, and a label.

    ``labels`` are codes into ``task.label_names``. ``row_ids`` are the rows' positions in their source, counted from
    0 without the header, so that a row can be found again after any selection. ``source`` says in words where they
    came from, ``label_mapping`` which class each label was taken for that is no class's name. ``times`` grow with the
    time at which a row was made, where that was asked for.
    """

    task: Task
    first: tuple[str, ...]
    second: tuple[str, ...] | None
    labels: NDArray[np.int64]
    row_ids: NDArray[np.int64]
    source: str
    label_mapping: Mapping[str, str] = field(default_factory=dict)
    times: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def take(self, indices: ArrayLike) -> TextDataset:
        """Select rows by position, in the order given."""
        positions = np.asarray(indices, dtype=np.int64)
        chosen = positions.tolist()
        return replace(
            self,
            first=tuple(self.first[i] for i in chosen),
            second=None if self.second is None else tuple(self.second[i] for i in chosen),
            labels=self.labels[positions],
            row_ids=self.row_ids[positions],
            times=None if self.times is None else self.times[positions],
        )

    def drawn(self, n: int, *, seed: int) -> TextDataset:
        """Draw rows, and keep their order."""
        return self.take(np.sort(np.random.default_rng(seed).permutation(len(self))[:n]))

    def followed_by(self, other: TextDataset, what: str) -> TextDataset:
        """Return these rows and then those of another data set of the same task, which ``what`` names in the source.

        Row ids of the others go on where these end; they have no times.
        """
        offset = int(self.row_ids.max(initial=-1)) + 1
        times = self.times
        if times is not None:
            times = np.pad(times, (0, len(other)), constant_values=np.nan)
        return replace(
            self,
            first=self.first + other.first,
            second=None if self.second is None else self.second + (other.second or ()),
            labels=np.concatenate([self.labels, other.labels]),
            row_ids=np.concatenate([self.row_ids, other.row_ids + offset]),
            source=f"{self.source}; {what} {other.source}",
            label_mapping={**self.label_mapping, **other.label_mapping},
            times=times,
        )

    @property
    def mapping_words(self) -> str | None:
        """Say which class each label was taken for that is no class's name; None where there is none."""
        read = [f"{spelled_out(label)} as {name}" for label, name in self.label_mapping.items()]
        return f"labels read: {listed(read)}" if read else None

    @property
    def class_counts(self) -> dict[str, int]:
        """How many rows each class has, in the order of the classes."""
        counts = np.bincount(self.labels, minlength=self.task.n_classes).tolist()
        return dict(zip(self.task.label_names, counts, strict=True))

    @property
    def absent_classes(self) -> list[str]:
        """The classes that no row has."""
        return [name for name, count in self.class_counts.items() if not count]

    @property
    def class_words(self) -> str:
        """Say how many rows each class has, the largest first."""
        ranked = sorted(self.class_counts.items(), key=lambda each: -each[1])
        told = [
            f"{name if name.isprintable() else spelled_out(name)} {count:,}"
            for name, count in ranked
        ]
        return f"{len(told):,} classes: {listed(told)}"

    def look_alikes(self) -> list[str]:
        """Say which classes look like one another, a sentence for each such set."""
        alike: dict[str, list[str]] = {}
        for name, count in self.class_counts.items():
            alike.setdefault(folded(name), []).append(f"{spelled_out(name)} ({count:,})")
        return [
            f"the classes {', '.join(names[:MAX_LISTED])} look alike: --fold-labels makes them one"
            for names in alike.values()
            if len(names) > 1
        ]

    @cached_property
    def fingerprint(self) -> str:
        """Hash texts, labels, label names and times (SHA-256, hex): equal only for the same data in the same order."""
        digest = hashlib.sha256()
        for column in (self.task.label_names, self.first, self.second or ()):
            # Lengths go in before contents, so that no two different tables spell the same bytes.
            digest.update(len(column).to_bytes(8, "little"))
            for text in column:
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little"))
                digest.update(encoded)
        digest.update(self.labels.astype("<i8").tobytes())
        if self.times is not None:
            digest.update(self.times.astype("<f8").tobytes())
        return digest.hexdigest()
