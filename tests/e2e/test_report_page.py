"""A report in a real browser: nothing leaves it or fails, everyone can read it, its panel computes as Python does."""

from __future__ import annotations

import json
import re
from itertools import pairwise, product
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser
from tests.browser import Opened, Study, open_page, shown_rows, without_browser
from tests.results import EVIL

from dimec.reporting.results import Choice, Use, WhatIf

pytestmark = without_browser


def test_every_chart_is_drawn_and_texts_stay_texts(opened: Opened) -> None:
    drawn = opened.value(
        """() => [...document.querySelectorAll("[data-chart]")].map((place) => {
            const canvas = place.querySelector("canvas");
            if (!canvas) return [place.dataset.chart, "svg", place.querySelectorAll("svg path").length];
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return [place.dataset.chart, "canvas", new Set(pixels).size];
        })"""
    )
    kinds = {name: kind for name, kind, _ in drawn}
    assert kinds.pop("map") == "canvas"
    assert kinds == dict.fromkeys(("frontier", "points", "grid", "shares", "bars"), "svg")
    assert all(amount > 10 for _, _, amount in drawn)
    assert opened.page.title() == "How much stays on the phone?"
    assert EVIL in opened.page.locator("#notes li").nth(1).inner_text()
    assert opened.page.locator("#figure-nothing").inner_text().endswith("its table has no rows.")


def test_tooltips_show_texts_and_no_markup(opened: Opened) -> None:
    place = opened.page.locator("#figure-map .chart")
    place.scroll_into_view_if_needed()
    x, y = opened.value(
        """() => {
            const place = document.querySelector("#figure-map .chart");
            const { view } = place.view;
            const spot = view.scale("x"), up = view.scale("y");
            const { map } = JSON.parse(document.getElementById("data").textContent).charts;
            const datum = Object.values(map.datasets)[0].find((each) => each.h1.includes("<script>"));
            const [left, top] = view.origin();
            const around = view.padding();
            const box = place.querySelector("canvas").getBoundingClientRect();
            return [
                box.left + around.left + left + spot(datum.x),
                box.top + around.top + top + up(datum.y),
            ];
        }"""
    )
    opened.page.mouse.move(x, y)
    opened.page.wait_for_selector("#vg-tooltip-element.visible")
    assert "quoted" in opened.page.locator("#vg-tooltip-element").inner_text()
    assert opened.page.title() == "How much stays on the phone?"


def _column(opened: Opened, group: int, column: int) -> list[str]:
    found: list[str] = opened.value(
        f"""() => [...document.querySelector("[data-table=main]").tBodies[{group}].rows]
            .filter((row) => !row.classList.contains("group"))
            .map((row) => row.cells[{column}].dataset.value)"""
    )
    return found


def test_a_table_sorts_numbers_as_numbers_within_its_sections(opened: Opened) -> None:
    heads = opened.page.locator("[data-table=main] thead th")
    cost = heads.nth(3)
    cost.get_by_role("button").click()
    assert cost.get_attribute("aria-sort") == "ascending"
    for group in (0, 1):
        values = _column(opened, group, 3)
        assert values[-1] == ""  # what has no cost comes last, whichever way
        assert [float(value) for value in values[:-1]] == sorted(map(float, values[:-1]))
        titles = opened.page.locator("[data-table=main] tbody").nth(group).locator(".group")
        assert titles.inner_text().strip() == ("sst2", "cola")[group]
    # by keyboard too
    cost.get_by_role("button").focus()
    opened.page.keyboard.press("Enter")
    assert cost.get_attribute("aria-sort") == "descending"
    values = _column(opened, 0, 3)
    assert values[-1] == ""
    assert float(values[0]) == max(map(float, values[:-1])) == 15.5
    heads.nth(0).get_by_role("button").focus()
    opened.page.keyboard.press("Space")
    assert cost.get_attribute("aria-sort") is None
    assert heads.nth(0).get_attribute("aria-sort") == "ascending"
    names = _column(opened, 0, 0)
    assert names == sorted(names)


def test_the_theme_follows_the_system_until_it_is_chosen(opened: Opened) -> None:
    def ground() -> str:
        found: str = opened.value("() => getComputedStyle(document.body).backgroundColor")
        return found

    def circles() -> int:
        found: int = opened.value(
            "() => document.querySelectorAll('#figure-points path[fill=\"#56B4E9\" i]').length"
        )
        return found

    button = opened.page.locator("#theme")
    light = ground()
    assert (light, circles()) == ("rgb(255, 255, 255)", 0)
    opened.page.emulate_media(color_scheme="dark")
    opened.settled("dark")
    dark = ground()
    assert dark != light
    assert circles() > 0
    for label, theme, colour in (
        ("light", "light", light),
        ("dark", "dark", dark),
        ("auto", "dark", dark),
    ):
        button.click()
        assert button.inner_text() == f"Theme: {label}"
        opened.settled(theme)
        assert ground() == colour


def test_a_choice_of_theme_survives_a_storage_that_refuses(browser: Browser, study: Study) -> None:
    with browser.new_context(color_scheme="light") as context:
        context.add_init_script(
            "Object.defineProperty(window, 'localStorage', { get() { throw new Error('refused'); } })"
        )
        opened = Opened(context.new_page())
        opened.page.on("pageerror", lambda error: opened.faults.append(str(error)))
        opened.page.goto(study.page.as_uri())
        opened.settled("light")
        opened.page.locator("#theme").click()
        opened.page.locator("#theme").click()
        opened.settled("dark")
        assert opened.value("() => document.documentElement.dataset.theme") == "dark"
        assert opened.faults == []


