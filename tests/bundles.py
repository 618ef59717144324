"""Bundles that a test needs otherwise than an export leaves them."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dimec import api
from dimec.bundle import Bundle, TierBundle, file_info, fingerprint_of, load_bundle, load_tier
from dimec.bundle.engines import TierEngine
from dimec.bundle.engines.tier import LAYERS_GRAPH, segment_name
from dimec.bundle.hidden import Tails, tails_of
from dimec.bundle.manifest import MANIFEST, POLICY, POLICY_FILES, TierManifest
from dimec.core.files import write_json
from dimec.core.tiers import TIERS, Answer, Depths, Step, Tier
from dimec.data import reviews
from dimec.policies import Calibration, Policy, View, save_policies
from dimec.policies.base import PolicyState
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.policies.replay import replay
from dimec.runs.exit_table import ExitTable, TierTables
from dimec.runs.exit_zero import DensePart
from dimec.runs.run import Run
from tests.inputs import write_pairs
from tests.unit.tables import random_table


def with_policy(bundle: Bundle, folder: Path, policy: Policy) -> Bundle:
    """Copy a bundle and give it another policy; its tiers must hold the exits that it uses."""
    shutil.copytree(bundle.folder, folder)
    manifest = bundle.mobile.manifest
    calibration = Calibration(
        random_table(1), {policy.method: policy.depths}, costs=manifest.costs, price=manifest.price
    )
    save_policies(folder / "mobile", {policy.name: policy}, calibration, stem=POLICY)
    for tier in TIERS:
        held = bundle.of(tier)
        assert held is not None
        files = dict(held.manifest.files)
        if tier == "mobile":
            files |= {name: file_info(folder / tier / name) for name in POLICY_FILES}
        of_policy = {"policy": policy.name, "method": policy.method, "depths": policy.depths}
        _write(folder / tier, held.manifest, files=files, **of_policy)
    return load_bundle(folder)


def _write(folder: Path, manifest: TierManifest, **changes: Any) -> None:
    changed = manifest.model_copy(update=changes)
    write_json(folder / MANIFEST, changed.model_dump(mode="json"))


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
    fingerprint = fingerprint_of({tier: each.files for tier, each in manifests.items()})
    for tier, manifest in manifests.items():
        tails = Tails(layers=tails_of(tier, layers[tier], n_layers=manifest.n_layers), width=width)
        changes = {"layers": layers[tier], "tails": tails, "model_fingerprint": fingerprint}
        _write(folder / tier, manifest, **changes)
    return load_bundle(folder)


def save_dense_exit_zero(mobile: TierBundle, path: Path) -> None:
    """Save a device's exit zero, with a dense part at random beside its words."""
    draws, n_vocabulary = np.random.default_rng(3), mobile.manifest.n_vocabulary
    dense = DensePart(
        draws.normal(size=(n_vocabulary, 12)).astype(np.float16),
        draws.uniform(1, 9, n_vocabulary).astype(np.float16),
        draws.normal(size=(12, 8)).astype(np.float32),
        draws.normal(size=8).astype(np.float32),
        draws.normal(size=(8, len(mobile.manifest.label_names))).astype(np.float32),
    )
    replace(mobile.exit_zero(), dense=dense).save(path)


def table_of(bundle: Bundle, texts: Sequence[str]) -> ExitTable:
    """Tabulate what the exported graphs say about single texts, one by one; the labels are none."""
    assert bundle.cloud is not None
    tokenizer = bundle.cloud.tokenizer()
    tokens = tokenizer.encode(texts)
    engine, mobile = (TierEngine(tier, threads=1) for tier in (bundle.cloud, bundle.mobile))
    batches = [tokenizer.encode([text]).batch() for text in texts]
    zero = bundle.mobile.exit_zero()
    n = len(texts)
    said, unseen = zero.read_all(tokens.whole)
    return ExitTable(
        layers=bundle.cloud.layers,
        logits=np.concatenate([engine.infer(batch) for batch in batches]),
        labels=np.zeros(n, dtype=np.int64),
        embeddings=np.concatenate([mobile.embed(batch)[1] for batch in batches]),
        n_tokens=tokens.lengths,
        payload_bytes=tokens.payload_bytes,
        row_ids=np.arange(n, dtype=np.int64),
        label_names=bundle.mobile.manifest.label_names,
        exit_zero=said,
        unseen=unseen,
    )


