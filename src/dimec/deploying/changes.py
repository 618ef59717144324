"""What an export did to the answers: the policy and every tier before and after, on validation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dimec.bundle import Bundle
from dimec.bundle.engines.tier import segment_name
from dimec.bundle.hidden import HIDDEN_BYTES, Tails
from dimec.bundle.manifest import Promise
from dimec.core.metrics import Metric
from dimec.core.tiers import TIERS, Tier
from dimec.costs.billing import Billing
from dimec.deploying.export_report import ExportReport, PolicyChange, TailsReport, TierChange
from dimec.deploying.writing import BundleWriter
from dimec.policies import Calibration, Policy
from dimec.policies.replay import Replay, replay
from dimec.runs.exit_table import ExitTable, TierTables


def make_report(
    writer: BundleWriter,
    bundle: Bundle,
    *,
    out: Path,
    billing: Billing | None,
    before: Policy,
    after: Policy,
    torch_tables: TierTables,
    tables: TierTables,
    calibration: Calibration,
    promise: Promise | None,
) -> ExportReport:
    """Return what was written as a bundle, before it is moved to its place ``out``.

    ``before`` was fitted on ``torch_tables``, ``after`` on ``tables``, which the exported files made.
    """
    torch_table = torch_tables.encoder
    metric = writer.run.config.task.metric
    costs = writer.costs
    changes = []
    for tier in TIERS:
        held = bundle.of(tier)
        assert held is not None  # all three were just written
        layer = writer.layers[tier][-1]
        own = torch_tables.of(tier)
        by_torch = own.predictions[:, own.exit(layer)]
        score_after, flipped = None, None
        if writer.quantized:
            table = tables.of(tier)
            ours = table.predictions[:, table.exit(layer)]
            score_after, flipped = table.score(metric, ours), int((ours != by_torch).sum())
        changes.append(
            TierChange(
                tier=tier,
                layers=layer,
                quantized=tier in writer.quantized,
                bytes=sum(info.bytes for info in held.manifest.files.values()),
                score_before=torch_table.score(metric, by_torch),
                score_after=score_after,
                flipped=flipped,
            )
        )
    played = replay(before, torch_tables, costs=costs)
    again = replay(after, tables, costs=costs) if writer.quantized else None
    return ExportReport(
        bundle=str(out),
        policy=after.name,
        unit="lambda" if billing is None else billing.unit,
        profile=None if billing is None else billing.profile.name,
        currency=writer.currency,
        metric=metric,
        n=len(torch_table),
        price=calibration.price,
        model_fingerprint=bundle.mobile.manifest.model_fingerprint,
        tiers=tuple(changes),
        before=_change(before, played, torch_table, metric),
        after=None if again is None else _change(after, again, torch_table, metric),
        flipped=None if again is None else int((again.predictions != played.predictions).sum()),
        promise=promise,
        tails=_report_tails(writer.tails, after, bundle),
    )


def _change(policy: Policy, played: Replay, table: ExitTable, metric: Metric) -> PolicyChange:
    return PolicyChange(
        operating_point=policy.operating_point(),
        score=table.score(metric, played.predictions),
        cost=float(played.costs.mean()),
    )


def _report_tails(
    tails: Mapping[Tier, Tails], policy: Policy, bundle: Bundle
) -> TailsReport | None:
    """Return what hidden states cost in bytes; without a bottleneck tiers resume by the segments that they have."""
    if not tails:
        return None
    own = tails[Tier.MOBILE]
    beyond = tuple(layer for layer in bundle.mobile.layers if layer > policy.depths.mobile)
    added = [bundle.mobile.manifest.files[segment_name(layer)].bytes for layer in beyond]
    added += [
        tier.manifest.files[name].bytes
        for tier in (bundle.mobile, bundle.cloud)
        if tier is not None
        for name in tier.also
    ]
    pool = 1 if own.bottleneck is None else own.bottleneck.pool
    return TailsReport(
        datatype=own.datatype,
        bytes_per_token=own.width * HIDDEN_BYTES[own.datatype] / pool,
        resuming={tier: tails[tier].layers for tier in Tier if tier in tails and tier != "mobile"},
        mobile_layers_added=beyond,
        bytes_added=sum(added),
        bottleneck=own.bottleneck and own.bottleneck.name,
    )
