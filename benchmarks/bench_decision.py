"""Deciding for one sample from its token ids, against what the mobile prefix's forward pass takes.

The decision is the device's: mean embedding, distances to the centroids, choice, and in the adaptive kind the update of
the centroid. The forward pass is that of the mobile prefix (2 layers of MiniLM, batch 1) in torch, as a user would run
it today. They alternate in one process on one thread; the ratio of medians counts.

    python benchmarks/bench_decision.py
"""

from __future__ import annotations

import time

import numpy as np
import torch

from dimec.complexity import Centroids
from dimec.model import MultiExitEncoder, Pooling, load_backbone
from dimec.policies import View
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.tiers import Depths

N_TOKENS, ROUNDS, EACH = 16, 60, 20


def main() -> None:
    torch.set_num_threads(1)
    backbone = load_backbone("minilm")
    model = MultiExitEncoder(
        backbone.adapter, exits=range(1, 7), n_classes=2, pooling=Pooling.MEAN
    ).eval()
    prefix = model.prefix(2)
    embedding_of = backbone.adapter.embedding_table()
    draws = np.random.default_rng(0)
    samples = draws.integers(1000, 30_000, (EACH, N_TOKENS))
    embeddings = np.stack([embedding_of.mean(ids) for ids in samples])
    centroids = Centroids.of_pools(embeddings, np.arange(EACH) % 3)
    depths = Depths(2, 3, 6)
    point = {"alpha": 0.8, "beta": 0.1}
    policies = {
        "dimec-dc-fixed": DimecDcFixed(depths, centroids, point),
        "dimec-dc-adaptive": DimecDcAdaptive(depths, centroids, point),
        "dimee-fixed": DimeeFixed(depths, centroids, point, layers=model.exits),
    }
    mask = torch.ones(1, N_TOKENS, dtype=torch.int64)
    tensors = [torch.from_numpy(ids)[None] for ids in samples]
    seconds: dict[str, list[float]] = {name: [] for name in ("forward", "embedding", *policies)}

    def timed(name: str, begin: float) -> None:
        seconds[name].append((time.perf_counter() - begin) / EACH)

    with torch.inference_mode():
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            for ids in tensors:
                prefix(ids, mask)
            timed("forward", begin)
            begin = time.perf_counter()
            for ids in samples:
                embedding_of.mean(ids)
            timed("embedding", begin)
            for name, policy in policies.items():
                begin = time.perf_counter()
                for ids in samples:
                    view = View(embedding=embedding_of.mean(ids))
                    step = policy.decide(view)
                    if policy.learns and step is not None:
                        view.steps.append(step)
                        policy.learn(view)
                timed(name, begin)
    forward = float(np.median(seconds["forward"]))
    print(f"forward of the mobile prefix, {N_TOKENS} tokens: {1e3 * forward:.2f} ms")
    for name, times in seconds.items():
        if name != "forward":
            median = float(np.median(times))
            print(
                f"{name:20} {1e6 * median:7.1f} us  {100 * median / forward:5.2f} % of the forward"
            )


if __name__ == "__main__":
    main()
