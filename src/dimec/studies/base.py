"""What a study is: a question of the papers, the runs that it needs, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dimec.reporting.results import Figure, Rows, Table, Verdict, WhatIf
from dimec.studies.study_runs import StudyRuns

PAPER_TASKS = ("sst2", "cola", "mnli", "mrpc", "qnli", "qqp", "rte")
"""GLUE's tasks in the papers: six in the tables, RTE in a figure."""


@dataclass
class Findings:
    """What a study has found so far, in the order in which a report shows it."""

    tables: list[Table] = field(default_factory=list)
    rows: dict[str, Rows] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whatif: list[WhatIf] = field(default_factory=list)

    def add(self, table: Table, rows: Sequence[Mapping[str, Any]], *figures: Figure) -> None:
        """Add a table with its rows, and the figures over them; nothing where there are no rows."""
        if not rows:
            return
        self.tables.append(table)
        self.rows[table.name] = rows
        self.figures += figures


@dataclass(frozen=True)
class Study:
    """One named study.

    Attributes:
        name: What the command line calls it.
        title: Its heading.
        about: What it asks, in a paragraph.
        source: The places in the papers' notes that it answers.
        tasks: What it is run on where the user names no tasks.
        make: Finds its answers.
    """

    name: str
    title: str
    about: str
    source: str
    tasks: tuple[str, ...]
    make: Callable[[StudyRuns], Findings]
