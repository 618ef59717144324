"""Write a bundle from a run: graphs, tokenizer, policy, manifests, in a folder that appears whole or not at all.

Without quantisation the exported files compute what torch does, so the policy is fitted on the run's own validation
table. With it, everything that a policy fits is fitted again on tables made by the exported files.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dimec.bundle import (
    BundleTask,
    Provenance,
    TierManifest,
    file_info,
    fingerprint_of,
    is_bundle,
    load_bundle,
)
from dimec.bundle.engines.tier import EMBEDDING, LAYERS_GRAPH, TIER_GRAPH, segment_name
from dimec.bundle.hidden import HiddenType, Tails
from dimec.bundle.manifest import (
    BUNDLE_FILES,
    FORMAT,
    MANIFEST,
    POLICY,
    TOKENIZER,
    Promise,
    bottleneck_graphs,
    needed_files,
)
from dimec.bundle.tabulate import read_samples, tabulate_bundle
from dimec.bundle.tokenizer import TierTokenizer
from dimec.core.errors import ContractError, OptionError
from dimec.core.files import replacing, write_json
from dimec.core.metrics import Metric, confusion, score
from dimec.core.outputs import check_output_folder, check_replaceable, holding, keep_others
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS, Tier
from dimec.core.version import __version__
from dimec.costs.billing import Billing, fitting_costs
from dimec.costs.model import CostModel
from dimec.costs.profiles import CostProfile
from dimec.data import TextDataset, tokenize
from dimec.data.tasks import Task
from dimec.deploying.bottlenecks import ExportedBottleneck, check_travels
from dimec.deploying.compose import compose, compose_layers
from dimec.deploying.cuts import Cut, best_cuts
from dimec.deploying.export_report import ExportReport, PolicyChange, TierChange
from dimec.deploying.graphs import export_graphs, quantise
from dimec.deploying.options import ExportOptions
from dimec.deploying.planning import run_calibration
from dimec.deploying.promise import Assurance
from dimec.deploying.promised import PromiseRequest, check_comparing
from dimec.deploying.tails import plan_tails, report_tails
from dimec.evaluation import Replay, replay
from dimec.policies import Calibration, Policy, named, save_policies
from dimec.policies.guard_settings import check_guarded
from dimec.runs.exit_table import ExitTable, TierTables
from dimec.runs.exit_zero import EXIT_ZERO_FILE
from dimec.runs.run import Run
from dimec.training.model import LoadedModel, load_model
from dimec.training.texts import split_texts

_PROBES = ("", "A plain sentence.", "Ünïcode… 漢字 🙂", "no [SEP] <mask>", "word " * 9_000)


def export(
    run: Run, options: ExportOptions, *, out: Path, progress: Progress = SILENT
) -> ExportReport:
    """Export a run as a bundle; one that is in the folder already is replaced.

    Where tiers are quantised, the float model's tables choose among cuts, and a promise is held against the float
    model. A profile says what the policy is fitted by; what answers cost is told by the cost model all the same.

    Raises:
        OptionError: If nothing can be promised, the policy or the encoder cannot be exported, ``out`` holds something
            else, or quantising needs texts that the run did not keep.
        RunError: If the run's model or tables cannot be read, or its model is too small for three tiers.
    """
    _check_out(out, run, options.profile)
    policy, guard = options.policy, options.guard_settings
    check_guarded(guard, [policy])
    billing = Billing.of(options.profile, options.unit, costs=options.costs)
    calibration = run_calibration(
        run,
        price=options.price,
        costs=fitting_costs(billing, options.costs, run.validation),
    )
    compared = run.cuts(
        options.cuts, mobile_layers=options.mobile_layers, edge_layers=options.edge_layers
    )
    if options.cuts is not None:
        check_comparing(policy)
    if guard is not None:
        calibration = replace(calibration, guard=guard)
    behind = ExportedBottleneck.named(run, policy)
    if behind is not None:
        check_travels(options)
        policy = behind.policy
        calibration = replace(calibration, restored=behind.restored())
    wanted = None
    if options.max_drop is not None or options.budget is not None:
        wanted = PromiseRequest(
            policy,
            options.max_drop,
            options.budget,
            Assurance(options.assurance, options.over),
            run.validation.predictions[:, -1],
        )
        wanted.check(options)

    def fitted(on: Calibration, among: Sequence[Cut]) -> tuple[Policy, Promise | None, Calibration]:
        if wanted is not None:
            return wanted.of(on, among, progress=progress)
        on = replace(on, depths=best_cuts(on, among, [on.price], progress=progress)[0])
        return _fit(policy, on, tails=options.tails), None, on

    before, promise, calibration = fitted(calibration, compared)
    texts = _validation_texts(run) if options.quantize else None
    loaded = load_model(run.model_folder)
    with holding(out, doing="exporting to"), replacing(out) as folder:
        plan = _Plan.of(
            run,
            before,
            loaded,
            frozenset(options.quantize),
            datatype=options.datatype,
            behind=behind,
            costs=options.costs or CostModel(),
            billing=billing,
        )
        _write_graphs(plan, folder, progress=progress)
        _write_manifests(plan, folder, before, calibration, promise)
        tables, after = TierTables(run.validation, restored=calibration.restored), before
        if texts is not None:
            bundle = load_bundle(folder)
            samples = read_samples(bundle.mobile, texts, progress=progress)
            samples = replace(samples, dynamics=run.validation.dynamics)
            tables = tabulate_bundle(bundle, samples, progress=progress)
            calibration = _calibration_on(tables, calibration, before)
            after, promise, calibration = fitted(calibration, [calibration.depths])
            _write_manifests(plan, folder, after, calibration, promise)
        bundle = load_bundle(folder)
        report = _report(
            plan,
            folder,
            out=out,
            before=before,
            after=after,
            tables=tables,
            calibration=calibration,
            promise=promise,
        )
        keep_others(out, BUNDLE_FILES, into=folder)
    progress.say(f"{out}: exported, checked against torch and loaded back")
    return report


@dataclass(frozen=True, eq=False)
class _Plan:
    """What goes into which tier."""

    run: Run
    loaded: LoadedModel
    policy: str
    layers: Mapping[Tier, tuple[int, ...]]
    quantized: frozenset[Tier]
    tails: Mapping[Tier, Tails]
    behind: ExportedBottleneck | None
    costs: CostModel
    billing: Billing | None

    @classmethod
    def of(
        cls,
        run: Run,
        policy: Policy,
        loaded: LoadedModel,
        quantized: frozenset[Tier],
        *,
        datatype: HiddenType | None,
        behind: ExportedBottleneck | None,
        costs: CostModel,
        billing: Billing | None,
    ) -> _Plan:
        """Give every tier the exits that the policy may reach there, and at least those up to its depth."""
        last = {tier: policy.depths.of(tier) for tier in TIERS}
        for step in policy.endpoints():
            last[step.tier] = max(last[step.tier], step.layer)
        layers = {
            tier: tuple(layer for layer in run.config.exits if layer <= last[tier])
            for tier in TIERS
        }
        if behind is not None:
            planned = behind.tails()
        else:
            planned = plan_tails(
                policy,
                layers,
                n_layers=run.config.n_layers,
                width=loaded.model.adapter.width,
                datatype=datatype,
            )
        return cls(run, loaded, policy.name, layers, quantized, planned, behind, costs, billing)

    def files(self, tier: Tier) -> Iterator[str]:
        """Give the files of a tier beside its manifest."""
        return needed_files(tier, self.layers[tier], self.tails.get(tier))

    def graphs(self, tier: Tier) -> tuple[str, ...]:
        """Return the graphs of a tier that are pieces; edge and cloud have them as one too."""
        layers = self.layers[tier]
        also = bottleneck_graphs(tier, layers, self.tails.get(tier))
        return (EMBEDDING, *map(segment_name, layers), *also)


def _check_out(out: Path, run: Run, profile: CostProfile | str | Path | None) -> None:
    inputs = {"RUN": run.folder, "--profile": profile if isinstance(profile, str | Path) else None}
    check_output_folder(out, inputs=inputs)
    check_replaceable(out)
    if out.exists() and any(out.iterdir()) and not is_bundle(out):
        raise OptionError(
            f"--out {out} holds something else than a bundle: give an empty or a new folder"
        )


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
    return split_texts(run, "validation")


def _write_graphs(plan: _Plan, folder: Path, *, progress: Progress) -> None:
    """Write what every tier reads with: graphs, tokenizer, exit zero; pieces that several tiers hold are made once."""
    tokenizer = plan.loaded.tokenizer
    pieces = {False: folder / ".pieces", True: folder / ".quantized"}
    for each in pieces.values():
        each.mkdir()
    export_graphs(plan.loaded.model, pieces[False], progress=progress)
    if plan.behind is not None:
        plan.behind.write_graphs(pieces[False], progress=progress)
    graphs = {tier: plan.graphs(tier) for tier in TIERS}
    if plan.quantized:
        names = list(dict.fromkeys(name for tier in plan.quantized for name in graphs[tier]))
        with progress.stage("Quantising", len(names)) as advance:
            for name in names:
                quantise(pieces[False] / name, pieces[True] / name)
                advance(1)
    with progress.stage("Writing tiers", len(TIERS)) as advance:
        for tier in TIERS:
            source = pieces[tier in plan.quantized]
            target = folder / tier
            target.mkdir()
            tokenizer.backend_tokenizer.save(str(target / TOKENIZER))
            segments = [segment_name(layer) for layer in plan.layers[tier]]
            for name in graphs[tier]:
                shutil.copyfile(source / name, target / name)
            paths = [target / name for name in segments]
            compose_layers(paths, target / LAYERS_GRAPH)
            if tier is not Tier.MOBILE:
                compose(target / EMBEDDING, paths, target / TIER_GRAPH)
            advance(1)
    plan.run.exit_zero.save(folder / Tier.MOBILE / EXIT_ZERO_FILE)
    for each in pieces.values():
        shutil.rmtree(each)
    _check_tokenizer(plan, folder / Tier.MOBILE / TOKENIZER)


def _check_tokenizer(plan: _Plan, path: Path) -> None:
    """Hold the device's tokenizer against the one that the model was fitted with."""
    max_length, pairs = plan.run.config.options.max_length, plan.run.config.task.pairs
    texts = TextDataset(
        task=Task("probes", ("a", "b"), metric="accuracy", text_columns=("text",)),
        first=_PROBES,
        second=tuple(reversed(_PROBES)) if pairs else None,
        labels=np.zeros(len(_PROBES), dtype=np.int64),
        row_ids=np.arange(len(_PROBES)),
        source="probes",
    )
    wanted = tokenize(texts, plan.loaded.tokenizer, max_length=max_length)
    ours = TierTokenizer(
        path,
        max_length=max_length,
        pad_id=_pad_id(plan.loaded),
        pairs=pairs,
        token_types=wanted.token_type_ids is not None,
    ).encode(texts.first, texts.second)
    same = [
        np.array_equal(a, b)
        for left, right in (
            (wanted.input_ids, ours.input_ids),
            (wanted.token_type_ids or [], ours.token_type_ids or []),
        )
        for a, b in zip(left, right, strict=True)
    ]
    if not all(same) or not np.array_equal(wanted.payload_bytes, ours.payload_bytes):
        raise OptionError(
            "the tokenizer of this backbone says something else without transformers, so no device could use it: "
            "fit another backbone"
        )


