"""The mobile path of a device against the bare forward pass of the mobile prefix, on the same texts.

The path is `Device.classify`, a text at a time: tokenise, embed, route by the bundle's centroids, run the prefix in the
bundle's graphs, read its exits, make the answer. Every text runs all layers of the prefix, whatever the router says.
The bare pass is one onnxruntime session over one graph of the prefix, with ready-made arrays and the device's settings.
All take turns in one process, a block of texts each; the median over blocks of a block's ratio counts.

The last line is what a text costs by the bundle's own policy, over those texts that it answers on the device.

    DIMEC_BUNDLE=... DIMEC_DATA=... python benchmarks/bench_mobile_path.py [--threads 1]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.bundle import Bundle, TierTokenizer
from dimec.bundle.engines import TierEngine, TokenBatch, open_session
from dimec.bundle.engines.tier import EMBEDDING, segment_name
from dimec.core.tiers import Step, Tier, softmax
from dimec.deploying.compose import compose
from dimec.policies import View
from dimec.policies.centroids import CentroidPolicy, Centroids
from dimec.policies.dimec_dc import DimecDcFixed
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.sample import Text
from subject import some_bundle, some_pairs, some_texts

BLOCK, ROUNDS = 100, 15

Named = dict[str, NDArray[Any]]


class StaysMobile(DimecDcFixed):
    """Route as the bundle does, then run the mobile tier all the same."""

    def enter(self, tier: Tier) -> Step:
        return Step(Tier.MOBILE, self.depths.mobile)


def staying(bundle: Bundle, *, width: int) -> StaysMobile:
    policy = bundle.mobile.policy()
    sums = np.random.default_rng(0).normal(size=(3, width))
    centroids = Centroids(sums, np.ones(3, dtype=np.int64))
    if isinstance(policy, CentroidPolicy):
        centroids = policy.centroids
    return StaysMobile(policy.depths, centroids, alpha=0.5, beta=0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1, help="threads of a run of the engine")
    threads = parser.parse_args().threads
    with some_bundle() as bundle, TemporaryDirectory() as scratch:
        task, count = bundle.mobile.manifest.task, BLOCK * ROUNDS
        texts: Sequence[Text]
        texts, source = some_pairs(count, task.name) if task.pairs else some_texts(count)
        measure(bundle, texts, source, Path(scratch) / "prefix.onnx", threads=threads)


def measure(
    bundle: Bundle, texts: Sequence[Text], source: str, whole: Path, *, threads: int
) -> None:
    mobile = bundle.mobile
    depth = mobile.manifest.depths.mobile
    names = [segment_name(layer) for layer in mobile.layers if layer <= depth]
    compose(mobile.path(EMBEDDING), [mobile.path(name) for name in names], whole)
    bare = open_session(whole, threads=threads)
    tokenizer = mobile.tokenizer()
    batches = [encoded(tokenizer, text) for text in texts]
    inputs: list[Named] = [dict(batch.named()) for batch in batches]
    engine = TierEngine(mobile, threads=threads)
    engine.open()
    embeddings = [engine.embed(batch)[1][0] for batch in batches]
    policy = staying(bundle, width=len(embeddings[0]))
    settings = DeviceSettings(threads=threads)

    with (
        Device(bundle, policy=policy, settings=settings) as device,
        Device(bundle, settings=settings) as own,
    ):
        answers = device.classify(texts[:BLOCK])
        for answer, named in zip(answers, inputs, strict=False):  # the same answers, to begin with
            said = softmax(bare.run(named)[0][0, -1])
            assert answer.label == mobile.manifest.label_names[int(said.argmax())]
            assert abs(answer.confidence - float(said.max())) < 1e-4
        sides: dict[str, Callable[[slice], object]] = {
            "one graph, bare": lambda rows: [bare.run(named) for named in inputs[rows]],
            "mobile path": lambda rows: [device.classify([text]) for text in texts[rows]],
            "mobile path, as a stream": lambda rows: list(device.stream(texts[rows])),
        }
        taken = taking_turns(sides)
        stays = [
            place for place, answer in enumerate(own.classify(texts)) if answer.tier == "mobile"
        ]
        kept: dict[str, Callable[[slice], object]] = {
            "one graph, bare": lambda rows: [bare.run(inputs[each]) for each in stays[rows]],
            "own policy": lambda rows: [own.classify([texts[each]]) for each in stays[rows]],
        }
        at_home = taking_turns(kept, rounds=len(stays) // BLOCK)
    lengths = [batch.input_ids.shape[1] for batch in batches]
    print(
        f"{len(texts):,} texts of {source}, {np.mean(lengths):.1f} tokens on average (95 %: up to "
        f"{np.percentile(lengths, 95):.0f}); {len(names)} exits up to layer {depth}; {threads} thread(s) of "
        f"{os.cpu_count()} cores"
    )
    first = taken["one graph, bare"]
    for name, seconds in taken.items():
        print(
            f"{name:26} {1e6 * np.median(seconds):8.1f} us a text   {np.median(seconds / first):5.3f}x of one graph"
        )
    seconds = at_home["own policy"]
    if len(seconds):
        print(
            f"{own.policy.name + ' on the device':26} {1e6 * np.median(seconds):8.1f} us a text   "
            f"{np.median(seconds / at_home['one graph, bare']):5.3f}x of one graph, on the "
            f"{len(stays) / len(texts):.0%} that it answers there"
        )
    else:
        print(f"{own.policy.name} answers {len(stays)} of them on the device, too few to time")
    stages: dict[str, Callable[[slice], object]] = {
        "tokenise": lambda rows: [one(tokenizer, text) for text in texts[rows]],
        "embed": lambda rows: [engine.embed(batch) for batch in batches[rows]],
        "route": lambda rows: [policy.decide(View(embedding=each)) for each in embeddings[rows]],
    }
    print("parts of the path by themselves:")
    for name, seconds in taking_turns(stages).items():
        print(
            f"  {name:24} {1e6 * np.median(seconds):8.1f} us a text   {np.median(seconds / first):5.3f}x of one graph"
        )


def one(tokenizer: TierTokenizer, text: Text) -> TokenBatch:
    """Tokenise as the device does."""
    return tokenizer.encode_one(*([text] if isinstance(text, str) else text))[0]


def encoded(tokenizer: TierTokenizer, text: Text) -> TokenBatch:
    """Tokenise as for any engine: arrays that share nothing."""
    tokens = (
        tokenizer.encode([text])
        if isinstance(text, str)
        else tokenizer.encode([text[0]], [text[1]])
    )
    return tokens.batch()


def taking_turns(
    sides: dict[str, Callable[[slice], object]], *, rounds: int = ROUNDS
) -> dict[str, NDArray[np.float64]]:
    """Return seconds a text, a block after the other, each side in every round: [rounds]."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for side in sides.values():
        side(slice(0, BLOCK))
    for number in range(rounds):
        rows = slice(number * BLOCK, (number + 1) * BLOCK)
        for name, side in sides.items():
            began = time.perf_counter()
            side(rows)
            taken[name].append((time.perf_counter() - began) / BLOCK)
    return {name: np.array(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
