"""A made-up study's report in a browser. Its loop runs in this thread, so a browser lives as long as a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.browser import ARGUMENTS, CHROMIUM, Opened, Study, open_page
from tests.results import write_study

from dimec.reporting import write_report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    whatif = write_study(folder, points=1600)
    return Study(write_report(folder).page, whatif)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, study: Study) -> Iterator[Opened]:
    yield from open_page(
        browser, study, viewport={"width": 1280, "height": 900}, color_scheme="light"
    )


@pytest.fixture
def phone(browser: Browser, study: Study) -> Iterator[Opened]:
    yield from open_page(browser, study, viewport={"width": 390, "height": 844}, has_touch=True)


@pytest.fixture
def dark(browser: Browser, study: Study) -> Iterator[Opened]:
    yield from open_page(
        browser, study, viewport={"width": 1280, "height": 900}, color_scheme="dark"
    )
