"""How single classes fare, in a table of at most 80 columns, and confusion matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dimec.cli.console import open_table
from dimec.cli.table import percent

if TYPE_CHECKING:
    from dimec.evaluation.results import ClassDetails, ClassScores

_FEW, _MATRIX = 20, 12
"""Up to how many classes are printed unasked, and have their confusion matrices printed."""
_NAME_WIDTH = 24


def print_classes(
    found: ClassDetails,
    *,
    own: str = "what is recommended",
    console: Console,
    everything: bool,
) -> None:
    """Print the classes' scores where they are few or ``everything`` is wanted, then with confusion matrices.

    ``own`` says in words what stands beside the full model.
    """
    if len(found.rows) > _FEW and not everything:
        return
    both = found.rows[0].recommended is not None
    columns = ["class", "texts", "precision\nfull", "recall\nfull", "F1\nfull"]
    if both:
        columns = [*columns[:3], "\nrec.", columns[3], "\nrec.", columns[4], "\nrec."]
    table = open_table(*columns, left=("class",), padding=1)
    for row in found.rows:
        pairs = zip(
            _figures(row.full_model),
            ("", "", "") if row.recommended is None else _figures(row.recommended),
            strict=True,
        )
        cells = [cell for pair in pairs for cell in (pair if both else pair[:1])]
        table.add_row(_short(row.name), f"{row.support:,}", *cells)
    console.print(table)
    console.print()
    legend = "full: the full model" + (f" · rec.: {own}" if both else "")
    console.print(f"{legend} · x 100, on these texts", style="dim")
    for line in ranked_words(found):
        console.print(line, style="dim")
    if everything:
        _print_matrices(found, own, console=console)


def ranked_words(found: ClassDetails) -> list[str]:
    """Say how well the classes are ranked, a line for each; nothing where there are not two."""
    lines = []
    for row in found.rows:
        told = {"full": row.full_model, "rec.": row.recommended}
        figures = [
            f"{name} {percent(each.average_precision)}"
            for name, each in told.items()
            if each is not None and each.average_precision is not None
        ]
        if figures:
            lines.append(f"average precision of {_short(row.name)}: {' · '.join(figures)}")
    return lines


def _print_matrices(found: ClassDetails, own: str, *, console: Console) -> None:
    matrices = {
        "the full model": found.full_model_confusion,
        own: found.recommended_confusion,
    }
    for name, matrix in matrices.items():
        if matrix is None or len(matrix) > _MATRIX:
            continue
        title = f"answers of {name}"
        table = open_table(title, *map(str, range(1, len(matrix) + 1)), left=(title,), padding=1)
        for number, (row, counts) in enumerate(zip(found.rows, matrix, strict=True), start=1):
            table.add_row(f"{number} {_short(row.name)}", *(f"{count:,}" for count in counts))
        console.print()
        console.print(table)


def _figures(scores: ClassScores) -> tuple[str, str, str]:
    return percent(scores.precision), percent(scores.recall), percent(scores.f1)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
