"""Fitting the dense part of exit zero: vectors of tokens by the trained encoder, and one hidden layer on their mean.

Hashed n-grams know the words of the training rows alone. A token's vector is what the trained encoder makes of the
token by itself, so that words which training rows never had lie beside those that they had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dimec.core.progress import Progress
from dimec.runs.exit_zero import DensePart
from dimec.training.model import MultiExitEncoder

WIDTH, UNITS = 128, 64
MOST_TOKENS_KNOWN = 65_536
"""Of a larger vocabulary no vectors are made: on the device they would take more than 16 MiB."""

_BATCH_TOKENS = 512
_EPOCHS, _BATCH_ROWS = 30, 256
_RATE, _DECAY, _DROPOUT = 2e-3, 0.01, 0.1
SOFT = 0.5


@dataclass(frozen=True, eq=False)
class DenseRows:
    """Rows that the dense part is fitted to.

    Attributes:
        targets: [n, classes], what is to be said of each: probabilities.
        logits: [n, classes], what the n-grams say of each, by a fit without it.
        weights: [n], what each row weighs.
    """

    input_ids: Sequence[NDArray[np.integer]]
    targets: NDArray[np.float64]
    logits: NDArray[np.float64]
    weights: NDArray[np.float64]


def token_vectors(
    model: MultiExitEncoder, frame: Sequence[int], *, progress: Progress
) -> NDArray[np.float32] | None:
    """Return what a model makes of every token alone: the mean of its last hidden states, [vocabulary, width].

    ``frame`` is what the tokenizer makes of an empty text; a token stands behind the first of them. None where the
    vocabulary is too large.
    """
    table = model.word_embeddings
    n_tokens, device = table.num_embeddings, table.weight.device
    if n_tokens > MOST_TOKENS_KNOWN:
        return None
    model.eval()
    before, after = list(frame[:1]), list(frame[1:])
    found = np.empty((n_tokens, model.adapter.width), dtype=np.float32)
    what = "Reading the vocabulary"
    with torch.inference_mode(), progress.stage(what, n_tokens) as advance:
        for start in range(0, n_tokens, _BATCH_TOKENS):
            tokens = range(start, min(start + _BATCH_TOKENS, n_tokens))
            ids = torch.tensor([[*before, token, *after] for token in tokens], device=device)
            mask = torch.ones_like(ids)
            types = torch.zeros_like(ids) if model.adapter.accepts_token_types else None
            hidden, _ = model.enter(ids, mask, types)
            hidden, _ = model.segment(hidden, mask, after=0, layer=model.exits[-1])
            states = model.adapter.finish(hidden).float().mean(1)
            found[start : start + len(tokens)] = states.cpu().numpy()
            advance(len(tokens))
    return found


def soft_targets(
    true_probability: NDArray[np.float32], labels: NDArray[np.int64], *, n_classes: int
) -> NDArray[np.float64]:
    """Mix labels [n] with what an exit said of them in training: probabilities [n, classes].

    ``true_probability`` [n, epochs] is its probability of the true class; the rest is shared out evenly.
    """
    hard = np.eye(n_classes)[labels]
    said = np.nan_to_num(true_probability.astype(np.float64), nan=1.0).mean(axis=1)[:, None]
    soft = hard * said + (1 - hard) * (1 - said) / (n_classes - 1)
    mixed: NDArray[np.float64] = SOFT * soft + (1 - SOFT) * hard
    return mixed


def untrained(
    states: NDArray[np.float32],
    input_ids: Sequence[NDArray[np.integer]],
    *,
    frame: Sequence[int],
    n_classes: int,
) -> DensePart:
    """Reduce the tokens' vectors to their principal components and weigh tokens by how few rows have them."""
    n_tokens = len(states)
    counts = np.bincount(np.concatenate(input_ids), minlength=n_tokens)[:n_tokens]
    present = np.concatenate([np.unique(ids) for ids in input_ids])
    rows = np.bincount(present, minlength=n_tokens)[:n_tokens]
    shares = np.log((1 + len(input_ids)) / (1 + rows)) + 1
    weights = np.sqrt(counts + 0.1)
    shares[list(frame)] = weights[list(frame)] = 0
    centred = states.astype(np.float64) - weights @ states / weights.sum()
    _, axes = np.linalg.eigh((centred * weights[:, None]).T @ centred)
    reduced = centred @ axes[:, ::-1][:, :WIDTH]
    return DensePart(
        reduced.astype(np.float16),
        shares.astype(np.float16),
        np.zeros((reduced.shape[1], UNITS), np.float32),
        np.zeros(UNITS, np.float32),
        np.zeros((UNITS, n_classes), np.float32),
    )


def fit_dense(
    part: DensePart, fitting: DenseRows, choosing: DenseRows, *, seed: int
) -> tuple[DensePart, float, NDArray[np.float64]]:
    """Fit the hidden layer beside the n-grams; rows of its own choose the epoch.

    Returns the part, what the n-grams' logits are multiplied by beside it, and the logits of both on ``choosing``.
    """
    means = [
        np.concatenate([part.means(ids, [len(ids)]) for ids in each.input_ids])
        for each in (fitting, choosing)
    ]
    centre, spread = means[0].mean(axis=0), float(means[0].std(axis=0).mean()) or 1.0
    rows, held = (
        [
            torch.from_numpy(array).float()
            for array in ((mean - centre) / spread, each.logits, each.targets, each.weights)
        ]
        for mean, each in zip(means, (fitting, choosing), strict=True)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(
            nn.Dropout(_DROPOUT),
            nn.Linear(len(centre), UNITS),
            nn.Tanh(),
            nn.Dropout(_DROPOUT),
            nn.Linear(UNITS, fitting.targets.shape[1], bias=False),
        )
        scale = nn.Parameter(torch.ones(()))
        adam = torch.optim.AdamW([*layers.parameters(), scale], lr=_RATE, weight_decay=_DECAY)

        def say(inputs: Tensor, before: Tensor) -> Tensor:
            logits: Tensor = layers(inputs) + scale * before
            return logits

        def loss(logits: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
            losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
            return (losses * weights).sum() / weights.sum()

        best: dict[str, Tensor] = {}
        least = np.inf
        for epoch in range(_EPOCHS):
            for group in adam.param_groups:
                group["lr"] = _RATE * (1 - epoch / _EPOCHS)
            layers.train()
            for batch in torch.randperm(len(means[0])).split(_BATCH_ROWS):
                adam.zero_grad()
                inputs, before, wanted, weights = (array[batch] for array in rows)
                loss(say(inputs, before), wanted, weights).backward()
                adam.step()
            layers.eval()
            with torch.no_grad():
                logits = say(*held[:2])
                found = loss(logits, *held[2:]).item()
            if found < least or not best:
                least = found
                best = {name: each.clone() for name, each in layers.state_dict().items()}
                best |= {"scale": scale.detach().clone(), "logits": logits}
    hidden = (best["1.weight"].numpy().T / spread).astype(np.float32)
    fitted = replace(
        part,
        hidden=hidden,
        hidden_bias=best["1.bias"].numpy() - centre @ hidden,
        output=best["4.weight"].numpy().T,
    )
    return fitted, float(best["scale"]), best["logits"].double().numpy()
