"""Write a bundle from a run: graphs, tokenizer, policy, manifests, in a folder that appears whole or not at all.

Without quantisation the exported files compute what torch does, so the policy is fitted on the run's own validation
table. With it, everything that a policy fits is fitted again on tables made by the exported files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dimec.bundle import Bundle, is_bundle, load_bundle
from dimec.bundle.manifest import BUNDLE_FILES, REPORT, Promise
from dimec.bundle.tabulate import Samples, read_samples, tabulate_bundle, tabulate_tier
from dimec.core.errors import OptionError
from dimec.core.files import replacing, write_json
from dimec.core.guard_settings import check_guarded
from dimec.core.outputs import check_replaceable, holding, keep_others
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.model import DEFAULT_PRICE, CostModel
from dimec.data import TextDataset
from dimec.deploying.bottlenecks import check_travels, named_bottleneck
from dimec.deploying.certifying import read_certifying
from dimec.deploying.changes import make_report
from dimec.deploying.export_report import ExportReport
from dimec.deploying.ladder import run_calibration
from dimec.deploying.options import CASCADES, ExportOptions
from dimec.deploying.promised import PromiseRequest
from dimec.deploying.writing import BundleWriter
from dimec.evaluation.cuts import Cut, best_cuts
from dimec.evaluation.dial import Choice, choose, fit
from dimec.evaluation.other_models import Others, line_up
from dimec.evaluation.recommendation import recommend
from dimec.evaluation.tier_models import with_models
from dimec.policies import Calibration, Policy, named
from dimec.policies.cascade import DimecCascade
from dimec.policies.guarded import DimecGuarded
from dimec.runs.exit_table import TierTables
from dimec.runs.run import Run
from dimec.training.model import load_model
from dimec.training.texts import split_texts
from dimec.training.weighing import weigh_like


def export(
    run: Run, options: ExportOptions, *, out: Path, progress: Progress = SILENT
) -> ExportReport:
    """Export a run as a bundle; one that is in the folder already is replaced.

    Where tiers are quantised, the float model's tables choose among cuts, and a promise is held against the float
    model. A policy is fitted by the profile's prices; answers report their costs by the cost model.

    Raises:
        OptionError: If nothing can be promised, the policy or the encoder cannot be exported, ``out`` holds something
            else, or quantising needs texts that the run did not keep.
        RunError: If the run's model or tables cannot be read, or its model is too small for three tiers.
    """
    profile = options.profile if isinstance(options.profile, str | Path) else None
    inputs = {"RUN": run.folder, "--profile": profile}
    check_replaceable(out, "bundle", is_bundle, inputs=inputs)
    policy, guard = options.policy, options.guard_settings
    check_guarded(guard, [policy])
    billing = Billing.of(options.profile, options.unit, costs=options.costs)
    others = Others(run, billing=billing)
    if options.has_models:
        _check_models(options)
        # Models are asked about held-out rows only where something is said of these.
        test = None if options.promises or options.price is not None else run.test
        others = line_up(run, options, billing, table=test, progress=progress)
        run, billing = others.run, others.billing
        if unwritten := set(others.models) - set(others.asked):
            tier = min(unwritten, key=TIERS.index)
            raise OptionError(
                f"--{tier}-model {options.model_of(tier)}: a bundle holds one encoder, and beside it models that a "
                f"server asks: leave it out, or for the edge give chat:, tei:, oip: or table:"
            )
    price = DEFAULT_PRICE if options.price is None else options.price
    costs = fitting_costs(billing, options.costs, run.validation)
    calibration = run_calibration(run, price=price, costs=costs)
    if options.cuts is not None and policy not in CASCADES:
        raise OptionError(
            f"--cuts can be compared for {' and '.join(CASCADES)} only: with --policy {policy} set one cut by "
            "--mobile-layers and --edge-layers"
        )
    compared: Sequence[Cut] = (
        run.cut(mobile_layers=options.mobile_layers, edge_layers=options.edge_layers),
    )
    if policy in CASCADES and (options.price is None or options.cuts is not None):
        compared = run.cuts(
            options.cuts, mobile_layers=options.mobile_layers, edge_layers=options.edge_layers
        )
    if policy == DimecGuarded.name:
        compared = _with_cloud(compared)
    calibration, compared = with_models(calibration, compared, others.models)
    if guard is not None:
        calibration = replace(calibration, guard=guard)
    behind = named_bottleneck(run, policy)
    if behind is not None:
        check_travels(options)
        policy = behind.kind
        calibration = replace(calibration, restored=behind.saved(run, "validation"))
    wanted, choice, certifying, certifying_texts = None, None, None, None
    cloud_predictions = run.validation.predictions[:, -1]
    if options.promises:
        wanted = PromiseRequest(options, cloud_predictions)
        if options.certify is not None:
            certifying_texts, certifying = read_certifying(
                run, options.certify, columns=options, option="--certify", progress=progress
            )
    elif policy in CASCADES and options.price is None:
        if options.like is not None:
            weights = weigh_like(run, options.like, columns=options, progress=progress)
            calibration = replace(calibration, weights=weights)
        choice = _choose(run, options, calibration, compared, progress=progress)
        candidate = choice.candidate
        price = price if candidate.price is None else candidate.price
        calibration = replace(calibration, depths=candidate.cut, price=price)
        compared = (candidate.cut,)

    def fitted(on: Calibration, among: Sequence[Cut]) -> tuple[Policy, Promise | None, Calibration]:
        if wanted is not None:
            return wanted.of(
                on, among, certifying=certifying, n_labelled=run.n_labelled, progress=progress
            )
        if choice is not None and policy == DimecCascade.name:
            return fit(choice.candidate, on, like=cloud_predictions), None, on
        on = replace(on, depths=best_cuts(on, among, [on.price], progress=progress)[0])
        return _fit(policy, on, tails=options.tails), None, on

    before, promise, calibration = fitted(calibration, compared)
    texts = _validation_texts(run) if options.quantize else None
    loaded = load_model(run.model_folder)
    with holding(out, doing="exporting to"), replacing(out) as folder:
        writer = BundleWriter(
            run,
            before,
            loaded,
            frozenset(options.quantize),
            datatype=options.datatype,
            behind=behind,
            costs=calibration.costs if others.asked else options.costs or CostModel(),
            currency=billing.currency if others.asked and billing is not None else None,
            asked=others.asked,
        )
        writer.write_graphs(folder, progress=progress)
        writer.write_manifests(folder, before, calibration, promise)
        tables, after = replace(calibration.tables, restored=calibration.restored), before
        torch_tables = tables
        if texts is not None:
            bundle = load_bundle(folder)
            samples = read_samples(bundle.mobile, texts, progress=progress)
            samples = replace(samples, dynamics=run.validation.dynamics)
            if others.asked:
                tables = _with_quantised(bundle, samples, calibration, progress=progress)
            else:
                tables = tabulate_bundle(bundle, samples, progress=progress)
            calibration = _calibration_on(tables, calibration, before)
            if certifying is not None and certifying_texts is not None:
                samples = read_samples(bundle.mobile, certifying_texts, progress=progress)
                made = tabulate_bundle(bundle, samples, progress=progress)
                certifying = replace(certifying, tables=made)
            after, promise, calibration = fitted(calibration, [calibration.depths])
            writer.write_manifests(folder, after, calibration, promise)
        report = make_report(
            writer,
            load_bundle(folder),
            out=out,
            billing=billing,
            before=before,
            after=after,
            torch_tables=torch_tables,
            tables=tables,
            calibration=calibration,
            promise=promise,
        )
        if choice is not None and policy == DimecCascade.name:
            weights = None
            if options.like is not None and choice.weights is not None:
                weights = weigh_like(run, options.like, split="test", columns=options)
            found = recommend(
                choice,
                TierTables(run.test, {tier: each.table for tier, each in others.models.items()}),
                metric=run.config.task.metric,
                max_drop=options.max_drop,
                costs=calibration.costs,
                billing=billing,
                weights=weights,
                cloud_model=run.cloud_model,
            )
            report = report.model_copy(update={"recommendation": found})
        kept = report.model_copy(update={"bundle": out.name})  # no path of this machine
        write_json(folder / REPORT, kept.model_dump(mode="json"))
        keep_others(out, BUNDLE_FILES, into=folder)
    progress.say(f"{out}: exported, checked against torch and loaded back")
    return report


def _check_models(options: ExportOptions) -> None:
    """Refuse what an export with models of others cannot have."""
    flag = next(f"--{tier}-model" for tier in TIERS if options.model_of(tier) is not None)
    faults = {
        f"--policy {options.policy}": options.policy not in CASCADES,
        "--tails": options.tails,
        f"--certify {options.certify}": options.certify is not None,
        f"--like {options.like}": options.like is not None,
    }
    for given in (name for name, is_given in faults.items() if is_given):
        raise OptionError(
            f"{given} cannot be had with {flag}, whose model answers texts, and was asked about the run's own rows: "
            "leave out one of them"
        )


def _with_quantised(
    bundle: Bundle, samples: Samples, calibration: Calibration, *, progress: Progress
) -> TierTables:
    """Return the tables of tiers of which some ask models of others and some of the rest hold 8-bit weights."""
    models = dict(calibration.models)
    said, unseen = bundle.mobile.exit_zero().read_all(samples.tokens.whole)
    for tier in TIERS:
        held = bundle.of(tier)
        assert held is not None  # it was just written
        if held.manifest.quantized and not held.asks:
            table = tabulate_tier(held, samples, progress=progress)
            models[tier] = replace(table, exit_zero=said, unseen=unseen)
    return TierTables(calibration.table, models)


def _choose(
    run: Run,
    options: ExportOptions,
    calibration: Calibration,
    cuts: Sequence[Cut],
    *,
    progress: Progress,
) -> Choice:
    """Choose what to export for the drop that is allowed; a guard needs a cascade.

    Raises:
        OptionError: If a guard would have nothing to guard.
    """
    guarded = options.policy == DimecGuarded.name
    choice = choose(
        calibration,
        cuts,
        metric=run.config.task.metric,
        max_drop=options.max_drop,
        cascades_only=guarded,
        progress=progress,
    )
    if guarded and choice.candidate.way == "all-cloud":
        raise OptionError(
            f"--policy {options.policy}: no cascade is expected to stay within {options.max_drop:g} points of "
            "all-cloud, so there is nothing to guard: allow more with --max-drop, or give --price"
        )
    return choice


def _with_cloud(cuts: Sequence[Cut]) -> Sequence[Cut]:
    """Return the cuts of which a cascade asks the cloud, where a guard has its audits answered.

    Raises:
        OptionError: If there is none.
    """
    method = DimecGuarded.method
    kept = [cut for cut in cuts if not cut[method].device_alone]
    if not kept:
        layers = cuts[0][method].cloud
        raise OptionError(
            f"--cuts {layers}/{layers} asks no server, and {DimecGuarded.name} has its audits answered in the cloud: "
            "give other cuts, or another policy"
        )
    return kept


def _fit(name: str, calibration: Calibration, *, tails: bool) -> Policy:
    """Fit a policy that the bundle will be able to run."""
    kind = named([name])[name]
    lack = kind.missing_input(calibration)
    if lack is not None:
        raise OptionError(
            f"--policy {name} needs {lack.needs}, which this run lacks: choose another policy, "
            f"or fit with --{lack.option[0].replace('_', '-')} {lack.option[1]}"
        )
    policy = kind.fit(calibration)
    ships = kind.bottleneck is None and any(step.resumes for step in policy.endpoints())
    if ships and not tails:
        raise OptionError(
            f"--policy {name} ships hidden states to another tier: give --tails too, which lets tiers go on from them"
        )
    return policy


def _validation_texts(run: Run) -> TextDataset:
    """Read the texts that quantised tiers are calibrated on."""
    if not (run.folder / "texts.parquet").exists():
        raise OptionError(
            f"--quantize fits thresholds and centroids again on the validation texts, and {run.folder} kept none "
            "(--no-texts): fit it again with --keep-texts, or export without --quantize"
        )
    texts = split_texts(run, "validation")
    rows = run.validation.row_ids  # some are left out where another model did not answer them
    if len(rows) == len(texts):
        return texts
    return texts.take(np.flatnonzero(np.isin(texts.row_ids, rows)))


def _calibration_on(tables: TierTables, torch_made: Calibration, policy: Policy) -> Calibration:
    """Return a calibration on tables that the exported files made."""
    used = {step.tier for step in policy.endpoints()}
    if len(used) == 1:
        # A policy of one tier is fitted from a single table: that of its tier.
        return replace(torch_made, table=tables.of(used.pop()))
    if tables.models and not policy.any_model:
        raise OptionError(
            f"--policy {policy.name} reads all tiers as one encoder: quantise all of them, or none"
        )
    return replace(
        torch_made, table=tables.encoder, models=dict(tables.models), restored=tables.restored
    )
