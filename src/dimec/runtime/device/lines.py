"""Answers as JSON lines in a file that survives a kill: a text whose line is whole is never classified again.

Beside ``FILE`` stands ``FILE.unfinished`` while not every text is answered; it says what is being classified, so that
only the same job goes on. A line that was torn by a kill is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO

from dimec.core.errors import OptionError
from dimec.core.files import hold, write_json
from dimec.core.tiers import Answer
from dimec.core.untrusted import parse_json, read_bounded

MARK = ".unfinished"


def answer_line(answer: Answer, label_names: Sequence[str], *, index: int | None = None) -> str:
    """Return an answer as one line of JSON, without the line break; ``index`` stands for the answer's own."""
    line = asdict(answer) | {"latency_ms": round(answer.latency_ms, 3)}
    del line["request_id"]
    rounded = (round(each, 6) for each in answer.probabilities)
    line["probabilities"] = dict(zip(label_names, rounded, strict=True))
    if index is not None:
        line["index"] = index
    return json.dumps(line, ensure_ascii=False)


class AnswerFile(AbstractContextManager["AnswerFile"]):
    """Append lines to a file, from where an earlier, killed process stopped."""

    def __init__(self, path: Path, *, job: Mapping[str, str | None], restart: bool = False) -> None:
        """Open the file; ``job`` says what is classified by what.

        Raises:
            OptionError: If the file is finished, of another job, or another process writes it.
        """
        self.path = path
        self._mark = path.with_name(path.name + MARK)
        self.done = -1
        """The index of the last text that is answered; -1 where none is."""
        self.n_done = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        busy = OptionError(f"{path} is being written by another process: choose another --out")
        fresh = restart or not path.exists()
        self._file: IO[bytes] = hold(path, otherwise=busy)
        try:
            if fresh or not (path.stat().st_size or self._mark.exists()):
                write_json(self._mark, dict(job))
                self._file.truncate(0)
            else:
                self._check_job(job)
                self._cut()
        except OptionError:
            self._file.close()
            raise

    def _check_job(self, job: Mapping[str, str | None]) -> None:
        try:
            begun = parse_json(read_bounded(self._mark))
        except FileNotFoundError:
            raise OptionError(
                f"{self.path} is there and finished: choose another --out, or replace it with --restart"
            ) from None
        except ValueError:
            begun = None
        if begun != dict(job):
            raise OptionError(
                f"{self.path} was begun with other texts, another bundle or other columns: give the same as then, "
                "choose another --out, or replace it with --restart"
            )

    def _cut(self) -> None:
        """Cut off a torn line, and find out how far the whole ones go."""
        whole = 0
        with self.path.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                index = None
                with suppress(ValueError, KeyError, TypeError, RecursionError):
                    index = json.loads(line)["index"]
                if type(index) is not int or index <= self.done:
                    raise OptionError(
                        f"{self.path}, line {self.n_done + 1}, is no answer that follows the one before: replace it "
                        "with --restart"
                    )
                self.done = index
                self.n_done += 1
                whole += len(line)
            file.truncate(whole)

    def write(self, line: str) -> None:
        """Append a line; once this returns, a kill of the process does not lose it."""
        self._file.write(line.encode() + b"\n")
        self._file.flush()

    def finish(self) -> None:
        """Take note that every text is answered."""
        self._file.close()
        self._mark.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()
