"""What each choice of the training recipe is worth: the step of `dimec fit` with one choice undone at a time.

MiniLM with six exits on batches of 32 rows of 14 tokens, drawn at random. The variants alternate in one process;
medians count. "All rows padded to 40" stands for what random batches of SST-2 pad to.

    python benchmarks/bench_training_choices.py [--rounds 12]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import nn

from dimec.runs.run import FitOptions
from dimec.training.fitting import sum_of_exit_losses
from dimec.training.model import MultiExitEncoder, Pooling, load_backbone
from dimec.training.model.dropout import use_byte_dropout
from dimec.training.optimizer import build_optimizers

BATCH, TOKENS, STEPS = 32, 14, 4


def stepper(
    *,
    attention: str = "eager",
    dropout: Literal["bytes", "torch", "none"] = "bytes",
    sparse: bool = True,
    bf16: bool = True,
    padded_to: int = TOKENS,
    pooling: Pooling = Pooling.ATTENTION,
) -> Callable[[], None]:
    torch.manual_seed(0)
    backbone = load_backbone("minilm", attn_implementation=attention)
    model = MultiExitEncoder(
        backbone.adapter, exits=range(1, 7), n_classes=2, pooling=pooling
    ).train()
    if dropout == "bytes":
        use_byte_dropout(model)
    elif dropout == "none":
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    optimizers: tuple[torch.optim.Optimizer, ...] = build_optimizers(
        model, FitOptions(task="bench")
    )
    if not sparse:
        model.word_embeddings.sparse = False
        optimizers = (torch.optim.AdamW(model.parameters(), lr=5e-5, fused=True),)
    ids = torch.zeros(BATCH, padded_to, dtype=torch.int64)
    ids[:, :TOKENS] = torch.randint(1000, 30_000, (BATCH, TOKENS))
    mask = (ids != 0).long()
    truth = torch.randint(0, 2, (BATCH,))

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(ids, mask).logits
        sum_of_exit_losses(logits, truth).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    variants = {
        "as it is": stepper(),
        "torch's dropout": stepper(dropout="torch"),
        "no dropout at all": stepper(dropout="none"),
        "sdpa attention": stepper(attention="sdpa"),
        "dense word embeddings": stepper(sparse=False),
        "float32": stepper(bf16=False),
        "mean over tokens, not attention": stepper(pooling=Pooling.MEAN),
        f"all rows padded to 40, not {TOKENS}": stepper(padded_to=40),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, step in variants.items():
            step()
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
            if number:  # the first round warms up
                seconds[name].append((time.perf_counter() - began) / STEPS)
    usual = float(np.median(seconds["as it is"]))
    print(f"{torch.get_num_threads()} threads, batch {BATCH}, {TOKENS} tokens, six exits")
    for name, times in seconds.items():
        median = float(np.median(times))
        print(
            f"{name:32} {1e3 * median:6.1f} ms a step  {median / usual:5.2f}x of the step as it is"
        )


if __name__ == "__main__":
    main()
