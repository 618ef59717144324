"""Where a training step's time goes: self time by kind of operation, and by forward, backward and optimiser.

The step is that of `dimec fit` on SST-2 (MiniLM, six exits, batch 32, length buckets), measured by torch's profiler.

    DIMEC_DATA=... python benchmarks/profile_training.py [--steps 40]
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from dimec.core.progress import SILENT
from dimec.data import bucketed_batches
from dimec.runs.run import FitOptions
from dimec.training.batching import tensors
from dimec.training.fitting import sum_of_exit_losses
from dimec.training.optimizer import build_optimizers
from dimec.training.prepare import prepare

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "random numbers for dropout": ("aten::random_", "aten::bernoulli_", "aten::ge_"),
    "casts and copies": ("aten::copy_", "aten::_to_copy", "aten::empty_strided"),
    "softmax, GELU, LayerNorm": (
        "aten::_softmax",
        "aten::_softmax_backward_data",
        "aten::gelu",
        "aten::gelu_backward",
        "aten::native_layer_norm",
        "aten::native_layer_norm_backward",
    ),
    "optimisers": ("aten::_fused_adamw_", "aten::_fused_adam_"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=40)
    chosen = parser.parse_args()
    root = os.environ.get("DIMEC_DATA")
    if not root:
        print("skipped: set DIMEC_DATA to a folder with the real data sets to run this benchmark")
        return
    options = FitOptions(task="sst2", data=str(Path(root) / "glue" / "sst2"), max_rows=8000)
    prepared = prepare(options, progress=SILENT)
    model, rows = prepared.model.train(), prepared.split.train
    optimizers = build_optimizers(model, options)
    lengths = prepared.tokens.lengths[rows]
    batches = bucketed_batches(lengths, batch_size=options.batch_size, seed=0, epoch=0)
    labels = prepared.labels(rows)
    phases = dict.fromkeys(("forward", "backward", "optimisers"), 0.0)

    def step(index: int) -> None:
        batch = batches[index]
        inputs = tensors(
            prepared.tokens.pad(rows[batch], prepared.backbone.tokenizer.pad_token_id),
            prepared.hardware.device,
        )
        moments = [time.perf_counter()]
        with prepared.hardware.autocast():
            logits = model(*inputs).logits
        loss = sum_of_exit_losses(logits, torch.from_numpy(labels[batch]))
        moments.append(time.perf_counter())
        loss.backward()
        moments.append(time.perf_counter())
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        moments.append(time.perf_counter())
        for name, begin, end in zip(phases, moments[:-1], moments[1:], strict=True):
            phases[name] += end - begin

    for index in range(5):
        step(index)
    phases = dict.fromkeys(phases, 0.0)
    for index in range(chosen.steps):
        step(5 + index)
    whole = sum(phases.values())
    print(f"{prepared.config.device}, {prepared.config.precision}; ", end="")
    print(f"{1e3 * whole / chosen.steps:.0f} ms a step, {32 * chosen.steps / whole:.0f} samples/s")
    for name, seconds in phases.items():
        print(f"  {name:32} {100 * seconds / whole:5.1f} %")
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for index in range(chosen.steps):
            step(5 + index)
    events = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(events.values())
    print("self time by kind of operation:")
    rest = 1.0
    for kind, names in KINDS.items():
        share = sum(events.get(name, 0.0) for name in names) / total
        rest -= share
        print(f"  {kind:32} {100 * share:5.1f} %")
    print(f"  {'everything else':32} {100 * rest:5.1f} %")


if __name__ == "__main__":
    main()
