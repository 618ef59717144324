"""Bundles that a test needs otherwise than an export leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dimec.bundle import Bundle, file_info, fingerprint_of, load_bundle, load_tier
from dimec.bundle.engines import TierEngine
from dimec.bundle.engines.tier import LAYERS_GRAPH, segment_name
from dimec.bundle.hidden import Tails, tails_of
from dimec.bundle.manifest import MANIFEST, POLICY, POLICY_FILES
from dimec.core.files import write_json
from dimec.core.tiers import TIERS, Tier
from dimec.policies import Calibration, Policy, save_policies
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run


def with_policy(bundle: Bundle, folder: Path, policy: Policy) -> Bundle:
    """Copy a bundle and give it another policy; its tiers must hold the exits that it uses."""
    shutil.copytree(bundle.folder, folder)
    manifest = bundle.mobile.manifest
    calibration = Calibration(
        _nothing(), {policy.method: policy.depths}, costs=manifest.costs, price=manifest.price
    )
    save_policies(folder / "mobile", {policy.name: policy}, calibration, stem=POLICY)
    for tier in TIERS:
        held = bundle.of(tier)
        assert held is not None
        files = dict(held.manifest.files)
        if tier == "mobile":
            files |= {name: file_info(folder / tier / name) for name in POLICY_FILES}
        changed = held.manifest.model_copy(
            update={
                "policy": policy.name,
                "method": policy.method,
                "depths": policy.depths,
                "files": files,
            }
        )
        write_json(folder / tier / MANIFEST, changed.model_dump(mode="json"))
    return load_bundle(folder)


def with_tails(bundle: Bundle, folder: Path, policy: Policy) -> Bundle:
    """Copy a bundle and make it one of split computing: every layer on mobile, and edge and cloud resume."""
    with_policy(bundle, folder, policy)
    manifests = {tier: load_tier(folder / tier).manifest for tier in TIERS}
    mobile, cloud = manifests[Tier.MOBILE], manifests[Tier.CLOUD]
    for name in (LAYERS_GRAPH, *map(segment_name, cloud.layers)):
        shutil.copyfile(folder / "cloud" / name, folder / "mobile" / name)
        mobile.files[name] = cloud.files[name]
    layers = {tier: manifest.layers for tier, manifest in manifests.items()}
    layers[Tier.MOBILE] = cloud.layers
    batch = bundle.mobile.tokenizer().encode(["x"]).batch()
    width = TierEngine(bundle.mobile, threads=1).embed(batch)[0].shape[2]
    for tier, manifest in manifests.items():
        states = tails_of(tier, layers[tier], n_layers=manifest.n_layers)
        changed = manifest.model_copy(
            update={
                "layers": layers[tier],
                "tails": Tails(layers=states, width=width),
                "model_fingerprint": fingerprint_of({t: m.files for t, m in manifests.items()}),
            }
        )
        write_json(folder / tier / MANIFEST, changed.model_dump(mode="json"))
    return load_bundle(folder)


def table_of(bundle: Bundle, texts: Sequence[str]) -> ExitTable:
    """Tabulate what the exported graphs say about single texts, one by one; the labels are none."""
    assert bundle.cloud is not None
    tokenizer = bundle.cloud.tokenizer()
    engine, mobile = (TierEngine(tier, threads=1) for tier in (bundle.cloud, bundle.mobile))
    batches = [tokenizer.encode([text]).batch() for text in texts]
    zero = bundle.mobile.exit_zero()
    n = len(texts)
    said, unseen = zero.read_all([batch.input_ids[0] for batch in batches])
    return ExitTable(
        layers=bundle.cloud.layers,
        logits=np.concatenate([engine.infer(batch) for batch in batches]),
        labels=np.zeros(n, dtype=np.int64),
        embeddings=np.concatenate([mobile.embed(batch)[1] for batch in batches]),
        n_tokens=np.ones(n, dtype=np.int32),
        payload_bytes=np.ones(n, dtype=np.int32),
        row_ids=np.arange(n, dtype=np.int64),
        label_names=bundle.mobile.manifest.label_names,
        exit_zero=said,
        unseen=unseen,
    )


def over_all_tiers(run: Run) -> Policy:
    """Make a policy that uses every tier and every exit of a run.

    What is fitted to so small a model is not of that kind, so pools and threshold are made by hand.
    """
    table = run.validation
    pools = np.argsort(np.argsort(table.embeddings[:, 0])) * 3 // len(table)
    return DimeeFixed(
        run.config.depths["ee"],
        Centroids.of_pools(table.embeddings, pools),
        {"alpha": float(np.median(table.confidence))},
        layers=table.layers,
    )


def always(tier: Tier, bundle: Bundle, kind: type[DimecDcFixed] = DimecDcFixed) -> Policy:
    """Make a policy that sends everything to one tier, since the other pools are empty."""
    batch = bundle.mobile.tokenizer().encode(["x"]).batch()
    width = TierEngine(bundle.mobile, threads=1).embed(batch)[1].shape[1]
    counts = np.array([int(each is tier) for each in TIERS])
    manifest = bundle.mobile.manifest
    centroids = Centroids(np.ones((3, width)), counts)
    return kind(manifest.depths, centroids, {"alpha": 0.6, "beta": 0.1})


def _nothing() -> ExitTable:
    """A table without samples: a policy that is made by hand was fitted to none."""
    return ExitTable(
        layers=(1,),
        logits=np.empty((0, 1, 2), np.float32),
        labels=np.empty(0, np.int64),
        embeddings=np.empty((0, 1), np.float32),
        n_tokens=np.empty(0, np.int32),
        payload_bytes=np.empty(0, np.int32),
        row_ids=np.empty(0, np.int64),
        label_names=("no", "yes"),
    )
