"""The time that exit zero takes for one sample, against the forward pass of the mobile prefix.

Exit zero is timed by itself, and with its softmax, both calls of `decide` and the pooled answer of `dimec-cascade`. The
forward pass is that of the mobile prefix (2 layers of MiniLM, batch 1) by onnxruntime on the graphs that an export
writes; its embedding graph, which the papers' routers need, is timed by itself too. Samples are as long as SST-2's
sentences, 16 tokens, and as MRPC's pairs, 54 tokens, half of which both texts have. All take turns on one thread, and
the ratio of medians counts. The last line of each block is what `CostModel.exit_zero` charges: the time of exit zero,
where that of one of the two layers is 1.5.

    python benchmarks/bench_decision.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from bench_replay import draw
from dimec.bundle.engines import open_session
from dimec.bundle.engines.tier import EMBEDDING, segment_name
from dimec.core.tiers import EXIT_ZERO, Depths, Reading, Tier, softmax
from dimec.costs.model import CostModel
from dimec.deploying.graphs import export_graphs
from dimec.policies import Calibration, View
from dimec.policies.cascade import DimecCascade
from dimec.runs.exit_zero import N_BUCKETS, ExitZero
from dimec.training.model import MultiExitEncoder, Pooling, load_backbone

ROUNDS, EACH = 60, 20
DEPTHS = Depths(2, 3, 6)
CLS, SEP = 101, 102

Ids = NDArray[np.int64]


def texts(draws: np.random.Generator) -> Ids:
    return np.concatenate([[CLS], draws.integers(1000, 30_000, 14), [SEP]])


def pairs(draws: np.random.Generator) -> Ids:
    first, second = draws.integers(1000, 30_000, (2, 25))
    second[:13] = first[:13]
    return np.concatenate([[CLS], first, [SEP], second, draws.integers(1000, 30_000, 1), [SEP]])


def main() -> None:
    model = MultiExitEncoder(
        load_backbone("minilm").adapter.keep(2), exits=(1, 2), n_classes=2, pooling=Pooling.MEAN
    )
    table = draw(2_000, seed=0, with_zero=True)
    policy = DimecCascade.fit(Calibration(table, {"dc": DEPTHS, "ee": DEPTHS}))
    with TemporaryDirectory() as folder:
        export_graphs(model, Path(folder))
        for kind in (texts, pairs):
            measure(kind, policy, Path(folder))


def measure(kind: Callable[[np.random.Generator], Ids], policy: DimecCascade, folder: Path) -> None:
    """Time everything on samples of one kind and print it."""
    names = (EMBEDDING, segment_name(1), segment_name(2))
    first, *segments = (open_session(folder / name, threads=1) for name in names)
    draws = np.random.default_rng(0)
    samples = [kind(draws) for _ in range(EACH)]
    zero = ExitZero(
        draws.normal(size=(N_BUCKETS, 2)).astype(np.float16),
        draws.uniform(1, 100, N_BUCKETS).astype(np.float16),
        np.zeros(2, dtype=np.float32),
        frame=(CLS, SEP),
        pairs=kind is pairs,
    )

    def embed(ids: Ids) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        mask = np.ones((1, len(ids)), dtype=np.int64)
        feed = {"input_ids": ids[None], "attention_mask": mask, "token_type_ids": 0 * mask}
        return first.run(feed)[0], mask

    def forward(ids: Ids) -> None:
        hidden, mask = embed(ids)
        for segment in segments:
            hidden, _ = segment.run({"hidden": hidden, "attention_mask": mask})

    def cascaded(ids: Ids) -> Reading:
        view = View(embedding=np.empty(0, dtype=np.float32))
        step = policy.decide(view)
        assert step == EXIT_ZERO
        said = softmax(zero.read(ids)[0])
        label = int(said.argmax())
        view.steps.append(step)
        view.readings.append(Reading(Tier.MOBILE, 0, label, float(said[label]), said))
        policy.decide(view)
        return policy.answer(view)

    works: dict[str, Callable[[Ids], object]] = {
        "forward": forward,
        "embedding": embed,
        "exit zero": zero.read,
        "exit zero + dimec-cascade": cascaded,
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
    print(f"{kind.__name__} of {len(samples[0])} tokens: mobile prefix {1e3 * whole:.2f} ms")
    for name, median in took.items():
        print(f"  {name:26} {1e6 * median:6.1f} us  {100 * median / whole:5.2f} % of the forward")
    layer = CostModel().mobile_layer
    charged = 2 * layer * took["exit zero"] / whole
    print(f"  exit zero, with {layer} for one of the two layers: {charged:.4f}")


if __name__ == "__main__":
    main()
