"""One adapter per architecture: the only place that knows how a Hugging Face encoder names its parts.

An adapter wraps the bare Hugging Face model (no pooler, no head) and offers it as a pipeline that can stop after any
layer: ``embed``, ``enter``, ``layer`` 0, 1, …, ``finish``. Run to the end it gives the Hugging Face model's own
hidden states. Shapes: b samples, t tokens, padding included.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, cast

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_bidirectional_sliding_window_mask,
)

Context = Sequence[Mapping[str, Any]]
"""For every layer, what its forward takes besides the hidden state: masks, rotary embeddings."""


class Adapter(nn.Module):
    """An encoder that can stop after any of its layers: BERT, MiniLM; subclasses say how theirs differs from BERT.

    Attributes:
        order: For every layer, which of the model's layer modules runs; two layers may share one.
    """

    layers_at: ClassVar[str] = "encoder.layer"
    """Where the Hugging Face model keeps its layers, as a submodule path."""
    layers_alike: ClassVar[bool] = True
    """Whether all layers compute the same, with weights of their own."""
    arguments: ClassVar[Mapping[str, Any]] = {"add_pooling_layer": False}
    """What the Hugging Face class takes, besides its config, to be built without a pooler."""

    def __init__(self, model: PreTrainedModel, *, order: Sequence[int] | None = None) -> None:
        """Wrap ``model``; ``order`` is for prefixes, whose config may not tell it any more."""
        super().__init__()
        self.model = model
        self.training = model.training
        self.order = tuple(self.order_in(model.config) if order is None else order)

    @classmethod
    def order_in(cls, config: PretrainedConfig) -> Sequence[int]:
        """Say which layer module runs as which layer in the Hugging Face model with this config."""
        return range(config.num_hidden_layers)

    @property
    def config(self) -> PretrainedConfig:
        """The Hugging Face config."""
        return self.model.config

    @property
    def n_layers(self) -> int:
        """How many layers it has; a prefix counts its own."""
        return len(self.order)

    @property
    def is_plain(self) -> bool:
        """Whether plain Hugging Face code, given its config, would run these layers in this order."""
        return tuple(self.order_in(self.config)) == self.order

    @property
    def width(self) -> int:
        """Width of a hidden state."""
        return int(self.config.hidden_size)

    @property
    def embedding_width(self) -> int:
        """Width of what ``embed`` gives."""
        return self.word_embeddings.embedding_dim

    @property
    def max_tokens(self) -> int:
        """The longest sample the encoder can read, special tokens included."""
        return int(self.config.max_position_embeddings) - self._position_offset()

    @property
    def accepts_token_types(self) -> bool:
        """Whether the encoder tells the two texts of a pair apart by token types."""
        types = getattr(self.model.get_submodule("embeddings"), "token_type_embeddings", None)
        return bool(types is not None and types.num_embeddings > 1)

    @property
    def word_embeddings(self) -> nn.Embedding:
        """The table of word embeddings, by far the largest one."""
        return cast(nn.Embedding, self.model.get_input_embeddings())

    def embed(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Run the embedding layer, its LayerNorm and (in training) its dropout included: [b, t, embedding_width].

        All take [b, t] int64: ``attention_mask`` is 0 on padding, and no supported encoder reads it here; there are
        ``token_type_ids`` only where `accepts_token_types`, and all tokens are of type 0 without them.
        """
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return cast(Tensor, self.model.get_submodule("embeddings")(input_ids=input_ids, **types))

    def enter(self, embedded: Tensor) -> Tensor:
        """Bring embeddings [b, t, embedding_width] to the layers' width [b, t, width]."""
        return embedded

    def context(self, hidden: Tensor, attention_mask: Tensor) -> Context:
        """Prepare, once per batch, what the layers take besides the hidden state [b, t, width]."""
        mask = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden, attention_mask=attention_mask
        )
        return ({"attention_mask": mask},) * self.n_layers

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``index``, counted from 0, on a hidden state [b, t, width]."""
        return cast(Tensor, self.layer_module(index)(hidden, **context[index]))

    def layer_module(self, index: int) -> nn.Module:
        """Return the module that runs as layer ``index``, counted from 0."""
        return self._layers[self.order[index]]

    def finish(self, hidden: Tensor) -> Tensor:
        """Do what the model does after its last layer; an exit after any layer looks through this."""
        return hidden

    def keep(self, n_layers: int) -> Self:
        """Copy the first ``n_layers`` layers, and what lies before and after them, into an adapter of its own."""
        order = self.order[:n_layers]
        kept = max(order) + 1
        # Dropped layers are swapped for a placeholder while copying, so that a prefix never costs a whole model.
        memo: dict[int, Any] = {id(layer): nn.Identity() for layer in self._layers[kept:]}
        model = copy.deepcopy(self.model, memo)
        prefix = type(self)(model, order=order)
        del prefix._layers[kept:]
        prefix._shorten_config(n_layers, kept)
        return prefix

    def _position_offset(self) -> int:
        """Row of the position table that a sample's first token reads."""
        return 0

    def _shorten_config(self, n_layers: int, n_modules: int) -> None:
        """Make the config of a prefix say what the prefix holds."""
        self.config.num_hidden_layers = n_layers

    @property
    def _layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.model.get_submodule(self.layers_at))


