"""Which columns of a table hold the texts and the label: named by the user, or recognised by their names.

Two readings of one table are never guessed between: that is an error which lists the columns and names the options.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dimec.core.errors import DataError, OptionError
from dimec.core.options import LabelledColumns, TextColumns
from dimec.data.faults import Row
from dimec.data.folding import folded
from dimec.data.tasks import Task

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
    ("text", "text_pair"),  # what pipelines of transformers take
)
TEXT_COLUMNS = (
    *("sentence", "text", "review", "question", "query", "comment", "content", "document"),
    *("message", "tweet", "utterance", "sentence1", "premise"),
)
LABEL_COLUMNS = (
    *("label", "labels", "gold_label", "is_duplicate", "quality", "class", "target", "category"),
    *("sentiment", "intent"),
)


@dataclass(frozen=True)
class Table:
    """An open table: ``read(names)`` gives its rows once, with the cells of those columns in that order.

    ``unit`` is what numbers of rows count, line or row. ``names_are_sure`` is whether ``columns`` are names by the
    format, rather than what the first line holds.
    """

    source: str
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    unit: str = "row"
    names_are_sure: bool = True

    def all_of(self, names: Sequence[str]) -> tuple[str, ...]:
        """Give the table's spelling of columns, whatever their case, or nothing where one of them is not there."""
        spelled = tuple(column for name in names for column in self._spelled(name))
        return spelled if len(spelled) == len(names) else ()

    def _spelled(self, name: str) -> list[str]:
        matches = [column for column in self.columns if column == name]
        matches = matches or [column for column in self.columns if folded(column) == folded(name)]
        if len(matches) > 1:
            raise DataError(
                f"the column {name!r} is there {len(matches)} times; rename all but one",
                source=self.source,
            )
        return matches

    def find(self, given: str | None, what: str, names: Sequence[str], option: str) -> str:
        """Give the column that an option names, else the one that bears one of the well-known names."""
        looked_for = names if given is None else (given,)
        columns = dict.fromkeys(column for name in looked_for for column in self._spelled(name))
        if len(columns) == 1:
            return next(iter(columns))
        if given is not None:
            raise self.fault(f"there is no column {given!r}", option)
        if not columns:
            raise self.fault(f"no column is recognised as {what}", option)
        listed = ", ".join(map(repr, columns))
        raise self.fault(f"several columns could be {what} ({listed})", option)

    def fault(self, problem: str, option: str) -> DataError:
        """Make the error that lists the columns and names the options."""
        listed = ", ".join(repr(name[:40]) for name in self.columns[:30])
        are = "columns are" if len(self.columns) > 1 else "only column is"
        return DataError(
            f"{problem}; the {are} {listed}: name it with {option} (the options are --text-column, --pair-column, "
            "--label-column); a file must name its columns in the first line, unless it has a text in every line and a "
            "name that ends in .txt",
            source=self.source,
        )


def choose_columns(
    table: Table, task: Task | None, wanted: LabelledColumns
) -> tuple[tuple[str, ...], str]:
    """Choose the columns of the one or two texts and of the label; ``task`` is None for a user's own.

    Raises:
        DataError: a named column is missing, or none or several fit.
        OptionError: two options name one column.
    """
    _check_different(wanted.text_column, wanted.pair_column, wanted.label_column)
    label = table.find(wanted.label_column, "a label", LABEL_COLUMNS, "--label-column")
    return _choose(table, task, wanted), label


def choose_texts(table: Table, wanted: TextColumns, *, pairs: bool) -> tuple[str, ...]:
    """Choose the column of the texts that a bundle reads, or the two of its pairs, in a table that needs no label.

    Raises:
        DataError: a named column is missing, or none or several fit; or the only one may be a text itself.
        OptionError: the columns are of pairs for a bundle of single texts, or the other way round.
    """
    _check_different(wanted.text_column, wanted.pair_column)
    if wanted.pair_column is not None and not pairs:
        raise OptionError("--pair-column names a second text, but this bundle takes single texts")
    if len(table.columns) == 1 and table.names_are_sure and not (pairs or wanted.text_column):
        return table.columns
    texts = _choose(table, None, wanted)
    if len(texts) == 1 and pairs:
        raise table.fault(
            "no pair of columns is recognised as texts", "--text-column and --pair-column"
        )
    if len(texts) == 2 and not pairs:
        raise table.fault(
            f"the columns {' and '.join(map(repr, texts))} are a pair, but this bundle takes single texts",
            "--text-column",
        )
    return texts


def _check_different(*names: str | None) -> None:
    given = [name for name in names if name is not None]
    if len({name.casefold() for name in given}) < len(given):
        raise OptionError(
            "--text-column, --pair-column and --label-column must name different columns, "
            f"not {', '.join(map(repr, given))}"
        )


def _choose(table: Table, task: Task | None, wanted: TextColumns) -> tuple[str, ...]:
    """Take the columns that are named, else the task's own, a well-known pair, or a single well-known text."""
    own = task.text_columns if task is not None else ()
    text_column, pair_column = wanted.text_column, wanted.pair_column
    if text_column is not None or pair_column is not None:
        firsts = [*(pair[0] for pair in PAIR_COLUMNS), *TEXT_COLUMNS]
        others = [name for name in firsts if name != folded(pair_column or "")]
        first = table.find(text_column, "a text", others, "--text-column")
        if pair_column is None and len(own) < 2:
            return (first,)
        seconds = [*own[1:], *(pair[1] for pair in PAIR_COLUMNS)]
        others = [name for name in seconds if name != folded(first)]
        return first, table.find(pair_column, "the second text", others, "--pair-column")
    if found := table.all_of(own):
        return found
    pairs = [pair for pair in map(table.all_of, PAIR_COLUMNS) if pair]
    if len(pairs) > 1:
        raise table.fault("several pairs of columns could be the texts", "--text-column")
    if pairs:
        return pairs[0]
    if len(own) == 2:
        raise table.fault("no pair of columns is recognised as texts", "--text-column")
    return (table.find(None, "a text", TEXT_COLUMNS, "--text-column"),)
