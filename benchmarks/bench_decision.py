"""Deciding for one sample from its token ids, against what the mobile prefix's forward pass takes.

The decision is the device's. For the papers' routers it is mean embedding, distances to the centroids, choice, and in
the adaptive kind the update of the centroid. For `dimec-cascade` it is exit zero, its softmax, both calls of `decide`
and the pooled answer. The forward pass is that of the mobile prefix (2 layers of MiniLM, batch 1), by onnxruntime on
the graphs that an export writes, and by torch; each engine has a process of its own. Samples are as long as SST-2's
sentences, 16 tokens, and as MRPC's pairs, 54 tokens, half of which both texts have. All alternate in one process on
one thread; the ratio of medians counts. The last line of each block is what `CostModel.exit_zero` charges: the time of
exit zero, where that of one of the two layers is 1.5.

    python benchmarks/bench_decision.py
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.engines import open_session
from dimec.bundle.engines.tier import EMBEDDING, segment_name
from dimec.core.tiers import EXIT_ZERO, Depths, Reading, Tier, check_step, softmax
from dimec.costs.model import CostModel
from dimec.policies import Calibration, Policy, View
from dimec.policies.cascade import DimecCascade
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcAdaptive, DimecDcFixed
from dimec.policies.dimee import DimeeFixed
from dimec.runs.exit_table import ExitTable
from dimec.runs.exit_zero import N_BUCKETS, ExitZero

ROUNDS, EACH = 60, 20
DEPTHS = Depths(2, 3, 6)
LAYERS = tuple(range(1, 7))
CLS, SEP = 101, 102

Forward = Callable[[NDArray[np.int64]], object]
Embed = Callable[[NDArray[np.int64]], NDArray[np.float32]]


@dataclass(frozen=True)
class Kind:
    """What samples look like."""

    name: str
    n_tokens: int
    pairs: bool

    def draw(self, draws: np.random.Generator) -> NDArray[np.int64]:
        """Draw one sample."""
        if not self.pairs:
            return np.concatenate([[CLS], draws.integers(1000, 30_000, self.n_tokens - 2), [SEP]])
        first = draws.integers(1000, 30_000, (self.n_tokens - 3) // 2)
        other = draws.integers(1000, 30_000, len(first) + (self.n_tokens - 3) % 2)
        second = np.where(
            np.arange(len(other)) < len(first) / 2, np.resize(first, len(other)), other
        )
        return np.concatenate([[CLS], first, [SEP], second, [SEP]])


KINDS = (Kind("texts", 16, pairs=False), Kind("pairs", 54, pairs=True))


def main() -> None:
    with TemporaryDirectory() as folder:
        for work in (export, with_onnxruntime, with_torch):
            process = multiprocessing.get_context("spawn").Process(target=work, args=(folder,))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


def export(folder: str) -> None:
    """Write the graphs of the mobile prefix."""
    from dimec.deploying.graphs import export_graphs
    from dimec.training.model import MultiExitEncoder, Pooling, load_backbone

    backbone = load_backbone("minilm")
    model = MultiExitEncoder(backbone.adapter, exits=LAYERS, n_classes=2, pooling=Pooling.MEAN)
    export_graphs(model.prefix(2), Path(folder))


def with_onnxruntime(folder: str) -> None:
    names = (EMBEDDING, segment_name(1), segment_name(2))
    first, *segments = (open_session(Path(folder) / name, threads=1) for name in names)

    def enter(ids: NDArray[np.int64]) -> list[NDArray[np.float32]]:
        mask = np.ones((1, len(ids)), dtype=np.int64)
        return first.run(
            {"input_ids": ids[None], "attention_mask": mask, "token_type_ids": 0 * mask}
        )

    def forward(ids: NDArray[np.int64]) -> object:
        mask = np.ones((1, len(ids)), dtype=np.int64)
        hidden, _ = enter(ids)
        for segment in segments:
            hidden, logits = segment.run({"hidden": hidden, "attention_mask": mask})
        return logits

    for kind in KINDS:
        measure("onnxruntime", kind, forward, lambda ids: enter(ids)[1][0])


def with_torch(folder: str) -> None:
    import torch

    from dimec.training.model import MultiExitEncoder, Pooling, load_backbone

    torch.set_num_threads(1)
    adapter = load_backbone("minilm").adapter
    model = MultiExitEncoder(adapter, exits=LAYERS, n_classes=2, pooling=Pooling.MEAN)
    prefix = model.eval().prefix(2)

    def forward(ids: NDArray[np.int64]) -> object:
        row = torch.from_numpy(ids)[None]
        return prefix(row, torch.ones_like(row))

    def embed(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        row = torch.from_numpy(ids)[None]
        mean: NDArray[np.float32] = prefix.enter(row, torch.ones_like(row), None)[1][0].numpy()
        return mean

    with torch.inference_mode():
        for kind in KINDS:
            measure("torch", kind, forward, embed)


def measure(engine: str, kind: Kind, forward: Forward, embed: Embed) -> None:
    """Time everything on samples of one kind and print it."""
    draws = np.random.default_rng(0)
    samples = [kind.draw(draws) for _ in range(EACH)]
    centroids = Centroids.of_pools(np.stack([embed(ids) for ids in samples]), np.arange(EACH) % 3)
    zero = ExitZero(
        draws.normal(size=(N_BUCKETS, 2)).astype(np.float16),
        draws.uniform(1, 100, N_BUCKETS).astype(np.float16),
        np.zeros(2, dtype=np.float32),
        frame=(CLS, SEP),
        pairs=kind.pairs,
    )
    point = {"alpha": 0.8, "beta": 0.1}
    routers: dict[str, Policy] = {
        "dimec-dc-fixed": DimecDcFixed(DEPTHS, centroids, point),
        "dimec-dc-adaptive": DimecDcAdaptive(DEPTHS, centroids, point),
        "dimee-fixed": DimeeFixed(DEPTHS, centroids, point, layers=LAYERS),
    }
    own = cascade(draws)

    def route(policy: Policy, ids: NDArray[np.int64]) -> None:
        view = View(embedding=embed(ids))
        step = policy.decide(view)
        if policy.learns and step is not None:
            view.steps.append(step)
            policy.learn(view)

    works: dict[str, Callable[[NDArray[np.int64]], object]] = {
        "forward": forward,
        "embedding": embed,
        **{name: partial(route, policy) for name, policy in routers.items()},
        "exit zero": zero.read,
        "exit zero + dimec-cascade": lambda ids: cascaded(own, zero, ids),
    }
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            begin = time.perf_counter()
            for ids in samples:
                work(ids)
            seconds[name].append((time.perf_counter() - begin) / EACH)
    took = {name: float(np.median(times)) for name, times in seconds.items()}
    whole = took.pop("forward")
    print(f"{engine}, {kind.name} of {kind.n_tokens} tokens: mobile prefix {1e3 * whole:.2f} ms")
    for name, median in took.items():
        print(f"  {name:26} {1e6 * median:6.1f} us  {100 * median / whole:5.2f} % of the forward")
    layer = CostModel().mobile_layer
    print(
        f"  exit zero, with {layer} for one of the two layers: {layer * 2 * took['exit zero'] / whole:.4f}"
    )


def cascaded(policy: DimecCascade, zero: ExitZero, ids: NDArray[np.int64]) -> Reading:
    """Do what a device does for a sample that exit zero answers, or sends on."""
    view = View(embedding=NOTHING)
    step = policy.decide(view)
    assert step == EXIT_ZERO
    check_step(view.steps, step, exits=WITH_ZERO)
    said = softmax(zero.read(ids)[0])
    label = int(said.argmax())
    view.steps.append(step)
    view.readings.append(Reading(Tier.MOBILE, 0, label, float(said[label]), said))
    policy.decide(view)
    return policy.answer(view)


NOTHING = np.empty(0, dtype=np.float32)
WITH_ZERO = (0, 1, 2)


def cascade(draws: np.random.Generator) -> DimecCascade:
    """Fit the cascade on exits drawn at random, the deeper the better."""
    n = 2_000
    labels = draws.integers(0, 2, n)
    truth = np.stack([-(2 * labels - 1), 2 * labels - 1], axis=1)[:, None]
    quality = np.linspace(0.5, 3, 7)[:, None]
    logits = (quality * truth + draws.normal(size=(n, 7, 2))).astype(np.float32)
    table = ExitTable(
        layers=LAYERS,
        logits=logits[:, 1:],
        labels=labels,
        embeddings=np.zeros((n, 1), dtype=np.float32),
        n_tokens=np.full(n, 16, dtype=np.int32),
        payload_bytes=np.full(n, 32, dtype=np.int32),
        row_ids=np.arange(n),
        label_names=("no", "yes"),
        exit_zero=logits[:, 0],
    )
    return DimecCascade.fit(Calibration(table, {"dc": DEPTHS, "ee": DEPTHS}))


if __name__ == "__main__":
    main()
