"""Further labelled rows that certify a promise, so that all of validation can choose."""

from __future__ import annotations

from pathlib import Path

from dimec.core.errors import OptionError
from dimec.core.options import LabelledColumns
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset, load_labelled
from dimec.data.likeness import stand_in
from dimec.deploying.ladder import Certifying
from dimec.runs.exit_table import TierTables
from dimec.runs.run import Run
from dimec.training.tabulate import tabulate_dataset
from dimec.training.texts import RunTexts, SplitName


def read_certifying(
    run: Run,
    path: str | Path,
    *,
    columns: LabelledColumns,
    option: str,
    progress: Progress = SILENT,
) -> tuple[TextDataset, Certifying]:
    """Read labelled rows that neither trained a run nor chose anything in it, and what the run's exits say of them.

    Args:
        columns: Where its texts and labels are; by default where the run's own were.

    Raises:
        DataError: If the rows cannot be used.
        OptionError: If a row is one of the run's training or validation rows, after folding, or if these cannot be
            read any more.
    """
    task = run.config.task
    given = LabelledColumns(
        **{name: getattr(columns, name) for name in LabelledColumns.model_fields}
    )
    dataset = load_labelled(
        task.name,
        data=path,
        label_names=task.label_names,
        pairs=task.pairs,
        reader="the run was fitted on",
        columns=run.config.options if given == LabelledColumns() else given,
        progress=progress,
        option=option,
    )
    texts = RunTexts(run, progress=progress)
    splits: tuple[tuple[SplitName, str], ...] = (("train", "trained"), ("validation", "chose"))
    for split, did in splits:
        both = stand_in(dataset, texts.of(split))
        if both.any():
            text = dataset.first[int(both.argmax())]
            raise OptionError(
                f"{option} {path}: {int(both.sum()):,} of its {len(dataset):,} rows are {split} rows of {run.folder}, "
                f"such as {text[:60]!r}; rows that {did} certify nothing: give others"
            )
    table = tabulate_dataset(run, dataset, progress=progress)
    return dataset, Certifying(TierTables(table), table.predictions[:, -1])
