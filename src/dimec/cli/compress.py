"""``dimec compress``: learn a bottleneck at a split of a finished run."""

from __future__ import annotations

import json
from typing import Any

from dimec import api
from dimec.cli.console import ConsoleProgress, out, say_json
from dimec.cli.generate import AsJson, Restart, RunFolder
from dimec.cli.table import open_table
from dimec.runs.compressed import Compressed


def compress(
    given: dict[str, Any], folder: RunFolder, restart: Restart = False, as_json: AsJson = False
) -> None:
    """Learn a bottleneck: what the device sends in place of a hidden state, and how the cloud goes on from it.

    The device's layers stay as they are. The result is kept in the run's folder, where `dimec evaluate` finds it. The
    same command resumes a training that was stopped.

    **Example**: `dimec compress runs/sst2 --kind bottlefit --layer 2 --width 16`

    **Over a bad channel**: `dimec compress runs/sst2 --kind bottlenet-pp --layer 2 --width 16 --snr-db 0`
    """
    made = api.compress(folder, restart=restart, progress=ConsoleProgress(), **given)
    if as_json:
        document = {
            "folder": str(made.folder),
            "config": made.config.model_dump(mode="json"),
            "scores": made.scores.model_dump(mode="json"),
        }
        say_json(json.dumps(document))
    else:
        _print(made)
        out.print(f"{made.folder} is learnt. Next: dimec evaluate {folder}", soft_wrap=True)


def _print(made: Compressed) -> None:
    """Print what the test rows came to, beside the run's own exits and what else could be sent."""
    test = made.scores.test
    table = open_table("exit after layer", "accuracy", "as it was")
    for layer, ours, own in zip(test.layers, test.accuracy, test.uncompressed, strict=True):
        table.add_row(str(layer), f"{100 * ours:.2f}", f"{100 * own:.2f}")
    out.print(table)
    if test.draws:
        mean = 100 * sum(test.draws) / len(test.draws)
        out.print(
            f"last exit over {len(test.draws)} draws of the channel: {mean:.2f} "
            f"({100 * min(test.draws):.2f} to {100 * max(test.draws):.2f}); the table has the first",
        )
    out.print(
        f"bytes a sample: {test.bytes_compressed:.0f} compressed, {test.bytes_hidden:.0f} as fp16 hidden state, "
        f"{test.bytes_tokens:.0f} as token ids; test accuracy × 100, {test.n:,} samples",
    )
