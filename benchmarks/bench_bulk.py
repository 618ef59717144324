"""Many texts on one machine: the CPU time of a device on a whole list, against that of the plain full model.

The plain full model is the cloud tier's encoder with its last exit alone, as one graph: tokens by the `tokenizers`
library, texts sorted by length, run in batches by onnxruntime and, where it is installed, OpenVINO, in float32 and
with 8-bit weights, each at the batch size that is fastest here. Start-up is excluded, tokenising is in both. CPU time
is that of the whole process, so that other processes disturb little; the contestants take turns, and medians over the
rounds count. "over" is the share of the fastest plain model's time, less the cost share: what is not saved. The end of
a line says the same of the fastest plain model in the same precision. OpenVINO computes in bfloat16 where the machine
does. Bundles are made by `dimec export`; the tiers of the first one of a task must be in float32. `--tickets` writes
labelled tickets to fit a model to, and measures nothing.

    DIMEC_DATA=... python benchmarks/bench_bulk.py sst2=BUNDLE[,INT8-BUNDLE] mrpc=BUNDLE [--texts 2000]
    python benchmarks/bench_bulk.py --tickets tickets.csv
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer

from dimec.bundle import Bundle, load_bundle
from dimec.bundle.engines import Session, open_session
from dimec.bundle.engines.hardware import computes_bf16
from dimec.bundle.engines.tier import TIER_GRAPH
from dimec.bundle.manifest import TOKENIZER
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.sample import Text
from subject import some_pairs, some_texts, tickets

BATCHES = (8, 16, 32, 64)
ENGINES = [name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name)]


class Plain:
    """The full model in batches."""

    def __init__(self, bundle: Bundle, path: Path, *, engine: str, threads: int) -> None:
        assert bundle.cloud is not None
        self.manifest = bundle.cloud.manifest
        self.session: Session = open_session(path, engine=engine, threads=threads)  # type: ignore[arg-type]
        self.tokenizer = Tokenizer.from_file(str(bundle.cloud.path(TOKENIZER)))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(self.manifest.max_length)
        self.batch = BATCHES[0]

    def __call__(self, texts: Sequence[Text]) -> list[int]:
        encoded = [
            each
            for start in range(0, len(texts), 1_000)
            for each in self.tokenizer.encode_batch_fast(texts[start : start + 1_000])
        ]
        order = np.argsort([len(each.ids) for each in encoded], kind="stable")
        labels = np.empty(len(texts), dtype=np.int64)
        for start in range(0, len(order), self.batch):
            rows = order[start : start + self.batch]
            shape = (len(rows), len(encoded[rows[-1]].ids))
            feed: dict[str, NDArray[Any]] = {
                name: np.zeros(shape, dtype=np.int64) for name in self.manifest.inputs
            }
            feed["input_ids"][:] = self.manifest.pad_id
            for place, row in enumerate(rows.tolist()):
                ids = encoded[row].ids
                feed["input_ids"][place, : len(ids)] = ids
                feed["attention_mask"][place, : len(ids)] = 1
                if self.manifest.task.pairs and "token_type_ids" in feed:
                    feed["token_type_ids"][place, : len(ids)] = encoded[row].type_ids
            (logits,) = self.session.run(feed)
            labels[rows] = logits[:, 0].argmax(axis=1)
        found: list[int] = labels.tolist()
        return found


def full_model(bundle: Bundle, out: Path) -> Path:
    """Write the cloud tier's encoder with its last exit alone."""
    assert bundle.cloud is not None
    model = onnx.load(str(bundle.cloud.path(TIER_GRAPH)))
    (joined,) = [node for node in model.graph.node if "logits" in node.output]
    last = joined.input[-1]
    shape: list[str | int | None] = ["batch", 1, len(bundle.cloud.manifest.label_names)]
    del model.graph.output[:]
    value = onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, shape)
    model.graph.output.append(value)
    needed, kept = {last}, []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    held = [each for each in model.graph.initializer if each.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(held)
    onnx.save(model, str(out))
    return out


def _named(engine: str) -> str:
    return f"{engine} in bf16" if engine == "openvino" and computes_bf16() else engine


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of the process for some work, in seconds, and what the work returns."""
    began = time.process_time()
    result = work()
    return time.process_time() - began, result


def measure(
    folders: Sequence[str],
    texts: Sequence[Text],
    *,
    engines: Sequence[str],
    threads: int,
    rounds: int,
) -> None:
    """Let everything take turns on the texts and print its CPU time a text."""
    bundles = [load_bundle(folder) for folder in folders]
    settings = DeviceSettings(threads=threads)
    with TemporaryDirectory() as scratch:
        float32 = full_model(bundles[0], Path(scratch) / "float32.onnx")
        int8 = Path(scratch) / "int8.onnx"
        quantize_dynamic(str(float32), str(int8), per_channel=True, weight_type=QuantType.QInt8)
        plain = {
            f"plain, {_named(engine)}, {path.stem}": Plain(
                bundles[0], path, engine=engine, threads=threads
            )
            for engine in engines
            for path in (float32, int8)
            if (engine, path) != ("openvino", int8)  # many times slower there
        }
        sample = [texts[row] for row in range(0, len(texts), max(1, len(texts) // 250))]
        for model in plain.values():
            model(sample[:64])
            taken = {}
            for model.batch in BATCHES:
                taken[model.batch] = timed(partial(model, sample))[0]
            model.batch = min(taken, key=taken.__getitem__)
        devices = {
            f"dimec, {_named(engine)}, {Path(folder).name}": Device(
                bundle, settings=settings.model_copy(update={"engine": engine})
            )
            for engine in engines
            for folder, bundle in zip(folders, bundles, strict=True)
            if engine == "onnxruntime" or not bundle.mobile.manifest.quantized
        }
        works: dict[str, Callable[[], object]] = {
            **{name: partial(model, texts) for name, model in plain.items()},
            **{name: partial(device.classify, texts) for name, device in devices.items()},
        }
        for device in devices.values():
            device.classify(sample)
        seconds: dict[str, list[float]] = {name: [] for name in works}
        said: dict[str, Any] = {}
        for _ in range(rounds):
            for name, work in works.items():
                taken_s, said[name] = timed(work)
                seconds[name].append(taken_s / len(texts))
        report(
            {name: float(np.median(each)) for name, each in seconds.items()}, said, plain, devices
        )
        first = next(iter(devices.values()))
        few = sample[:200]
        alone = timed(lambda: list(first.stream(iter(few))))[0] / len(few)
        print(f"the first of dimec, one by one, on {len(few)} of them: {1e6 * alone:.0f} us a text")
        for device in devices.values():
            device.close()


def report(
    took: dict[str, float],
    said: dict[str, Any],
    plain: dict[str, Plain],
    devices: dict[str, Device],
) -> None:
    """Print the table."""
    best = min(took[name] for name in plain)
    print(f"{'':40} us a text  of the best  cost share    over")
    for name, model in plain.items():
        print(
            f"{name:40} {1e6 * took[name]:9.0f} {took[name] / best:12.3f}  batches of {model.batch}"
        )
    for name, device in devices.items():
        kind = "int8" if device.manifest.quantized else "float32"
        own = min(took[each] for each in plain if each.endswith(kind))
        share = float(np.mean([each.cost for each in said[name]])) / device.reference_cost
        labels = [device.label_names.index(each.label) for each in said[name]]
        same = np.mean(np.array(labels) == said[f"plain, onnxruntime, {kind}"])
        print(
            f"{name:40} {1e6 * took[name]:9.0f} {took[name] / best:12.3f} {share:11.3f} "
            f"{took[name] / best - share:+7.3f}  {took[name] / own:.3f} of {kind}, "
            f"{took[name] / own - share:+.3f}; {100 * same:.1f} % of the labels are the full model's"
        )


def texts_of(task: str, count: int) -> tuple[Sequence[Text], str]:
    """Give texts of a task, and where they are from."""
    if task == "sst2":
        return some_texts(count)
    if task == "tickets":
        return tickets(count, seed=1)[0], "generated tickets"
    return some_pairs(count, task)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "runs", nargs="*", metavar="TASK=BUNDLE[,BUNDLE]", help="TASK: sst2, qqp, mrpc, tickets"
    )
    parser.add_argument("--tickets", type=Path, metavar="FILE")
    parser.add_argument("--texts", type=int, default=2_000)
    parser.add_argument("--engine", choices=ENGINES, help="this one alone")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    if given.tickets is not None:
        with given.tickets.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(
                [("body", "queue"), *zip(*tickets(given.texts, seed=0), strict=True)]
            )
    for run in given.runs:
        task, _, folders = run.partition("=")
        texts, source = texts_of(task, given.texts)
        print(f"{len(texts):,} texts of {source}, {given.threads} thread(s), {given.rounds} rounds")
        engines = [given.engine] if given.engine else ENGINES
        measure(
            folders.split(","), texts, engines=engines, threads=given.threads, rounds=given.rounds
        )
        print(flush=True)


if __name__ == "__main__":
    main()