def test_a_phone_scrolls_tables_and_never_the_page(phone: Opened) -> None:
    phone.page.locator("#contents summary").tap()
    phone.value(
        "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
    )
    assert phone.value("() => document.documentElement.scrollWidth <= innerWidth")
    widths = phone.value(
        """() => [...document.querySelectorAll("[data-chart]")].map((place) =>
            [place.clientWidth, (place.querySelector("svg") || place.querySelector("canvas")).clientWidth])"""
    )
    assert all(inner <= outer for outer, inner in widths)
    scrolling = phone.value(
        """() => [...document.querySelectorAll(".wide")].map((each) =>
            [each.tabIndex, each.getAttribute("role"), Boolean(each.getAttribute("aria-label"))])"""
    )
    assert scrolling and all(each == [0, "region", True] for each in scrolling)


def test_everything_has_a_name_and_headings_do_not_skip(opened: Opened) -> None:
    unnamed = opened.value(
        """() => [...document.querySelectorAll("input, select, button")].filter((each) =>
            !each.hidden && !each.labels?.length && !each.getAttribute("aria-label") && !each.textContent.trim()
        ).map((each) => each.outerHTML)"""
    )
    assert unnamed == []
    uncaptioned = opened.value(
        """() => [...document.querySelectorAll("figure")].filter((each) =>
            !each.querySelector("figcaption")?.textContent.trim() ||
            !document.getElementById(each.getAttribute("aria-labelledby"))).length
            + [...document.querySelectorAll("table")].filter((each) => !each.caption?.textContent.trim()).length
            + [...document.querySelectorAll("[data-chart] svg, [data-chart] canvas")].filter((each) =>
                !each.closest("[aria-label]")).length"""
    )
    assert uncaptioned == 0
    levels = opened.value(
        "() => [...document.querySelectorAll('h1,h2,h3,h4')].map((each) => +each.tagName[1])"
    )
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main"):
        assert opened.page.locator(f"body {landmark}").count() == 1
    targets = opened.value(
        """() => [...document.querySelectorAll('a[href^="#"]')].filter((each) =>
            !document.getElementById(each.getAttribute("href").slice(1))).length"""
    )
    assert targets == 0
    identifiers = opened.value(
        "() => [...document.querySelectorAll('[id]')].map((each) => each.id)"
    )
    own = [each for each in identifiers if not re.match(r"(gradient|clip|vg-)", each)]
    assert len(own) == len(set(own))
    opened.page.keyboard.press("Tab")
    assert opened.value("() => document.activeElement.className") == "skip"


_CONTRASTS = """() => {
    const luminance = ([red, green, blue]) => {
        const [r, g, b] = [red, green, blue].map((part) => part / 255)
            .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const ground = (element) => {
        for (let at = element; at; at = at.parentElement) {
            const found = parts(getComputedStyle(at).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found;
        }
        return parts(getComputedStyle(document.body).backgroundColor);
    };
    const poor = new Set();
    for (const element of document.querySelectorAll("body *")) {
        const texts = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
        if (!texts || element.closest("script, [data-chart], .unseen, [hidden]")) continue;
        if (!element.checkVisibility()) continue;
        const svg = element instanceof SVGElement;
        if (svg && element.closest(".mark")) continue;
        const style = getComputedStyle(element);
        const pair = [parts(svg ? style.fill : style.color), ground(element)].map(luminance);
        const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
        if (contrast < 4.5) poor.add(`${element.tagName}.${element.className} ${contrast.toFixed(2)}`);
    }
    return [...poor];
}"""


@pytest.mark.parametrize("theme", ["opened", "dark"])
def test_all_text_stands_out_from_its_ground(request: pytest.FixtureRequest, theme: str) -> None:
    opened: Opened = request.getfixturevalue(theme)
    opened.value(
        "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
    )
    assert opened.value(_CONTRASTS) == []


def test_the_command_can_be_copied(opened: Opened) -> None:
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.locator("#copy").click()
    opened.page.locator("#copy", has_text=re.compile("Copied|Selected")).wait_for()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_of_a_run_is_read_on_a_phone_in_both_themes(
    browser: Browser, of_run: Study, theme: Literal["light", "dark"]
) -> None:
    phone: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "color_scheme": theme}
    for opened in open_page(browser, of_run, **phone):
        page = opened.page
        assert page.locator(".recommendation").is_visible()
        first = page.locator("main h1 + p").get_attribute("class")
        assert first == "recommendation"
        assert page.locator("main").inner_text().count("random at its cost") == 1
        opened.value(
            "() => document.querySelectorAll('details').forEach((each) => { each.open = true; })"
        )
        assert opened.value("() => document.documentElement.scrollWidth <= innerWidth")
        assert opened.value(_CONTRASTS) == []
        for name in ("curve", "shares", "confusion", "calibration"):
            assert page.locator(f"#figure-{name} svg path").count() > 3
        assert page.locator("#verdicts").count() == 0


# --- the what-if panel: what the rule's own words give


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


def test_the_panel_computes_what_python_computes(opened: Opened, study: Study) -> None:
    for settings, (place, whatif) in product(_SETTINGS, enumerate(study.whatif)):
        opened.page.locator("#task").select_option(str(place))
        opened.page.locator("#reset").click()
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
