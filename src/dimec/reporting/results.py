"""The files of a study's result: studies write them, reports read them.

```
OUT/
├── result.json            a `Result`: what was run, what came of it, which tables and figures there are
├── whatif.json            a `WhatIf` per task, where the study has them
└── tables/NAME.parquet    a table's rows
```

A report reads nothing else, so whatever it shows can be read here by any program. No pickle.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import FailFast, Field

from dimec.core.errors import RunError
from dimec.core.extras import needs_report
from dimec.core.files import write_atomically, write_json
from dimec.core.untrusted import (
    Record,
    open_regular,
    parse_json,
    read_bounded,
    read_json,
    trusting_nothing,
)

FORMAT = 1
RESULT_FILE = "result.json"
WHATIF_FILE = "whatif.json"

Quantity = Literal["text", "count", "number", "score", "points", "change", "share", "cost"]
"""What a column's values are, and how they are printed.

``score`` is a fraction that is printed times 100, ``points`` a difference of scores in hundredths, with its sign;
``change`` a relative change in percent, with its sign; ``share`` a fraction in percent; ``cost`` is in lambda.
"""

Ruling = Literal[
    "holds",
    "holds in part",
    "does not hold here",
    "unmoved",
    "depends on the price",
    "could not be tested",
]
"""What becomes of a claim: "unmoved" where nothing changed that the claim is about."""


_MAX_WHATIF_BYTES = 256 * 2**20
_AGAIN = "run the study again"

Item = TypeVar("Item")
Many = Annotated[tuple[Item, ...], FailFast()]  # a long tuple: validation stops at the first fault


class Column(Record):
    """A column of a table.

    Attributes:
        low: The column with the lower end of its 95 % interval.
        high: That with the upper end.
        spread: That with the standard deviation over seeds.
        stands_out: A column of booleans: whether the value is better than all it is compared with, beyond its interval.
    """

    name: str
    title: str
    quantity: Quantity
    about: str = ""
    low: str | None = None
    high: str | None = None
    spread: str | None = None
    stands_out: str | None = None


class Table(Record):
    """A table's heading; its rows are in ``tables/NAME.parquet``, with further columns that only figures use.

    Attributes:
        columns: The columns to print, in order; none for a table that only a figure needs.
        group: A column whose values part the table in sections, such as the task.
        source: The place in the papers' notes that it answers.
    """

    name: str
    title: str
    about: str = ""
    columns: tuple[Column, ...] = ()
    group: str | None = None
    source: str | None = None


class Figure(Record):
    """A figure over a table's rows.

    Attributes:
        about: What it shows, for those who cannot see it too.
        table: Whose rows. All of the following but titles and quantities are columns of it.
        kind: ``points``; ``lines`` through points in order of x; ``bars`` side by side, or ``stacked``; ``heat``, a
            field of coloured cells.
        color: The hue; the value, in a ``heat``.
        facet: Its values get a panel each.
        hover: To show for what the pointer is over.
        marks: Booleans: which points or cells to ring, such as the chosen operating point.
        color_quantity: How the hue reads; ``text`` for categories.
        source: The place in the papers' notes that it answers.
    """

    name: str
    title: str
    about: str
    table: str
    kind: Literal["points", "lines", "bars", "stacked", "heat"]
    x: str
    y: str
    color: str | None = None
    facet: str | None = None
    low: str | None = None
    high: str | None = None
    hover: tuple[str, ...] = ()
    marks: str | None = None
    x_title: str = ""
    y_title: str = ""
    color_title: str = ""
    x_quantity: Quantity = "number"
    y_quantity: Quantity = "score"
    color_quantity: Quantity = "text"
    source: str | None = None


class Verdict(Record):
    """What became of a claim.

    Attributes:
        evidence: Why, a sentence with figures each; the notes' own tables first.
        cases: What the evidence counts, a line for each case.
    """

    claim: str
    source: str
    ruling: Ruling
    evidence: tuple[str, ...]
    cases: tuple[str, ...] = ()


class UsedRun(Record):
    """A run that a study read.

    Attributes:
        max_rows: How many rows were drawn; None where all were taken.
    """

    task: str
    seed: int
    folder: str
    source: str
    n_validation: int
    n_test: int
    metric: str
    backbone: str
    n_layers: int
    pooling: str
    split: str
    seconds: float | None
    code_revision: str | None
    exits: str = "all"
    epochs: int | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    head_learning_rate: float | None = None
    max_rows: int | None = None


class Result(Record):
    """What a study found.

    Attributes:
        recommendation: What to deploy, in a sentence; of the page of a run alone.
        tables: The most important first.
        notes: What a reader has to know: subsets, single seeds, what was left out and why.
    """

    format: int = FORMAT
    study: str
    title: str
    about: str
    recommendation: str | None = None
    command: str
    settings: dict[str, str | float | int | bool | None] = Field(default_factory=dict)
    runs: tuple[UsedRun, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = Field(default_factory=dict)


class Use(Record):
    """What a sample uses in the mean: layers by tier, transfers, readings of exit zero."""

    mobile_layers: float = 0.0
    edge_layers: float = 0.0
    cloud_layers: float = 0.0
    to_edge: float = 0.0
    to_cloud: float = 0.0
    exit_zero: float = 0.0


class Choice(Record):
    """One operating point of a policy, on test rows, and on validation as the search sees it; all are means.

    Attributes:
        name: What tells it from the others beside its thresholds, such as the kind of way to answer.
        validation_confidence: The mean confidence; None for a control and under the dial.
        bound_points: Under the dial, what is held against its tolerance; None elsewhere.
    """

    name: str = ""
    at: dict[str, float]
    validation_confidence: float | None = None
    bound_points: float | None = None
    validation_use: Use
    use: Use
    shares: tuple[float, float, float]
    score: float
    accuracy: float


class Tunable(Record):
    """A policy with the points of its grid, in the order of its search; or a control, which has one point.

    With a price for each part of `Use` and lambda in units of confidence, the choice is that of the largest
    ``validation_confidence - lambda * cost``; of equals (to 1e-12) the cheapest, then the first.

    Under the dial of the page of a run it is the cheapest (to 1e-9; of equals the first without thresholds, then the
    first) of those whose ``bound_points`` are at most the tolerance; the last, all-cloud, always is allowed. Costs are
    those of ``validation_use`` in both.
    """

    name: str
    kind: Literal["policy", "control"]
    choices: Many[Choice]


class WhatIf(Record):
    """The data of a table at other prices.

    Attributes:
        price: What the full model on the mobile device costs in units of confidence: lambda = price / (mobile_layer l).
        max_drop: The tolerance of the dial in points, in place of a price; None in a study.
        prices: The price of each part of `Use`, in lambda.
    """

    task: str
    n: int
    metric: str
    n_layers: int
    price: float
    max_drop: float | None = None
    prices: Use
    rows: Many[Tunable]


Rows = Sequence[Mapping[str, Any]]


def write_result(
    folder: Path, result: Result, rows: Mapping[str, Rows], *, whatif: Sequence[WhatIf] = ()
) -> None:
    """Write a result with the rows of its tables, by name. ``result.json``, which names the others, is written last.

    Raises:
        MissingExtraError: If pyarrow is not installed.
    """
    with needs_report():
        import pyarrow as pa
        import pyarrow.parquet as pq
    for table in result.tables:
        found = pa.Table.from_pylist([dict(row) for row in rows[table.name]])
        write_atomically(
            folder / "tables" / f"{table.name}.parquet",
            partial(pq.write_table, found, compression="zstd"),
        )
    if whatif:
        write_json(folder / WHATIF_FILE, [each.model_dump(mode="json") for each in whatif])
    write_json(folder / RESULT_FILE, result.model_dump(mode="json"))


def read_result(folder: Path) -> Result:
    """Read a result.

    Raises:
        RunError: If there is none, it cannot be read, or a newer version wrote it.
    """
    path = folder / RESULT_FILE
    missing = f"{folder} holds no result: `dimec study NAME --out {folder}` makes one"
    with trusting_nothing(path, RunError, remedy=_AGAIN, missing=missing):
        return read_json(path, Result, known=FORMAT)


def read_rows(folder: Path, table: str) -> list[dict[str, Any]]:
    """Read a table's rows.

    Raises:
        RunError: If they cannot be read.
        MissingExtraError: If pyarrow is not installed.
    """
    with needs_report():
        import pyarrow.parquet as pq
    path = folder / "tables" / f"{table}.parquet"
    with trusting_nothing(path, RunError, remedy=_AGAIN), open_regular(path) as file:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
        return rows


def read_whatif(folder: Path) -> tuple[WhatIf, ...]:
    """Read a result's data for other prices; empty where the study has none.

    Raises:
        RunError: If it cannot be read.
    """
    path = folder / WHATIF_FILE
    if not path.exists():
        return ()
    with trusting_nothing(path, RunError, remedy=_AGAIN):
        content = read_bounded(path, limit=_MAX_WHATIF_BYTES)
        found: tuple[WhatIf, ...] = parse_json(
            content, Many[WhatIf], members=_MAX_WHATIF_BYTES // 8
        )
        return found
