"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

DATA_PANEL = "Data"


class Engine(StrEnum):
    """What runs graphs."""

    onnxruntime = "onnxruntime"
    openvino = "openvino"


class Precision(StrEnum):
    """What training computes in."""

    auto = "auto"
    bf16 = "bf16"
    fp32 = "fp32"


TextColumn = Annotated[
    str | None, typer.Option(help="Column of the (first) text.", rich_help_panel=DATA_PANEL)
]
PairColumn = Annotated[
    str | None, typer.Option(help="Column of the second text.", rich_help_panel=DATA_PANEL)
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of the label.", rich_help_panel=DATA_PANEL)
]
SkipEmpty = Annotated[
    bool,
    typer.Option(
        "--skip-empty",
        help="Leave out rows without text instead of stopping.",
        rich_help_panel=DATA_PANEL,
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad",
        help="Leave out lines that cannot be classified, such as no UTF-8 or too long, and count them.",
        rich_help_panel=DATA_PANEL,
    ),
]
SkipUnlabelled = Annotated[
    bool,
    typer.Option(
        "--skip-unlabelled",
        help="Leave out rows without label instead of stopping.",
        rich_help_panel=DATA_PANEL,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
