"""Reading one model folder in Hugging Face layout, and saying in one sentence why it cannot be read.

The folder is a user's choice (an ``OptionError``) or a run's model (a ``RunError``), so every function takes the error
to raise as ``fault``. Weights are read from safetensors only, since a pickle can run code, and no code of a checkpoint
is run.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from dimec.core.errors import InputError
from dimec.core.files import check_readable
from dimec.core.untrusted import read_json, trusting_nothing
from dimec.training.model.adapters import ADAPTERS, Adapter
from dimec.training.model.encoder import Pooling


def read_adapter(folder: Path, *, fault: type[InputError]) -> Adapter:
    """Read the encoder in a folder, raising ``fault`` when that is impossible."""
    adapter_class = _adapter_class(folder, fault=fault)
    return adapter_class(_read_model(AutoModel, folder, fault=fault, **adapter_class.arguments))


def read_classifier(folder: Path, *, fault: type[InputError]) -> tuple[PreTrainedModel, Adapter]:
    """Read the sequence classifier in a folder; the adapter holds its encoder's own modules, not a copy."""
    adapter_class = _adapter_class(folder, fault=fault)
    model = _read_model(
        AutoModelForSequenceClassification,
        folder,
        fault=fault,
        remedy="; give a checkpoint that was fine-tuned to classify whole texts",
    )
    return model, adapter_class(cast(PreTrainedModel, model.base_model))


def _adapter_class(folder: Path, *, fault: type[InputError]) -> type[Adapter]:
    """Find the adapter for the model in a folder; a file that this user may not read is told, not called missing."""
    with trusting_nothing(folder, fault, remedy="", missing="give a folder that holds a model"):
        for path in sorted(folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".txt", ".model", ".jinja"):
                check_readable(path, fault=fault)
    config_file = folder / "config.json"
    remedy = "give a folder that holds a model of Hugging Face's layout"
    with trusting_nothing(config_file, fault, remedy=remedy):
        kind = str(read_json(config_file)["model_type"])
    if kind not in ADAPTERS:
        raise fault(
            f"{folder}: an encoder of type {kind!r} is not supported; supported are {', '.join(ADAPTERS)}"
        )
    return ADAPTERS[kind]


def _read_model(
    auto: Any,  # noqa: ANN401  one of transformers' Auto classes, which share no base
    folder: Path,
    *,
    fault: type[InputError],
    remedy: str = "",
    **arguments: Any,  # noqa: ANN401  what from_pretrained takes
) -> PreTrainedModel:
    """Read a whole model in float32 and in evaluation mode; ``remedy`` is for one that lacks weights."""
    if not _weight_files(folder):
        raise fault(without_safetensors(str(folder), [path.name for path in folder.iterdir()]))
    try:
        with quiet_transformers():
            model, report = auto.from_pretrained(
                folder,
                # A checkpoint in half precision would otherwise train and compare in it.
                dtype=torch.float32,
                # On CPUs the backward pass of the fused kind is slower.
                attn_implementation="eager",
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
                **arguments,
            )
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as exc:
        raise fault(f"the model in {folder} cannot be read: {first_line(exc)}") from exc
    # Transformers fills missing weights with random numbers, without an error.
    missing = sorted(report["missing_keys"])
    if missing:
        raise fault(
            f"the model in {folder} lacks {len(missing)} of its weights, {missing[0]} among them{remedy}"
        )
    read: PreTrainedModel = model.eval()
    return read


def read_tokenizer(
    folder: Path, adapter: Adapter, *, fault: type[InputError]
) -> PreTrainedTokenizerFast:
    """Read the tokenizer in a folder, raising ``fault`` when that is impossible."""
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as exc:  # the tokenizers library raises nothing narrower
        raise fault(f"the tokenizer in {folder} cannot be read: {first_line(exc)}") from exc
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


def default_pooling(folder: Path, adapter: Adapter) -> Pooling:
    """Find the pooling that a checkpoint was pretrained with.

    Sentence encoders say it in a file of their own, by a flag per mode or by the mode's name; ModernBERT says it in its
    config; the others were pretrained on the first token.
    """
    try:
        pooling = read_json(folder / "1_Pooling" / "config.json", dict[str, Any])
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


def fingerprint(folder: Path) -> str:
    """Hash the encoder's weights."""
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def without_safetensors(source: str, names: Sequence[str]) -> str:
    """Say what is wrong with a model that has no safetensors file."""
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        return (
            f"{source} holds its weights as a pickle ({pickles[0]}), which can run any code; convert it to safetensors "
            "first (load it once, then save_pretrained)"
        )
    return f"{source} holds no weights: it has no model.safetensors"


@contextmanager
def quiet_transformers() -> Iterator[None]:
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


def first_line(exc: Exception) -> str:
    """Shorten the message of a library's error to what fits into a sentence."""
    lines = str(exc).strip().splitlines()
    return lines[0] if lines else type(exc).__name__
