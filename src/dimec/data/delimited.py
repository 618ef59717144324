"""Text files of rows: their lines, what separates the fields of a row, and whether quotes enclose fields.

An open file goes in; `find_layout` tells how it is written, `records` gives its rows by that layout.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from dimec.core.errors import DataError, shown
from dimec.core.untrusted import open_regular
from dimec.data.columns import LABEL_COLUMNS, PAIR_COLUMNS, TEXT_COLUMNS

MAX_CELL_CHARACTERS = 100_000
MAX_ROW_BYTES = 1_000_000
SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
BOM = "\ufeff"

_SAMPLED_ROWS = 100
_TEXT_NAMES = {*TEXT_COLUMNS, *(name for pair in PAIR_COLUMNS for name in pair)}
_KNOWN_NAMES = {*_TEXT_NAMES, *LABEL_COLUMNS}
# Excel's own way to say it, on a line before the header.
_SEPARATOR_LINE = re.compile(r'"?sep=([^\w\s"]|\t)"?\s*', re.IGNORECASE)
_TAB_CELL = r'(?:"[^"]*(?:""[^"]*)*"|[^"\t\r\n]*)'
_TAB_RECORD = re.compile(f"{_TAB_CELL}(?:\t{_TAB_CELL})*")
_NUMBER = re.compile(r"[+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?")


@contextmanager
def open_text(path: Path) -> Iterator[BinaryIO]:
    """Open a text file for `Lines`, whichever line ends it has.

    Raises:
        OSError: it cannot be opened, or is no regular file: a pipe cannot be read twice.
    """
    with open_regular(path) as file:
        opening = file.read(MAX_ROW_BYTES)
        file.seek(0)
        if b"\r" in opening and b"\n" not in opening:
            yield io.BytesIO(file.read().replace(b"\r", b"\n"))
        else:
            yield file


class Lines:
    """The lines of a text file, bounded; ``wrong`` is why the row that is being read is no text.

    Bytes that are no UTF-8 come as lone surrogates, so that the ends of a quoted cell are found all the same.
    """

    def __init__(self, handle: BinaryIO, source: str | Path) -> None:
        self._handle = handle
        self._source = source
        self._row_bytes = 0
        self.number = 0
        self.row = 1
        self.wrong: str | None = None

    def begin_row(self) -> None:
        """Note that the next line starts a row; a CSV row may take several."""
        self.row = self.number + 1
        self._row_bytes = 0
        self.wrong = None

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> str:
        """Return the next line with its end.

        Raises:
            DataError: a row of several lines is too long, so that nobody knows where it ends.
        """
        raw = self._handle.readline(MAX_ROW_BYTES + 1)
        if not raw:
            raise StopIteration
        self.number += 1
        self._row_bytes += len(raw)
        if self._row_bytes > MAX_ROW_BYTES:
            self.wrong = (
                f"the row is longer than {MAX_ROW_BYTES:,} bytes, and a cell may hold {MAX_CELL_CHARACTERS:,}"
                " characters; shorten the text, or close the quote that is still open"
            )
            if self.number > self.row:
                raise self.fault(self.wrong)
            self._row_bytes, n_quotes = 0, raw.count(b'"')
            while raw and not raw.endswith(b"\n"):
                raw = self._handle.readline(MAX_ROW_BYTES + 1)
                n_quotes += raw.count(b'"')
            return '"\n' if n_quotes % 2 else "\n"  # a cell that is open stays so
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as exc:
            text = raw.decode("utf-8", "surrogateescape")
            self.wrong = f"this is no UTF-8 text (byte {exc.start + 1} of line {self.number}); save the file as UTF-8"
        if "\0" in text:
            self.wrong = "this is no text file (it holds a NUL byte); save it as UTF-8 text"
        return text.lstrip(BOM) if self.number == 1 else text

    def fault(self, message: str) -> DataError:
        """Make the error for the row that is being read."""
        return DataError(message, source=self._source, row=self.row, unit="line")


@dataclass(frozen=True, slots=True)
class Layout:
    """How rows are written: ``skipped`` lines stand before the header, ``padded`` fields have blanks before a quote."""

    separator: str
    quoted: bool = True
    padded: bool = False
    skipped: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """The fields of a row and the line it starts at; ``fault`` is why they cannot be used."""

    number: int
    fields: list[str]
    fault: str | None = None

    @property
    def is_blank(self) -> bool:
        """Tell whether there is nothing in it."""
        return self.fault is None and not (self.fields[1:] or "".join(self.fields).strip())


def records(lines: Lines, layout: Layout) -> Iterator[Record]:
    """Give the rows of a file, blank ones included.

    Raises:
        DataError: what follows cannot be read.
    """
    for _ in range(layout.skipped):
        next(lines, None)
    # A cell that is too long is told as such; rows are bounded by `Lines`.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    ends = (line.removesuffix("\n").removesuffix("\r") for line in lines)
    rows: Iterator[list[str]] = (line.split(layout.separator) for line in ends)
    if layout.quoted:
        rows = csv.reader(
            lines, delimiter=layout.separator, strict=True, skipinitialspace=layout.padded
        )
    while True:
        lines.begin_row()
        try:
            fields = next(rows, None)
        except csv.Error as exc:
            if "new-line" in str(exc):
                why = "a carriage return stands within the row; write the file with one kind of line end"
            else:
                why = (
                    f"the quoting is broken from here on ({exc}); close the quote that is still open, or double "
                    "quotes inside a cell"
                )
            raise lines.fault(lines.wrong or why) from exc
        if fields is None:
            return
        yield Record(lines.row, fields, lines.wrong)


def find_layout(handle: BinaryIO, path: Path, *, usual: str, is_glue: bool = False) -> Layout:
    """Tell how a file with a header line is written; ``usual`` is its kind's separator.

    The separator that makes the first rows as long as the header wins, and among several the one whose header has
    known names. ``is_glue`` is whether a tab-separated file is one of GLUE's, in which quotes mean nothing.

    Raises:
        DataError: two separators fit equally well, or another one seems to be in use.
    """

    def lines() -> Lines:
        handle.seek(0)
        return Lines(handle, path)

    opening = next(records(lines(), Layout("\n", quoted=False)), None)
    line = opening.fields[0] if opening else ""
    tabs_quoted = (usual == "\t" or "\t" in line) and _is_quoted(lines(), is_glue=is_glue)
    if said := _SEPARATOR_LINE.fullmatch(line):
        quoted = said[1] != "\t" or tabs_quoted
        return _padded(handle, path, Layout(said[1], quoted=quoted, skipped=1))
    rated: list[tuple[tuple[bool, int, int, bool], Layout]] = []
    for separator in SEPARATORS:
        layout = Layout(separator, quoted=separator != "\t" or tabs_quoted)
        rows, whole = _sample(lines(), layout)
        if rows and len(rows[0]) > 1:
            known = sum(name.strip().casefold() in _KNOWN_NAMES for name in rows[0])
            even = whole and all(len(row) == len(rows[0]) for row in rows)
            if known or even or separator == usual:
                rated.append(((even, known, len(rows[0]), separator == usual), layout))
    if not rated:
        layout = Layout(usual, quoted=usual != "\t" or tabs_quoted)
        _refuse_other_separators(_sample(lines(), layout)[0], path)
        return layout
    rated.sort(key=lambda each: each[0], reverse=True)
    best, layout = rated[0]
    ties = [each.separator for rate, each in rated if rate == best]
    if len(ties) > 1:
        names = " and by ".join(f"{each!r} ({SEPARATORS[each]})" for each in ties)
        raise DataError(
            f"the fields could be separated by {names} alike; write the file with one of them, quoting cells that "
            "hold the other",
            source=path,
        )
    return _padded(handle, path, layout)


def names_columns(line: str) -> int:
    """Return how many columns a line names, one of them a text's by a known name; 0 where it is no header."""
    for separator in SEPARATORS:
        names = [name.strip('"').casefold() for name in line.split(separator)]
        are_names = all(re.fullmatch(r"[\w.#-]*", name) for name in names)
        if are_names and _TEXT_NAMES.intersection(names):
            return len(names)
    return 0


