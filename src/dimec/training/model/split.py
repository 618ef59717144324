"""An encoder that is split behind a layer: its own first layers, a bottleneck, and a tail that may learn.

The device's part is the given model's, in evaluation mode, and never changes. The tail starts as a copy of the model's
later layers and exits. Shapes: b samples, t tokens, padding included; d the encoder's width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dimec.training.model.bottleneck import Bottleneck
from dimec.training.model.encoder import MultiExitEncoder, as_autocast

Part = Literal["encoder", "decoder", "tail"]


@dataclass(frozen=True)
class TailOutput:
    """What a tail made of a hidden state: the states [b, t, d] that each exit looks at, logits [b, exits, classes]."""

    states: tuple[Tensor, ...]
    logits: Tensor


class SplitEncoder(nn.Module):
    """The device's layers up to ``after``, a bottleneck, and the cloud's; ``exits`` are those behind it."""

    def __init__(self, model: MultiExitEncoder, bottleneck: Bottleneck, *, after: int) -> None:
        """Split ``model``, which is left as it is, after one of its exits' layers."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.bottleneck = bottleneck
        self.after = after
        self.exits = tuple(layer for layer in model.exits if layer > after)
        self.student = copy.deepcopy(model)
        layers = range(after, model.adapter.n_layers)
        # A list of their own, since ALBERT's layers share modules, and a file may hold each tensor once.
        self.tail = nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    dict.fromkeys(self.student.adapter.layer_module(index) for index in layers)
                ),
                "exits": nn.ModuleDict(
                    {str(layer): self.student.heads[str(layer)] for layer in self.exits}
                ),
            }
        )
        self.learnt = nn.ModuleDict({"bottleneck": bottleneck, "tail": self.tail})
        """Everything that may learn, and nothing else: what is saved."""

    def learn(self, parts: Iterable[Part]) -> None:
        """Ask for gradients of these parts and of nothing else."""
        parts = set(parts)
        self.requires_grad_(False)
        for name in ("encoder", "decoder"):
            if name in parts:
                getattr(self.bottleneck, name).requires_grad_(True)
        if "decoder" in parts:
            # whatever a bottleneck has beside its encoder belongs to what restores
            for parameter in self.bottleneck.parameters(recurse=False):
                parameter.requires_grad_(True)
        if "tail" in parts:
            self.tail.requires_grad_(True)

    def train(self, mode: bool = True) -> SplitEncoder:
        """Switch dropout on, except on the device and in a tail that does not learn."""
        super().train(mode)
        self.model.eval()
        tail_learns = any(each.requires_grad for each in self.tail.parameters())
        self.student.train(mode and tail_learns)
        self.tail.train(mode and tail_learns)
        return self

    def device(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the device's layers: hidden state [b, t, d] behind the split, and embedding [b, embedding_width]."""
        with torch.no_grad():
            hidden, embedding = self.model.enter(input_ids, attention_mask, token_type_ids)
            hidden, _ = self.model.segment(
                as_autocast(hidden), attention_mask, after=0, layer=self.after
            )
        return hidden, embedding

    def through(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Send a hidden state [b, t, d] through the bottleneck; outside of autocast, since bytes are counted in it."""
        with torch.autocast(hidden.device.type, enabled=False):
            restored: Tensor = self.bottleneck(hidden, attention_mask)
        return restored.to(hidden.dtype)

    def cloud(self, restored: Tensor, attention_mask: Tensor) -> TailOutput:
        """Run the tail that may learn from a restored hidden state."""
        return self._run(self.student, restored, attention_mask)

    def teacher(self, hidden: Tensor, attention_mask: Tensor) -> TailOutput:
        """Run the model's own tail from the hidden state as it is."""
        with torch.no_grad():
            return self._run(self.model, hidden, attention_mask)

    def _run(self, model: MultiExitEncoder, hidden: Tensor, mask: Tensor) -> TailOutput:
        states, logits, after = [], [], self.after
        for layer in self.exits:
            hidden, said = model.segment(hidden, mask, after=after, layer=layer)
            states.append(hidden)
            logits.append(said)
            after = layer
        return TailOutput(tuple(states), torch.stack(logits, dim=1))
