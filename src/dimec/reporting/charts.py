"""From a figure and its table's rows to one Vega-Lite chart, which the page, the SVG and the PNG all draw."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dimec.core.extras import needs_report
from dimec.core.tiers import TIERS
from dimec.reporting.format import formatted, number, scaled, unit
from dimec.reporting.results import Column, Figure, Quantity, Rows
from dimec.reporting.theme import N_HUES, PALETTES, SHAPES

MANY = 1500
"""Figures with more points are drawn on a canvas: as many SVG elements would make a page slow."""

_WIDTH, _HEIGHT, _PANEL, _BAR = 640, 340, (230, 190), 56

_DATA = "rows"
_FEW = 60  # the most cells of a heat map that have room for their value
_KNOWN = (tuple(str(tier) for tier in TIERS), ("easy", "medium", "hard"))

Hues = Mapping[str, Mapping[str, int]]  # the position of each category in the palette, by column

Datum = dict[str, Any]


def hues(figures: Iterable[tuple[Figure, Rows]]) -> Hues:
    """Assign every category its position in the palette, the same in every figure of a page."""
    found: dict[str, dict[str, None]] = {}
    for figure, rows in figures:
        if figure.color is None or figure.color_quantity != "text":
            continue
        values = found.setdefault(figure.color, {})
        values |= dict.fromkeys(formatted(row.get(figure.color), "text") for row in rows)
    return {
        column: {value: place for place, value in enumerate(_ordered(values))}
        for column, values in found.items()
    }


def chart(figure: Figure, rows: Rows, columns: Sequence[Column], hues: Hues) -> dict[str, Any]:
    """Return a figure over a table's rows as a Vega-Lite document, without a config, in the light theme's colours.

    Raises:
        MissingExtraError: If altair is not installed.
    """
    with needs_report():
        import altair as alt
    data = [_datum(figure, row, columns) for row in rows]
    if figure.kind == "stacked" and figure.color_quantity == "text" and figure.color is not None:
        order = _order(data, "color")
        data = [datum | {"rank": order.index(datum["color"])} for datum in data]
    panels = len({datum["facet"] for datum in data}) if figure.facet else 0
    width, height = _PANEL if figure.facet else (_WIDTH, _HEIGHT)
    if figure.kind in ("bars", "stacked") and figure.y_quantity == "text" and not figure.facet:
        height = min(height, _BAR * len(_order(data, "y")))
    drawn: Any = alt.layer(*_layers(figure, data, columns, hues))
    drawn = drawn.properties(width=width, height=height)
    if figure.facet:
        drawn = drawn.facet(
            facet=alt.Facet("facet:N", title=None, sort=_order(data, "facet")),
            columns=min(3, max(1, panels)),
        )
    drawn = drawn.properties(description=f"{figure.title}. {figure.about}")
    document: dict[str, Any] = drawn.to_dict()
    document.pop("config", None)
    # Added last: altair would hold every row against its schema, which takes seconds for thousands.
    document["datasets"] = {_DATA: data}
    return document


def data_table(
    figure: Figure, rows: Rows, columns: Sequence[Column]
) -> tuple[list[str], list[list[str]]]:
    """Return a figure's data as formatted text: the headings, and a line per row."""
    readings = _readings(figure, columns)
    ends = {figure.low: "low", figure.high: "high"}
    names = [figure.facet, figure.color, figure.x, figure.y, figure.low, figure.high, *figure.hover]
    used = list(dict.fromkeys(name for name in names if name is not None))
    titles = [ends.get(name, readings[name][0]) for name in used]
    lines = [[formatted(row.get(name), readings[name][1]) for name in used] for row in rows]
    return titles, lines


def _readings(figure: Figure, columns: Sequence[Column]) -> dict[str, tuple[str, Quantity]]:
    """Return the heading and the quantity of every column that a figure shows, in a tooltip's order."""
    headings = {column.name: (column.title, column.quantity) for column in columns}
    own: dict[str | None, tuple[str, Quantity]] = {
        figure.color: (figure.color_title, figure.color_quantity),
        figure.low: ("", figure.y_quantity),
        figure.high: ("", figure.y_quantity),
        figure.x: (figure.x_title, figure.x_quantity),
        figure.y: (figure.y_title, figure.y_quantity),
    }
    found: dict[str, tuple[str, Quantity]] = {}
    names = (
        *(figure.facet, figure.color, *figure.hover),
        *(figure.x, figure.y, figure.low, figure.high),
    )
    for name in names:
        if name is not None:
            heading, quantity = headings.get(name, (name.replace("_", " "), "number"))
            title, reads = own.get(name, (heading, quantity))
            found[name] = title or heading, reads
    return found