def _sample(lines: Lines, layout: Layout) -> tuple[list[list[str]], bool]:
    """Read the first rows by a layout; also tell whether nothing broke off there."""
    found: list[list[str]] = []
    rows = (row for row in records(lines, layout) if not row.is_blank and row.fault is None)
    try:
        for row in islice(rows, _SAMPLED_ROWS):
            found.append(row.fields)
    except DataError:
        return found, False
    return found, True


def _padded(handle: BinaryIO, path: Path, layout: Layout) -> Layout:
    """Note blanks between a separator and a quote, in any row, which would make the quotes part of the text."""
    if not layout.quoted:
        return layout
    handle.seek(0)
    hint = re.compile(rf'(?:^|{re.escape(layout.separator)}) +"'.encode(), re.MULTILINE)
    while not hint.search(lines := handle.read(MAX_ROW_BYTES) + handle.readline(MAX_ROW_BYTES)):
        if not lines:
            return layout
    handle.seek(0)
    try:
        fields = (field for row in records(Lines(handle, path), layout) for field in row.fields)
        return replace(layout, padded=any(re.match(' +"', field) for field in fields))
    except DataError:
        return layout


def _refuse_other_separators(rows: list[list[str]], path: Path) -> None:
    """Refuse a lone column that another separator would part into known names."""
    header = rows[0][0] if rows else ""
    for mark in dict.fromkeys(re.findall(r"[^\w\s\"'-]| {2,}", header)):
        names = [part.strip(" \"'").casefold() for part in header.split(mark)]
        if _KNOWN_NAMES.intersection(names):
            raise DataError(
                f"the fields seem to be separated by {mark!r} (the first line is {shown(header)}); separate them by "
                f"one of {', '.join(SEPARATORS.values())}",
                source=path,
            )


