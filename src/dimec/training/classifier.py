"""A sequence classifier that was not fitted here, read as an exit table with one exit: after its last layer.

It comes from a folder in Hugging Face's layout or from the hub, from safetensors only, and no code that a checkpoint
brings along is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.training.model import Adapter, ExitModel, ExitOutput, LoadedModel
from dimec.training.model.checkpoint import Purpose, find_model
from dimec.training.model.encoder import mean_over_tokens
from dimec.training.model.reading import read_classifier, read_tokenizer


class Classifier(ExitModel):
    """A sequence classifier that answers as a multi-exit encoder with one exit does."""

    def __init__(self, model: PreTrainedModel, adapter: Adapter, *, outputs: Sequence[int]) -> None:
        """Wrap a classifier and the adapter of its encoder; class c is the classifier's output ``outputs[c]``."""
        super().__init__()
        self.model = model
        self.adapter = adapter
        self.outputs = tuple(outputs)
        self.exits = (adapter.n_layers,)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> ExitOutput:
        """Classify a batch; arguments and result are those of `MultiExitEncoder`."""
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        said = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        logits = said.logits[:, list(self.outputs)].float()
        embedded = self.adapter.embed(input_ids, attention_mask, token_type_ids)
        embedding = mean_over_tokens(embedded.detach(), attention_mask)
        return ExitOutput(logits.unsqueeze(1), embedding)


def load_classifier(
    name: str, *, label_names: tuple[str, ...], purpose: Purpose, progress: Progress = SILENT
) -> LoadedModel[Classifier]:
    """Load a sequence classifier from a folder or the hub, its outputs brought into the order of ``label_names``.

    Raises:
        OptionError: For a checkpoint of an encoder that is not supported, without a trained classifier, with other
            classes, damaged, or with its weights in no safetensors file.
        UnreachableError: When the hub cannot be reached or does not have it.
    """
    folder = find_model(name, purpose=purpose)
    model, adapter = read_classifier(folder, fault=OptionError)
    if not all(torch.isfinite(weights).all() for weights in model.parameters()):
        raise OptionError(
            f"{name} has weights that are not finite numbers: give a whole checkpoint"
        )
    names = _class_names(name, model.config)
    outputs = match_classes(name, names, label_names)
    if names != label_names and outputs == list(range(len(names))) and _are_generic(names):
        progress.say(
            f"{name} does not name its classes: they are taken to be {', '.join(label_names)}, in this order"
        )
    return LoadedModel(
        model=Classifier(model, adapter, outputs=outputs).eval(),
        tokenizer=read_tokenizer(folder, adapter, fault=OptionError),
        label_names=label_names,
        folder=folder,
    )


def match_classes(name: str, theirs: Sequence[str], ours: Sequence[str]) -> list[int]:
    """Return, for each of our classes, the classifier's output that stands for it.

    Names are compared without regard to case; names that only number the outputs are taken in their order.

    Raises:
        OptionError: If the classes are others.
    """
    outputs = {label.casefold(): output for output, label in enumerate(theirs)}
    wanted = [label.casefold() for label in ours]
    if len(theirs) == len(ours) == len(outputs) and set(wanted) == set(outputs):
        return [outputs[label] for label in wanted]
    if len(theirs) == len(ours) and _are_generic(theirs):
        return list(range(len(ours)))
    raise OptionError(
        f"{name} tells apart {len(theirs)} classes ({', '.join(theirs)}), but the run has {len(ours)} "
        f"({', '.join(ours)}): give a classifier with the run's classes, named so under id2label in its config.json"
    )


def _are_generic(names: Sequence[str]) -> bool:
    """Tell whether names are those that transformers gives to classes without names."""
    return all(label.casefold() == f"label_{index}" for index, label in enumerate(names))


def _class_names(name: str, config: PretrainedConfig) -> tuple[str, ...]:
    """Read the classes' names in the order of the outputs."""
    if config.problem_type == "multi_label_classification":
        raise OptionError(
            f"{name} gives a text any number of labels: give a classifier that picks one class"
        )
    named = cast(dict[int, str], config.id2label or {})  # not what its annotation says
    if sorted(named) != list(range(len(named))):
        raise OptionError(
            f"id2label in the config of {name} does not number its classes from 0: correct it there"
        )
    return tuple(str(named[index]) for index in range(len(named)))
