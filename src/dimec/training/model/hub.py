"""Models of the hub, by name: a name goes in, a folder in the local cache comes out.

The hub is asked once and not for long. Where it does not answer, what the cache holds is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from dimec.core.errors import OptionError, UnreachableError
from dimec.training.model.reading import first_line, without_safetensors

HUB_TIMEOUT_S = 10.0
"""How long the hub may take to answer before it counts as out of reach."""


@dataclass(frozen=True)
class Purpose:
    """What a model is for, such as "backbone", and what a user can do where the hub does not give it."""

    noun: str
    offline_way: str


BACKBONE = Purpose("backbone", "offline, use --backbone minilm or a folder that holds the model")

# What a model needs of a hub repository; the rest is other frameworks' copies of its weights.
_HUB_FILES = [
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
]


def download(name: str, *, purpose: Purpose = BACKBONE) -> Path:
    """Bring a hub model into the local cache, or find it there when the hub is out of reach.

    Returns:
        The folder, named after the commit it holds.

    Raises:
        OptionError: When its weights are in no safetensors file.
        UnreachableError: When the hub does not have it, or neither the hub nor the cache gives it.
    """
    revision: str | None = None
    unreached: Exception | None = None
    try:
        info = HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        revision = info.sha
        names = [file.rfilename for file in info.siblings or ()]
        if names and not any(name.endswith(".safetensors") for name in names):
            raise OptionError(without_safetensors(f"the hub model {name!r}", names))
    except OptionError:
        raise
    except RepositoryNotFoundError as exc:
        raise UnreachableError(
            f"the hub has no model {name!r} that is open to you; {purpose.offline_way}"
        ) from exc
    except Exception as exc:
        # The hub client changes its HTTP library between versions, so its errors have no common
        # type; whatever it was, the hub gave no answer, and the cache is the last resort.
        unreached = exc
    try:
        return Path(
            snapshot_download(
                name,
                revision=revision,
                allow_patterns=_HUB_FILES,
                local_files_only=unreached is not None,
            )
        )
    except LocalEntryNotFoundError as exc:
        raise UnreachableError(
            f"the hub cannot be reached for the {purpose.noun} {name!r}; {purpose.offline_way}"
        ) from (unreached or exc)
    except Exception as exc:  # as above
        raise UnreachableError(
            f"the {purpose.noun} {name!r} could not be downloaded ({first_line(exc)}); "
            f"{purpose.offline_way}"
        ) from exc
