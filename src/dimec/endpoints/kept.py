"""The answers of endpoints that are kept in a run's folder, so that none is paid for twice.

An SQLite file: an answer is in it as soon as it is there, whatever ends the process after that.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from dimec.core.errors import RunError
from dimec.endpoints.said import Said, Text

FILE = "answers.sqlite"


class Kept:
    """Answers by endpoint and text."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            RunError: If it cannot be opened, or is another kind of file.
        """
        self._path = path
        with self._translated():
            # A notebook's questions come from another thread, never two at a time.
            self._file = sqlite3.connect(
                path, timeout=30, isolation_level=None, check_same_thread=False
            )
            self._file.execute("PRAGMA trusted_schema = OFF")
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute(
                "CREATE TABLE IF NOT EXISTS said (asked BLOB PRIMARY KEY, probabilities BLOB, ms REAL NOT NULL, "
                "tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL) WITHOUT ROWID"
            )

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self.close()

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        self._file.close()

    def find(self, key: str, text: Text, *, n_classes: int) -> Said | None:
        """Return what the endpoint with a key said about a text, or None.

        Raises:
            RunError: If the file is damaged.
        """
        with self._translated():
            row = self._file.execute(
                "SELECT probabilities, ms, tokens_in, tokens_out FROM said WHERE asked = ?",
                (_asked(key, text),),
            ).fetchone()
            if row is None:
                return None
            packed, ms, tokens_in, tokens_out = row
            probabilities = None
            if packed is not None:
                probabilities = struct.unpack(f"<{n_classes}d", packed)
                if not all(0 <= each <= 1 for each in probabilities):
                    raise ValueError("a probability is none")
            if not (math.isfinite(ms) and min(ms, tokens_in, tokens_out) >= 0):
                raise ValueError("a count is none")
            return Said(probabilities, float(ms), int(tokens_in), int(tokens_out))

    def keep(self, key: str, text: Text, said: Said) -> None:
        """Write down what was said.

        Raises:
            RunError: If the file cannot be written.
        """
        packed = said.probabilities
        with self._translated():
            self._file.execute(
                "INSERT OR REPLACE INTO said VALUES (?, ?, ?, ?, ?)",
                (
                    _asked(key, text),
                    None if packed is None else struct.pack(f"<{len(packed)}d", *packed),
                    said.ms,
                    said.tokens_in,
                    said.tokens_out,
                ),
            )

    def total(self) -> tuple[int, int, int]:
        """Return how many answers there are, and the tokens that all of them read and wrote.

        Raises:
            RunError: If the file is damaged.
        """
        with self._translated():
            found = self._file.execute(
                "SELECT COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0) FROM said"
            ).fetchone()
            n, tokens_in, tokens_out = map(int, found)
            return n, tokens_in, tokens_out

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, struct.error, ValueError, TypeError, OverflowError) as exc:
            raise RunError(
                f"{self._path}, which keeps the answers of endpoints, cannot be used ({exc}): move it away, and they "
                "are asked again"
            ) from exc


def _asked(key: str, text: Text) -> bytes:
    digest = hashlib.sha256()
    for part in (key, *text):
        encoded = part.encode(errors="surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little"))
        digest.update(encoded)
    return digest.digest()
