"""The what-if panel in a real browser computes what Python computes from the rule's own words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from playwright.sync_api import Browser
from tests.browser import Opened, Study, open_page, shown_rows, without_browser

from dimec.reporting.results import Choice, Use, WhatIf

pytestmark = without_browser

_FIELDS = (
    "mobile",
    "edge",
    "cloud",
    "score",
    "accuracy",
    "cost",
    "against_mobile",
    "against_cloud",
    "random_at_cost",
)


def _cost(use: Use, prices: dict[str, float]) -> float:
    parts: dict[str, float] = use.model_dump()
    return sum(price * parts[part] for part, price in prices.items())


def _expected(whatif: WhatIf, price: float, prices: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Apply the rule of `Tunable` as its docstring has it."""
    reference = prices["mobile_layers"] * whatif.n_layers
    chosen: dict[str, Choice] = {}
    for row in whatif.rows:
        costs = [_cost(choice.validation_use, prices) for choice in row.choices]
        rewards = [
            (choice.validation_confidence or 0.0) - price / reference * cost
            for choice, cost in zip(row.choices, costs, strict=True)
        ]
        equals = [at for at, reward in enumerate(rewards) if reward >= max(rewards) - 1e-12]
        chosen[row.name] = row.choices[min(equals, key=lambda at: (costs[at], at))]
    costs_at = {name: _cost(choice.use, prices) for name, choice in chosen.items()}
    corners = [
        (costs_at[name], chosen[name].accuracy)
        for name in ("all-mobile", "all-edge", "all-cloud", "majority")
    ]
    cloud = costs_at["all-cloud"]
    return {
        row.name: {
            "at": chosen[row.name].at,
            **dict(zip(("mobile", "edge", "cloud"), chosen[row.name].shares, strict=True)),
            "score": chosen[row.name].score,
            "accuracy": chosen[row.name].accuracy,
            "cost": costs_at[row.name],
            "against_mobile": costs_at[row.name] / reference - 1,
            "against_cloud": costs_at[row.name] / cloud - 1 if cloud > 0 else None,
            "random_at_cost": _at_most(corners, costs_at[row.name])
            if row.kind == "policy"
            else None,
        }
        for row in whatif.rows
    }


def _at_most(corners: list[tuple[float, float]], cost: float) -> float:
    """Return the most that the upper hull reaches up to a cost: at the cost, or at a corner before it."""
    return max(_hull(corners, at) for at in (cost, *(c for c, _ in corners if c < cost)))


def _hull(corners: list[tuple[float, float]], cost: float) -> float:
    """Return the upper hull's height: the least, over all lines above every corner, that a line has at this cost."""
    cost = min(max(cost, min(c for c, _ in corners)), max(c for c, _ in corners))
    at_ends = [
        max(height for c, height in corners if c == end)
        for end in {min(c for c, _ in corners), max(c for c, _ in corners)}
        if end == cost
    ]
    if at_ends:
        return at_ends[0]
    lines = []
    for one, high in corners:
        for other, low in corners:
            if one >= other:
                continue
            slope = (low - high) / (other - one)
            if all(height <= high + slope * (c - one) + 1e-12 for c, height in corners):
                lines.append(high + slope * (cost - one))
    return min(lines)


def _check(opened: Opened, whatif: WhatIf, price: float, prices: dict[str, float]) -> None:
    shown = shown_rows(opened)
    expected = _expected(whatif, price, prices)
    assert list(shown) == list(expected)
    for name, row in expected.items():
        assert json.loads(shown[name]["at"]) == row["at"], name
        for key in _FIELDS:
            if key == "score" and whatif.metric == "accuracy":
                continue  # one column says both
            if row[key] is None:
                assert shown[name][key] == "", (name, key)
            else:
                assert float(shown[name][key]) == pytest.approx(row[key], abs=1e-9), (name, key)


_SETTINGS: tuple[dict[str, float], ...] = (
    {"price": 0.0},
    {"price": 0.02},
    {"price": 0.37, "mobile_layer": 0.4},
    {"price": 1.0, "edge_layer": 0.0, "to_edge": 0.0, "to_cloud": 12.0},
    {"mobile_layer": 6.0, "cloud_model": 0.0, "to_cloud": 0.0},
    {"cloud_model": 48.0, "to_edge": 7.3, "price": 0.123456},
    {"price": 0.255, "mobile_layer": 0.1, "edge_layer": 6.0, "cloud_model": 30.5},
)