def _datum(figure: Figure, row: Mapping[str, Any], columns: Sequence[Column]) -> Datum:
    """Return what a figure shows of a row, under fixed names: names of columns may hold any sign."""
    datum: Datum = {
        "x": scaled(row.get(figure.x), figure.x_quantity),
        "y": scaled(row.get(figure.y), figure.y_quantity),
    }
    if figure.color is not None:
        datum["color"] = scaled(row.get(figure.color), figure.color_quantity)
    if figure.kind == "heat" and figure.color is not None:
        datum["label"] = formatted(row.get(figure.color), figure.color_quantity)
    if figure.facet is not None:
        datum["facet"] = formatted(row.get(figure.facet), "text")
    for end, name in (("low", figure.low), ("high", figure.high)):
        if name is not None:
            datum[end] = scaled(row.get(name), figure.y_quantity)
    if figure.marks is not None:
        datum["mark"] = row.get(figure.marks) is True
    for place, (name, (_, reads)) in enumerate(_readings(figure, columns).items()):
        datum[f"h{place}"] = formatted(row.get(name), reads)
    return datum


def _ordered(values: Iterable[Any]) -> list[Any]:
    """Sort values: tiers and pools from mobile to cloud, numbers by size, others in order of appearance."""
    found = list(dict.fromkeys(values))
    for known in _KNOWN:
        if set(found) <= set(known):
            return [value for value in known if value in found]
    return sorted(found) if all(number(value) is not None for value in found) else found


def _order(data: Sequence[Datum], name: str) -> list[Any]:
    return _ordered(datum[name] for datum in data if datum[name] is not None)


def _titled(title: str, fallback: str, quantity: Quantity) -> str:
    name = title or fallback.replace("_", " ")
    of = unit(quantity)
    return f"{name} ({of})" if of and of not in name else name


def _positions(figure: Figure, data: Sequence[Datum]) -> dict[str, Any]:
    """Return the channels of the positions."""
    import altair as alt

    x_title = _titled(figure.x_title, figure.x, figure.x_quantity)
    y_title = _titled(figure.y_title, figure.y, figure.y_quantity)
    bars = figure.kind in ("bars", "stacked")
    scale = alt.Scale(zero=bars, nice=figure.kind != "stacked")
    channels: dict[str, Any] = {}
    if (
        figure.kind == "heat"
        or figure.x_quantity == "text"
        or (bars and figure.y_quantity != "text")
    ):
        names = _order(data, "x")
        slanted = max((len(str(name)) for name in names), default=0) * len(names) > 60
        axis = alt.Axis(labelAngle=-35 if slanted else 0)
        channels["x"] = alt.X("x:O", title=x_title, sort=names, axis=axis)
    else:
        axis = alt.Axis(tickCount=5 if figure.facet else 9)
        channels["x"] = alt.X("x:Q", title=x_title, scale=scale, axis=axis)
    if figure.kind == "heat" or figure.y_quantity == "text":
        names = _order(data, "y")
        # More is up, as on every other axis; names read from the top.
        up = all(number(name) is not None for name in names)
        channels["y"] = alt.Y("y:O", title=y_title, sort=names[::-1] if up else names)
    else:
        channels["y"] = alt.Y("y:Q", title=y_title, scale=scale, axis=alt.Axis(tickCount=6))
    side_by_side = figure.kind == "bars" and figure.color not in (None, figure.x, figure.y)
    if side_by_side and figure.color_quantity == "text":
        order = _order(data, "color")
        if figure.y_quantity == "text":
            channels["yOffset"] = alt.YOffset("color:N", sort=order)
        else:
            channels["xOffset"] = alt.XOffset("color:N", sort=order)
    return channels


