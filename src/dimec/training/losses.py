"""Losses that sum over exits. Shapes: b samples of a batch; logits are [b, exits, classes]."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import cross_entropy


def sum_of_exit_losses(logits: Tensor, truth: Tensor) -> Tensor:
    """Return L = sum over exits of the mean cross-entropy, for classes [b]."""
    exits = logits.shape[1]
    return exits * cross_entropy(
        logits.flatten(0, 1).float(), truth[:, None].expand(-1, exits).flatten()
    )


def sum_of_exit_divergences(first: Tensor, second: Tensor) -> Tensor:
    """Return the sum over exits of the mean divergence of two readings of the same rows: R-Drop.

    The mean of KL(p || q) and KL(q || p), p and q being what an exit says under two draws of dropout (Liang et al.,
    *R-Drop: Regularized Dropout for Neural Networks*, NeurIPS 2021, which gives it half this weight).
    """
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    both_ways = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
    return both_ways.mean(0).sum()