def _pad_id(loaded: LoadedModel) -> int:
    pad_id = loaded.tokenizer.pad_token_id
    if not isinstance(pad_id, int):
        raise ContractError("a trained model's tokenizer has one padding id")
    return pad_id


def _write_manifests(
    plan: _Plan, folder: Path, policy: Policy, calibration: Calibration, promise: Promise | None
) -> None:
    """Write the policy, then a manifest per tier."""
    config = plan.run.config
    save_policies(folder / Tier.MOBILE, {policy.name: policy}, calibration, stem=POLICY)
    files = {
        tier: {name: file_info(folder / tier / name) for name in plan.files(tier)} for tier in TIERS
    }
    versions = {f"export.{name}": version(name) for name in ("torch", "onnxruntime", "onnx")}
    for tier in TIERS:
        manifest = TierManifest(
            format=FORMAT,
            tier=tier,
            layers=plan.layers[tier],
            n_layers=config.n_layers,
            label_names=config.task.label_names,
            task=BundleTask(
                name=config.task.name, metric=config.task.metric, pairs=config.task.pairs
            ),
            max_length=config.options.max_length,
            max_tokens=plan.loaded.model.adapter.max_tokens,
            pad_id=_pad_id(plan.loaded),
            n_vocabulary=plan.loaded.model.word_embeddings.num_embeddings,
            inputs=("input_ids", "attention_mask", "token_type_ids")
            if plan.loaded.model.adapter.accepts_token_types
            else ("input_ids", "attention_mask"),
            policy=policy.name,
            method=policy.method,
            depths=policy.depths,
            costs=plan.costs,
            price=calibration.price,
            promise=promise,
            tails=plan.tails.get(tier),
            quantized=tier in plan.quantized,
            model_fingerprint=fingerprint_of(files),
            provenance=Provenance(
                data_fingerprint=config.data_fingerprint,
                backbone=_public_name(config.options.backbone),
                backbone_fingerprint=config.backbone_fingerprint,
                seed=config.options.seed,
                versions={**config.versions, "export.dimec": __version__, **versions},
                code_revision=config.code_revision,
            ),
            files=files[tier],
        )
        write_json(folder / tier / MANIFEST, manifest.model_dump(mode="json"))