def check_probabilities(answers: Iterable[Answer], label_names: Sequence[str]) -> None:
    """Hold answers against their own probabilities: the label is the first of the largest, the confidence its own."""
    for each in answers:
        said = np.array(each.probabilities)
        assert said.shape == (len(label_names),)
        assert said.min() >= 0
        assert said.sum() == pytest.approx(1)
        assert (each.label, each.confidence) == (label_names[int(said.argmax())], said.max())


def check_replay(
    answers: list[Answer],
    policy: Policy,
    tables: ExitTable | TierTables,
    bundle: Bundle,
    *,
    within: float = 1e-5,
) -> None:
    """Hold a device's answers against a replay of the same policy; confidence may be off by ``within``."""
    manifest = bundle.mobile.manifest
    played = replay(policy, tables, costs=manifest.costs)
    names = manifest.label_names
    assert [each.index for each in answers] == list(range(len(played.predictions)))
    assert [each.label for each in answers] == [names[label] for label in played.predictions]
    assert [each.tier for each in answers] == [TIERS[tier] for tier in played.tiers]
    assert [each.layer for each in answers] == played.layers.tolist()
    assert [each.cost for each in answers] == pytest.approx(played.costs.tolist())
    confidence = [each.confidence for each in answers]
    assert confidence == pytest.approx(played.confidence.tolist(), abs=within)
    assert {each.degraded for each in answers} == {None}
    check_probabilities(answers, names)
    assert len({each.request_id for each in answers}) == len(answers)


def check_same(answers: list[Answer], expected: list[Answer]) -> None:
    """Hold answers against those that came otherwise; the last digits of what an exit said may differ."""
    for field in ("index", "label", "tier", "layer", "cost", "degraded", "alarm"):
        assert [getattr(a, field) for a in answers] == [getattr(e, field) for e in expected]
    said = np.array([answer.probabilities for answer in expected])
    assert np.array([answer.probabilities for answer in answers]) == pytest.approx(said, abs=1e-5)
    assert len({answer.request_id for answer in answers}) == len(answers)


def over_all_tiers(run: Run) -> Policy:
    """Make a policy that uses every tier and every exit of a run.

    What is fitted to so small a model is not of that kind, so pools and threshold are made by hand.
    """
    table = run.validation
    pools = np.argsort(np.argsort(table.embeddings[:, 0])) * 3 // len(table)
    return DimeeFixed(
        run.config.depths["ee"],
        Centroids.of_pools(table.embeddings, pools),
        thresholds={"alpha": float(np.median(table.confidence))},
        layers=table.layers,
    )


def fitted_to_pairs(backbone: Path, folder: Path) -> tuple[Run, Bundle]:
    """Fit whether two reviews are of one mind, and export it with a policy over all tiers."""
    data = write_pairs(folder / "pairs.csv", reviews(321, seed=3))
    chosen: dict[str, Any] = {"pooling": "mean", "epochs": 1, "head_learning_rate": 0.01}
    run = api.fit("one-mind", out=folder / "run", data=str(data), backbone=str(backbone), **chosen)
    api.export(run, out=folder / "export", price=0.1)
    bundle = load_bundle(folder / "export")
    return run, with_policy(bundle, folder / "bundle", over_all_tiers(run))


def always(tier: Tier, bundle: Bundle, kind: type[DimecDcFixed] = DimecDcFixed) -> Policy:
    """Make a policy that sends everything to one tier, since the other pools are empty."""
    batch = bundle.mobile.tokenizer().encode(["x"]).batch()
    width = TierEngine(bundle.mobile, threads=1).embed(batch)[1].shape[1]
    counts = np.array([int(each is tier) for each in TIERS])
    manifest = bundle.mobile.manifest
    centroids = Centroids(np.ones((3, width)), counts)
    return kind(manifest.depths, centroids, alpha=0.6, beta=0.1)


class Relay(Policy):
    """Run these steps, one after the other, whatever they say."""

    name = "relay"

    def __init__(self, depths: Depths, way: tuple[Step, ...]) -> None:
        super().__init__(depths)
        self.way = way

    def decide(self, view: View) -> Step | None:
        return self.way[len(view.steps)] if len(view.steps) < len(self.way) else None

    def endpoints(self) -> tuple[Step, ...]:
        return self.way

    @classmethod
    def fit(cls, calibration: Calibration) -> Relay:
        raise NotImplementedError

    def state(self) -> PolicyState:
        return PolicyState({}, {})

    @classmethod
    def from_state(cls, depths: Depths, state: PolicyState) -> Relay:
        raise NotImplementedError


class Counted:
    """Texts that are no sequence, and how many of them were taken."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.taken = 0
        self._texts = texts

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.taken += 1
            yield text
