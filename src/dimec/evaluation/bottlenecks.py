"""A run's learned bottlenecks in an evaluation: which there are, and what they say of the rows that are evaluated."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dimec.core.extras import needs_training
from dimec.core.progress import SILENT, Progress
from dimec.runs.compressed import Compressed, compressed_in
from dimec.runs.exit_table import Restored
from dimec.runs.run import Run

if TYPE_CHECKING:
    from dimec.data import TextDataset


@dataclass(frozen=True, eq=False)
class ReadBottleneck:
    """What the cloud's exits say behind one bottleneck.

    Attributes:
        validation: Of the run's validation rows.
        evaluated: Of the rows that are evaluated.
    """

    validation: Restored
    evaluated: Restored


class Bottlenecks:
    """The bottlenecks of a run, read when they are asked for and once each."""

    def __init__(self, run: Run, *, dataset: TextDataset | None = None) -> None:
        """Look which there are; ``dataset`` is what is evaluated, where it is not the run's test split.

        Raises:
            RunError: If a folder cannot be read.
        """
        self._run = run
        self._dataset = dataset
        self.all = compressed_in(run)
        self._known: dict[str, ReadBottleneck] = {}

    def finished(self, kinds: Collection[str]) -> list[Compressed]:
        """Return those of some kinds that can be read."""
        return [each for each in self.all if each.finished and each.kind in kinds]

    def unfinished(self, kinds: Collection[str]) -> list[Compressed]:
        """Return those of some kinds whose training was stopped."""
        return [each for each in self.all if not each.finished and each.kind in kinds]

    def read(self, compressed: Compressed, *, progress: Progress = SILENT) -> ReadBottleneck:
        """Read one.

        Raises:
            RunError: If it is damaged.
            MissingExtraError: If rows have to be tabulated and the training extra is not installed.
        """
        name = compressed.config.name
        if name not in self._known:
            if self._dataset is None:
                evaluated = compressed.saved(self._run, "test")
            else:
                with needs_training():
                    from dimec.training.tabulate import tabulate_compressed
                evaluated = compressed.restored(
                    tabulate_compressed(self._run, compressed, self._dataset, progress=progress)
                )
            self._known[name] = ReadBottleneck(compressed.saved(self._run, "validation"), evaluated)
        return self._known[name]
