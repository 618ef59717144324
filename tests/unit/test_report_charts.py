"""Every kind of figure becomes a valid chart, and a report says what it lacks."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dimec.core.errors import MissingExtraError, RunError
from dimec.reporting import Written, charts, theme, write_report
from dimec.reporting.format import formatted
from dimec.reporting.results import (
    Figure,
    Result,
    Rows,
    Table,
    read_result,
    read_rows,
    write_result,
)
from tests.results import EVIL, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, points=30)
    return folder


@pytest.fixture(scope="module")
def report(study: Path) -> Written:
    return write_report(study, out=study / "elsewhere" / "page.html")


def figure(**changes: object) -> Figure:
    given = {"name": "f", "title": "F", "about": "A.", "table": "t", "kind": "points"}
    return Figure.model_validate({**given, "x": "x", "y": "y", **changes})


def written(folder: Path, *figures: Figure, rows: Mapping[str, Rows]) -> None:
    tables = tuple(Table(name=name, title=name) for name in rows)
    told: dict[str, Any] = {"study": "s", "title": "T", "about": "A.", "command": "c"}
    write_result(folder, Result(**told, tables=tables, figures=figures), rows)


def test_every_figure_stands_beside_the_page_and_every_printed_table(
    study: Path, report: Written
) -> None:
    names = {path.relative_to(study / "elsewhere").as_posix() for path in report.files}
    drawn = ("frontier", "points", "grid", "map", "shares", "bars")
    assert names == {
        *(f"figures/{name}.{ending}" for name in drawn for ending in ("svg", "png")),
        *(f"tables/{name}.{end}" for name in ("main", "shares", "empty") for end in ("csv", "md", "tex")),
    }  # fmt: skip
    for path in report.files:
        content = path.read_bytes()
        assert path.suffix != ".svg" or b"<path" in content
        assert path.suffix != ".png" or content.startswith(b"\x89PNG")
    assert not list(study.rglob("*.partial"))


def test_what_users_wrote_cannot_leave_its_place(report: Written) -> None:
    page = report.page.read_text(encoding="utf-8")
    assert EVIL not in page
    embedded = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    assert embedded is not None
    data = json.loads(embedded[1])
    texts = [row["h1"] for rows in data["charts"]["map"]["datasets"].values() for row in rows]
    assert formatted(EVIL, "text") in texts
    assert "{{ 7 }}" in page
    # Two scripts and the data, whatever the texts say.
    assert len(re.findall(r"<script", page)) == 3


@pytest.mark.parametrize("kind", ["points", "lines", "bars", "stacked", "heat"])
@pytest.mark.parametrize("facet", [None, "task"])
@pytest.mark.parametrize("color", [None, "name", "value"])
def test_every_kind_compiles(kind: str, facet: str | None, color: str | None) -> None:
    import vl_convert

    quantity = "points" if color == "value" else "text"
    shown = {"color": color, "color_quantity": quantity, "facet": facet, "hover": ("note",)}
    drawn = figure(kind=kind, x="a.b[0]", low="low", high="high", marks="mark", **shown)
    rows = [
        {"a.b[0]": x, "y": y, "low": y - 0.1, "high": None if x == 1 else y + 0.1, "name": f"n{x % 2}",
         "task": f"t{x % 3}", "value": y - 0.5, "note": EVIL, "mark": x == 2}
        for x, y in enumerate((0.1, 0.5, None, 0.9, float("nan"), 0.7))
        if y is not None
    ]  # fmt: skip
    document = charts.chart(drawn, rows, (), charts.hues([(drawn, rows)]))
    json.dumps(document, allow_nan=False)
    vega = vl_convert.vegalite_to_vega(document, config=theme.config("dark"))
    assert vega["marks"]


def test_bars_with_names_are_as_high_as_they_need() -> None:
    drawn = figure(kind="stacked", color="c", x_quantity="share", y_quantity="text")
    one: list[dict[str, Any]] = [{"x": 0.5, "y": "texts", "c": name} for name in ("a", "b")]
    two: list[dict[str, Any]] = [*one, {"x": 1, "y": "others", "c": "a"}]
    heights = []
    for rows in (one, two):
        heights.append(charts.chart(drawn, rows, (), charts.hues([(drawn, rows)]))["height"])
    assert heights[1] == 2 * heights[0]


def test_a_ringed_point_of_a_line_shows_its_interval() -> None:
    drawn = figure(kind="lines", color="c", low="low", high="high", marks="mark")
    rows = [{"x": 1, "y": 1, "low": 0.5, "high": 2, "c": "a", "mark": True}]
    layers = charts.chart(drawn, rows, (), charts.hues([(drawn, rows)]))["layer"]
    (upright,) = [each for each in layers if each["mark"]["type"] == "rule"]
    assert upright["encoding"]["y2"]["field"] == "high"
    assert "mark" in upright["transform"][0]["filter"]


def test_a_category_has_one_colour_in_every_figure() -> None:
    one, other = (figure(name=name, color="c") for name in ("one", "other"))
    many = [{"x": 1, "y": 1, "c": name} for name in ("a", "b", "c")]
    few = [{"x": 1, "y": 1, "c": name} for name in ("c", "b")]
    hues = charts.hues([(one, many), (other, few)])
    (scale,) = (
        layer["encoding"]["color"]["scale"] for layer in charts.chart(other, few, (), hues)["layer"]
    )
    palette = theme.PALETTES["light"]
    told = dict(zip(scale["domain"], scale["range"], strict=True))
    assert told == {"c": palette[2], "b": palette[1]}
    tiers = [{"c": tier} for tier in ("cloud", "mobile")]
    assert charts.hues([(one, tiers)]) == {"c": {"mobile": 0, "cloud": 1}}


@pytest.mark.parametrize(("name", "ground"), [("light", "#ffffff"), ("dark", "#14181f")])
def test_every_colour_stands_out_from_its_ground(name: theme.Theme, ground: str) -> None:
    for colour in theme.PALETTES[name]:
        assert _contrast(colour, ground) >= 3, colour
    words = theme.config(name)["axis"]
    assert _contrast(words["labelColor"], ground) >= 4.5
    assert _contrast(words["titleColor"], ground) >= 4.5


def test_a_folder_without_a_result_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="dimec study"):
        write_report(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_result_without_anything_still_makes_a_page(tmp_path: Path) -> None:
    written(tmp_path, rows={})
    report = write_report(tmp_path)
    assert report.files == ()
    assert "This study left no tables." in report.page.read_text(encoding="utf-8")


def test_a_table_whose_rows_are_gone_is_named(tmp_path: Path) -> None:
    written(tmp_path, rows={"t": [{"x": 1}]})
    (tmp_path / "tables" / "t.parquet").unlink()
    with pytest.raises(RunError, match=r"t\.parquet is missing"):
        write_report(tmp_path)


@pytest.mark.parametrize(
    ("name", "table", "named"), [("f", "gone", "table gone"), ("../f", "t", r"\.\./f")]
)
def test_a_result_that_cannot_be_drawn_is_refused(
    tmp_path: Path, name: str, table: str, named: str
) -> None:
    written(tmp_path, figure(name=name, table=table), rows={"t": [{"x": 1, "y": 1}]})
    with pytest.raises(RunError, match=named):
        write_report(tmp_path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("library", ["altair", "jinja2", "vl_convert"])
def test_without_the_extra_it_gives_the_install_line(
    study: Path, monkeypatch: pytest.MonkeyPatch, library: str
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dimec\[report\]'"):
        write_report(study)


def test_data_of_a_figure_reads_like_its_table(study: Path) -> None:
    result = read_result(study)
    points = next(each for each in result.figures if each.name == "points")
    table = next(each for each in result.tables if each.name == "main")
    titles, lines = charts.data_table(points, read_rows(study, "main"), table.columns)
    assert titles == ["Policy", "cost (λ)", "Score", "low", "high", "Rows"]
    assert lines[7][:2] == ["exit-zero", "–"]
    assert lines[0][5] == "87,200"


def _contrast(one: str, other: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
