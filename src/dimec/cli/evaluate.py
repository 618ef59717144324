"""``dimec evaluate``: every policy on a split beside the controls; ``dimec frontier``: the same at several prices."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

import dimec
from dimec.cli.console import ConsoleProgress, open_table, out, print_banner, say_json
from dimec.cli.generate import AsJson, RunFolder
from dimec.cli.table import (
    amount,
    change,
    interval,
    percent,
    print_evaluation,
    print_recommendation,
    profile_words,
    say_recommendation,
    unit_words,
)
from dimec.core.errors import OptionError
from dimec.core.files import write_atomically
from dimec.core.outputs import check_output_file
from dimec.core.progress import Progress
from dimec.core.tiers import TIERS

if TYPE_CHECKING:
    from dimec.evaluation.results import ClassDetails, ClassScores, Evaluation, Frontier

Found = TypeVar("Found", "Evaluation", "Frontier")

_FEW, _MATRIX = 20, 12
"""Up to how many classes are printed unasked, and have their confusion matrices printed."""
_NAME_WIDTH = 24


def evaluate(
    given: dict[str, Any],
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|BUNDLE", help="The folder of a finished fit, or of a bundle."),
    ],
    as_json: AsJson = False,
) -> None:
    """Recommend what to deploy, and show what it loses and saves on held-out texts, or on a data set of yours.

    The cheapest way to answer is chosen on the validation split alone, among cascades and single tiers, so that it is
    expected to lose at most `--max-drop` points against the full model. The result is kept in the folder's
    `evaluation/`. A bundle needs `--data` and no torch: its policy is fitted already.

    **Example**: `dimec evaluate runs/sst2 --max-drop 0.5`

    **Every policy with every control**: `dimec evaluate runs/sst2 --all`

    **Other data**: `dimec evaluate runs/sst2 --data reviews.csv`

    **One policy at a price**: `dimec evaluate runs/sst2 --policy dimec-dc-fixed --price 0.2`

    **A bundle**: `dimec evaluate bundles/sst2 --data reviews.csv`

    **In milliseconds**: `dimec evaluate runs/sst2 --profile phone-4g --unit ms`

    **Audits of every twentieth text**: `dimec evaluate runs/sst2 --policy dimec-guarded --audit-rate 0.05 --slack 2`

    **A smaller model on the device**: `dimec evaluate runs/sst2 --mobile-model runs/sst2-mobile`

    **A language model in the cloud**: `dimec evaluate runs/sst2 --cloud-model chat:http://localhost:8000/v1#llama
    --model-price 0.15/0.6 --max-spend 5`
    """
    progress = ConsoleProgress()
    result = dimec.evaluate(folder, progress=progress, **given)
    show = partial(_print, everything=bool(given.get("every_policy")))
    _tell(result, show, folder, "", given, as_json=as_json, progress=progress)


def frontier(given: dict[str, Any], folder: RunFolder, as_json: AsJson = False) -> None:
    """Sweep the price: at each one, every policy is fitted on validation and replayed, as `dimec evaluate` does.

    The first row is what `dimec evaluate` recommends for `--max-drop`. The result is kept in the run's `evaluation/`:
    at each price an evaluation with all controls.

    **Example**: `dimec frontier runs/sst2 --prices 0,0.05,0.1,0.5 --json`
    """
    progress = ConsoleProgress()
    result = dimec.frontier(folder, progress=progress, **given)
    _tell(result, _print_frontier, folder, "frontier-", given, as_json=as_json, progress=progress)


def _tell(
    result: Found,
    show: Callable[[Found], None],
    folder: Path,
    name: str,
    given: dict[str, Any],
    *,
    as_json: bool,
    progress: Progress,
) -> None:
    """Print a result and write it into the evaluation folder; one that may not be written is only warned of."""
    document = result.model_dump_json(indent=2)
    if as_json:
        say_json(document)
    else:
        show(result)
    data = given.get("data")
    if any(given.get(f"{tier}_model") for tier in TIERS):
        name += "models-"
    path = folder / "evaluation" / f"{name}{f'data-{Path(data).stem}' if data else 'test'}.json"
    try:
        check_output_file(path, inputs={"--data": data})
        write_atomically(
            path, lambda partial: partial.write_text(document + "\n", encoding="utf-8")
        )
    except (OSError, OptionError) as exc:
        progress.warn(f"the result could not be kept in {path}: {exc}")


def _print(result: Evaluation, *, everything: bool) -> None:
    """Print the table of policies where there are any, the recommendation, the classes, and what to mend."""
    policies = {row.policy for row in result.rows if row.kind == "policy"}
    if result.recommendation is None or policies != {"recommended"}:
        print_evaluation(result)
        out.print()
    if result.recommendation is not None:
        print_recommendation(result)
    if result.summary is not None:
        out.print(result.summary, style="bold")
    said = result.recommendation is not None or result.summary is not None
    if result.classes is not None and (everything or said):
        own = "what is recommended" if result.summary is None else "the policy of the bundle"
        out.print()
        print_classes(result.classes, own=own, everything=everything)
    print_banner(result.warnings)


def _print_frontier(result: Frontier) -> None:
    """Print what is recommended, then a line per policy and price; what the policy repeats is left out."""
    from dimec.evaluation.dial import RECOMMENDED

    first = result.evaluations[0]
    first_columns = ("policy", "price", "score", "95 % int.", "cost", "cloud")
    table = open_table(
        *first_columns, "random\n@shares", "random\n@cost", "oracle", left=("policy",), padding=1
    )

    names = dict.fromkeys(row.policy for row in first.rows if row.kind == "policy")
    for name in sorted(names, key=lambda name: name != RECOMMENDED):
        seen: set[tuple[float | None, float]] = set()
        for evaluation in result.evaluations:
            row = next(row for row in evaluation.rows if row.policy == name)
            if (row.score, row.cost) in seen:
                continue
            seen.add((row.score, row.cost))
            price: float | None = evaluation.price
            if name == RECOMMENDED:
                price = result.recommendation.price
            table.add_row(
                name if len(seen) == 1 else "",
                "" if price is None else f"{price:.3g}",
                percent(row.score),
                interval(row.score_ci95),
                amount(row.cost, first.unit),
                change(row.cost_vs_cloud - 1),
                percent(row.random_at_shares),
                percent(row.random_at_cost),
                percent(row.oracle_at_cost),
                style="bold" if name == RECOMMENDED else None,
            )
    out.print(f"{first.task}: {first.source}")
    out.print()
    out.print(table)
    out.print()
    controls = dict.fromkeys(
        (row.policy, row.score, row.cost)
        for row in first.rows
        if row.kind == "control" and row.score is not None
    )
    listed = " · ".join(
        f"{name} {percent(score)} at {amount(cost, first.unit)}" for name, score, cost in controls
    )
    out.print(f"controls: {listed}", style="dim")
    unit = unit_words(first.unit, currency=first.currency)
    if first.unit != "lambda":
        unit += profile_words(first.profile)
    out.print(
        f"score: {first.metric}, {first.n:,} samples, × 100 · cost: mean, in {unit}; cloud: change against all-cloud · "
        "random @shares, random @cost, oracle: as in `dimec evaluate` · a price that changes nothing is left out",
        style="dim",
    )
    out.print()
    say_recommendation(result.recommendation)


def print_classes(
    found: ClassDetails, *, own: str = "what is recommended", everything: bool
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
    out.print(table)
    out.print()
    legend = "full: the full model" + (f" · rec.: {own}" if both else "")
    out.print(f"{legend} · x 100, on these texts", style="dim")
    for line in ranked_words(found):
        out.print(line, style="dim")
    if everything:
        _print_matrices(found, own)


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


def _print_matrices(found: ClassDetails, own: str) -> None:
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
        out.print()
        out.print(table)


def _figures(scores: ClassScores) -> tuple[str, str, str]:
    return percent(scores.precision), percent(scores.recall), percent(scores.f1)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"{name[: _NAME_WIDTH - 1]}…"
