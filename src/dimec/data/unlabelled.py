"""The texts that a command classifies: arguments, standard input, or a file of lines or of rows.

Each comes with its index, its place among all rows from 0, so that answers can be joined to the input again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dimec.core.errors import DataError, OptionError, shown
from dimec.core.options import TextColumns
from dimec.core.progress import SILENT, Progress
from dimec.core.untrusted import open_regular
from dimec.data.columns import choose_texts
from dimec.data.delimited import Layout, Lines, names_columns, open_text, records
from dimec.data.faults import Faults, Row
from dimec.data.files import ABSENT, SUFFIXES, open_table
from dimec.data.texts import BadCell, checked_text

Text = str | tuple[str, str]
_ARGUMENTS = "the command line"
_STDIN = "standard input"
_SUFFIXES = ", ".join(SUFFIXES)


@dataclass
class Texts:
    """What is to be classified; ``rows`` gives it, of a file as often as it is called.

    ``total`` and ``fingerprint`` are None where nobody knows them yet. With ``skip_bad`` rows that cannot be classified
    are left out: ``n_left_out`` counts them as texts are read, ``why_left_out`` says what is wrong with the first.
    """

    rows: Callable[[], Iterable[Row]]
    source: str
    unit: str = "line"
    total: int | None = None
    fingerprint: str | None = None
    skip_bad: bool = False
    n_left_out: int = 0
    why_left_out: str = ""

    def read(self) -> Iterator[tuple[int, Text]]:
        """Give every text with its index.

        Raises:
            DataError: If one cannot be classified and nothing is to be left out.
        """
        for row in self.rows():
            if row.fault is None:
                first, *second = map(str, row.cells)
                yield row.position, (first, second[0]) if second else first
                continue
            fault = DataError(row.fault, source=self.source, row=row.number, unit=self.unit)
            if not self.skip_bad:
                raise fault
            self.n_left_out += 1
            self.why_left_out = self.why_left_out or str(fault)


def of_arguments(texts: Sequence[str], *, pairs: bool) -> Texts:
    """Take texts from the command line; the two of a pair are separated by a tab.

    Raises:
        DataError: If one is empty, or cannot be classified.
    """
    fields = [text.split("\t") if pairs else [text] for text in texts]
    given = (Row(index + 1, index, tuple(each)) for index, each in enumerate(fields))
    rows = list(_judged(given, TextColumns(), pairs=pairs))
    digest = hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()
    taken = Texts(lambda: rows, _ARGUMENTS, "text", len(rows), digest)
    for _ in taken.read():
        pass
    return taken


def of_stdin(
    *, pairs: bool, columns: TextColumns, skip_bad: bool = False, progress: Progress = SILENT
) -> Texts:
    """Take a text from each line of standard input, as it comes."""

    def rows() -> Iterator[Row]:
        # Opened anew: a thread that still waits in sys.stdin at the end would break the interpreter's way out.
        with open(sys.stdin.fileno(), "rb", closefd=False) as file:
            lines = _line_rows(Lines(file, _STDIN), _STDIN, progress, pairs=pairs)
            yield from _judged(lines, columns, pairs=pairs)

    return Texts(rows, _STDIN, skip_bad=skip_bad)


def of_file(
    path: Path,
    *,
    pairs: bool,
    columns: TextColumns,
    skip_bad: bool = False,
    progress: Progress = SILENT,
) -> Texts:
    """Take the rows of a table, or the lines of any other file; all of them are checked before the first is classified.

    Raises:
        DataError: If the file cannot be read, or a row holds no text.
        OptionError: If columns are named that the file cannot have.
    """

    def rows(progress: Progress = SILENT) -> Iterator[Row]:
        found = file_rows(path, pairs=pairs, columns=columns, progress=progress)
        return (row for row, _ in found)

    unit = "row" if path.suffix.lower() == ".parquet" else "line"
    taken = Texts(rows, str(path), unit, skip_bad=skip_bad)
    faults = Faults(taken.source, taken.unit)
    try:
        with open_regular(path) as file:
            taken.fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
        taken.total = sum(1 for _ in faults.following(rows(progress)))
    except OSError as exc:
        raise DataError(
            f"cannot be read ({exc.strerror or exc}); check path and rights", source=path
        ) from exc
    if not skip_bad:
        faults.refuse()
    if not taken.total:
        raise DataError("the file holds no text; give one text a line, or a table", source=path)
    return taken


def file_rows(
    path: Path,
    *,
    pairs: bool,
    columns: TextColumns,
    also: str | None = None,
    progress: Progress = SILENT,
) -> Iterator[tuple[Row, str | None]]:
    """Give the rows of a table, or the lines of any other file, and what a further column of a table holds beside them.

    Raises:
        DataError: If the file cannot be read, or lacks a column.
        OptionError: If columns are named that the file cannot have.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        if columns.text_column or columns.pair_column or also is not None:
            which = (
                "--id-column names a column"
                if also
                else "--text-column and --pair-column name columns"
            )
            raise OptionError(
                f"{which} of a table, and {path} is read line by line: its name would have to end in one of {_SUFFIXES}"
            )
        with open_text(path) as file:
            lines = _line_rows(Lines(file, path), str(path), progress, pairs=pairs)
            yield from ((row, None) for row in _judged(lines, columns, pairs=pairs))
        return
    beside: list[object] = [None]
    with open_table(path) as table:
        names = choose_texts(table, columns, pairs=pairs)
        if also is not None and also not in table.columns:
            raise OptionError(
                f"--id-column {also}: {path} has the columns {', '.join(table.columns)}: name one of them"
            )

        def texts() -> Iterator[Row]:
            for row in table.read(names if also is None else [*names, also]):
                beside[0] = row.cells[-1] if also is not None and row.cells else None
                yield replace(row, cells=row.cells[: len(names)])

        for row in _judged(texts(), columns, pairs=pairs, names=names):
            own = beside[0]
            yield row, None if own is None or own is ABSENT else str(own)


