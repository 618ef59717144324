"""``dimec quickstart``: the main job from end to end on the built-in data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.options import AsJson
from dimec.cli.table import print_evaluation


def quickstart(
    folder: Annotated[Path, typer.Option("--out", help="The run's folder.")] = Path(
        "runs/quickstart"
    ),
    epochs: Annotated[int, typer.Option(help="Epochs of training.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Fit MiniLM on the built-in reviews, build the pools, route the held-out ones and print the table.

    The built-in data is generated: it shows that everything works and proves nothing else.

    **Example**: `dimec quickstart`
    """
    progress = ConsoleProgress()
    run = api.fit("reviews", out=folder, epochs=epochs, progress=progress)
    evaluation = api.evaluate(run, progress=progress)
    if as_json:
        say_json(evaluation.model_dump_json(indent=2))
        return
    print_evaluation(evaluation, console=out)
    out.print(
        f"\nNext: your own data with `dimec fit NAME --data FILE --out runs/NAME`, then `dimec evaluate runs/NAME`. "
        f"This run is in {folder}.",
        markup=False,
    )