def _public_name(backbone: str) -> str:
    """Name a backbone without saying where on this machine it lies."""
    path = Path(backbone).expanduser()
    return (
        path.name if path.is_absolute() or path.is_dir() or backbone.startswith(".") else backbone
    )


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


def _report(
    plan: _Plan,
    folder: Path,
    *,
    out: Path,
    before: Policy,
    after: Policy,
    tables: TierTables,
    calibration: Calibration,
    promise: Promise | None,
) -> ExportReport:
    torch_table = plan.run.validation
    metric = plan.run.config.task.metric
    costs = plan.costs
    bundle = load_bundle(folder, verify=False)
    changes = []
    for tier in TIERS:
        held = bundle.of(tier)
        assert held is not None  # all three were just written
        layer = plan.layers[tier][-1]
        by_torch = torch_table.predictions[:, torch_table.exit(layer)]
        change = TierChange(
            tier=tier,
            layers=layer,
            quantized=tier in plan.quantized,
            bytes=sum(info.bytes for info in held.manifest.files.values()),
            score_before=_score(torch_table, by_torch, metric),
        )
        if plan.quantized:
            table = tables.of(tier)
            ours = table.predictions[:, table.exit(layer)]
            change = change.model_copy(
                update={
                    "score_after": _score(table, ours, metric),
                    "flipped": int((ours != by_torch).sum()),
                }
            )
        changes.append(change)
    restored = None if plan.behind is None else plan.behind.restored()
    played = replay(before, TierTables(torch_table, restored=restored), costs=costs)
    again = replay(after, tables, costs=costs) if plan.quantized else None
    return ExportReport(
        bundle=str(out),
        policy=after.name,
        unit="lambda" if plan.billing is None else plan.billing.unit,
        profile=None if plan.billing is None else plan.billing.profile.name,
        metric=metric,
        n=len(torch_table),
        price=calibration.price,
        model_fingerprint=bundle.mobile.manifest.model_fingerprint,
        tiers=tuple(changes),
        before=_change(before, played, torch_table, metric),
        after=None if again is None else _change(after, again, torch_table, metric),
        flipped=None if again is None else int((again.predictions != played.predictions).sum()),
        promise=promise,
        tails=report_tails(plan.tails, after, bundle),
    )


def _change(policy: Policy, played: Replay, table: ExitTable, metric: Metric) -> PolicyChange:
    return PolicyChange(
        operating_point=policy.operating_point(),
        score=_score(table, played.predictions, metric),
        cost=float(played.costs.mean()),
    )


def _score(table: ExitTable, predictions: NDArray[np.int64], metric: Metric) -> float:
    matrix = confusion(table.labels, predictions, n_classes=table.n_classes)
    return float(score(metric, matrix))
