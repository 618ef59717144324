"""Commands of dimec: as processes of their own, or in this process, which spares the start of another."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from tempfile import TemporaryFile
from typing import NamedTuple

import pytest

from tests.forked import SERVES

COMMAND = [sys.executable, "-W", "error", "-c", "from dimec.cli import main; main()"]


def dimec(
    *arguments: object, code: int = 0, stdin: str | bytes = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command as a forked process and hold its exit code; never a traceback."""
    with TemporaryFile() as given, TemporaryFile() as out, TemporaryFile() as err:
        given.write(stdin.encode() if isinstance(stdin, str) else stdin)
        given.seek(0)
        process = SERVES.start(
            *arguments,
            given=given.fileno(),
            out=out.fileno(),
            err=err.fileno(),
            environment={"HF_HUB_OFFLINE": "1", **environment},
        )
        ended = process.wait(240)
        said = []
        for each in (out, err):
            each.seek(0)
            said.append(each.read().decode())
    assert ended == code, "".join(said)
    assert "Traceback" not in said[1]
    return subprocess.CompletedProcess([*map(str, arguments)], ended, *said)


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
