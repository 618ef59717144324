"""Evaluating a bundle: its exported files tabulate a labelled file, its fitted policy is replayed beside the controls.

Nothing is fitted here, and nothing needs torch.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dimec.bundle import load_bundle
from dimec.bundle.tabulate import read_samples, tabulate_bundle
from dimec.core.errors import OptionError
from dimec.core.options import flags_of
from dimec.core.progress import SILENT, Progress
from dimec.costs.billing import Billing
from dimec.data import load_labelled
from dimec.evaluation.classes import class_details
from dimec.evaluation.options import EvaluateOptions, ModelOptions
from dimec.evaluation.recommendation import replayed_sentence
from dimec.evaluation.results import Evaluation
from dimec.evaluation.rows import Lineup, evaluate
from dimec.policies.replay import replay
from dimec.runs.baselines import warnings_of

_OF_RUNS = (
    *("max_drop", "like", "cuts", "price", "costs", "spread"),
    *("audit_rate", "slack", "recalibrate", "guard"),
    *("mobile_layers", "edge_layers"),
    *ModelOptions.model_fields,
)
"""What a policy is fitted to, which that of a bundle is already."""


def evaluate_bundle(
    folder: str | Path, options: EvaluateOptions, *, progress: Progress = SILENT
) -> Evaluation:
    """Replay a bundle's policy over a labelled file, at the costs and the price that it was fitted at.

    Raises:
        BundleError: If the bundle is faulty, or lacks a tier.
        OptionError: If there is no ``data``, it does not fit, or something is asked for that only a run can do.
        DataError: If ``data`` cannot be used.
        MissingExtraError: If the engine is not installed.
    """
    own = load_bundle(folder, verify=False).mobile.manifest.policy
    others = [name for name in options.policies if name not in ("all", own)]
    if others:
        raise OptionError(
            f"--policy {others[0]}: {folder} is a bundle and holds {own} alone; export another one, or evaluate the run"
        )
    for name in _OF_RUNS:
        if getattr(options, name) != EvaluateOptions.model_fields[name].default:
            raise OptionError(
                f"{flags_of(EvaluateOptions, name)[0]} changes what a policy is fitted to, and that of {folder} is "
                "fitted already: leave it out, or evaluate the run"
            )
    billing = Billing.of(options.profile, options.unit)
    bundle = load_bundle(folder)
    manifest = bundle.mobile.manifest
    if options.data is None:
        raise OptionError(
            f"{folder} is a bundle, which carries no texts: give a labelled file with --data FILE, "
            "or evaluate the run that it was exported from"
        )
    policy = bundle.mobile.policy()
    dataset = load_labelled(
        manifest.task.name,
        data=options.data,
        label_names=manifest.label_names,
        pairs=manifest.task.pairs,
        reader="the bundle reads",
        columns=options,
        progress=progress,
    )
    samples = read_samples(bundle.mobile, dataset, progress=progress)
    tables = tabulate_bundle(bundle, samples, engine=options.engine or "auto", progress=progress)
    played = replay(policy, tables, costs=manifest.costs)
    metric = manifest.task.metric
    told = {
        "label_mapping": dict(dataset.label_mapping),
        "summary": replayed_sentence(
            manifest.policy,
            tables.encoder,
            played,
            metric=metric,
            costs=manifest.costs,
            seed=options.seed,
        ),
        "classes": class_details(tables.encoder, played.predictions, confidence=played.confidence),
        "warnings": warnings_of(tables.encoder, metric=metric, rows="these texts"),
    }
    fitted, behind = {manifest.policy: policy}, []
    if tables.restored is not None:
        # The row of a bottleneck is called by its name, as in an evaluation of the run.
        behind = [Lineup(tables, {tables.restored.name: policy}, manifest.costs)]
        fitted, tables = {}, replace(tables, restored=None)
    with progress.stage("Replaying", 1) as advance:
        found = evaluate(
            tables,
            fitted,
            task=manifest.task.name,
            source=dataset.source,
            metric=metric,
            costs=manifest.costs,
            price=manifest.price,
            billing=billing,
            lineups=behind,
            shuffles=options.shuffles,
            seed=options.seed,
            done=lambda: advance(1),
        )
    return found.model_copy(update=told)
