"""A plugin of pytest for `mutants.py`: what the shared fixtures made is kept for later sessions and forks of a process.

Not kept is what ends with its session: servers and the like, which are generators, and pytest's own.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest

_kept: dict[tuple[str, str], tuple[Any, Any, None]] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> object:
    """Give what was kept; None where nothing was, so that pytest makes it."""
    kept = _kept.get((fixturedef.baseid, fixturedef.argname))
    if kept is None:
        return None
    fixturedef.cached_result = kept
    return kept[0]


def pytest_fixture_post_finalizer(fixturedef: pytest.FixtureDef[Any]) -> None:
    """Keep what was made."""
    shared = fixturedef.scope in ("module", "session") and not fixturedef.params
    made = fixturedef.cached_result
    if shared and fixturedef.baseid and not inspect.isgeneratorfunction(fixturedef.func) and made:
        value, key, failure = made
        if failure is None:
            _kept[fixturedef.baseid, fixturedef.argname] = (value, key, failure)
