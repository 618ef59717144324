"""Tabulating: run every sample through every exit of a trained model and write down what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from dimec.core.errors import OptionError
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset, TokenizedTexts, evaluation_batches, tokenize
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.exit_zero import ExitZero
from dimec.runs.run import Run
from dimec.training.batching import tensors
from dimec.training.model import MultiExitEncoder, load_model

if TYPE_CHECKING:
    from dimec.training.classifier import Classifier


def tabulate(
    model: MultiExitEncoder | Classifier,
    tokens: TokenizedTexts,
    rows: NDArray[np.int64],
    *,
    labels: NDArray[np.int64],
    row_ids: NDArray[np.int64],
    label_names: tuple[str, ...],
    pad_id: int,
    dynamics: Dynamics | None = None,
    exit_zero: ExitZero | None = None,
    progress: Progress = SILENT,
    what: str = "Reading the exits",
) -> ExitTable:
    """Run the rows of ``tokens`` through the model, in float32, and return their table in the order of ``rows``.

    Args:
        model: On the device it is to run on; it is switched to evaluation.
        tokens: Tokenised texts.
        rows: [n], which of them.
        labels: [n], their classes.
        row_ids: [n], their rows in the source.
        label_names: The classes' names.
        pad_id: The tokenizer's padding id.
        dynamics: What training recorded of these rows.
        exit_zero: The classifier before the first layer, where there is one.
        progress: Is told of every sample.
        what: What to call the stage there.
    """
    device = next(model.parameters()).device
    model.eval()
    n = len(rows)
    logits = np.empty((n, len(model.exits), len(label_names)), dtype=np.float32)
    embeddings: NDArray[np.float32] | None = None
    with torch.inference_mode(), progress.stage(what, n) as advance:
        for batch in evaluation_batches(tokens.lengths[rows]):
            output = model(*tensors(tokens.pad(rows[batch], pad_id), device))
            logits[batch] = output.logits.float().cpu().numpy()
            embedded = output.embedding.float().cpu().numpy()
            if embeddings is None:
                embeddings = np.empty((n, embedded.shape[1]), dtype=np.float32)
            embeddings[batch] = embedded
            advance(len(batch))
    said, unseen = None, None
    if exit_zero is not None:
        said, unseen = exit_zero.read_all([tokens.input_ids[row] for row in rows])
    return ExitTable(
        layers=tuple(model.exits),
        logits=logits,
        labels=labels.astype(np.int64),
        embeddings=embeddings if embeddings is not None else np.empty((0, 0), dtype=np.float32),
        n_tokens=tokens.lengths[rows].astype(np.int32),
        payload_bytes=tokens.payload_bytes[rows].astype(np.int32),
        row_ids=row_ids.astype(np.int64),
        label_names=label_names,
        dynamics=dynamics,
        exit_zero=said,
        unseen=unseen,
    )


def tabulate_dataset(run: Run, dataset: TextDataset, *, progress: Progress = SILENT) -> ExitTable:
    """Return what a run's exits say about a data set that it has not seen, in the order of its rows.

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
    model: MultiExitEncoder | Classifier,
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
    with progress.stage("Tokenising", len(dataset)) as advance:
        tokens = tokenize(dataset, tokenizer, max_length=max_length, progress=advance)
    highest = max((int(ids.max(initial=0)) for ids in tokens.input_ids), default=0)
    if highest >= model.word_embeddings.num_embeddings:
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path} gives token {highest}, but its model knows "
            f"{model.word_embeddings.num_embeddings} tokens: put the tokenizer there that it was trained with"
        )
    if tokens.n_cut:
        progress.say(f"{tokens.share_cut:.1%} of the texts were cut at {max_length} tokens")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tabulate(
        model.to(device),
        tokens,
        np.arange(len(dataset)),
        labels=dataset.labels,
        row_ids=dataset.row_ids,
        label_names=label_names,
        # Where there is none any id serves: padding stands last and is masked.
        pad_id=tokenizer.pad_token_id or 0,
        exit_zero=exit_zero,
        progress=progress,
    )
