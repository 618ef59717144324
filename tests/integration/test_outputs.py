"""What is printed can be printed anywhere, and no text of somebody else steers a terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from tests.commands import COMMAND

from dimec.bundle import Bundle
from dimec.cli import main
from dimec.cli.console import ConsoleProgress, out, pace, say_json
from dimec.core.errors import printable
from dimec.runs.run import Run

NASTY = "a\rb\x1b[31mc\x07d\x9be\u202ef\u2028g\u200bh\x7f café 東京 😀"
ENCODINGS = ["utf-8", "cp1252", "ascii", "cp932", "iso-8859-15"]


class Output(io.TextIOWrapper):
    """An output of some encoding, as strict as Python makes it."""

    def __init__(self, encoding: str) -> None:
        self.kept = io.BytesIO()
        super().__init__(self.kept, encoding=encoding, errors="strict")

    def said(self) -> str:
        self.flush()
        return self.kept.getvalue().decode(self.encoding)


def command(monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: object) -> tuple[Any, ...]:
    """Run a command of this process on outputs of an encoding."""
    outputs = Output(encoding), Output(encoding)
    monkeypatch.setattr(sys, "stdout", outputs[0])
    monkeypatch.setattr(sys, "stderr", outputs[1])
    monkeypatch.setattr(sys, "argv", ["dimec", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return (ended.value.code, *(output.said() for output in outputs))


def is_harmless(text: str) -> bool:
    return all(each.isprintable() for each in text.split("\n"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_table_of_texts_has_a_line_each(
    encoding: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"text": NASTY}, {"text": "two\nlines"}, {"text": "\u2066x\u2069\ty"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder, file = tiny_bundle.folder, tmp_path / "a.jsonl"
    code, said, errors = command(monkeypatch, encoding, "classify", folder, "--file", file)
    assert (code, len(said.splitlines())) == (0, 3)
    assert r"a\rb\x1b[31mc\x07d\x9be\u202ef\u2028g\u200bh" in said and r"two\nlines" in said
    assert is_harmless(said) and is_harmless(errors)
    code, _, errors = command(monkeypatch, encoding, "classify", folder / NASTY, "x")
    assert code == 2 and is_harmless(errors) and len(errors.splitlines()) == 1


@pytest.mark.parametrize("name", ["evaluate", "--help", "doctor"])
def test_every_table_is_whole(name: str, tiny_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["evaluate", tiny_run.folder] if name == "evaluate" else [name]
    found = [command(monkeypatch, encoding, *arguments) for encoding in ENCODINGS[:3]]
    assert [code for code, _, _ in found] == [0] * 3, found
    assert len({len(said.splitlines()) for _, said, _ in found}) == 1


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_says_the_same_in_every_encoding(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = Output(encoding)
    monkeypatch.setattr(sys, "stdout", output)
    document = {"label": NASTY, "half": "\ud83d"}
    say_json(json.dumps(document, ensure_ascii=False, indent=2))
    assert json.loads(output.said()) == document
    assert is_harmless(output.said())


def test_a_locale_that_is_not_utf_8(tiny_bundle: Bundle) -> None:
    done = subprocess.run(
        [*COMMAND, "classify", str(tiny_bundle.folder), "café λ"],
        capture_output=True,
        check=False,
        env={**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and b"caf? ?" in done.stdout


def test_names_in_tables_and_messages_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    output = Output("utf-8")
    monkeypatch.setattr(sys, "stdout", output)
    monkeypatch.setattr(sys, "stderr", output)
    table = Table(box=None)
    table.add_column("[/]")
    table.add_row("[red]\x1b[2J:smile:")
    out.print(table)
    ConsoleProgress().warn("[/]\x1b[2J\u202e")
    assert r"[red]\x1b[2J:smile:" in output.said() and r"[/]\x1b[2J\u202e" in output.said()
    assert is_harmless(output.said())
    assert printable("a\u00a0b") == "a b"


@pytest.mark.parametrize(
    ("done", "seconds", "words"),
    [
        (100, 10.0, "10 a second"),
        (10, 10.0, "1 a second"),
        (5, 10.0, "2 s each"),
        (1, 400.0, "400 s each"),
        (3, 20.0, "6.67 s each"),
        (0, 20.0, "0 a second"),
    ],
)
def test_slow_work_is_told_in_seconds_for_each(done: int, seconds: float, words: str) -> None:
    assert pace(done, seconds) == words


def waiting(**environment: str) -> str:
    """Return how OpenMP is told to wait where a process loads what trains."""
    program = (
        "import os\nfrom dimec.core.extras import needs_training\nwith needs_training():\n    pass\n"
        "print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('GOMP_SPINCOUNT'))"
    )
    names = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | environment,
    )
    return done.stdout.strip()


def test_openmp_spins_shortly_unless_the_user_says_how() -> None:
    _, spins = waiting().split()
    assert 0 < int(spins) < 30_000
    assert waiting(OMP_WAIT_POLICY="ACTIVE") == "ACTIVE None"
    assert waiting(KMP_BLOCKTIME="200") == "None None"
    assert waiting(GOMP_SPINCOUNT="10") == "None 10"
