"""Labelled text from wherever it is: a file, a folder, the hub, or the built-in corpus.

`load_dataset` takes a task's name and, where the rows are the user's, a path; it gives a `TextDataset` whose rows all
hold text and a known label. `load_labelled` does so for a model that is trained already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from dimec.core.errors import DataError, OptionError, shown
from dimec.core.metrics import Metric, f1_of
from dimec.core.options import Frame, LabelledColumns
from dimec.core.progress import SILENT, Progress
from dimec.data.builtin import reviews
from dimec.data.classes import find_class
from dimec.data.columns import Table
from dimec.data.dataset import TextDataset
from dimec.data.files import SUFFIXES, frame_table, open_table
from dimec.data.hub import open_hub
from dimec.data.tasks import TASKS, Task, find_task, plain_name
from dimec.data.texts import read_labelled

# `train.csv`, and the hub's own `train-00000-of-00001.parquet`.
_TRAIN_STEM = re.compile(r"train(-[0-9]+-of-[0-9]+)?")

# GLUE's CoLA has no header line; these names are ours.
_COLA_COLUMNS = ("origin", "label", "author_mark", "sentence")
# GLUE's QQP has a few questions that are broken over two lines, and a few that are empty. Who loads a published set
# cannot mend it, so that a handful is left out; more of them are told.
_QQP_COLUMNS = ("id", "qid1", "qid2", "question1", "question2", "is_duplicate")
_MAX_DEFECTS = 20

BY_NAME = LabelledColumns()
"""Columns are found by their names, and every row has to have a text and a label."""


def load_dataset(
    task: str,
    *,
    data: str | Path | None = None,
    columns: LabelledColumns = BY_NAME,
    metric: Metric | None = None,
    positive: str | None = None,
    label_names: Sequence[str] | None = None,
    min_classes: int = 2,
    fold_labels: bool = False,
    time_column: str | None = None,
    option: str = "--data",
) -> TextDataset:
    """Load the labelled rows of a task.

    A name outside the registry is a user's own task: its classes are those found, its metric is accuracy by default.
    Without ``data`` the rows come from the hub, those of ``reviews`` from the generator. ``label_names`` are classes
    that a trained run knows. ``positive`` is the class that an F1 is of, which it then is scored by. Where
    ``columns`` leaves out rows without text or label, ``source`` says how many. ``fold_labels`` makes one class of
    those that look alike. ``time_column`` says when each row was made. Messages call the option that gave the path
    ``option``.

    Raises:
        DataError: a file, row, column or label cannot be used.
        OptionError: the task is unknown and has no data, or an option does not fit.
        UnreachableError: the hub cannot be reached or lacks the set.
        MissingExtraError: parquet files or the hub need an install.
    """
    known = find_task(task)
    if positive is not None and metric not in (None, "f1"):
        raise OptionError(
            f"--positive {shown(positive)} is for --metric f1, and --metric is {metric}: leave one of them out"
        )
    if data is None and known is None:
        raise OptionError(
            f"the task {task!r} is not one of {', '.join(TASKS)}; give its rows with --data FOLDER|FILE"
        )
    if data is None and known is not None and known.hub is None:
        if time_column is not None:
            raise OptionError(
                f"--time-column {time_column}: the built-in {task} have no times; use another --split"
            )
        dataset = _reviews()
    else:
        if label_names is None and known is not None:
            label_names = known.label_names
        with _open_source(task, known, data, option) as (table, max_defects):
            dataset = read_labelled(
                table,
                known or task,
                columns,
                label_names=label_names,
                min_classes=min_classes,
                max_left_out=max_defects,
                fold_labels=fold_labels,
                time_column=time_column,
            )
    if positive is not None:
        metric = f1_of(find_class(positive, dataset.task.label_names, option="--positive"))
    elif metric == "f1" and dataset.task.n_classes > 2:
        raise OptionError(
            f"--metric f1 is of one class, and {dataset.task.name} has {dataset.task.n_classes}: name the class with "
            "--positive, or use macro-f1, balanced-accuracy, matthews or accuracy"
        )
    return replace(dataset, task=replace(dataset.task, metric=metric or dataset.task.metric))


def load_labelled(
    task: str,
    *,
    data: str | Path,
    label_names: Sequence[str],
    pairs: bool,
    reader: str,
    columns: LabelledColumns = BY_NAME,
    progress: Progress = SILENT,
    option: str = "--data",
) -> TextDataset:
    """Load labelled rows for a trained model, as `load_dataset` does; a single class may be all there is.

    Labels that only mean a class, such as codes, are told to ``progress``. ``pairs`` is whether the model reads pairs
    of texts; ``reader`` begins the clause that says so, such as "the bundle reads".

    Raises:
        OptionError: the rows hold single texts for a model of pairs, or the other way round.
        DataError: as `load_dataset`.
    """
    dataset = load_dataset(
        task, data=data, columns=columns, label_names=label_names, min_classes=1, option=option
    )
    if (dataset.second is not None) != pairs:
        raise OptionError(
            f"{option} {data} holds {'pairs of texts' if dataset.second else 'single texts'}, but {reader} "
            f"{'pairs' if pairs else 'single texts'}: name the columns with --text-column"
            f"{' and --pair-column' if pairs else ''}"
        )
    if dataset.mapping_words:
        progress.say(dataset.mapping_words)
    return dataset


def find_file(path: Path, task: str, option: str = "--data") -> Path:
    """Find the file that holds a task's rows: of a folder ``train.*``, else its only table, else the task's sub-folder.

    Raises:
        DataError: there is none, or several.
    """
    if not path.exists():
        raise DataError(f"there is no such file or folder; check {option}", source=path)
    if not path.is_dir():
        return path
    try:
        entries = sorted(entry for entry in path.iterdir() if not entry.name.startswith("."))
    except OSError as exc:
        raise DataError(f"cannot be listed ({exc.strerror}); check rights", source=path) from exc
    files = [entry for entry in entries if entry.is_file() and entry.suffix.lower() in SUFFIXES]
    training = [file for file in files if _TRAIN_STEM.fullmatch(file.stem.lower())]
    candidates = training or files
    if len(candidates) == 1:
        return candidates[0]
    name = plain_name(task)
    folders = [each for each in entries if each.is_dir() and plain_name(each.name) == name]
    if not training and len(folders) == 1:
        return find_file(folders[0], task, option)
    if candidates:
        listed = ", ".join(file.name for file in candidates[:20])
        raise DataError(
            f"several files could hold the rows ({listed}); give one of them with {option}",
            source=path,
        )
    held = ", ".join(entry.name for entry in entries[:20]) or "nothing"
    raise DataError(
        f"the folder holds no table and no folder called {task!r}, but {held}; "
        f"give a file with one of the suffixes {', '.join(SUFFIXES)}",
        source=path,
    )


@contextmanager
def _open_source(
    task: str, known: Task | None, data: str | Path | None, option: str
) -> Iterator[tuple[Table, int]]:
    """Open a table; also give how many defective rows it may have."""
    if data is None:
        assert known is not None, "load_dataset has refused a task without rows"
        yield open_hub(known), _MAX_DEFECTS
        return
    if isinstance(data, Frame):
        yield frame_table(data), 0
        return
    path = find_file(Path(data), task, option)
    header: tuple[str, ...] | None = None
    is_qqp = False
    if path.suffix.lower() == ".tsv" and known is not None:
        with open_table(path) as table:
            columns = table.columns
        is_qqp = known.name == "qqp" and columns == _QQP_COLUMNS
        # Where CoLA's header would be stands its first row: origin, 0 or 1, a mark, a sentence.
        if known.name == "cola" and len(columns) == 4 and columns[1] in ("0", "1"):
            header = _COLA_COLUMNS
    with open_table(path, header=header, allow_ragged=is_qqp) as table:
        yield table, _MAX_DEFECTS if is_qqp else 0


_reviews = lru_cache(maxsize=1)(reviews)
