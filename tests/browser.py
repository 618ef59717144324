"""A report's page, opened in the machine's own Chromium, with everything that went wrong on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from dimec.reporting.results import WhatIf

CHROMIUM = shutil.which("chromium")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

without_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="this machine has no chromium on its path"
)


@dataclass
class Study:
    page: Path
    whatif: tuple[WhatIf, ...]


@dataclass
class Opened:
    """A page with everything that went wrong on it, or left it."""

    page: Page
    faults: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def value(self, script: str) -> Any:
        return self.page.evaluate(script)

    def settled(self, theme: str | None = None) -> None:
        wanted = f'html[data-ready="{theme}"]' if theme else "html[data-ready]"
        self.page.wait_for_selector(wanted, state="attached", timeout=120_000)


def open_page(browser: Browser, study: Study, **context: Any) -> Iterator[Opened]:
    opened_context = browser.new_context(reduced_motion="reduce", **context)
    opened = Opened(opened_context.new_page())
    opened.page.on("console", lambda said: opened.faults.append(f"{said.type}: {said.text}"))
    opened.page.on("pageerror", lambda error: opened.faults.append(str(error)))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.goto(study.page.as_uri())
    opened.settled()
    yield opened
    assert opened.faults == []
    # The empty icon is a data URL: nothing of it leaves the page.
    assert [url for url in opened.requests if not url.startswith("data:")] == [study.page.as_uri()]
    opened_context.close()


def shown_rows(opened: Opened) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = opened.value(
        """() => Object.fromEntries([...document.querySelectorAll("#what-if-table tr[data-name]")].map((row) =>
            [row.dataset.name, Object.fromEntries([...row.querySelectorAll("[data-key]")].map((cell) =>
                [cell.dataset.key, cell.dataset.value]))]))"""
    )
    return found
