"""The verbs of the command line as functions; their keywords are the command line's options.

All of them raise `OptionError` where an option is not allowed, and `MissingExtraError` where an install is missing.
``progress`` is told how far they are; by default there are bars where there is a terminal or a notebook.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dimec.bundle import is_bundle
from dimec.core.errors import OptionError
from dimec.core.extras import needs_bulk, needs_report, needs_training
from dimec.core.options import checked, command_line, takes
from dimec.core.outputs import check_output_file, check_output_folder
from dimec.core.progress import Progress, visible
from dimec.corpus.options import BulkOptions
from dimec.costs.model import DEFAULT_PRICE
from dimec.deploying.options import ExportOptions, PlanOptions
from dimec.evaluation.bundle_evaluation import evaluate_bundle
from dimec.evaluation.options import EvaluateOptions, FrontierOptions
from dimec.evaluation.results import Evaluation, Frontier
from dimec.evaluation.setup import EvaluationSetup
from dimec.reporting.results import RESULT_FILE
from dimec.runs.baselines import baseline_warnings
from dimec.runs.compressed import Compressed, CompressOptions
from dimec.runs.run import FitOptions, Run
from dimec.studies.options import ReportOptions, StudyOptions

if TYPE_CHECKING:
    from typing import Unpack

    from dimec.corpus.job import BulkSummary
    from dimec.deploying.export_report import ExportReport
    from dimec.deploying.planning import Plan
    from dimec.keywords import (
        BulkKeywords,
        CompressKeywords,
        EvaluateKeywords,
        ExportKeywords,
        FitKeywords,
        FrontierKeywords,
        PlanKeywords,
        ReportKeywords,
        StudyKeywords,
    )
    from dimec.reporting import Written
    from dimec.reporting.results import Result
    from dimec.training import SearchResult


@takes(FitOptions)
def fit(
    task: str,
    *,
    out: str | Path,
    report_to: str | tuple[str, ...] = (),
    restart: bool = False,
    progress: Progress | None = None,
    **options: Unpack[FitKeywords],
) -> Run:
    """Train a multi-exit encoder on a task and return its run; resumes a fit that was stopped.

    Args:
        task: A registered task, or a name of your own for the data you give.
        out: The run's folder.
        report_to: Trackers that are told of every epoch, of tensorboard, mlflow and wandb; they must be installed.
        restart: Replace what the folder holds.

    Raises:
        DataError: If the data cannot be used.

    Example:
        >>> run = dimec.fit("tickets", data="tickets.csv", out="runs/tickets", epochs=3)
    """
    chosen = checked(FitOptions, {"task": task, **_by_split(options)})
    with needs_training():
        from dimec import training
    return training.fit(
        chosen, out=out, restart=restart, report_to=report_to, progress=visible(progress)
    )


@takes(FitOptions)
def search(
    task: str,
    *,
    out: str | Path,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Unpack[FitKeywords],
) -> SearchResult:
    """Fit the papers' grid of batch sizes and learning rates and return the run that validation prefers.

    Takes what `fit` takes, and raises what it raises.

    Example:
        >>> best = dimec.search("tickets", data="tickets.csv", out="runs/tickets").run
    """
    chosen = checked(FitOptions, {"task": task, **_by_split(options)})
    with needs_training():
        from dimec import training
    return training.search(chosen, out=out, restart=restart, progress=visible(progress))


@takes(CompressOptions)
def compress(
    run: Run | str | Path,
    *,
    restart: bool = False,
    progress: Progress | None = None,
    **options: Unpack[CompressKeywords],
) -> Compressed:
    """Learn a bottleneck for split computing in a run; resumes a training that was stopped.

    Args:
        run: A finished run or its folder.
        restart: Replace what an earlier training of this kind, layer, width and channel left.

    Raises:
        RunError: If there is no finished run, or it is damaged.
        OptionError: If the run did not keep its texts.

    Example:
        >>> dimec.compress("runs/sst2", kind="bottlefit", layer=2, width=16).scores.test.accuracy
    """
    chosen = checked(CompressOptions, options)
    run = Run.of(run)
    with needs_training():
        from dimec.training.compressing import compress as train
    return train(run, chosen, restart=restart, progress=visible(progress))


@takes(EvaluateOptions)
def evaluate(
    run: Run | str | Path,
    *,
    progress: Progress | None = None,
    **options: Unpack[EvaluateKeywords],
) -> Evaluation:
    """Recommend what to deploy, by validation, and hold it against the controls on the test split or data of yours.

    With ``price`` nothing is recommended: policies are fitted at it on validation, and replayed. The policy of a bundle
    is fitted already: it is replayed over ``data`` as the exported files see it.

    Args:
        run: A finished run or its folder, or the folder of a bundle.

    Raises:
        RunError: If there is no finished run, or its model is too small for three tiers.
        OptionError: If no policy can be run, or a run is given an engine.
        DataError: If ``data`` cannot be used.

    Example:
        >>> dimec.evaluate("runs/sst2", policies=["dimec-cascade"], price=0.2).rows[0].cost_vs_cloud
    """
    progress = visible(progress)
    chosen = checked(EvaluateOptions, options)
    if not isinstance(run, Run) and is_bundle(run):
        return evaluate_bundle(run, chosen, progress=progress)
    run = Run.of(run)
    if chosen.engine is not None:
        raise OptionError(
            f"--engine {chosen.engine} is for bundles, and {run.folder} is a run: leave it out, or give a bundle of it"
        )
    policies = ("all",) if chosen.every_policy else chosen.policies
    setup = EvaluationSetup.of(run, chosen, progress=progress)
    warnings = baseline_warnings(setup.run)
    if chosen.price is not None:
        found = setup.evaluate(policies, price=chosen.price, progress=progress)
        return found.model_copy(update={"classes": setup.classes(), "warnings": warnings})
    like = chosen.like
    choice = setup.choose(chosen.max_drop, cuts=chosen.cuts, like=like, progress=progress)
    found = setup.evaluate(policies, price=DEFAULT_PRICE, choice=choice, progress=progress)
    about = {
        "recommendation": setup.recommend(choice, chosen.max_drop, like=like, progress=progress),
        "classes": setup.classes(choice),
        "warnings": warnings,
    }
    return found.model_copy(update=about)


@takes(FrontierOptions)
def frontier(
    run: Run | str | Path,
    *,
    progress: Progress | None = None,
    **options: Unpack[FrontierKeywords],
) -> Frontier:
    """Evaluate policies at several prices, beside what `evaluate` recommends: at each, they are fitted on validation.

    Args:
        run: A finished run or its folder.

    Raises:
        OptionError: If there is no price; and what `evaluate` raises.

    Example:
        >>> curve = dimec.frontier("runs/sst2", prices=(0, 0.1, 0.5), policies=["dimec-cascade"])
    """
    progress = visible(progress)
    chosen = checked(FrontierOptions, options)
    if not chosen.prices:
        raise OptionError("--prices names no price: give at least one number from 0 up")
    setup = EvaluationSetup.of(run, chosen, progress=progress)
    like = chosen.like
    choice = setup.choose(chosen.max_drop, like=like, progress=progress)
    return Frontier(
        recommendation=setup.recommend(choice, chosen.max_drop, like=like, progress=progress),
        evaluations=[
            setup.evaluate(
                chosen.policies or ("all",),
                price=price,
                choice=choice,
                progress=progress,
                what=f"Price {price:g}",
            )
            for price in sorted(set(chosen.prices))
        ],
    )


@takes(PlanOptions)
def plan(
    run: Run | str | Path,
    *,
    progress: Progress | None = None,
    **options: Unpack[PlanKeywords],
) -> Plan:
    """Say what accuracy a run can promise against all-cloud, and at what cost; the test rows are not looked at.

    Args:
        run: A finished run or its folder.

    Raises:
        RunError: If there is no finished run, or its model is too small for three tiers.
        OptionError: If nothing is so cheap.

    Example:
        >>> dimec.plan("runs/sst2", max_drop=0.5).offers[0].cost_vs_cloud
    """
    chosen = checked(PlanOptions, options)
    with needs_training():
        from dimec.deploying import planning
    return planning.plan(Run.of(run), chosen, progress=visible(progress))


@takes(StudyOptions)
def study(
    name: str,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[StudyKeywords],
) -> tuple[Result, Path]:
    """Run a study of the papers and return its result with the folder that holds it; resumes one that was stopped.

    Args:
        name: One of `dimec.studies.running.STUDIES`.
        out: The result's folder; ``studies/NAME`` by default.

    Raises:
        OptionError: If there is no such study.
        DataError: If data cannot be used.

    Example:
        >>> result, folder = dimec.study("main", tasks=["cola", "mrpc"], seeds=1)
    """
    chosen = checked(StudyOptions, options)
    with needs_training():
        from dimec.studies.running import run_study
    folder = Path(out) if out is not None else Path("studies") / name
    return run_study(name, chosen, out=folder, progress=visible(progress)), folder


@takes(ReportOptions)
def report(
    folder: Run | str | Path,
    *,
    out: str | Path | None = None,
    progress: Progress | None = None,
    **options: Unpack[ReportKeywords],
) -> Written:
    """Make a page of a study's result, or of a run, with its figures and tables beside it.

    Args:
        folder: A study's folder, or a finished run or its folder, of which what a page shows is computed first.
        out: The page; ``report.html`` beside the results by default.

    Raises:
        RunError: If there is neither a result nor a finished run, or its model is too small for three tiers.
        OptionError: If ``max_drop`` or ``like`` is given for a study.

    Example:
        >>> dimec.report("runs/sst2", out="sst2.html").page
    """
    progress = visible(progress)
    chosen = checked(ReportOptions, options)
    with needs_report():
        from dimec.reporting import check_installed, write_report
    check_installed()
    page = None if out is None else Path(out)
    if page is not None:
        check_output_file(page, own=("*.html", "*.htm"))
    if not isinstance(folder, Run) and (Path(folder) / RESULT_FILE).exists():
        if chosen.model_fields_set:
            raise OptionError(
                f"--max-drop and --like are for a run, and {folder} is a study's result: leave them out"
            )
        return write_report(Path(folder), out=page, progress=progress)
    run = Run.of(folder)
    with needs_training():
        from dimec.studies.of_run import page_of_run
    where = run.folder / "report"
    check_output_folder(where)
    command = command_line("report", chosen, str(run.folder), **({"out": page} if page else {}))
    page_of_run(
        run,
        max_drop=chosen.max_drop,
        like=chosen.like,
        out=where,
        command=command,
        progress=progress,
    )
    return write_report(where, out=page, progress=progress)


@takes(ExportOptions)
def export(
    run: Run | str | Path,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **options: Unpack[ExportKeywords],
) -> ExportReport:
    """Export a run as a bundle: graphs per tier, tokenizer, fitted policy, manifests.

    With ``max_drop`` or ``budget`` it exports the cascade that `plan` offers, or puts that under a guard.

    Args:
        run: A finished run or its folder.
        out: The bundle's folder; a bundle that is there already is replaced.

    Raises:
        RunError: If there is no finished run, it cannot be read, or its model is too small for three tiers.
        OptionError: If ``out`` holds something else.

    Example:
        >>> dimec.export("runs/sst2", out="bundles/sst2", max_drop=0.5).promise
    """
    chosen = checked(ExportOptions, options)
    with needs_training():
        from dimec.deploying import export as exporting
    return exporting.export(Run.of(run), chosen, out=Path(out), progress=visible(progress))


@takes(BulkOptions)
def bulk(
    bundle: str | Path,
    *,
    out: str | Path,
    progress: Progress | None = None,
    **options: Unpack[BulkKeywords],
) -> BulkSummary:
    """Label a corpus into parquet files, each row once; goes on with a job that was killed.

    Args:
        bundle: The bundle's folder.
        out: Folder or URL of the answers.

    Raises:
        BundleError: If the bundle cannot be used.
        DataError: If there is no corpus, or a file of it cannot be read.
        OptionError: If the policy learns, no promise can be made of it, or ``out`` holds something else.
        MissingExtraError: If an install is missing.

    Example:
        >>> dimec.bulk("bundles/sst2", data="reviews/", out="answers", max_drop=0.5).sentence
    """
    chosen = checked(BulkOptions, options)
    with needs_bulk():
        from dimec.corpus.job import label_corpus

        return label_corpus(Path(bundle), chosen, out=str(out), progress=visible(progress))


def _by_split(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a fit, of a `DatasetDict` in ``data`` each split in its place."""
    splits = options.get("data")
    if not isinstance(splits, Mapping) or "train" not in splits:
        return dict(options)
    given = {each: splits[each] for each in ("validation", "test") if each in splits}
    return given | {**options, "data": splits["train"]}
