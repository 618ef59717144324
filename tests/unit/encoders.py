"""Untrained encoders that are small enough for a unit test."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModel, BertConfig, PreTrainedModel


def small_bert(
    *, layers: int, width: int = 32, attention: str = "eager", **arguments: Any
) -> PreTrainedModel:
    """Make a BERT of 50 words and two heads, the same with every call."""
    config = BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=48,
        max_position_embeddings=16,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModel.from_config(  # type: ignore[no-untyped-call]
        config, attn_implementation=attention, **arguments
    )
    return model
