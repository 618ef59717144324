"""``dimec bulk``: a corpus of any size on the command line."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import dimec
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.generate import AsJson, BundleFolder


def bulk(
    given: dict[str, Any],
    bundle: BundleFolder,
    out_folder: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="FOLDER|URL",
            help="Where the answers go, as parquet files; the same command goes on after a kill.",
            show_default=False,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Label a corpus: files of any size, on this machine or on a Ray cluster, into parquet files.

    Every row has its answer once, whatever is killed on the way: the same command goes on with the blocks that are
    missing. A row that cannot be classified has an error in place of an answer.

    **Example**: `dimec bulk bundles/sst2 --data reviews/ --out answers`

    **With a promise about this very corpus**: `dimec bulk bundles/sst2 --data reviews/ --out answers --max-drop 0.5`

    **On a cluster**: `dimec bulk /shared/sst2 --data s3://texts/2026 --out s3://answers/2026 --ray auto`
    """
    result = dimec.bulk(bundle, out=out_folder, progress=ConsoleProgress(), **given)
    if as_json:
        say_json(result.model_dump_json(indent=2))
    else:
        out.print(result.sentence, soft_wrap=True)
        out.print(
            f"{out_folder}/answers holds them, with file and row.", style="dim", soft_wrap=True
        )
