"""Dropout that is cheaper on CPUs: one random byte per number, not one Bernoulli draw.

Eight elements share one 64-bit draw: each looks at its own byte, and is dropped when the byte is below 256·p. The rate
is thereby rounded to a multiple of 1/256 (0.1 becomes 0.1016), and what is kept is scaled by the inverse of the rounded
rate, so that the expectation stays right. The bytes come from torch's global generator. Where transformers drops
attention weights it calls a function rather than a module, so that a model with plain ("eager") attention also gets an
attention function from here, through transformers' registry. docs/explanation/speed.md says what it gains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import eager_mask

_LEVELS = 256
_ATTENTION = "byte_dropout"


def byte_dropout(input: Tensor, p: float) -> Tensor:
    """Drop elements of ``input`` with the multiple of 1/256 nearest to ``p``, and scale the rest.

    Off the CPU this is torch's own dropout, which is fast there.
    """
    if input.device.type != "cpu":
        return functional.dropout(input, p)
    threshold = round(p * _LEVELS)
    if threshold == 0:
        return input
    if threshold == _LEVELS:
        return input * 0
    n = input.numel()
    # All 64 bits: the default range of random_ leaves the sign bit at zero, which would make
    # every eighth byte small.
    words = torch.empty((n + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
    # The mask stays in bytes, since torch multiplies by bytes several times faster than by bools.
    keep = words.view(torch.uint8)[:n].ge_(threshold).view(input.shape)
    return (input * keep).mul_(_LEVELS / (_LEVELS - threshold))


class ByteDropout(nn.Dropout):
    """``nn.Dropout`` on random bytes; ``p`` counts as the nearest multiple of 1/256."""

    def forward(self, input: Tensor) -> Tensor:
        """Drop elements in training mode, and give the input back in evaluation mode."""
        return byte_dropout(input, self.p) if self.training else input


def use_byte_dropout(module: nn.Module) -> None:
    """Swap every ``nn.Dropout`` for a ``ByteDropout`` of the same rate, and eager attention likewise.

    Other kinds of attention stay as they are; models that write theirs out in modules drop by an ``nn.Dropout``.
    """
    for parent in list(module.modules()):
        if (
            isinstance(parent, PreTrainedModel)
            and parent.config._attn_implementation == "eager"
            and parent._can_set_attn_implementation()
        ):
            parent.set_attn_implementation(_ATTENTION)
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p).train(child.training))


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Attend plainly, from [b, heads, t, d] to [b, t, heads, d], with the weights [b, heads, t, t].

    The signature is transformers'; ``dropout`` is zero in evaluation mode.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    if dropout > 0:
        weights = byte_dropout(weights, dropout)
    return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(_ATTENTION, _attention)
AttentionMaskInterface.register(_ATTENTION, eager_mask)
