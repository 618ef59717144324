"""Models by name: the name goes in, a folder comes out, one that is here or one of the hub in the local cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

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


def find_model(name: str, *, purpose: Purpose = BACKBONE) -> Path:
    """Return the folder of that name, else one in the local cache that holds the hub's model of that name.

    Raises:
        OptionError: When it is no folder and cannot be a name on the hub, or has its weights in no safetensors file.
        UnreachableError: When the hub does not have it, or neither the hub nor the cache gives it.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        validate_repo_id(name)
    except HFValidationError as exc:
        raise OptionError(
            f"the {purpose.noun} {name!r} is no folder here and cannot be a name on the hub; {purpose.offline_way}"
        ) from exc

    def check(names: Sequence[str]) -> None:
        if names and not any(each.endswith(".safetensors") for each in names):
            raise OptionError(without_safetensors(f"the hub model {name!r}", names))

    return snapshot(
        name, files=_HUB_FILES, noun=purpose.noun, otherwise=purpose.offline_way, check=check
    )
