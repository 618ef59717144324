"""The stages in which a bottleneck is trained: what learns in each, and from what.

- BottleNet trains all behind the device at once, from labels.
- BottleNet++ trains encoder and decoder first, with the network as it is, then all: phases 2 and 3 of the authors'
  code, whose phase 1 is the fit of the network itself.
- BottleFit trains encoder and decoder to the teacher's hidden states, at the split and at each exit behind it, then
  freezes the encoder and distils the teacher's logits into decoder and tail: the authors' configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, softmax

from dimec.runs.codes import Kind
from dimec.runs.compressed import CompressOptions
from dimec.training.losses import sum_of_exit_losses
from dimec.training.model.split import Part, SplitEncoder, TailOutput
from dimec.training.stages import Stage


@dataclass(frozen=True, kw_only=True)
class BottleneckStage(Stage):
    """A stage of a bottleneck's training; all exits behind the split learn.

    Attributes:
        learns: What learns.
        learns_from: Labels; the teacher's hidden states; or the teacher's logits, and labels.
    """

    learns: tuple[Part, ...]
    learns_from: Literal["labels", "states", "logits"]


_MODULE: tuple[Part, ...] = ("encoder", "decoder")
_WHOLE: tuple[Part, ...] = ("encoder", "decoder", "tail")

BOTTLENECK_STAGES: dict[Kind, tuple[BottleneckStage, ...]] = {
    "bottlenet": (BottleneckStage(name="whole", learns=_WHOLE, learns_from="labels"),),
    "bottlenet-pp": (
        BottleneckStage(
            name="module", learns=_MODULE, learns_from="labels", place=", stage 1/2 (module)"
        ),
        BottleneckStage(
            name="whole", learns=_WHOLE, learns_from="labels", place=", stage 2/2 (whole)"
        ),
    ),
    "bottlefit": (
        BottleneckStage(
            name="states", learns=_MODULE, learns_from="states", place=", stage 1/2 (states)"
        ),
        BottleneckStage(
            name="distillation",
            learns=("decoder", "tail"),
            learns_from="logits",
            place=", stage 2/2 (distillation)",
        ),
    ),
}
"""The stages of each kind, in order."""


def stage_loss(
    stage: BottleneckStage,
    split: SplitEncoder,
    hidden: Tensor,
    mask: Tensor,
    truth: Tensor,
    *,
    options: CompressOptions,
) -> tuple[Tensor, Tensor]:
    """Return loss and logits of a batch of hidden states [b, t, d] with mask [b, t] and classes [b]."""
    restored = split.through(hidden, mask)
    output = split.cloud(restored, mask)
    if stage.learns_from == "labels":
        return sum_of_exit_losses(output.logits, truth), output.logits
    teacher = split.teacher(hidden, mask)
    if stage.learns_from == "states":
        pairs = [(restored, hidden), *zip(output.states, teacher.states, strict=True)]
        distances = [squared_distance(ours, theirs, mask) for ours, theirs in pairs]
        return torch.stack(distances).sum(), output.logits
    assert options.temperature is not None and options.label_share is not None  # resolved
    distilled = distillation_loss(output, teacher, temperature=options.temperature)
    share = options.label_share
    loss = share * sum_of_exit_losses(output.logits, truth) + (1 - share) * distilled
    return loss, output.logits


def squared_distance(ours: Tensor, theirs: Tensor, mask: Tensor) -> Tensor:
    """Return the squared distance of states [b, t, d], summed over d and averaged over the tokens that are there."""
    weights = mask.float()
    distances = (ours.float() - theirs.float()).square().sum(-1)
    return (distances * weights).sum() / weights.sum()


def distillation_loss(output: TailOutput, teacher: TailOutput, *, temperature: float) -> Tensor:
    """Return T² KL(teacher || student), a mean over the batch and a sum over exits, each from the teacher's own."""
    ours = log_softmax(output.logits.float() / temperature, dim=-1)
    theirs = softmax(teacher.logits.float() / temperature, dim=-1)
    return temperature**2 * kl_div(ours, theirs, reduction="sum") / len(ours)


def build_stage_optimizer(
    stage: BottleneckStage, split: SplitEncoder, options: CompressOptions
) -> torch.optim.Optimizer:
    """Ask for gradients of what learns in a stage and return AdamW on it; the bottleneck has a rate of its own."""
    split.learn(stage.learns)
    rates: list[tuple[nn.Module, float, float]] = [
        (split.bottleneck, options.bottleneck_learning_rate, 0.0),
        (split.tail, options.learning_rate, 0.01),
    ]
    groups = [
        {
            "params": [each for each in part.parameters() if each.requires_grad],
            "lr": rate,
            "peak": rate,
            "weight_decay": decay,
        }
        for part, rate, decay in rates
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)
