"""A made-up study and a run as pages in a browser. Its loop runs in this thread, so one lives as long as a module."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright
from tests.browser import ARGUMENTS, CHROMIUM, Opened, Study, open_page
from tests.results import write_study

from dimec import api
from dimec.reporting import write_report
from dimec.reporting.results import read_whatif
from dimec.runs.run import Run


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    whatif = write_study(folder, points=1600)
    return Study(write_report(folder).page, whatif)


@pytest.fixture(scope="module")
def of_run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Give the page of a run."""
    folder = tmp_path_factory.mktemp("of-run") / "tiny"
    shutil.copytree(tiny_run.folder, folder)
    return Study(api.report(folder, max_drop=5).page, read_whatif(folder / "report"))


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
