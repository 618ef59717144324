"""Commands of dimec: as processes of their own, or in this process, which spares the start of another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import pytest

COMMAND = [sys.executable, "-W", "error", "-c", "from dimec.cli import main; main()"]


def dimec(
    *arguments: object, code: int = 0, stdin: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a process and hold its exit code; never a traceback."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        check=False,
        input=stdin or "",  # never the caller's own
        env={**os.environ, "HF_HUB_OFFLINE": "1", **environment},
        timeout=240,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


class Said(NamedTuple):
    """What a command printed."""

    out: str
    err: str


Here = Callable[..., Said]


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    """Give what runs a command in this process, holds its exit code and returns what it printed."""
    from dimec.cli import main

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def run(*arguments: object, code: int = 0) -> Said:
        monkeypatch.setattr(sys, "argv", ["dimec", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = Said(*capsys.readouterr())
        assert (ended.value.code or 0) == code, (arguments, said)
        assert "Traceback" not in said.err
        return said

    return run
