"""Exit tables made by hand, so that a test can say what is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.core.tiers import (
    EXIT_ZERO,
    TIERS,
    Depths,
    Method,
    Reading,
    Tier,
    check_step,
    layers_done,
)
from dimec.policies import Policy, View
from dimec.policies.replay import Replay
from dimec.runs.exit_table import Dynamics, ExitTable, Restored, TierTables

DEPTHS: dict[Method, Depths] = {"dc": Depths(2, 3, 6), "ee": Depths(2, 3, 6)}
"""Where the six layers of these tables are cut."""


def table_of(
    probability_of_one: Sequence[Sequence[float]],
    *,
    labels: Sequence[int],
    embeddings: Sequence[Sequence[float]] | None = None,
    layers: tuple[int, ...] | None = None,
    dynamics: ArrayLike | None = None,
) -> ExitTable:
    """Build a two-class table from each exit's probability of class 1: [n][exits].

    ``dynamics`` are probabilities of the true label, [n, epochs] for every exit alike, or [n, epochs, exits].
    """
    ones = np.clip(np.asarray(probability_of_one, dtype=np.float64), 1e-12, 1 - 1e-12)
    n, exits = ones.shape
    n_tokens, payload_bytes = _sizes(n, seed=0)
    recorded = None
    if dynamics is not None:
        true = np.asarray(dynamics, dtype=np.float32)
        if true.ndim == 2:
            true = np.repeat(true[:, :, None], exits, axis=2)
        recorded = Dynamics(true, true > 0.5)
    return ExitTable(
        layers=layers or tuple(range(1, exits + 1)),
        logits=np.stack([np.log(1 - ones), np.log(ones)], axis=2).astype(np.float32),
        labels=np.asarray(labels, dtype=np.int64),
        embeddings=np.asarray(
            embeddings if embeddings is not None else np.zeros((n, 2)), dtype=np.float32
        ),
        n_tokens=n_tokens,
        payload_bytes=payload_bytes,
        row_ids=np.arange(n, dtype=np.int64),
        label_names=("no", "yes"),
        dynamics=recorded,
    )


def _sizes(n: int, *, seed: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Give every sample a length in tokens and a payload of its own, so that neither may stand for the other."""
    draws = np.random.default_rng([seed, 1])
    return draws.integers(3, 14, n, dtype=np.int32), draws.integers(6, 50, n, dtype=np.int32)


def random_table(n: int, *, seed: int = 0, n_classes: int = 2, exits: int = 6) -> ExitTable:
    """Build a table in which deeper exits are better and embeddings hint at how hard a sample is."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, n_classes, n)
    hardness = draws.uniform(0.2, 2.0, n)
    truth = np.eye(n_classes)[labels]
    n_tokens, payload_bytes = _sizes(n, seed=seed)
    logits = np.stack(
        [
            truth * depth * 0.8 + draws.normal(size=(n, n_classes)) * hardness[:, None]
            for depth in range(1, exits + 1)
        ],
        axis=1,
    ).astype(np.float32)
    embeddings = draws.normal(size=(n, 8)).astype(np.float32)
    embeddings[:, 0] += 2 * hardness
    exponent = np.exp(logits.astype(np.float64))
    true = (exponent / exponent.sum(2, keepdims=True))[np.arange(n), :, labels]
    epochs = np.clip(true[:, None, :] + draws.normal(size=(n, 5, exits)) * 0.1, 0, 1)
    return ExitTable(
        layers=tuple(range(1, exits + 1)),
        logits=logits,
        labels=labels,
        embeddings=embeddings,
        n_tokens=n_tokens,
        payload_bytes=payload_bytes,
        row_ids=np.arange(n, dtype=np.int64),
        label_names=tuple(f"class {each}" for each in range(n_classes)),
        dynamics=Dynamics(epochs.astype(np.float32), epochs > 0.5),
        exit_zero=(truth + draws.normal(size=(n, n_classes)) * hardness[:, None]).astype(
            np.float32
        ),
        unseen=draws.beta(1, 20, n).astype(np.float32),
    )


def restored_of(table: ExitTable, kind: str, *, after: int = 2) -> Restored:
    """Give what the cloud says behind a bottleneck: the table's later exits, less sure and sometimes wrong."""
    draws = np.random.default_rng(7)
    later = [place for place, layer in enumerate(table.layers) if layer > after]
    logits = table.logits[:, later]
    behind = replace(
        table,
        layers=tuple(table.layers[place] for place in later),
        logits=(logits + draws.normal(size=logits.shape)).astype(np.float32),
        payload_bytes=table.n_tokens * 4,
        dynamics=None,
        exit_zero=None,
    )
    return Restored(kind, f"{kind}-l{after}w4", 4, after, behind)


def meet(policy: Policy, tables: TierTables, row: int) -> View:
    """Let a policy meet one sample as it does on a device, checking every step; the tables are with exit zero."""
    view = View(embedding=tables.embeddings[row])
    while (step := policy.decide(view)) is not None:
        check_step(view.steps, step, exits=tables.encoder.layers)
        done = layers_done(view.steps, step)
        table = tables.read_by(step, after=done)
        passed = done if step.side_readings else step.layer - 1
        view.steps.append(step)
        if step == EXIT_ZERO and table.unseen is not None:
            view.unseen = float(table.unseen[row])
        for place, layer in enumerate(table.layers):
            if passed < layer <= step.layer:
                said = table.probabilities[row, place]
                label, confidence = table.predictions[row, place], table.confidence[row, place]
                view.readings.append(Reading(step.tier, layer, int(label), float(confidence), said))
        assert len(view.steps) <= 18
    policy.learn(view)
    return view


def outcomes(played: Replay) -> list[tuple[Tier, int, float]]:
    """Say where each sample was answered, after which layer and at what cost."""
    tiers = [TIERS[tier] for tier in played.tiers.tolist()]
    return list(zip(tiers, played.layers.tolist(), played.costs.tolist(), strict=True))
