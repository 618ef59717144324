"""What a machine lacks skips the tests that want it; with ``DIMEC_STRICT=1`` they fail instead.

One place for every way to skip: marks, fixtures, imports, and whole files as they are collected.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from typing import TypeVar

import pytest

AnyReport = TypeVar("AnyReport", pytest.TestReport, pytest.CollectReport)


def strictly(report: AnyReport) -> AnyReport:
    """Make a failure of a skip where the environment asks for it; an expected failure stays one."""
    expected = hasattr(report, "wasxfail")
    if os.environ.get("DIMEC_STRICT") == "1" and report.skipped and not expected:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"DIMEC_STRICT=1 allows no skipped test. {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    return strictly((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    return strictly((yield))
