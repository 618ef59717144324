"""Which columns of a table hold the texts and the label: named by the user, or recognised by their names.

Column names go in, `Columns` comes out. Two readings of one table are never guessed between: that is an error which
lists the columns and names the options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dimec.data.tasks import Task
from dimec.errors import DataError, OptionError

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


def choose_columns(
    found: Sequence[str],
    task: Task | None,
    *,
    source: str,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> Columns:
    """Choose the columns of a registry task, or of a user's own where ``task`` is None.

    Raises:
        DataError: a named column is missing, or none or several fit.
        OptionError: two options name one column.
    """
    finder = _Finder(tuple(found), source)
    given = [name for name in (text_column, pair_column, label_column) if name is not None]
    if len({name.casefold() for name in given}) < len(given):
        raise OptionError(
            "--text-column, --pair-column and --label-column must name different columns, "
            f"not {', '.join(map(repr, given))}"
        )
    label = (
        finder.named(label_column, "--label-column")
        if label_column is not None
        else finder.recognised("a label", LABEL_COLUMNS, "--label-column")
    )
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
        first, second = _recognise_texts(finder, task)
    return Columns(first, second, label)


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
        matches = matches or [
            column for column in self._found if column.casefold() == name.casefold()
        ]
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
        return DataError(
            f"{problem}; the columns are {listed}. Name one with {option} (the options are --text-column, "
            "--pair-column, --label-column); a file must name its columns in the first line",
            source=self._source,
        )
