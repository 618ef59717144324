"""The multi-exit encoder in torch: one adapter per architecture, exits, and prefixes for the tiers.

A backbone enters by name or folder (``load_backbone``), a ``MultiExitEncoder`` puts exits on it, ``save_model`` and
``load_model`` keep it in Hugging Face layout. A device runs exported graphs and needs neither torch nor transformers.
"""

from __future__ import annotations

from dimec.training.model.adapters import ADAPTERS, Adapter
from dimec.training.model.checkpoint import (
    Backbone,
    LoadedModel,
    find_backbone,
    load_backbone,
    load_model,
    save_model,
)
from dimec.training.model.encoder import ExitModel, ExitOutput, MultiExitEncoder, Pooling

__all__ = [
    "ADAPTERS",
    "Adapter",
    "Backbone",
    "ExitModel",
    "ExitOutput",
    "LoadedModel",
    "MultiExitEncoder",
    "Pooling",
    "find_backbone",
    "load_backbone",
    "load_model",
    "save_model",
]
