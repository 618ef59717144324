"""The options of studies and reports."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from dimec.core.options import Options, option, parts
from dimec.costs.model import DEFAULT_PRICE
from dimec.evaluation.options import PRICE_HELP, DialOptions

_of_runs = partial(option, group="Runs")


class StudyOptions(Options):
    """What a user chooses for a study."""

    tasks: Annotated[tuple[str, ...], BeforeValidator(parts)] = option(
        (), "Tasks.", basic=True, metavar="TASK,…", shown_default="the study's own", cli=str
    )
    data: Path | None = option(
        None,
        "A folder with a folder or a file for each task.",
        basic=True,
        metavar="ROOT",
        shown_default="the hub",
    )
    backbone: str = _of_runs("minilm", "The pretrained encoder that is fitted.", basic=True)
    pooling: Literal["attention", "mean", "cls", "pooler"] = _of_runs(
        "mean", "What an exit reads; mean or cls as in the papers, pooler as in DIMEE's code."
    )
    epochs: int = _of_runs(5, "Epochs of a fit.", basic=True, ge=1, le=100)
    seeds: int | None = _of_runs(
        None,
        "Seeds that each fit is repeated with.",
        basic=True,
        shown_default="3 where a fit takes under ten minutes, else 1",
        ge=1,
        le=20,
    )
    max_rows: int | None = _of_runs(None, "Rows of a task at most.", ge=30)
    fitted: bool = _of_runs(
        False,
        "Fit nothing: take each task's run of the backbone, pooling and seed in --runs, whatever its epochs and rows, "
        "and leave out tasks that have none. Such a run needs no more than its exit tables, and no --data.",
    )
    price: float = option(DEFAULT_PRICE, PRICE_HELP, basic=True, ge=0, allow_inf_nan=False)
    runs: Path = _of_runs(
        Path("runs"),
        "Folder of runs: a run of the wanted options and rows is read, whatever its name; a missing one is fitted "
        "into it.",
        basic=True,
    )


class ReportOptions(DialOptions):
    """What a user chooses for the page of a run."""
