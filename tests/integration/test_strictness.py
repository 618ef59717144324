"""What the environment may not do to the suite: skip silently, or choose which tests run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
SKIPS = """
import pytest

@pytest.fixture
def data():
    pytest.skip("no data")

@pytest.mark.skipif(True, reason="no browser")
def test_mark(): pass

@pytest.mark.skip
def test_always(): pass

def test_inside(): pytest.skip("no root")

def test_import(): pytest.importorskip("no_such_package")

def test_fixture(data): pass

@pytest.mark.xfail
def test_expected(): assert False

def test_good(): pass
"""


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "MAKE"))
    }
    kept.pop("DIMEC_STRICT", None)
    return subprocess.run(
        command,
        env={**kept, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "strict, failed, skipped",
    [("1", {"test_mark", "test_always", "test_inside", "test_import", "test_fixture", "whole"}, 0),
     ("0", set(), 6)],
)  # fmt: skip
def test_strictly_every_skip_is_a_failure(
    strict: str, failed: set[str], skipped: int, tmp_path: Path
) -> None:
    (tmp_path / "test_skips.py").write_text(SKIPS)
    (tmp_path / "test_whole.py").write_text("import pytest; pytest.importorskip('no_such_package')")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = run(
        sys.executable, "-m", "pytest", "-p", "tests.strict", "--continue-on-collection-errors",
        f"--rootdir={tmp_path}", f"--junitxml={tmp_path / 'told.xml'}", tmp_path,
        DIMEC_STRICT=strict, PYTHONPATH=str(ROOT),
    )  # fmt: skip
    assert done.returncode == bool(failed), done.stdout
    cases = list(ElementTree.parse(tmp_path / "told.xml").iter("testcase"))
    told = {
        case.get("name", "").removeprefix("test_skips.")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    }
    assert {"whole" if "whole" in name else name for name in told} == failed
    skips = [skip.get("type") for case in cases for skip in case.iter("skipped")]
    assert skips.count("pytest.xfail") == 1
    assert len(skips) == skipped + 1


def make_test(*variables: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``make test`` with this environment, as if it were installed already."""
    return run(
        "make", "test", f"VENV={sys.prefix}", "JOBS=0", "-o", f"{sys.prefix}/.installed-dev",
        *variables, **environment,
    )  # fmt: skip


def test_make_hears_arguments_on_its_own_command_line_only() -> None:
    collected = make_test(
        "ARGS=--collect-only -q tests/unit/test_wire.py",
        PYTEST_ADDOPTS="--no-such-option",
        PYTEST_PLUGINS="no_such_plugin",
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
    )
    assert collected.returncode == 0, collected.stderr
    assert "test_wire.py::" in collected.stdout
    asked = run("make", "--dry-run", "test", ARGS="-k nothing")
    assert asked.returncode == 0 and "-k nothing" not in asked.stdout
