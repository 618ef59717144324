"""Models of the hub, by name: a name goes in, a folder in the local cache comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dimec.core.errors import OptionError
from dimec.data.hub import snapshot
from dimec.training.model.reading import without_safetensors


@dataclass(frozen=True)
class Purpose:
    """What a model is for, such as "backbone", and what a user can do where the hub does not give it."""

    noun: str
    offline_way: str


BACKBONE = Purpose("backbone", "offline, use --backbone minilm or a folder that holds the model")

# What a model needs of a hub repository; the rest is other frameworks' copies of its weights.
_HUB_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "1_Pooling/config.json",
)


def download(name: str, *, purpose: Purpose = BACKBONE) -> Path:
    """Bring a hub model into the local cache, or find it there when the hub is out of reach.

    Returns:
        The folder, named after the commit it holds.

    Raises:
        OptionError: When its weights are in no safetensors file.
        UnreachableError: When the hub does not have it, or neither the hub nor the cache gives it.
    """

    def check(names: Sequence[str]) -> None:
        if names and not any(each.endswith(".safetensors") for each in names):
            raise OptionError(without_safetensors(f"the hub model {name!r}", names))

    return snapshot(
        name, files=_HUB_FILES, noun=purpose.noun, otherwise=purpose.offline_way, check=check
    )
