"""The texts that a command classifies: arguments, standard input, or a file of lines or of rows.

Each comes with its index, its place among all rows from 0, so that answers can be joined to the input again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dimec.core.errors import DataError, OptionError, shown
from dimec.core.progress import SILENT, Progress
from dimec.data.columns import choose_texts
from dimec.data.delimited import names_columns
from dimec.data.faults import Faults
from dimec.data.files import ABSENT, MAX_CELL_CHARACTERS, MAX_ROW_BYTES, SUFFIXES, open_table

Text = str | tuple[str, str]
_ARGUMENTS = "the command line"


@dataclass
class LeftOut:
    """What is left out since it cannot be classified, where the user wants that.

    Attributes:
        wanted: Whether anything is; else it is an error.
        n: How many lines or rows.
        first: Why the first of them is.
        faults: Gathers the errors, where all are to be told at once.
    """

    wanted: bool = False
    faults: Faults | None = None
    n: int = 0
    first: str = ""

    def take(self, fault: DataError) -> None:
        """Count a line or row.

        Raises:
            DataError: The fault, where nothing is to be left out and none are gathered.
        """
        if not self.wanted:
            if self.faults is None or fault.row is None:
                raise fault
            self.faults.add(fault.row, fault.said)
            return
        self.n += 1
        self.first = self.first or str(fault)


@dataclass(frozen=True)
class Texts:
    """What is to be classified.

    Attributes:
        name: What messages call it.
        read: Gives every text with its index; a file may be read again.
        total: How many there are, None where nobody knows yet.
        fingerprint: What tells it from other texts, None where nobody knows yet.
        left_out: What is left out, as far as the texts have been read.
    """

    name: str
    read: Callable[[], Iterator[tuple[int, Text]]]
    total: int | None
    fingerprint: str | None
    left_out: LeftOut = field(default_factory=LeftOut)


def of_arguments(texts: Sequence[str], *, pairs: bool) -> Texts:
    """Take texts from the command line; the two of a pair are separated by a tab."""

    def read() -> Iterator[tuple[int, Text]]:
        for index, text in enumerate(texts):
            yield index, _line(text, index + 1, _ARGUMENTS, pairs=pairs)

    list(read())
    digest = hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()
    return Texts(_ARGUMENTS, read, len(texts), digest)


def of_stdin(
    *, pairs: bool, skip_empty: bool, skip_bad: bool = False, progress: Progress = SILENT
) -> Texts:
    """Take a text from each line of standard input, as it comes."""
    left_out = LeftOut(skip_bad)

    def read() -> Iterator[tuple[int, Text]]:
        # Opened anew: a thread that still waits in sys.stdin at the end would break the interpreter's way out.
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            for index, text in _lines(
                file.readline, "standard input", left_out, pairs=pairs, skip_empty=skip_empty
            ):
                if index == 0:
                    _check_first(text, "standard input", progress)
                yield index, text

    return Texts("standard input", read, None, None, left_out)


def of_file(
    path: Path,
    *,
    pairs: bool,
    text_column: str | None,
    pair_column: str | None,
    skip_empty: bool,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Texts:
    """Take the rows of a table, or the lines of any other file; all of them are checked before the first is classified.

    Raises:
        DataError: If the file cannot be read, or a row holds no text.
        OptionError: If columns are named that the file cannot have.
    """
    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    left_out = LeftOut(skip_bad, Faults(str(path), unit))
    if path.suffix.lower() in SUFFIXES:

        def read() -> Iterator[tuple[int, Text]]:
            return _rows(
                path,
                left_out,
                pairs=pairs,
                text_column=text_column,
                pair_column=pair_column,
                skip_empty=skip_empty,
            )
    else:
        if text_column or pair_column:
            raise OptionError(
                f"--text-column and --pair-column name columns of a table, and {path} is read line by line: its name "
                f"would have to end in one of {', '.join(SUFFIXES)}"
            )

        def read() -> Iterator[tuple[int, Text]]:
            with path.open("rb") as file:
                yield from _lines(
                    file.readline, str(path), left_out, pairs=pairs, skip_empty=skip_empty
                )

    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise DataError(
            f"cannot be read ({exc.strerror or exc}); check path and rights", source=path
        ) from exc
    total = 0
    try:
        for index, text in read():
            if index == 0 and path.suffix.lower() not in SUFFIXES:
                _check_first(text, str(path), progress)
            total += 1
    except DataError as fault:
        if fault.row is None or left_out.faults is None:
            raise
        left_out.faults.add(fault.row, fault.said)
    if left_out.faults is not None:
        left_out.faults.refuse()
        left_out.faults = None
    left_out.n = 0  # they are counted as the texts are read again
    if not total:
        raise DataError("the file holds no text; give one text a line, or a table", source=path)
    return Texts(str(path), read, total, digest, left_out)


def _lines(
    readline: Callable[[int], bytes],
    source: str,
    left_out: LeftOut,
    *,
    pairs: bool,
    skip_empty: bool,
) -> Iterator[tuple[int, Text]]:
    index = -1
    while raw := readline(MAX_ROW_BYTES + 1):
        index += 1
        try:
            line = _decoded(raw, index + 1, source)
            if skip_empty and not line.strip():
                continue
            text = _line(line, index + 1, source, pairs=pairs)
        except DataError as fault:
            left_out.take(fault)
            while len(raw) > MAX_ROW_BYTES and not raw.endswith(b"\n"):  # the rest of the line
                raw = readline(MAX_ROW_BYTES + 1)
            continue
        yield index, text


def _decoded(raw: bytes, row: int, source: str) -> str:
    """Return a line without its end."""
    if len(raw) > MAX_ROW_BYTES:
        raise DataError(
            f"the line is longer than {MAX_ROW_BYTES:,} bytes; cut the text, or leave such lines out with --skip-bad",
            source=source,
            row=row,
            unit="line",
        )
    try:
        line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as exc:
        raise DataError(
            f"this is no UTF-8 text (byte {exc.start + 1} of the line); save it as UTF-8, or leave such lines out "
            "with --skip-bad",
            source=source,
            row=row,
            unit="line",
        ) from exc
    if "\0" in line:
        raise DataError(
            "this is no text (it holds a NUL byte); save it as UTF-8, or leave such lines out with --skip-bad",
            source=source,
            row=row,
            unit="line",
        )
    return line.removeprefix("\ufeff") if row == 1 else line


def _check_first(text: Text, source: str, progress: Progress) -> None:
    """Refuse a first line that names the columns of a table, and say aloud that one name alone is taken for a text."""
    line = text if isinstance(text, str) else "\t".join(text)
    n_columns = names_columns(line)
    if n_columns > 1:
        raise DataError(
            f"the first line, {shown(line)}, names columns: this is a table, which is read from a file whose name ends "
            f"in one of {', '.join(SUFFIXES)} (with --file)",
            source=source,
            row=1,
            unit="line",
        )
    if n_columns:
        progress.warn(
            f"{source}: the first line, {shown(line)}, is classified as a text; remove it if it is a header"
        )


def _line(line: str, row: int, source: str, *, pairs: bool) -> Text:
    if not pairs:
        return _checked(line, row, source, "the text")
    parts = line.split("\t")
    if len(parts) != 2:
        raise DataError(
            f"{shown(line)} holds {len(parts)} texts; this bundle takes pairs, give two texts with a tab between them",
            source=source,
            row=row,
            unit=_unit(source),
        )
    first, second = (_checked(part, row, source, "a text of the pair") for part in parts)
    return first, second


def _rows(
    path: Path,
    left_out: LeftOut,
    *,
    pairs: bool,
    text_column: str | None,
    pair_column: str | None,
    skip_empty: bool,
) -> Iterator[tuple[int, Text]]:
    with open_table(path) as table:
        columns = choose_texts(table, pairs=pairs, text_column=text_column, pair_column=pair_column)
        for row in table.read(columns):
            if row.fault is not None:
                left_out.take(DataError(row.fault, source=path, row=row.number, unit=table.unit))
                continue
            cells = list(zip(columns, row.cells, strict=True))
            if skip_empty and any(
                cell in (None, ABSENT, "") or str(cell).isspace() for _, cell in cells
            ):
                continue
            try:
                texts = [
                    _checked(cell, row.number, str(path), f"the text in {column!r}")
                    for column, cell in cells
                ]
            except DataError as fault:
                left_out.take(fault)
                continue
            yield row.position, texts[0] if len(texts) == 1 else (texts[0], texts[1])


def _checked(cell: object, row: int, source: str, what: str) -> str:
    if cell is None or cell is ABSENT or (isinstance(cell, str) and not cell.strip()):
        raise DataError(
            f"{what} is empty; fill it in, remove it, or leave such rows out with --skip-empty",
            source=source,
            row=row,
            unit=_unit(source),
        )
    if not isinstance(cell, str):
        raise DataError(
            f"{what} is {shown(cell)}, which is no text; name another with --text-column",
            source=source,
            row=row,
            unit=_unit(source),
        )
    if len(cell) > MAX_CELL_CHARACTERS:
        raise DataError(
            f"{what} has {len(cell):,} characters, and {MAX_CELL_CHARACTERS:,} are allowed; cut it, or leave "
            "such texts out with --skip-bad",
            source=source,
            row=row,
            unit=_unit(source),
        )
    try:
        cell.encode()
    except UnicodeEncodeError as exc:
        raise DataError(
            f"{what} holds half a character (a lone surrogate); write it as UTF-8",
            source=source,
            row=row,
            unit=_unit(source),
        ) from exc
    return cell


def _unit(source: str) -> str:
    return "text" if source == _ARGUMENTS else "line"
