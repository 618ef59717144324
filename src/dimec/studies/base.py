"""What a study is: a question of the papers, the runs that it needs, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from dimec.costs import DEFAULT_PRICE
from dimec.results import Figure, Rows, Table, Verdict, WhatIf

if TYPE_CHECKING:
    from dimec.studies.workshop import Workshop

PAPER_TASKS = ("sst2", "cola", "mnli", "mrpc", "qnli", "qqp", "rte")
"""GLUE's tasks in the papers: six in the tables, RTE in a figure."""


class StudyOptions(BaseModel):
    """What a user chooses for a study.

    Attributes:
        tasks: Which tasks; the study's own where there are none.
        data: A folder with a folder or file per task; the hub without it.
        backbone: What is fitted.
        pooling: What its exits look at. The papers' exits are linear on a fixed vector, so mean is the default here.
        epochs: How long it is fitted.
        seeds: How many; without it three where a run takes under ten minutes, else one.
        max_rows: Rows per task at most.
        price: What the full model on the mobile device costs in units of confidence.
        runs: Folder of runs: those that exist are read, those that are missing are fitted into it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tasks: tuple[str, ...] = ()
    data: Path | None = None
    backbone: str = "minilm"
    pooling: Literal["attention", "mean", "cls"] = "mean"
    epochs: int = Field(default=5, ge=1, le=100)
    seeds: int | None = Field(default=None, ge=1, le=20)
    max_rows: int | None = Field(default=None, ge=30)
    price: float = Field(default=DEFAULT_PRICE, ge=0)
    runs: Path = Path("runs")


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
    make: Callable[[Workshop], Findings]
