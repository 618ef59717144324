"""Split computing in an export: which tier ships or resumes which hidden states, and what that adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dimec.bundle import Bundle
from dimec.bundle.engines.tier import segment_name
from dimec.bundle.hidden import HIDDEN_BYTES, HiddenType, Tails, tails_of
from dimec.core.tiers import Tier
from dimec.deploying.export_report import TailsReport
from dimec.policies import Policy


def plan_tails(
    policy: Policy,
    layers: Mapping[Tier, Sequence[int]],
    *,
    n_layers: int,
    width: int,
    datatype: HiddenType | None,
) -> dict[Tier, Tails]:
    """Return what the manifests say of hidden states, by tier; nothing where ``datatype`` is None.

    The device ships what it can, the cloud resumes, and so does the edge where the policy may resume there.
    """
    if datatype is None:
        return {}
    resumed = {step.tier for step in policy.endpoints() if step.resumes}
    states = {
        tier: tails_of(tier, layers[tier], n_layers=n_layers)
        for tier in {Tier.MOBILE, Tier.CLOUD} | resumed
    }
    return {
        tier: Tails(layers=each, width=width, datatype=datatype)
        for tier, each in states.items()
        if each
    }


def report_tails(tails: Mapping[Tier, Tails], policy: Policy, bundle: Bundle) -> TailsReport | None:
    """Say what tails cost in bytes; without a bottleneck tiers resume by the segments that they have anyhow."""
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
