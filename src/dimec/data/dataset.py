"""The labelled texts every later step works on.

`sources` and `builtin` make a `TextDataset`; splits, tokenising and training read it and never change it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.data.folding import folded, spelled_out
from dimec.data.tasks import Task

MAX_LISTED = 50
"""How many classes or labels a line for people lists."""


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

    def followed_by(self, other: TextDataset, what: str) -> TextDataset:
        """Return these rows and then those of another data set of the same task, which ``what`` names in the source.

        Row ids of the others go on where these end; they have no times.
        """
        offset = int(self.row_ids.max(initial=-1)) + 1
        times = self.times
        if times is not None:
            times = np.concatenate([times, np.full(len(other), np.nan)])
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
        more = f" and {len(read) - MAX_LISTED:,} more" if len(read) > MAX_LISTED else ""
        return f"labels read: {', '.join(read[:MAX_LISTED])}{more}" if read else None

    @property
    def class_words(self) -> str:
        """Say how many rows each class has, the largest first."""
        counts = np.bincount(self.labels, minlength=self.task.n_classes).tolist()
        ranked = sorted(zip(counts, self.task.label_names, strict=True), key=lambda each: -each[0])
        listed = [
            f"{name if name.isprintable() else spelled_out(name)} {count:,}"
            for count, name in ranked[:MAX_LISTED]
        ]
        more = f" and {len(ranked) - MAX_LISTED:,} more" if len(ranked) > MAX_LISTED else ""
        return f"{len(ranked):,} classes: {', '.join(listed)}{more}"

    def look_alikes(self) -> list[str]:
        """Say which classes look like one another, a sentence for each such set."""
        counts = np.bincount(self.labels, minlength=self.task.n_classes).tolist()
        alike: dict[str, list[str]] = {}
        for name, count in zip(self.task.label_names, counts, strict=True):
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
        columns = [self.task.label_names, self.first, self.second or ()]
        for column in columns:
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
