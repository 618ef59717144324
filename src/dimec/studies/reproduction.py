"""docs/reproduction.md from what studies left: published beside measured, and what became of every claim.

    python -m dimec.studies.reproduction [--earlier PAGE] [--figures FOLDER] studies/main studies/tiers ...

prints the page, the encoders of all results side by side. Every figure on it comes from here. ``--earlier`` takes the
rulings of a page that this module wrote before, whose results are not there any more. ``--figures`` draws pictures
with the deepest of the encoders.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dimec.core.errors import DimecError
from dimec.reporting.results import Result, Verdict, read_result, read_rows
from dimec.reporting.tables import as_markdown
from dimec.reporting.write import draw_figures
from dimec.studies.notes import cost_statements
from dimec.studies.published import notes

SHOWN = {
    "main": ("published", "own-loss"),
    "tiers": ("tiers", "overthinking", "oracles"),
    "pools": ("pools",),
    "shift": ("shift",),
}
"""The tables to print, by study; the others are in the studies' own reports."""

DRAWN = {
    "datamap": "map-",
    "tiers": "tiers-",
    "pools": "pools-",
    "costs": "costs-",
    "embeddings": "embeddings-",
    "layers": "curve",
}
"""How the names of the figures to draw begin, by study."""

PAGE = Path("docs/reproduction.md")  # where the page lies, for the links to other files

HEAD = """# Reproduction

What the two papers print, what this code measures, and what becomes of each claim. Written by
`python -m dimec.studies.reproduction` from the results of `dimec study`; nothing here is typed by
hand. The rules behind the rulings are in `dimec.studies`. How to make these results:
[repeat the papers' studies](how-to/repeat-the-papers-studies.md).

The papers' backbones, BERT-base and BERT-large, were not at hand: here are other encoders on
GLUE's training rows. So a ruling says what holds *here*; levels differ, and drops and savings are
what can be compared. *Could not be tested* stands where the weights or the tasks are missing,
*unmoved* where nothing changed that the claim is about, *depends on the price* where the rulings
at prices from 0.02 to 1 differ. [What was run](#what-was-run) has price, batch, rates, epochs, rows
and pooling of each.
"""


def reproduction(
    folders: Sequence[Path], *, earlier: Path | None = None, figures: Path | None = None
) -> str:
    """Return the page on the results in some folders; draw their pictures into a folder where one is given.

    Raises:
        RunError: If a folder holds no result, or one that cannot be read.
        MissingExtraError: If pictures are wanted and the report extra is not installed.
    """
    results = {folder: read_result(folder) for folder in folders}
    before = {} if earlier is None else _earlier(earlier)
    lines = [*_lines(results, before, earlier)]
    if figures is not None:
        lines += _pictures(results, figures)
    return "\n".join(_wrapped(line) for line in "\n".join(lines).splitlines()) + "\n"


def _wrapped(line: str) -> str:
    """Break a line of prose at 100 columns; headings and rows of tables stay whole."""
    if line.startswith(("#", "|")):
        return line
    indent = " " * (len(line) - len(line.lstrip(" -")))
    return textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def size(result: Result) -> str:
    """Say which encoder a result is of: its layers and its name."""
    found = {f"{run.n_layers} layers ({Path(run.backbone).name})": None for run in result.runs}
    return ", ".join(found)


def _earlier(page: Path) -> dict[tuple[str, str], str]:
    """Return the rulings of a page that was written before, by claim and study."""
    found = {}
    for line in page.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and len(cells) == 4 and cells[2].startswith(("**", "could not")):
            found[cells[0], cells[3].strip("`")] = cells[2].strip("*")
    return found


def _lines(
    results: Mapping[Path, Result], before: Mapping[tuple[str, str], str], earlier: Path | None
) -> Iterator[str]:
    found = list(results.values())
    yield HEAD
    yield from _rulings(found, before, earlier)
    yield from _evidence(found)
    yield "## Where the notes do not agree with themselves or with these costs\n"
    for line in cost_statements():
        yield f"- {line}"
    for folder, result in results.items():
        for table in result.tables:
            if table.name in SHOWN.get(result.study, ()):
                yield f"\n## {table.title}, {size(result)}\n"
                yield as_markdown(table, read_rows(folder, table.name)).split("\n\n", 1)[1]
    yield "\n## What was run\n"
    said: set[str] = set()
    for result in found:
        yield f"- `{result.command}`"
        yield from (f"  - {note}" for note in result.notes if note not in said)
        said |= set(result.notes)
    yield from _runs(found)


def _verdicts(results: list[Result]) -> dict[str, dict[str, list[tuple[str, Verdict, str]]]]:
    """Return for every claim of the papers, in their order, and every study of it the verdicts.

    Each comes with its encoder, and with its tasks.
    """
    found: dict[str, dict[str, list[tuple[str, Verdict, str]]]]
    found = {claim.text: {} for claim in notes().claims}
    for result in results:
        tasks = ", ".join(dict.fromkeys(run.task for run in result.runs))
        for verdict in result.verdicts:
            own = found.setdefault(verdict.claim, {}).setdefault(result.study, [])
            own.append((size(result), verdict, tasks))
    return found


