"""The optimisers and the learning-rate schedule of a stage of training.

The word embeddings are half of a small encoder's parameters, and a batch touches one in a hundred of them. They get
sparse gradients and an optimiser that moves only the rows of the batch; everything else gets fused AdamW. On a
CPU that saves a third of a training step (docs/explanation/speed.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dimec.runs.run import FitOptions
from dimec.training.model import MultiExitEncoder

WEIGHT_DECAY = 0.01
WARM_UP = 0.06


def build_optimizers(
    model: MultiExitEncoder, options: FitOptions
) -> tuple[torch.optim.Optimizer, ...]:
    """Return optimisers of the parameters that ask for gradients; heads have their own rate.

    AdamW for everything but the word embeddings, and sparse Adam for those, where they learn.
    """
    words = model.word_embeddings
    words.sparse = True
    trunk = [
        each
        for each in model.backbone_parameters()
        if each.requires_grad and each is not words.weight
    ]
    groups = [
        {
            "params": [each for each in trunk if each.ndim > 1],
            "lr": options.learning_rate,
            "weight_decay": WEIGHT_DECAY,
        },
        {
            "params": [each for each in trunk if each.ndim <= 1],
            "lr": options.learning_rate,
            "weight_decay": 0.0,
        },
        {
            "params": [each for each in model.head_parameters() if each.requires_grad],
            "lr": options.head_learning_rate,
            "weight_decay": 0.0,
        },
    ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["peak"] = group["lr"]
    adam = torch.optim.AdamW(groups, fused=True)
    if not words.weight.requires_grad:
        return (adam,)
    sparse = torch.optim.SparseAdam([{"params": [words.weight], "lr": options.learning_rate}])
    sparse.param_groups[0]["peak"] = options.learning_rate
    return adam, sparse


def schedule(optimizers: Sequence[torch.optim.Optimizer], *, step: int, total: int) -> None:
    """Set the rates of a step, counted from 0: a linear warm-up, then linear decay to zero."""
    warm_up = max(1, round(WARM_UP * total))
    factor = min((step + 1) / warm_up, (total - step) / max(1, total - warm_up))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
