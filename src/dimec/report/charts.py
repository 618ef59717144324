"""A figure and its table's rows become one Vega-Lite chart, which the page, the SVG and the PNG all draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dimec.extras import needs_report
from dimec.report.format import formatted, number, scaled, unit
from dimec.report.theme import PALETTES, SHAPES, config
from dimec.results import Column, Figure, Quantity, Rows

MANY = 1500
"""Above so many points, a figure is painted on a canvas: as many elements of SVG would make a page slow."""

_WIDTH, _HEIGHT, _PANEL = 640, 340, (230, 190)

Hues = Mapping[str, int]
Datum = dict[str, Any]


def hues(figures: Iterable[tuple[Figure, Rows]]) -> dict[str, int]:
    """Give every category its place in the palette, the same in every figure of a page."""
    found: dict[str, int] = {}
    for figure, rows in figures:
        for row in rows if figure.color is not None and figure.color_quantity == "text" else ():
            found.setdefault(formatted(row.get(figure.color), "text"), len(found))
    return found


def chart(figure: Figure, rows: Rows, columns: Sequence[Column], hues: Hues) -> dict[str, Any]:
    """Return a figure as a Vega-Lite document, without a config; its colours are those of the light theme.

    Args:
        figure: What to draw.
        rows: Of its table.
        columns: The table's, which say how the values of a tooltip read.
        hues: Where each category stands in the palette.

    Raises:
        MissingExtraError: If altair is not installed.
    """
    with needs_report():
        import altair as alt
    data = [_datum(figure, row, columns) for row in rows]
    base = alt.Chart(alt.InlineData(values=data)).encode(**_encoding(figure, data, columns, hues))
    layers = _layers(figure, base, len(data))
    panels = len({datum["facet"] for datum in data}) if figure.facet else 0
    width, height = _PANEL if figure.facet else (_WIDTH, _HEIGHT)
    drawn: Any = alt.layer(*layers).properties(width=width, height=height)
    if figure.facet:
        drawn = drawn.facet(
            facet=alt.Facet("facet:N", title=None, sort=_order(data, "facet")),
            columns=min(3, max(1, panels)),
        )
    drawn = drawn.properties(description=f"{figure.title}. {figure.about}")
    document: dict[str, Any] = drawn.to_dict()
    document.pop("config", None)
    return document


def static_config() -> dict[str, Any]:
    """Return the config of the files beside the page: the light theme, on white."""
    return {**config("light"), "background": "white"}


def data_table(
    figure: Figure, rows: Rows, columns: Sequence[Column]
) -> tuple[list[str], list[list[str]]]:
    """Return a figure's data as it reads: the headings, and a line per row."""
    used: dict[str, tuple[str, Quantity]] = {}
    for name, title, quantity in (
        (figure.facet, "", None),
        (figure.color, figure.color_title, figure.color_quantity),
        (figure.x, figure.x_title, figure.x_quantity),
        (figure.y, figure.y_title, figure.y_quantity),
        (figure.low, "low", figure.y_quantity),
        (figure.high, "high", figure.y_quantity),
        *((name, "", None) for name in figure.hover),
    ):
        if name is not None and name not in used:
            heading, reads = _heading(name, columns)
            used[name] = (title or heading, quantity or reads)
    titles = [title for title, _ in used.values()]
    lines = [[formatted(row.get(name), reads) for name, (_, reads) in used.items()] for row in rows]
    return titles, lines


def _datum(figure: Figure, row: Mapping[str, Any], columns: Sequence[Column]) -> Datum:
    """Pick what a figure shows of a row, under names that no name of a column can break."""
    datum: Datum = {
        "x": scaled(row.get(figure.x), figure.x_quantity),
        "y": scaled(row.get(figure.y), figure.y_quantity),
    }
    if figure.color is not None:
        datum["color"] = scaled(row.get(figure.color), figure.color_quantity)
    if figure.facet is not None:
        datum["facet"] = formatted(row.get(figure.facet), "text")
    for end, name in (("low", figure.low), ("high", figure.high)):
        if name is not None:
            datum[end] = scaled(row.get(name), figure.y_quantity)
    if figure.marks is not None:
        datum["mark"] = row.get(figure.marks) is True
    for place, (name, _) in enumerate(_hover(figure, columns)):
        datum[f"h{place}"] = formatted(row.get(name), _reads(figure, name, columns))
    return datum


def _hover(figure: Figure, columns: Sequence[Column]) -> list[tuple[str, str]]:
    """Return what a tooltip shows: names of columns, and what they are called."""
    titles = {figure.x: figure.x_title, figure.y: figure.y_title}
    if figure.color is not None:
        titles.setdefault(figure.color, figure.color_title)
    names = [figure.facet, figure.color, *figure.hover, figure.x, figure.y, figure.low, figure.high]
    return [
        (name, titles.get(name) or _heading(name, columns)[0])
        for name in dict.fromkeys(name for name in names if name is not None)
    ]


def _heading(name: str, columns: Sequence[Column]) -> tuple[str, Quantity]:
    for column in columns:
        if column.name == name:
            return column.title, column.quantity
    return name.replace("_", " "), "number"


