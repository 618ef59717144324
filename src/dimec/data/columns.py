"""Which columns of a table hold the texts and the label: named by the user, or recognised by their names.

Column names go in, `Columns` comes out. Two readings of one table are never guessed between: that is an error which
lists the columns and names the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dimec.core.errors import DataError, OptionError
from dimec.data.folding import folded
from dimec.data.tasks import Task

if TYPE_CHECKING:
    from dimec.data.files import Table

# Lower case; a pair is only taken where both of its columns are there.
PAIR_COLUMNS: tuple[tuple[str, str], ...] = (
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("query", "passage"),
    ("#1 string", "#2 string"),  # MRPC's own
    ("text1", "text2"),
    ("text_a", "text_b"),
)
TEXT_COLUMNS = (
    "sentence",
    "text",
    "review",
    "question",
    "query",
    "comment",
    "content",
    "document",
    "message",
    "tweet",
    "utterance",
    "sentence1",
    "premise",
)
LABEL_COLUMNS = (
    "label",
    "labels",
    "gold_label",
    "is_duplicate",
    "quality",
    "class",
    "target",
    "category",
    "sentiment",
    "intent",
)


@dataclass(frozen=True)
class Columns:
    """The names, as the table spells them, of the columns that are read."""

    first: str
    second: str | None
    label: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Give the columns of the texts."""
        return (self.first,) if self.second is None else (self.first, self.second)


def choose_columns(
    table: Table,
    task: Task | None,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Columns:
    """Choose the columns of a registry task, or of a user's own where ``task`` is None.

    Raises:
        DataError: a named column is missing, or none or several fit.
        OptionError: two options name one column.
    """
    finder = _Finder(table.columns, table.source)
    _check_different(text_column, pair_column, label_column)
    label = (
        finder.named(label_column, "--label-column")
        if label_column is not None
        else finder.recognised("a label", LABEL_COLUMNS, "--label-column")
    )
    first, second = _choose_texts(finder, task, text_column=text_column, pair_column=pair_column)
    return Columns(first, second, label)


def choose_texts(
    table: Table,
    *,
    pairs: bool,
    text_column: str | None = None,
    pair_column: str | None = None,
) -> tuple[str, ...]:
    """Choose the column of the texts that a bundle reads, or the two of its pairs, in a table that needs no label.

    Raises:
        DataError: a named column is missing, or none or several fit; or the only one may be a text itself.
        OptionError: the columns are of pairs for a bundle of single texts, or the other way round.
    """
    finder = _Finder(table.columns, table.source)
    _check_different(text_column, pair_column)
    if pair_column is not None and not pairs:
        raise OptionError("--pair-column names a second text, but this bundle takes single texts")
    if len(table.columns) == 1 and table.names_are_sure and not (pairs or text_column):
        return table.columns
    first, second = _choose_texts(finder, None, text_column=text_column, pair_column=pair_column)
    if second is None and pairs:
        raise finder.fault(
            "no pair of columns is recognised as texts", "--text-column and --pair-column"
        )
    if second is not None and not pairs:
        raise finder.fault(
            f"the columns {first!r} and {second!r} are a pair, but this bundle takes single texts",
            "--text-column",
        )
    return (first,) if second is None else (first, second)


def _check_different(*names: str | None) -> None:
    given = [name for name in names if name is not None]
    if len({name.casefold() for name in given}) < len(given):
        raise OptionError(
            "--text-column, --pair-column and --label-column must name different columns, "
            f"not {', '.join(map(repr, given))}"
        )


def _choose_texts(
    finder: _Finder, task: Task | None, *, text_column: str | None, pair_column: str | None
) -> tuple[str, str | None]:
    second = finder.named(pair_column, "--pair-column") if pair_column is not None else None
    if text_column is not None:
        first = finder.named(text_column, "--text-column")
        if second is None and task is not None and task.is_pair:
            seconds = [pair[1] for pair in (_hub_pair(task), *PAIR_COLUMNS)]
            others = [name for name in seconds if name != first.casefold()]
            second = finder.recognised("the second text", others, "--pair-column")
    elif second is not None:
        names = [pair[0] for pair in PAIR_COLUMNS] + list(TEXT_COLUMNS)
        others = [name for name in names if name != second.casefold()]
        first = finder.recognised("a text", others, "--text-column")
    else:
        return _recognise_texts(finder, task)
    return first, second


def _hub_pair(task: Task) -> tuple[str, str]:
    return task.text_columns[0], task.text_columns[1]


def _recognise_texts(finder: _Finder, task: Task | None) -> tuple[str, str | None]:
    """Take the task's own columns, else a well-known pair, else a single well-known text."""
    own = [finder.spelled(name) for name in task.text_columns] if task is not None else []
    if own and all(own):
        return str(own[0]), own[1] if len(own) == 2 else None
    pairs = [pair for pair in PAIR_COLUMNS if all(finder.spelled(name) for name in pair)]
    if len(pairs) > 1:
        raise finder.fault("several pairs of columns could be the texts", "--text-column")
    if pairs:
        return str(finder.spelled(pairs[0][0])), finder.spelled(pairs[0][1])
    if task is not None and task.is_pair:
        raise finder.fault("no pair of columns is recognised as texts", "--text-column")
    return finder.recognised("a text", TEXT_COLUMNS, "--text-column"), None


class _Finder:
    """Looks names up among the columns of one table, whatever their case."""

    def __init__(self, found: tuple[str, ...], source: str) -> None:
        self._found = found
        self._source = source

    def spelled(self, name: str) -> str | None:
        """Give the table's spelling of a column, or None where it has none such."""
        matches = [column for column in self._found if column == name]
        matches = matches or [column for column in self._found if folded(column) == folded(name)]
        if len(matches) > 1:
            raise DataError(
                f"the column {name!r} is there {len(matches)} times; rename all but one",
                source=self._source,
            )
        return matches[0] if matches else None

    def named(self, name: str, option: str) -> str:
        """Give the column that an option names."""
        column = self.spelled(name)
        if column is None:
            raise self.fault(f"there is no column {name!r}", option)
        return column

    def recognised(self, what: str, names: Sequence[str], option: str) -> str:
        """Give the one column that bears one of the well-known names."""
        matches = {name: self.spelled(name) for name in names}
        columns = list(dict.fromkeys(column for column in matches.values() if column))
        if not columns:
            raise self.fault(f"no column is recognised as {what}", option)
        if len(columns) > 1:
            raise self.fault(
                f"several columns could be {what} ({', '.join(map(repr, columns))})", option
            )
        return columns[0]

    def fault(self, problem: str, option: str) -> DataError:
        """Make the error that lists the columns and names the options."""
        listed = ", ".join(repr(name[:40]) for name in self._found[:30])
        are = "columns are" if len(self._found) > 1 else "only column is"
        return DataError(
            f"{problem}; the {are} {listed}: name it with {option} (the options are --text-column, "
            "--pair-column, --label-column); a file must name its columns in the first line, unless it has a text in "
            "every line and a name that ends in .txt",
            source=self._source,
        )