def _line_rows(lines: Lines, source: str, progress: Progress, *, pairs: bool) -> Iterator[Row]:
    """Give each line as a row of one text, or of the texts between its tabs."""
    for record in records(lines, Layout("\t" if pairs else "\n", quoted=False)):
        if record.number == 1 and record.fault is None:
            _check_first("\t".join(record.fields), source, progress)
        yield Row(record.number, record.number - 1, tuple(record.fields), record.fault)


def _check_first(line: str, source: str, progress: Progress) -> None:
    """Refuse a first line that names the columns of a table, and say aloud that one name alone is taken for a text."""
    n_columns = names_columns(line)
    if n_columns > 1:
        raise DataError(
            f"the first line, {shown(line)}, names columns: this is a table, which is read from a file whose name ends "
            f"in one of {_SUFFIXES} (with --file)",
            source=source,
            row=1,
            unit="line",
        )
    if n_columns:
        progress.warn(
            f"{source}: the first line, {shown(line)}, is classified as a text; remove it if it is a header"
        )
    if "\r" in line:
        progress.warn(
            f"{source}: the first line, {shown(line)}, holds carriage returns, which end no line here"
        )


def _judged(
    rows: Iterable[Row], columns: TextColumns, *, pairs: bool, names: Sequence[str] = ()
) -> Iterator[Row]:
    """Give rows whose cells are texts that can be classified, or that say why they are not."""
    whats = [f"the text in {name!r}" for name in names]
    whats = whats or (["a text of the pair"] * 2 if pairs else ["the text"])
    for row in rows:
        fault, option = row.fault, "--skip-bad"
        if fault is None:
            try:
                if len(row.cells) != len(whats) and any(map(str.strip, map(str, row.cells))):
                    raise BadCell(
                        f"{shown(str(row.cells[0]))} begins a line of {len(row.cells)} texts; this bundle takes pairs, "
                        "give two texts with a tab between them"
                    )
                texts = list(map(checked_text, row.cells, whats))
                if all(texts):
                    yield Row(row.number, row.position, tuple(texts))
                    continue
                if columns.skip_empty:
                    continue
                what = whats[texts.index("")]
                fault, option = f"{what} is empty; fill it in, remove it", "--skip-empty"
            except BadCell as exc:
                fault = str(exc)
        fault = f"{fault}, or leave such rows out with {option}"
        yield Row(row.number, row.position, (), fault)