def _reads(figure: Figure, name: str, columns: Sequence[Column]) -> Quantity:
    own: dict[str | None, Quantity] = {
        figure.low: figure.y_quantity,
        figure.high: figure.y_quantity,
        figure.color: figure.color_quantity,
        figure.x: figure.x_quantity,
        figure.y: figure.y_quantity,
    }
    return own.get(name) or _heading(name, columns)[1]


def _order(data: Sequence[Datum], name: str) -> list[Any]:
    """Return the values of a channel in order: numbers by size, others as they first come."""
    found = list(dict.fromkeys(datum[name] for datum in data if datum[name] is not None))
    return sorted(found) if all(number(value) is not None for value in found) else found


def _titled(title: str, fallback: str, quantity: Quantity) -> str:
    name = title or fallback.replace("_", " ")
    of = unit(quantity)
    return f"{name} ({of})" if of and of not in name else name


def _encoding(
    figure: Figure, data: Sequence[Datum], columns: Sequence[Column], hues: Hues
) -> dict[str, Any]:
    import altair as alt

    x_title = _titled(figure.x_title, figure.x, figure.x_quantity)
    y_title = _titled(figure.y_title, figure.y, figure.y_quantity)
    across = figure.kind in ("bars", "stacked", "heat")
    x_discrete = figure.x_quantity == "text" or (across and figure.y_quantity != "text")
    y_discrete = figure.y_quantity == "text" or figure.kind == "heat"
    x_discrete = x_discrete or figure.kind == "heat"
    zero = figure.kind in ("bars", "stacked")
    channels: dict[str, Any] = {
        "x": alt.X("x:O", title=x_title, sort=_order(data, "x"))
        if x_discrete
        else alt.X("x:Q", title=x_title, scale=alt.Scale(zero=zero, nice=True)),
        "y": alt.Y("y:O", title=y_title, sort=_order(data, "y"))
        if y_discrete
        else alt.Y("y:Q", title=y_title, scale=alt.Scale(zero=zero, nice=True)),
        "tooltip": [
            alt.Tooltip(f"h{place}:N", title=title)
            for place, (_, title) in enumerate(_hover(figure, columns))
        ],
    }
    if figure.color is None:
        channels["color"] = alt.value(PALETTES["light"][0])
    elif figure.color_quantity == "text":
        channels |= _categories(figure, data, hues)
        if figure.kind == "bars":
            name, offset = ("yOffset", alt.YOffset) if y_discrete else ("xOffset", alt.XOffset)
            channels[name] = offset("color:N", sort=_order(data, "color"))
    else:
        title = _titled(figure.color_title, figure.color, figure.color_quantity)
        signed = figure.color_quantity in ("points", "change")
        scale = (
            alt.Scale(scheme="blueorange", domainMid=0) if signed else alt.Scale(scheme="viridis")
        )
        legend = alt.Legend(gradientLength=220)
        channels["color"] = alt.Color("color:Q", title=title, scale=scale, legend=legend)
    return channels


def _categories(figure: Figure, data: Sequence[Datum], hues: Hues) -> dict[str, Any]:
    """Return the hue of each category, and its shape where points are drawn."""
    import altair as alt

    found = _order(data, "color")
    palette = PALETTES["light"]
    colors = [palette[hues.get(str(value), 0) % len(palette)] for value in found]
    title = figure.color_title or (figure.color or "").replace("_", " ")
    channels: dict[str, Any] = {
        "color": alt.Color("color:N", title=title, scale=alt.Scale(domain=found, range=colors))
    }
    if figure.kind in ("points", "lines"):
        shapes = [SHAPES[hues.get(str(value), 0) % len(SHAPES)] for value in found]
        channels["shape"] = alt.Shape(
            "color:N", title=title, scale=alt.Scale(domain=found, range=shapes)
        )
    return channels


def _layers(figure: Figure, base: Any, n: int) -> list[Any]:  # noqa: ANN401  altair's charts have no common name
    import altair as alt

    ends = figure.low is not None and figure.high is not None
    plain = base.encode(shape=alt.Undefined, tooltip=alt.Undefined)
    # Kept out of the legend, which would else show each category once more per layer.
    between = plain.encode(y=alt.Y("low:Q"), y2="high:Q")
    many = n > 600
    points = base.mark_point(filled=True, size=18 if many else 70, opacity=0.65 if many else 0.95)
    layers: list[Any] = []
    if figure.kind == "points":
        layers = [between.mark_rule(opacity=0.5)] if ends else []
        layers.append(points)
    elif figure.kind == "lines":
        layers = [between.mark_area(opacity=0.14)] if ends else []
        layers += [plain.mark_line(strokeWidth=2), base.mark_point(filled=True, size=45)]
    elif figure.kind == "heat":
        layers = [base.mark_rect()]
    else:
        layers = [base.mark_bar()]
        if ends and figure.kind == "bars":
            layers.append(between.mark_rule(strokeWidth=1.5).encode(color=alt.value("#777777")))
    if figure.marks is not None:
        ringed = base.transform_filter("datum.mark === true").encode(color=alt.Undefined)
        if figure.kind == "heat":
            ring = ringed.mark_rect(filled=False, strokeWidth=3, style="ring")
        else:
            ring = ringed.encode(shape=alt.Undefined).mark_point(
                filled=False, size=220, strokeWidth=2, style="ring"
            )
        layers.append(ring)
    return layers
