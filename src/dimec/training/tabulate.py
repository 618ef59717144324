"""Tabulating: run every row through every exit of a trained model and write down what the exits say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset, evaluation_batches, read_batches
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.exit_zero import ExitZero
from dimec.runs.run import Run
from dimec.training.batching import Rows
from dimec.training.hardware import default_device
from dimec.training.model import ExitModel, load_model


def tabulate(
    model: ExitModel,
    rows: Rows,
    *,
    label_names: tuple[str, ...] | None = None,
    dynamics: Dynamics | None = None,
    exit_zero: ExitZero | None = None,
    progress: Progress = SILENT,
    what: str = "Reading the exits",
) -> ExitTable:
    """Run rows through a model, in float32, and return their table in the order of the rows.

    Args:
        model: On the device it is to run on; it is switched to evaluation.
        rows: What it reads.
        label_names: The model's classes, where they may differ from those of the rows.
        dynamics: What training recorded of these rows.
        exit_zero: The classifier before the first layer, where there is one.
        progress: Progress reporter.
        what: Name of the progress stage.
    """
    device = model.word_embeddings.weight.device
    model.eval()

    def read(batch: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        output = model(*rows.inputs(batch, device))
        return output.logits.float().cpu().numpy(), output.embedding.float().cpu().numpy()

    with torch.inference_mode():
        batches = evaluation_batches(rows.tokens.lengths)
        logits, embeddings = read_batches(batches, read, progress=progress, what=what)
    said, unseen = None, None
    if exit_zero is not None:
        said, unseen = exit_zero.read_all(rows.tokens.input_ids)
    return ExitTable(
        layers=tuple(model.exits),
        logits=logits,
        labels=rows.dataset.labels,
        embeddings=embeddings,
        n_tokens=rows.tokens.lengths,
        payload_bytes=rows.tokens.payload_bytes,
        row_ids=rows.dataset.row_ids,
        label_names=label_names or rows.dataset.task.label_names,
        dynamics=dynamics,
        exit_zero=said,
        unseen=unseen,
    )


def tabulate_dataset(run: Run, dataset: TextDataset, *, progress: Progress = SILENT) -> ExitTable:
    """Return what a run's exits say about a data set, in the order of its rows.

    Raises:
        RunError: If the run's model cannot be read.
    """
    loaded = load_model(run.model_folder)
    return tabulate_texts(
        loaded.model,
        dataset,
        tokenizer=loaded.tokenizer,
        max_length=run.config.options.max_length,
        label_names=loaded.label_names,
        exit_zero=run.exit_zero,
        progress=progress,
    )


def tabulate_texts(
    model: ExitModel,
    dataset: TextDataset,
    *,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    label_names: tuple[str, ...],
    exit_zero: ExitZero | None = None,
    progress: Progress = SILENT,
) -> ExitTable:
    """Tokenise texts, cut at ``max_length`` tokens, and return what a model says about them, in their order.

    Raises:
        OptionError: If the tokenizer gives ids that the model does not know.
    """
    rows = Rows.tokenized(dataset, tokenizer, max_length=max_length, progress=progress)
    highest = max((int(ids.max(initial=0)) for ids in rows.tokens.input_ids), default=0)
    if highest >= model.word_embeddings.num_embeddings:
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path} gives token {highest}, but its model knows "
            f"{model.word_embeddings.num_embeddings} tokens: put the tokenizer there that it was trained with"
        )
    return tabulate(
        model.to(default_device()),
        rows,
        label_names=label_names,
        exit_zero=exit_zero,
        progress=progress,
    )
