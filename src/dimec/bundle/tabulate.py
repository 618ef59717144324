"""Tabulating without torch: what the exported files of a bundle say about some texts, as exit tables.

Tiers that hold the same graphs read one table, as prefixes of one encoder do; a tier that is quantised otherwise than
the cloud reads its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.bundle import Bundle, TierBundle, Tokens
from dimec.bundle.choosing import chosen_engine
from dimec.bundle.engines import TierEngine
from dimec.core.errors import BundleError
from dimec.core.options import EngineChoice
from dimec.core.progress import SILENT, Progress
from dimec.core.tiers import TIERS, Tier
from dimec.core.tokens import batches_by_length
from dimec.data import TextDataset, read_batches, tell_cut
from dimec.runs.exit_table import Dynamics, ExitTable, Restored, TierTables


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled samples as a bundle's tokenizer reads them, and what else an exit table needs of them."""

    tokens: Tokens
    labels: NDArray[np.int64]
    row_ids: NDArray[np.int64]
    dynamics: Dynamics | None = None


def read_samples(tier: TierBundle, dataset: TextDataset, *, progress: Progress = SILENT) -> Samples:
    """Tokenise a data set; a `DataError` if it holds pairs where the model reads single texts, or the reverse."""
    tokenizer = tier.tokenizer()
    with progress.stage("Tokenising", len(dataset)) as advance:
        tokens = tokenizer.encode(dataset.first, dataset.second, progress=advance)
    tell_cut(tokens, tier.manifest.max_length, progress=progress)
    return Samples(tokens, dataset.labels, dataset.row_ids)


def tabulate_bundle(
    bundle: Bundle,
    samples: Samples,
    *,
    engine: EngineChoice = "onnxruntime",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> TierTables:
    """Return what every tier's exits say about the samples.

    Raises:
        BundleError: If the bundle lacks a tier: what the policy would have got there is not known.
    """
    cloud = _present(bundle, Tier.CLOUD)
    others = {tier: _present(bundle, tier) for tier in TIERS if tier is not Tier.CLOUD}

    said, unseen = bundle.mobile.exit_zero().read_all(samples.tokens.whole)

    def table(tier: TierBundle) -> ExitTable:
        found = tabulate_tier(tier, samples, engine=engine, threads=threads, progress=progress)
        return replace(found, exit_zero=said, unseen=unseen)

    encoder = table(cloud)
    return TierTables(
        encoder,
        {name: table(tier) for name, tier in others.items() if not tier.begins(cloud)},
        _tabulate_restored(
            bundle, samples, encoder, engine=engine, threads=threads, progress=progress
        ),
    )


def tabulate_tier(
    tier: TierBundle,
    samples: Samples,
    *,
    engine: EngineChoice = "onnxruntime",
    threads: int | None = None,
    progress: Progress = SILENT,
) -> ExitTable:
    """Run every sample through every exit of a tier.

    A quantised tier runs them one by one: it scales the activations of a batch together, so that only a sample alone
    has an answer of its own, and alone is how a device runs them.
    """
    tokens = samples.tokens
    graphs = _opened(tier, engine, threads)

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[np.float32], ...]:
        batch = tokens.batch(rows)
        hidden, embedding = graphs.embed(batch)
        _, said = graphs.run(hidden, batch.attention_mask, after=0, layer=tier.layers[-1])
        return np.stack([*said.values()], axis=1), embedding

    logits, embeddings = read_batches(
        _alone(len(tokens)) if tier.manifest.quantized else batches_by_length(tokens.lengths),
        read,
        progress=progress,
        what=f"Reading the exits of {tier.tier}",
    )
    dynamics = samples.dynamics
    return ExitTable(
        layers=tier.layers,
        logits=logits,
        labels=samples.labels,
        embeddings=embeddings,
        n_tokens=tokens.lengths,
        payload_bytes=tokens.payload_bytes,
        row_ids=samples.row_ids,
        label_names=tier.manifest.label_names,
        dynamics=dynamics
        and Dynamics(
            # A prefix of the exits: a tier holds the encoder's first ones.
            dynamics.true_probability[:, :, : len(tier.layers)],
            dynamics.correct[:, :, : len(tier.layers)],
        ),
    )


def _tabulate_restored(
    bundle: Bundle,
    samples: Samples,
    encoder: ExitTable,
    *,
    engine: EngineChoice,
    threads: int | None,
    progress: Progress,
) -> Restored | None:
    """Return what the cloud's exits say behind the bundle's bottleneck; None where it has none.

    Samples are run one by one, by the graphs that a device runs: what is rounded to a byte may hang on the last digit
    of a state.
    """
    tails = bundle.mobile.manifest.tails
    if tails is None or tails.bottleneck is None:
        return None
    cloud = _present(bundle, Tier.CLOUD)
    code, (after,) = tails.code, tails.layers
    straight = after == bundle.mobile.layers[-1]
    device = _opened(bundle.mobile, engine, threads, straight=straight)
    tier = _opened(cloud, engine, threads)
    assert code is not None
    behind = tuple(layer for layer in cloud.layers if layer > after)

    def read(rows: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        batch = samples.tokens.batch(rows)
        mask = batch.attention_mask
        hidden, _ = device.embed(batch)
        hidden, _ = device.run(hidden, mask, after=0, layer=after)
        data = device.ship(hidden, code)
        hidden = tier.arrive(data, code, n_tokens=mask.shape[1])
        said = tier.resume(hidden, mask, from_layer=after, restored=True)
        return said[:, -len(behind) :], np.array([len(data)], dtype=np.int32)

    logits, sizes = read_batches(
        _alone(len(samples.tokens)),
        read,
        progress=progress,
        what=f"Reading the exits behind {tails.bottleneck.name}",
    )
    table = replace(
        encoder, layers=behind, logits=logits, payload_bytes=sizes, dynamics=None, exit_zero=None
    )
    name = tails.bottleneck.name
    return Restored(tails.bottleneck.kind, name, tails.width, after, table)


def _opened(
    tier: TierBundle, engine: EngineChoice, threads: int | None, *, straight: bool = False
) -> TierEngine:
    name = chosen_engine(tier, engine, threads=threads)
    return TierEngine(tier, engine=name, threads=threads, straight=straight)


def _alone(n: int) -> list[NDArray[np.int64]]:
    """Return a batch for each of n rows."""
    return list(np.arange(n)[:, None])


def _present(bundle: Bundle, tier: Tier) -> TierBundle:
    found = bundle.of(tier)
    if found is None:
        raise BundleError(
            f"{bundle.folder} has no {tier} tier, so what it would answer is not known: give the whole bundle"
        )
    if found.asks:
        raise BundleError(
            f"{bundle.folder} holds no graphs of its {tier} tier, whose server asks another model: evaluate the run "
            f"with --{tier}-model"
        )
    return found
