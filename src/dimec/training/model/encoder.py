"""The multi-exit encoder: an adapter's layers with a classifier after some of them.

Token ids go in; the logits of every exit come out, with the mean embedding that routers read. ``enter`` and ``segment``
run it in pieces, as tiers do. Layers are counted from 1. Shapes: b samples, t tokens, padding included.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import torch
from torch import Tensor, nn

from dimec.core.errors import OptionError
from dimec.training.model.adapters import Adapter

_NEVER = -1e9
"""The score of padding: finite, so that a row of nothing else gives no NaN."""


class Pooling(StrEnum):
    """How an exit makes one vector of a sample's hidden states."""

    MEAN = "mean"
    """The mean over all tokens that are not padding, special ones included."""

    CLS = "cls"
    """The first token's."""

    POOLER = "pooler"
    """The first token's through one dense layer and tanh, which all exits share, as in PABEE's and DIMEE's code."""

    ATTENTION = "attention"
    """A mean over all tokens with weights that the exit learns, other ones for each part of the vector."""


@dataclass(frozen=True)
class ExitOutput:
    """What the exits said about a batch.

    Attributes:
        logits: [b, exits, classes] float32.
        embedding: [b, embedding_width] float32, outside of any gradient: the mean over non-padding tokens of the
            embedding layer's output. In training mode it has that layer's dropout in it.
    """

    logits: Tensor
    embedding: Tensor


class AttentionHead(nn.Module):
    """A linear classifier on a weighted mean over tokens, with weights of its own for each part of the vector.

    Each of the encoder's attention heads has a learnt query that scores every token by its hidden state; a softmax
    over the tokens makes weights of the scores, and the head's part of the vector is averaged with them. Untrained it
    is the plain mean.
    """

    def __init__(self, width: int, n_classes: int, *, n_queries: int, dropout: float) -> None:
        """Take hidden states of ``width``, which ``n_queries`` divides."""
        super().__init__()
        self.score = nn.Linear(width, n_queries)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Linear(width, n_classes)

    def forward(self, states: Tensor, weights: Tensor) -> Tensor:
        """Classify states [b, t, width] into logits [b, classes]; tokens with weight 0 in [b, t] are padding."""
        scores = self.score(states).masked_fill((weights == 0).unsqueeze(-1), _NEVER)
        shares = scores.softmax(1).unsqueeze(-1)  # [b, t, queries, 1]
        # [b, t, queries, width / queries]
        parts = states.unflatten(-1, (self.score.out_features, -1))
        logits: Tensor = self.classify(self.dropout((shares * parts).sum(1).flatten(1)))
        return logits


class ExitModel(nn.Module):
    """A model that is read at its exits; calling it on a batch gives an `ExitOutput`."""

    adapter: Adapter
    exits: tuple[int, ...]

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The adapter's table of word embeddings."""
        return self.adapter.word_embeddings