class RobertaAdapter(Adapter):
    """RoBERTa and its multilingual and French kin: BERT, with positions counted from the padding index on."""

    def _position_offset(self) -> int:
        return int(self.config.pad_token_id) + 1


class DistilBertAdapter(Adapter):
    """DistilBERT: BERT without token types."""

    layers_at = "transformer.layer"
    arguments: ClassVar[Mapping[str, Any]] = {}


class ElectraAdapter(Adapter):
    """ELECTRA: BERT with embeddings that may be narrower than its layers."""

    arguments: ClassVar[Mapping[str, Any]] = {}

    def enter(self, embedded: Tensor) -> Tensor:
        """Project where the widths differ; where they do not, the model has no projection."""
        if self.embedding_width == self.width:
            return embedded
        return cast(Tensor, self.model.get_submodule("embeddings_project")(embedded))


class AlbertAdapter(Adapter):
    """ALBERT: narrow embeddings, and a few groups of weights that many layers share."""

    layers_at = "encoder.albert_layer_groups"

    @classmethod
    def order_in(cls, config: PretrainedConfig) -> Sequence[int]:
        """Spread the layers over the groups, by the model's own formula."""
        layers_per_group = config.num_hidden_layers / config.num_hidden_groups
        return [int(layer / layers_per_group) for layer in range(config.num_hidden_layers)]

    def enter(self, embedded: Tensor) -> Tensor:
        """Project to the layers' width; ALBERT does so even where the widths are equal."""
        return cast(
            Tensor, self.model.get_submodule("encoder.embedding_hidden_mapping_in")(embedded)
        )

    def _shorten_config(self, n_layers: int, n_modules: int) -> None:
        super()._shorten_config(n_layers, n_modules)
        self.config.num_hidden_groups = n_modules


class MPNetAdapter(Adapter):
    """MPNet: BERT without token types, and a bias on attention by distance that all layers share."""

    def context(self, hidden: Tensor, attention_mask: Tensor) -> Context:
        """Prepare the mask and the bias [1, heads, t, t], one for the whole batch."""
        biases = cast(Any, self.model.get_submodule("encoder"))
        # The model's own method looks at nothing but sizes and device, and would copy the bias for every sample.
        bias = biases.compute_position_bias(hidden.new_empty(1, hidden.shape[1]))
        plain = super().context(hidden, attention_mask)
        return [{**each, "position_bias": bias} for each in plain]

    def layer(self, index: int, hidden: Tensor, context: Context) -> Tensor:
        """Run layer ``index``, which gives its hidden state in a tuple."""
        return cast(Tensor, self.layer_module(index)(hidden, **context[index])[0])

    def _position_offset(self) -> int:
        # A constant of the architecture there, whatever the config calls its padding.
        return int(cast(Any, self.model.get_submodule("embeddings")).padding_idx) + 1


class ModernBertAdapter(Adapter):
    """ModernBERT: rotary positions, layers that look far or only near, and one LayerNorm after all of them.

    The hidden state between two layers is not normalised, so ``finish`` applies that last LayerNorm for every exit.
    """

    layers_at = "layers"
    layers_alike = False
    arguments: ClassVar[Mapping[str, Any]] = {}

    def context(self, hidden: Tensor, attention_mask: Tensor) -> Context:
        """Prepare one mask and one pair of rotary embeddings per kind of layer."""
        create_mask = {
            "full_attention": create_bidirectional_mask,
            "sliding_attention": create_bidirectional_sliding_window_mask,
        }
        rotary = self.model.get_submodule("rotary_emb")
        position_ids = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        kinds = self.config.layer_types
        by_kind = {
            # Sorted, since the order of a set changes from run to run and an exported graph should not.
            kind: {
                "attention_mask": create_mask[kind](
                    config=self.config, inputs_embeds=hidden, attention_mask=attention_mask
                ),
                "position_embeddings": rotary(hidden, position_ids, kind),
            }
            for kind in sorted(set(kinds))
        }
        return [by_kind[kind] for kind in kinds]

    def finish(self, hidden: Tensor) -> Tensor:
        """Apply the LayerNorm that follows the last layer."""
        return cast(Tensor, self.model.get_submodule("final_norm")(hidden))

    def _shorten_config(self, n_layers: int, n_modules: int) -> None:
        super()._shorten_config(n_layers, n_modules)
        self.config.layer_types = list(self.config.layer_types)[:n_layers]


ADAPTERS: dict[str, type[Adapter]] = {
    "albert": AlbertAdapter,
    "bert": Adapter,
    "camembert": RobertaAdapter,
    "distilbert": DistilBertAdapter,
    "electra": ElectraAdapter,
    "modernbert": ModernBertAdapter,
    "mpnet": MPNetAdapter,
    "roberta": RobertaAdapter,
    "xlm-roberta": RobertaAdapter,
}
"""The adapter of every supported ``model_type``."""
