"""``dimec evaluate``: route a split with every policy and print it beside the controls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.generate import AsJson
from dimec.cli.table import print_evaluation
from dimec.core.errors import OptionError
from dimec.core.files import write_atomically
from dimec.core.outputs import check_output_file
from dimec.core.progress import Progress


def evaluate(
    given: dict[str, Any],
    folder: Annotated[
        Path,
        typer.Argument(metavar="RUN|BUNDLE", help="The folder of a finished fit, or of a bundle."),
    ],
    as_json: AsJson = False,
) -> None:
    """Compare routing policies on held-out texts, or on a data set of yours.

    Policies are fitted on the validation split alone and replayed beside the controls. The result is kept in the
    folder's `evaluation/`. A bundle needs `--data` and no torch: its policy is fitted already.

    **Example**: `dimec evaluate runs/sst2`

    **A domain shift**: `dimec evaluate runs/sst2 --data reviews.csv --policy dimec-dc-fixed --price 0.2`

    **A bundle**: `dimec evaluate bundles/sst2 --data reviews.csv`

    **In milliseconds**: `dimec evaluate runs/sst2 --profile phone-4g --unit ms`

    **Audits of every twentieth text**: `dimec evaluate runs/sst2 --policy dimec-guarded --audit-rate 0.05 --slack 2`

    **A smaller model on the device**: `dimec evaluate runs/sst2 --mobile-model runs/sst2-mobile`
    """
    progress = ConsoleProgress()
    evaluation = api.evaluate(folder, progress=progress, **given)
    document = evaluation.model_dump_json(indent=2)
    if as_json:
        say_json(document)
    else:
        print_evaluation(evaluation, console=out)
    keep(document, folder, "", data=given.get("data"), progress=progress)


def keep(document: str, folder: Path, name: str, *, data: str | None, progress: Progress) -> None:
    """Write a JSON document into a run's evaluation folder; a folder that may not be written is only warned of."""
    path = folder / "evaluation" / f"{name}{f'data-{Path(data).stem}' if data else 'test'}.json"
    try:
        check_output_file(path, inputs={"--data": data})
        write_atomically(
            path, lambda partial: partial.write_text(document + "\n", encoding="utf-8")
        )
    except (OSError, OptionError) as exc:
        progress.warn(f"the result could not be kept in {path}: {exc}")
