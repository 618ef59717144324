"""How quantities read, and how a table escapes what users wrote."""

from __future__ import annotations

import csv
import io
import math
from typing import Any

import pytest

from dimec.reporting.format import formatted, interval, scaled, spread
from dimec.reporting.results import Column, Quantity, Table
from dimec.reporting.tables import as_csv, as_latex, as_markdown
from tests.results import EVIL


@pytest.mark.parametrize(
    ("value", "quantity", "text"),
    [
        (0.9213, "score", "92.13"),
        (0.0031, "points", "+0.31"),
        (-0.002, "points", "−0.20"),
        (-0.00001, "points", "0.00"),
        (-0.553, "change", "−55\N{NO-BREAK SPACE}%"),
        (0.031, "change", "+3\N{NO-BREAK SPACE}%"),
        (-0.001, "change", "0\N{NO-BREAK SPACE}%"),
        (0.71, "share", "71.0\N{NO-BREAK SPACE}%"),
        (1234.5, "cost", "1234.50"),
        (87200, "count", "87,200"),
        (0.123456, "number", "0.1235"),
        (-3.0, "number", "−3"),
        (1234567.0, "number", "1.235e+06"),
        (True, "text", "yes"),
        (12, "text", "12"),
        ("easy", "score", "easy"),
        (None, "score", "–"),
        (math.nan, "cost", "–"),
        (math.inf, "share", "–"),
    ],
)
def test_a_quantity_reads_as_it_should(value: object, quantity: Quantity, text: str) -> None:
    assert formatted(value, quantity) == text


def test_axes_are_on_the_scale_that_is_read() -> None:
    assert scaled(0.5, "share") == 50
    assert scaled(0.5, "cost") == 0.5
    assert scaled(math.nan, "score") is None
    assert scaled(3, "text") == "3"


def test_what_stands_around_a_value() -> None:
    score = Column(name="a", title="A", quantity="score", low="from", high="to", spread="sd")
    row: dict[str, Any] = {"a": 0.92, "from": 0.907, "to": 0.948, "sd": 0.0021}
    assert interval(row, score) == "90.7–94.8"
    assert spread(row, score) == "±\N{NO-BREAK SPACE}0.21"
    assert interval(row | {"to": None}, score) == ""
    assert spread({}, score) == ""
    points = score.model_copy(update={"quantity": "points"})
    assert interval({"from": -0.002, "to": 0.004}, points) == "−0.20 to +0.40"
    assert spread(row, points) == "±\N{NO-BREAK SPACE}0.21"


TABLE = Table(
    name="t",
    title="Costs & scores, 100 %",
    group="task",
    columns=(
        Column(name="policy", title="Policy_name", quantity="text"),
        Column(name="score", title="Score", quantity="score", low="low", high="high", stands_out="best"),
    ),
)  # fmt: skip
ROWS: list[dict[str, Any]] = [
    {"task": "b|c", "policy": EVIL, "score": 1 / 3, "low": 0.3, "high": 0.4, "best": True},
    {"task": "a", "policy": "[x] 50% & $5 _u_ \\ ~^{}#\nnext", "score": None, "best": False},
    {"task": "b|c", "policy": "λ−α", "score": 0.5, "low": None, "high": None, "best": None},
]


def test_csv_holds_the_values_as_they_were_found() -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(TABLE, ROWS))))
    assert list(read[0]) == ["task", "policy", "score", "low", "high", "best"]
    assert [row["policy"] for row in read] == [row["policy"] for row in ROWS]
    assert float(read[0]["score"]) == 1 / 3
    assert read[1]["score"] == ""


def test_markdown_keeps_its_cells_whatever_is_in_them() -> None:
    lines = as_markdown(TABLE, ROWS).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + len(ROWS)
    for line in table:
        assert line.replace("\\|", "").count("|") == 4
    assert "**33.33** (30.0–40.0)" in table[2]
    assert "<" not in "".join(table).replace("\\<", "")
    assert table[2].startswith("| b\\|c |") and table[3].startswith("| b\\|c |")


def test_latex_escapes_every_sign_that_means_something() -> None:
    text = as_latex(TABLE, ROWS)
    assert r"\caption{Costs \& scores, 100 \%}" in text
    assert (
        r"{[x] 50\% \& \$5 \_u\_ \textbackslash{} \textasciitilde{}\textasciicircum{}\{\}\# next}"
        in text
    )
    assert r"$\lambda$$-$$\alpha$ & 50.00 \\" in text
    assert r"\textbf{33.33} (30.0--40.0)" in text
    assert text.count("\\multicolumn{2}{l}") == 2
    assert "\\toprule" in text and "\u2028" not in text


def test_signs_that_no_picture_can_hold_are_written_as_pictures() -> None:
    assert formatted("a\x08b\x7fc\ufffe\ud800\td\n", "text") == "a\u2408b\u2421c\ufffd\ufffd\td\n"