class MultiExitEncoder(ExitModel):
    """An encoder with a linear classifier on the pooled hidden state after each layer in ``exits``."""

    def __init__(
        self,
        adapter: Adapter,
        *,
        exits: Sequence[int],
        n_classes: int,
        pooling: Pooling,
        head_dropout: float = 0.1,
    ) -> None:
        """Put untrained exits on ``adapter``, after these layers, counted from 1.

        Raises:
            OptionError: When the exits are not ascending layers of the encoder that end with its last, or there are
                fewer than two classes.
        """
        super().__init__()
        _check_exits(exits, n_layers=adapter.n_layers)
        if n_classes < 2:
            raise OptionError(f"a classifier needs two or more classes, {n_classes} given")
        if not 0 <= head_dropout < 1:
            raise OptionError(f"the heads' dropout is {head_dropout}, allowed is 0 up to below 1")
        self.adapter = adapter
        self.exits = tuple(exits)
        self.n_classes = n_classes
        self.pooling = pooling
        self.head_dropout = head_dropout
        shared: tuple[nn.Module, ...] = ()
        if pooling is Pooling.POOLER:
            shared = (nn.Sequential(nn.Linear(adapter.width, adapter.width), nn.Tanh()),)
        self.heads = nn.ModuleDict({str(layer): self._untrained(shared) for layer in exits})

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ExitOutput:
        """Run all layers and exits; inputs are those of `Adapter.embed`."""
        weights = _token_weights(attention_mask)
        embedded = self.adapter.embed(input_ids, attention_mask, token_type_ids)
        hidden = as_autocast(self.adapter.enter(embedded))
        context = self.adapter.context(hidden, attention_mask)
        logits: list[Tensor] = []
        for layer in range(1, self.exits[-1] + 1):
            hidden = self.adapter.layer(layer - 1, hidden, context)
            if layer in self.exits:
                logits.append(self._exit(layer, hidden, weights))
        with torch.no_grad(), _full_precision(embedded):
            embedding = _weighted_mean(embedded.detach(), weights)
        return ExitOutput(torch.stack(logits, dim=1), embedding)

    def enter(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run what comes before the first layer: hidden states [b, t, width], and the embedding as in `ExitOutput`."""
        embedded = self.adapter.embed(input_ids, attention_mask, token_type_ids)
        embedding = mean_over_tokens(embedded, attention_mask)
        return self.adapter.enter(embedded), embedding

    def segment(
        self, hidden: Tensor, attention_mask: Tensor, *, after: int, layer: int
    ) -> tuple[Tensor, Tensor]:
        """Run the layers behind ``after`` up to ``layer``, one of ``exits``, and the exit there.

        They take and give hidden states [b, t, width], with mask [b, t]; the exit's logits are [b, classes].
        """
        context = self.adapter.context(hidden, attention_mask)
        for index in range(after, layer):
            hidden = self.adapter.layer(index, hidden, context)
        return hidden, self._exit(layer, hidden, _token_weights(attention_mask))

    def _untrained(self, shared: Sequence[nn.Module]) -> nn.Module:
        """Build an untrained exit behind modules that the others have too."""
        width = self.adapter.width
        if self.pooling is Pooling.ATTENTION:
            queries = int(self.adapter.config.num_attention_heads)
            return AttentionHead(
                width, self.n_classes, n_queries=queries, dropout=self.head_dropout
            )
        linear = nn.Linear(width, self.n_classes)
        return nn.Sequential(*shared, nn.Dropout(self.head_dropout), linear)

    def _exit(self, layer: int, hidden: Tensor, weights: Tensor) -> Tensor:
        """Classify hidden states [b, t, width] of ``layer`` into logits [b, classes], in float32."""
        finished = self.adapter.finish(hidden)
        head = self.heads[str(layer)]
        with _full_precision(hidden):
            if self.pooling is Pooling.ATTENTION:
                return cast(Tensor, head(finished.float(), weights))
            if self.pooling is Pooling.MEAN:
                return cast(Tensor, head(_weighted_mean(finished, weights)))
            return cast(Tensor, head(finished[:, 0].float()))


def mean_over_tokens(states: Tensor, attention_mask: Tensor) -> Tensor:
    """Average states [b, t, width] over the tokens that are not padding; [b, width] float32."""
    return _weighted_mean(states, _token_weights(attention_mask))


def _token_weights(attention_mask: Tensor) -> Tensor:
    """Share a weight of one out over each sample's tokens, [b, t] float32; padding has none."""
    weights = attention_mask.float()
    return weights / weights.sum(1, keepdim=True).clamp(min=1)


def _weighted_mean(states: Tensor, weights: Tensor) -> Tensor:
    """Average states [b, t, width] over tokens with weights [b, t] that sum to one; [b, width] float32."""
    return torch.bmm(weights.unsqueeze(1), states.float()).squeeze(1)


def as_autocast(hidden: Tensor) -> Tensor:
    """Bring a hidden state to autocast's type, if it is on: all layers then hand on that type.

    The embedding layer gives float32, and a sum keeps the wider type, so that every linear layer would cast its input
    anew: a tenth of a training step on a CPU.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return hidden.to(torch.get_autocast_dtype(device))
    return hidden


def _full_precision(like: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off for a block, if it is on; an exported graph must not carry the switch."""
    device = like.device.type
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()


def _check_exits(exits: Sequence[int], *, n_layers: int) -> None:
    """Refuse exits that are not ascending layers from 1 up to the last layer."""
    ascending = list(exits) == sorted(set(exits))
    if not exits or not ascending or exits[0] < 1 or exits[-1] != n_layers:
        given = ", ".join(map(str, exits)) or "none"
        raise OptionError(
            f"exits after layers {given} were asked for; allowed are ascending layers between 1 and {n_layers}, the "
            f"last of them {n_layers}"
        )
