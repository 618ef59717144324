"""A report in a real browser: nothing leaves it, nothing fails on it, and everyone can read it."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, Literal

import pytest
from playwright.sync_api import Browser
from tests.browser import Opened, Study, open_page, without_browser
from tests.results import EVIL

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