def _hue(
    figure: Figure, data: Sequence[Datum], hues: Hues
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the channels of the hue and of the shape that goes with it."""
    import altair as alt

    palette = PALETTES["light"]
    if figure.color is None:
        return {"color": alt.value(palette[0])}, {}
    title = _titled(figure.color_title, figure.color, figure.color_quantity)
    if figure.color_quantity != "text":
        signed = figure.color_quantity in ("points", "change")
        scale = (
            alt.Scale(scheme="blueorange", domainMid=0) if signed else alt.Scale(scheme="viridis")
        )
        legend = alt.Legend(type="gradient", gradientLength=220)
        return {"color": alt.Color("color:Q", title=title, scale=scale, legend=legend)}, {}
    found = _order(data, "color")
    places = [hues.get(figure.color, {}).get(str(value), 0) for value in found]
    colors = alt.Scale(domain=found, range=[palette[place % N_HUES] for place in places])
    shapes = alt.Scale(domain=found, range=[SHAPES[place % len(SHAPES)] for place in places])
    return (
        {"color": alt.Color("color:N", title=title, scale=colors)},
        {"shape": alt.Shape("color:N", title=title, scale=shapes)},
    )


def _layers(
    figure: Figure, data: Sequence[Datum], columns: Sequence[Column], hues: Hues
) -> list[Any]:
    import altair as alt

    chart = alt.Chart(alt.NamedData(name=_DATA))
    at = _positions(figure, data)
    hue, shape = _hue(figure, data, hues)
    hover = [
        alt.Tooltip(f"h{place}:N", title=title)
        for place, (title, _) in enumerate(_readings(figure, columns).values())
    ]
    ends = at | {"y": alt.Y("low:Q"), "y2": alt.Y2("high:Q")}
    has_ends = figure.low is not None and figure.high is not None
    many = len(data) > 600
    ink = PALETTES["light"][-1]
    layers: list[Any] = []
    if figure.kind == "points":
        if has_ends:
            layers.append(chart.mark_rule(opacity=0.5).encode(**ends, **hue))
        mark = chart.mark_point(
            filled=True, size=24 if many else 70, opacity=0.65 if many else 0.95
        )
        layers.append(mark.encode(**at, **hue, **shape, tooltip=hover))
    elif figure.kind == "lines":
        if has_ends:
            layers.append(chart.mark_area(opacity=0.12).encode(**ends, **hue))
        layers.append(chart.mark_line(strokeWidth=2).encode(**at, **hue))
        mark = chart.mark_point(filled=True, size=45, opacity=1)
        layers.append(mark.encode(**at, **hue, **shape, tooltip=hover))
    elif figure.kind == "heat":
        layers.append(chart.mark_rect().encode(**at, **hue, tooltip=hover))
        if len(data) <= _FEW and not figure.facet and figure.color is not None:
            layers.append(_values(figure, data, chart, at))
    else:
        order = {"order": alt.Order("rank:Q")} if figure.kind == "stacked" else {}
        layers.append(chart.mark_bar().encode(**at, **hue, **order, tooltip=hover))
        if has_ends and figure.kind == "bars":
            layers.append(chart.mark_rule(strokeWidth=1.5, stroke=ink).encode(**ends))
    if figure.marks is not None:
        marked = chart.transform_filter("datum.mark === true")
        if figure.kind == "heat":
            # White around black is seen on every colour of the field.
            for stroke, width in (("white", 5), ("black", 2.5)):
                ring = marked.mark_rect(fillOpacity=0, stroke=stroke, strokeWidth=width)
                layers.append(ring.encode(**at))
        else:
            if has_ends and figure.kind == "lines":
                layers.append(marked.mark_rule(strokeWidth=1.5, stroke=ink).encode(**ends))
            ring = marked.mark_point(fillOpacity=0, size=220, strokeWidth=1.5, stroke=ink)
            layers.append(ring.encode(**at))
    return layers


def _values(figure: Figure, data: Sequence[Datum], chart: Any, at: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Write the values in the cells of a heat map, dark on light cells and light on dark ones."""
    import altair as alt

    found = [value for value in (number(datum["color"]) for datum in data) if value is not None]
    low, high = min(found, default=0.0), max(found, default=0.0)
    if figure.color_quantity in ("points", "change"):
        dark = f"abs(datum.color) > {0.6 * max(abs(low), abs(high))}"
    else:
        dark = f"datum.color < {low + 0.43 * (high - low)}"
    ink = alt.condition(dark, alt.value("white"), alt.value("black"))
    return chart.mark_text(fontSize=12).encode(x=at["x"], y=at["y"], text="label:N", color=ink)
