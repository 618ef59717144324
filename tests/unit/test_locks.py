"""The locks of ``deploy/`` hold the versions of ``constraints.txt``, each with its hashes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pins(text: str) -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


@pytest.mark.parametrize("name", ["build.lock", "requirements.lock"])
def test_a_lock_agrees_with_the_constraints(name: str) -> None:
    text = (ROOT / "deploy" / name).read_text()
    locked, allowed = pins(text), pins((ROOT / "constraints.txt").read_text())
    # What only another system installs has no version here.
    assert locked.keys() & allowed.keys()
    assert {each: allowed[each] for each in locked.keys() & allowed.keys()} == {
        each: locked[each] for each in locked.keys() & allowed.keys()
    }
    entries = [each for each in re.split(r"(?m)^(?=[A-Za-z0-9])", text) if "==" in each]
    assert len(entries) == len(locked)
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}\b", each) for each in entries)
    assert "://" not in text


def test_the_lock_holds_the_base_install() -> None:
    base = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", each)[0]).lower() for each in base}  # type: ignore[index]
    locked = pins((ROOT / "deploy" / "requirements.lock").read_text())
    assert names <= locked.keys()
    assert "torch" not in locked


def test_the_image_installs_nothing_without_its_hash() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&\n]*)", lines)
    assert len(installs) == 3
    assert all("--require-hashes" in each or "--no-index" in each for each in installs)