@pytest.mark.parametrize("settings", _SETTINGS, ids=str)
def test_the_panel_computes_what_python_computes(
    opened: Opened, study: Study, settings: dict[str, float]
) -> None:
    for place, whatif in enumerate(study.whatif):
        opened.page.locator("#task").select_option(str(place))
        _check(opened, whatif, whatif.price, whatif.prices.model_dump())
        for key, value in settings.items():
            opened.page.locator(f"#{key}-number").fill(str(value))
        values = {"price": whatif.price} | settings
        own = whatif.prices
        prices = {
            "mobile_layers": values.get("mobile_layer", own.mobile_layers),
            "edge_layers": values.get("edge_layer", own.edge_layers),
            "cloud_layers": values.get("cloud_model", own.cloud_layers * whatif.n_layers)
            / whatif.n_layers,
            "to_edge": values.get("to_edge", own.to_edge),
            "to_cloud": values.get("to_cloud", own.to_cloud),
            "exit_zero": own.exit_zero,
        }
        _check(opened, whatif, values["price"], prices)


def test_a_slider_and_its_number_are_one_and_the_change_is_said(
    opened: Opened, study: Study
) -> None:
    whatif = study.whatif[0]
    opened.value(
        """() => {
            const slider = document.getElementById("price-range");
            slider.value = "0.6";
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    assert opened.page.locator("#price-number").input_value() == "0.6"
    _check(opened, whatif, 0.6, whatif.prices.model_dump())
    said = opened.page.locator("#changed")
    said.filter(has_text="now runs at").wait_for()
    assert said.get_attribute("aria-live") == "polite"
    assert "dimee-fixed" in said.inner_text()
    # moved by keys as well
    opened.page.locator("#price-range").focus()
    opened.page.keyboard.press("ArrowRight")
    assert opened.page.locator("#price-number").input_value() == "0.605"
    # what is empty or beyond the range changes nothing, or moves to its end
    opened.page.locator("#mobile_layer-number").fill("")
    _check(opened, whatif, 0.605, whatif.prices.model_dump())
    opened.page.locator("#mobile_layer-number").fill("99")
    opened.page.keyboard.press("Tab")
    assert opened.page.locator("#mobile_layer-number").input_value() == "6"
    marks = opened.page.locator("#scatter .mark")
    before = [mark.get_attribute("transform") for mark in marks.all()]
    opened.page.locator("#reset").click()
    assert opened.page.locator("#price-number").input_value() == "0.1"
    _check(opened, whatif, whatif.price, whatif.prices.model_dump())
    assert [mark.get_attribute("transform") for mark in marks.all()] != before


def _within(whatif: WhatIf, points: float, prices: dict[str, float]) -> Choice:
    """Apply the rule of the dial as the docstring of `Tunable` has it."""
    *ways, last = whatif.rows[0].choices
    dearest = _cost(last.validation_use, prices)
    allowed = [
        (round(_cost(each.validation_use, prices), 9), bool(each.at), place)
        for place, each in enumerate(ways)
        if each.bound_points is not None and each.bound_points <= points + 1e-9
    ]
    cheaper = [each for each in allowed if each[0] < dearest - 1e-9]
    return ways[min(cheaper)[2]] if cheaper else last


_OF_RUN: tuple[dict[str, float], ...] = (
    {},
    {"max_drop": 0.0},
    {"max_drop": 5.0},
    {"max_drop": 2.0, "mobile_layer": 6.0, "to_edge": 0.0},
    {"max_drop": 3.0, "cloud_model": 0.0, "to_cloud": 0.0},
    {"max_drop": 1.0, "cloud_model": 16.0, "edge_layer": 0.2},
)


def test_the_panel_of_a_run_chooses_as_the_dial_does(browser: Browser, of_run: Study) -> None:
    (whatif,) = of_run.whatif
    own = whatif.prices
    for opened in open_page(browser, of_run, viewport={"width": 1280, "height": 900}):
        for settings in _OF_RUN:
            opened.page.locator("#reset").click()
            for key, value in settings.items():
                opened.page.locator(f"#{key}-number").fill(str(value))
            cloud_layer = settings.get("cloud_model", own.cloud_layers * whatif.n_layers)
            prices = own.model_dump() | {
                "mobile_layers": settings.get("mobile_layer", own.mobile_layers),
                "edge_layers": settings.get("edge_layer", own.edge_layers),
                "cloud_layers": cloud_layer / whatif.n_layers,
                "to_edge": settings.get("to_edge", own.to_edge),
                "to_cloud": settings.get("to_cloud", own.to_cloud),
            }
            assert whatif.max_drop is not None
            chosen = _within(whatif, settings.get("max_drop", whatif.max_drop), prices)
            shown = shown_rows(opened)
            row = shown["recommended"]
            assert json.loads(row["at"]) == chosen.at
            assert float(row["score"]) == pytest.approx(chosen.score, abs=1e-9)
            assert float(row["cost"]) == pytest.approx(_cost(chosen.use, prices), abs=1e-9)
            cloud = float(shown["all-cloud"]["score"])
            assert float(row["drop"]) == pytest.approx(100 * (cloud - chosen.score), abs=1e-9)
            assert "random_at_cost" not in row
