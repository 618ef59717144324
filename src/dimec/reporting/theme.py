"""Colours of figures, for light and dark pages; those of the page itself are in ``assets/page.css``.

Categories take the eight colours of Okabe and Ito, which the colour-blind can tell apart, made darker on white and
lighter on black until each stands out from the ground by 3 to 1. Figures also give every category a shape.
"""

from __future__ import annotations

from typing import Any, Literal

Theme = Literal["light", "dark"]

PALETTES: dict[Theme, tuple[str, ...]] = {
    "light": (
        "#0072B2",
        "#D55E00",
        "#008A66",
        "#B7609B",
        "#A87400",
        "#2C8FC9",
        "#4D4D4D",
        "#8B6F00",
        "#1C2330",
    ),
    "dark": (
        "#56B4E9",
        "#FF8A3D",
        "#2CC79B",
        "#E39AC7",
        "#F0B52E",
        "#8FD0F5",
        "#D0D0D0",
        "#F0E442",
        "#E8EBF1",
    ),
}
"""Eight colours for categories, then that of rings; a page swaps each for that of the other theme."""

N_HUES = 8
SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")

_INKS: dict[Theme, dict[str, str]] = {
    "light": {"text": "#1c2330", "quiet": "#4a5364", "grid": "#e3e7ee", "axis": "#8b95a5"},
    "dark": {"text": "#e8ebf1", "quiet": "#b4bdcc", "grid": "#2c3440", "axis": "#6b7687"},
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"


def config(theme: Theme) -> dict[str, Any]:
    """Return the Vega-Lite config of a theme."""
    ink = _INKS[theme]
    words = {"labelColor": ink["quiet"], "titleColor": ink["text"], "labelFontSize": 12}
    return {
        "background": None,
        "font": _FONT,
        "view": {"stroke": None},
        "axis": {
            **words,
            "titleFontSize": 12,
            "titleFontWeight": 600,
            "gridColor": ink["grid"],
            "domainColor": ink["axis"],
            "tickColor": ink["axis"],
            "labelLimit": 160,
        },
        "legend": {
            **words,
            "orient": "bottom",
            "direction": "horizontal",
            "titleFontSize": 12,
            "titleFontWeight": 600,
            "labelLimit": 190,
            "columns": 4,
            "symbolOpacity": 1,
        },
        "header": {**words, "labelColor": ink["text"], "labelFontWeight": 600, "title": None},
    }
