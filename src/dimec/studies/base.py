"""What a study is, and what it finds.

The titles of studies, tables, columns and figures are in ``catalogue.toml``, and so are the notes on each study.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from dimec.core.version import __version__
from dimec.reporting.results import (
    Column,
    Figure,
    Result,
    Rows,
    Table,
    Verdict,
    WhatIf,
    write_result,
)
from dimec.studies.study_runs import StudyRuns


@dataclass
class Findings:
    """What a study has found so far, in the order in which a report shows it."""

    study: str
    tables: list[Table] = field(default_factory=list)
    rows: dict[str, Rows] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    whatif: list[WhatIf] = field(default_factory=list)

    def add(self, name: str, rows: Sequence[Mapping[str, Any]], **words: object) -> None:
        """Add a table of the catalogue, its rows, and the figures over it; nothing where there are no rows.

        ``words`` fill in the names in braces.
        """
        if not rows:
            return
        entries = catalogue()[self.study]
        columns = catalogue()["columns"] | entries.get("columns", {})
        shown = _entry(entries["tables"], name)
        listed = [Column(**_entry(columns, column)) for column in shown.pop("columns", ())]
        table = Table(**_filled(shown, words), columns=tuple(listed))
        self.tables.append(table)
        self.rows[table.name] = rows
        for figure in entries.get("figures", {}):
            drawn = _entry(entries["figures"], figure)
            if drawn["table"] == name:
                self.figures.append(Figure(**_filled(drawn, words)))

    def note(self, **words: object) -> None:
        """Add the catalogue's notes on the study; ``words`` fill in the names in braces."""
        self.notes += [each.format(**words) for each in catalogue()[self.study]["notes"]]


def write_findings(found: Findings, out: Path, **told: Any) -> Result:  # noqa: ANN401  the other fields of Result
    """Write what was found into a folder."""
    result = Result(
        study=found.study,
        verdicts=tuple(found.verdicts),
        tables=tuple(found.tables),
        figures=tuple(found.figures),
        notes=tuple(found.notes),
        versions={
            "dimec": __version__,
            "python": platform.python_version(),
            **{each: version(each) for each in ("numpy", "pyarrow")},
        },
        **told,
    )
    write_result(out, result, found.rows, whatif=found.whatif)
    return result


class Study:
    """The study of the catalogue that has a function's name; the function fills its findings."""

    def __init__(self, fill: Callable[[StudyRuns, Findings], None]) -> None:
        entry = catalogue()[fill.__name__]
        self.fill = fill
        self.name: str = fill.__name__
        self.title: str = entry["title"]
        self.about: str = entry["about"]
        self.source: str = entry.get("source", "")
        self.tasks: tuple[str, ...] = tuple(entry["tasks"])

    def make(self, runs: StudyRuns) -> Findings:
        """Find its answers."""
        found = Findings(self.name)
        self.fill(runs, found)
        return found


@cache
def catalogue() -> dict[str, Any]:
    """Return all titles, notes, tables, columns and figures."""
    path = files("dimec.studies").joinpath("catalogue.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _entry(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an entry, completed from the one that it is ``like``."""
    own = dict(entries[name])
    like = own.pop("like", None)
    found = {"name": name} if like is None else _entry(entries, like)
    found |= own
    return {key: value for key, value in found.items() if value != "" or key == "title"}


def _filled(value: Any, words: Mapping[str, object]) -> Any:  # noqa: ANN401  any TOML value
    if isinstance(value, str):
        return value.format(**words)
    if isinstance(value, dict):
        return {key: _filled(each, words) for key, each in value.items()}
    return value