def _rulings(
    results: list[Result], before: Mapping[tuple[str, str], str], earlier: Path | None
) -> Iterator[str]:
    sizes = sorted({size(result) for result in results}, key=lambda each: (len(each), each))
    columns = [*sizes]
    if earlier is not None:
        columns.insert(0, f"[earlier]({os.path.relpath(earlier, PAGE.parent)})")
    yield "## Verdicts\n"
    yield f"| claim | where | study | {' | '.join(columns)} |"
    yield "|---" * (3 + len(columns)) + "|"
    places = {claim.text: claim.source for claim in notes().claims}
    for claim, studies in _verdicts(results).items():
        first = next(iter(studies.values()))[0][1] if studies else None
        where = places.get(claim) or (first.source if first else "")
        names = dict.fromkeys([*studies, *(study for text, study in before if text == claim)])
        for study in names or {"": None}:
            cells = [_cell(studies.get(study, []), each) for each in sizes]
            if earlier is not None:
                cells.insert(0, before.get((claim, study), ""))
            if not any(cells):
                cells[-1:] = ["could not be tested"]
            shown = f"`{study}`" if study else ""
            yield f"| {claim} | {where} | {shown} | {' | '.join(cells)} |"


def _cell(said: Sequence[tuple[str, Verdict, str]], encoder: str) -> str:
    """Return what is said of one encoder, with the tasks where several results speak."""
    own = [
        (verdict.ruling.replace("the price", "price"), tasks)  # a row of many encoders gets long
        for each, verdict, tasks in said
        if each == encoder
    ]
    if len(own) == 1:
        return own[0][0]
    return "; ".join(f"{ruling} ({tasks})" for ruling, tasks in own)


def _evidence(results: list[Result]) -> Iterator[str]:
    yield "\n## Evidence\n"
    for claim, studies in _verdicts(results).items():
        earlier: set[str] = set()
        if studies:
            yield f"### {claim}\n"
        for study, said in studies.items():
            for encoder, verdict, tasks in said:
                yield f"*{verdict.ruling}*, by study `{study}`, {encoder}, on {tasks}.\n"
                yield from (f"- {line}" for line in verdict.evidence if line not in earlier)
                yield from (f"  - {line}" for line in verdict.cases)
                yield ""
                earlier |= set(verdict.evidence)


def _runs(results: list[Result]) -> Iterator[str]:
    prices = dict.fromkeys(str(result.settings.get("price", "")) for result in results)
    yield f"\nThe studies' own price is {', '.join(prices)}.\n"
    yield (
        "| encoder | task | seed | rows drawn | rows (validation, test) | split | exits | exits look at | epochs | "
        "batch | rate, rate of exits | minutes of fit |"
    )
    yield "|---" * 12 + "|"
    runs = {run.folder: run for result in results for run in result.runs}
    for run in sorted(
        runs.values(), key=lambda run: (run.n_layers, run.task, run.seed, run.folder)
    ):
        minutes = "" if run.seconds is None else f"{run.seconds / 60:.1f}"
        rows = f"{run.n_validation:,}, {run.n_test:,}"
        drawn = "all" if run.max_rows is None else f"{run.max_rows:,}"
        rates = ""
        if run.learning_rate is not None:
            rates = f"{run.learning_rate:g}, {run.head_learning_rate:g}"
        encoder = f"{Path(run.backbone).name}, {run.n_layers} layers"
        cells = (
            *(encoder, run.task, run.seed, drawn, rows, run.split, run.exits, run.pooling),
            *(run.epochs or "", run.batch_size or "", rates, minutes),
        )
        yield f"| {' | '.join(map(str, cells))} |"


def _pictures(results: Mapping[Path, Result], out: Path) -> Iterator[str]:
    """Draw the documents' figures with the deepest encoder, and link to them."""
    layers = {
        folder: max((run.n_layers for run in each.runs), default=0)
        for folder, each in results.items()
    }
    yield "\n## Pictures\n"
    for folder, result in results.items():
        begins = DRAWN.get(result.study)
        if begins is None or layers[folder] < max(layers.values()):
            continue
        titles = {figure.name: figure.title for figure in result.figures}
        for name, svg in draw_figures(folder, begins).items():
            own = name if name.startswith(result.study) else f"{result.study}-{name}"
            path = out / f"{own}-{layers[folder]}-layers.svg"
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(svg, encoding="utf-8")
            yield f"![{titles[name]}, {size(result)}]({os.path.relpath(path, PAGE.parent)})\n"


if __name__ == "__main__":
    reader = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    reader.add_argument("--earlier", type=Path)
    reader.add_argument("--figures", type=Path)
    reader.add_argument("folders", type=Path, nargs="+")
    given = reader.parse_args()
    try:
        text = reproduction(given.folders, earlier=given.earlier, figures=given.figures)
    except DimecError as exc:
        sys.exit(str(exc))
    sys.stdout.write(text)