def _is_quoted(lines: Lines, *, is_glue: bool = False) -> bool:
    """Tell whether quotes enclose fields in a tab-separated file, or are part of the texts, as in GLUE's.

    They enclose fields where every quote in the file does so and every field that is enclosed has to be: it holds
    quotes, doubled, or tabs or line breaks (as CSV writers do it), or commas (as spreadsheets do); or where all fields
    but numbers are enclosed, the header's too.
    """
    width = n_commas = 0
    doubled = broken = needless = bare_comma = False
    all_enclosed: bool | None = None
    for record in _paired(lines):
        text = record.rstrip("\r\n")
        if not text:
            continue
        if '"' in text and not _TAB_RECORD.fullmatch(text):
            return False
        cells = re.findall(f"(?:^|\t)({_TAB_CELL})", text) if '"' in text else text.split("\t")
        if all_enclosed is None:
            width = len(cells)
            all_enclosed = all(cell.startswith('"') for cell in cells)
        elif '"' in text and len(cells) != width:
            return False
        for cell in cells:
            if not cell.startswith('"'):
                bare_comma |= "," in cell
                if all_enclosed and cell and not _NUMBER.fullmatch(cell):
                    return False
            elif '"' in cell[1:-1]:
                doubled = True
            elif re.search(r"[\t\r\n]", cell):
                broken = True
            elif "," in cell:
                n_commas += 1
            else:
                needless |= len(cell) > 2
    if all_enclosed:
        return True
    if needless or (n_commas and bare_comma):
        return False
    return doubled or (not is_glue and (broken or n_commas > 1))


def _paired(lines: Lines) -> Iterator[str]:
    """Join lines until their quotes are paired; what is no text is passed over."""
    held: list[str] = []
    n_quotes = 0
    lines.begin_row()
    try:
        for line in lines:
            held.append(line)
            n_quotes += line.count('"')
            if n_quotes % 2 == 0:
                if lines.wrong is None:
                    yield "".join(held)
                held, n_quotes = [], 0
                lines.begin_row()
    except DataError:  # too long for a row: these quotes are none
        held = ['"']
    if held:
        yield '"'
