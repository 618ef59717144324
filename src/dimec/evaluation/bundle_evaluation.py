"""Evaluating a bundle: its exported files tabulate a labelled file, its fitted policy is replayed beside the controls.

Nothing is fitted here, and nothing needs torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dimec.bundle import load_bundle
from dimec.bundle.engines import EngineName
from dimec.bundle.tabulate import read_samples, tabulate_bundle
from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS
from dimec.costs.billing import Billing
from dimec.costs.pricing import Unit
from dimec.costs.profiles import CostProfile
from dimec.data import load_labelled
from dimec.evaluation import Evaluation, Lineup, evaluate
from dimec.evaluation.rows import SHUFFLES


def evaluate_as_fitted(
    folder: str | Path,
    policies: Sequence[str],
    *,
    progress: Progress,
    **given: Any,  # noqa: ANN401  what an evaluation of a run takes
) -> Evaluation:
    """Evaluate a bundle as `evaluate_bundle` does, once it is clear that nothing is asked for that only a run can do.

    Raises:
        OptionError: If something is; and what `evaluate_bundle` raises.
    """
    manifest = load_bundle(folder, verify=False).mobile.manifest
    others = [name for name in policies if name not in ("all", manifest.policy)]
    if others:
        raise OptionError(
            f"--policy {others[0]}: {folder} is a bundle and holds {manifest.policy} alone; export another one, or "
            "evaluate the run"
        )
    usual = {"spread": "deviation"}
    for name in (
        "price",
        "costs",
        "spread",
        "guard",
        *(f"{tier}_{part}" for tier in TIERS for part in ("layers", "model")),
    ):
        value = given.pop(name, None)
        if value is not None and value != usual.get(name):
            flags = {"costs": "--cost", "guard": "--audit-rate, --slack or --recalibrate"}
            flag = flags.get(name, f"--{name.replace('_', '-')}")
            raise OptionError(
                f"{flag} changes what a policy is fitted to, and that of "
                f"{folder} is fitted already: leave it out, or evaluate the run"
            )
    return evaluate_bundle(folder, progress=progress, **{"data": None, **given})


def evaluate_bundle(
    folder: str | Path,
    *,
    data: str | Path | None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    skip_empty: bool = False,
    skip_unlabelled: bool = False,
    profile: CostProfile | str | Path | None = None,
    unit: Unit = "lambda",
    shuffles: int = SHUFFLES,
    seed: int = 0,
    engine: EngineName = "onnxruntime",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> Evaluation:
    """Replay a bundle's policy over a labelled file, at the costs and the price that it was fitted at.

    Args:
        folder: The bundle.
        data: A labelled file or folder: a bundle carries no texts.
        text_column: Column of ``data`` with the (first) text.
        pair_column: Column of ``data`` with the second text.
        label_column: Column of ``data`` with the label.
        skip_empty: Leave out rows of ``data`` without text instead of stopping at them.
        skip_unlabelled: The same for rows without label.
        profile: Hardware and links that say what everything costs.
        unit: What costs are told in; the policy is fitted already, in whatever unit.
        shuffles: Over how many orders of the samples a policy that learns arms is averaged.
        seed: For bootstrap and shuffles.
        engine: What runs the graphs.
        threads: How many threads one run may use.
        progress: Is told what happens.

    Raises:
        BundleError: If the bundle is faulty, or lacks a tier.
        OptionError: If there is no ``data``, or it does not fit.
        DataError: If ``data`` cannot be used.
        MissingExtraError: If the engine is not installed.
    """
    billing = Billing.of(profile, unit)
    bundle = load_bundle(folder)
    manifest = bundle.mobile.manifest
    if data is None:
        raise OptionError(
            f"{folder} is a bundle, which carries no texts: give a labelled file with --data FILE, "
            "or evaluate the run that it was exported from"
        )
    policy = bundle.mobile.policy()
    dataset = load_labelled(
        manifest.task.name,
        data=data,
        label_names=manifest.label_names,
        pairs=manifest.task.pairs,
        reader="the bundle reads",
        text_column=text_column,
        pair_column=pair_column,
        label_column=label_column,
        skip_empty=skip_empty,
        skip_unlabelled=skip_unlabelled,
        progress=progress,
    )
    samples = read_samples(bundle.mobile, dataset, progress=progress)
    tables = tabulate_bundle(bundle, samples, engine=engine, threads=threads, progress=progress)
    fitted, behind = {manifest.policy: policy}, {}
    if tables.restored is not None:
        # The row of a bottleneck is called by its name, as in an evaluation of the run.
        behind[tables.restored.name] = Lineup(tables, fitted, manifest.costs)
        fitted, tables = {}, replace(tables, restored=None)
    with progress.stage("Replaying", 1) as advance:
        return evaluate(
            tables,
            fitted,
            task=manifest.task.name,
            source=dataset.source,
            metric=manifest.task.metric,
            costs=manifest.costs,
            price=manifest.price,
            billing=billing,
            bottlenecks=behind,
            label_mapping=dataset.label_mapping,
            shuffles=shuffles,
            seed=seed,
            done=lambda: advance(1),
        )
