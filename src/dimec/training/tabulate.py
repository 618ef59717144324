"""Tabulating: run rows through a trained model, or through a bottleneck in it, and write down what the exits say."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from dimec.core.errors import OptionError, RunError
from dimec.core.progress import SILENT, Progress
from dimec.core.tokens import CutKind, batches_by_length
from dimec.core.untrusted import open_regular, trusting_nothing
from dimec.data import TextDataset, read_batches
from dimec.runs.compressed import Compressed
from dimec.runs.exit_table import Dynamics, ExitTable
from dimec.runs.exit_zero import ExitZero
from dimec.runs.run import Run
from dimec.training.batching import Rows, default_device
from dimec.training.model import ExitModel, LoadedModel, load_model
from dimec.training.model.bottleneck import build_bottleneck
from dimec.training.model.split import SplitEncoder
from dimec.training.processes import ALONE, Processes, mixed_seed

WEIGHTS = "weights.safetensors"


def tabulate(
    model: ExitModel,
    rows: Rows,
    *,
    label_names: tuple[str, ...] | None = None,
    dynamics: Dynamics | None = None,
    exit_zero: ExitZero | None = None,
    progress: Progress = SILENT,
    what: str = "Reading the exits",
    processes: Processes = ALONE,
) -> ExitTable:
    """Run rows through a model, in float32, and return their table in the order of the rows.

    Args:
        model: On the device it is to run on; it is switched to evaluation.
        label_names: The model's classes, where they may differ from those of the rows.
        exit_zero: The classifier before the first layer, where there is one.
        processes: Those that read the rows together; each returns the whole table.
    """
    device = model.word_embeddings.weight.device
    model.eval()

    def read(batch: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        output = model(*rows.inputs(batch, device))
        return output.logits.float().cpu().numpy(), output.embedding.float().cpu().numpy()

    with torch.inference_mode():
        batches = batches_by_length(rows.tokens.lengths)
        logits, embeddings = processes.read_batches(batches, read, progress=progress, what=what)
    said, unseen = (None, None) if exit_zero is None else exit_zero.read_all(rows.tokens.whole)
    return _exit_table(
        rows,
        layers=tuple(model.exits),
        logits=logits,
        embeddings=embeddings,
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
    return tabulate_texts(
        load_model(run.model_folder),
        dataset,
        max_length=run.config.max_length,
        cut=run.config.options.cut,
        exit_zero=run.exit_zero,
        progress=progress,
    )


def tabulate_texts(
    loaded: LoadedModel[ExitModel],
    dataset: TextDataset,
    *,
    max_length: int,
    cut: CutKind = "head",
    exit_zero: ExitZero | None = None,
    progress: Progress = SILENT,
) -> ExitTable:
    """Tokenise texts and return what a model says about them, in their order.

    Longer texts are cut at ``max_length`` tokens, or at the most that the model takes.

    Raises:
        OptionError: If the tokenizer gives ids that the model does not know.
    """
    model, tokenizer = loaded.model, loaded.tokenizer
    max_length = min(max_length, model.adapter.max_tokens)
    rows = Rows.tokenized(dataset, tokenizer, max_length=max_length, cut=cut, progress=progress)
    highest = max((int(ids.max(initial=0)) for ids in rows.tokens.input_ids), default=0)
    if highest >= model.word_embeddings.num_embeddings:
        raise OptionError(
            f"the tokenizer of {tokenizer.name_or_path} gives token {highest}, but its model knows "
            f"{model.word_embeddings.num_embeddings} tokens: put the tokenizer there that it was trained with"
        )
    return tabulate(
        model.to(default_device()),
        rows,
        label_names=loaded.label_names,
        exit_zero=exit_zero,
        progress=progress,
    )


def token_norms(
    run: Run, dataset: TextDataset, *, progress: Progress = SILENT
) -> NDArray[np.float32]:
    """Return the length of each token's embedding before the first layer, 0 beyond a text's end: [n, max_length].

    Raises:
        RunError: If the run's model cannot be read.
    """
    loaded = load_model(run.model_folder)
    model, length = loaded.model.eval(), run.config.max_length
    rows = Rows.as_in(run, dataset, loaded.tokenizer, progress=progress)
    device = model.word_embeddings.weight.device
    norms = np.zeros((len(rows), length), dtype=np.float32)
    with torch.inference_mode():
        for batch in batches_by_length(rows.tokens.lengths):
            inputs = rows.inputs(batch, device)
            found = model.adapter.embed(*inputs).float().norm(dim=-1) * inputs[1]
            norms[batch, : found.shape[1]] = found.cpu().numpy()
    return norms


def tabulate_through(
    split: SplitEncoder,
    rows: Rows,
    *,
    seed: int,
    draws: int = 1,
    progress: Progress = SILENT,
    what: str = "Reading the exits",
) -> list[ExitTable]:
    """Send the hidden states of rows through a bottleneck, in float32, once for each draw of its channel.

    Args:
        split: On the device it is to run on; it is switched to evaluation.
        seed: Of the channel; draw k draws from (seed, k).

    Returns:
        A table of the exits behind the split per draw; ``payload_bytes`` are those of the compressed hidden states.
    """
    device = split.model.word_embeddings.weight.device
    split.eval()
    channels = [torch.Generator().manual_seed(mixed_seed(seed, draw)) for draw in range(draws)]

    def read(batch: NDArray[np.int64]) -> tuple[NDArray[Any], ...]:
        inputs = rows.inputs(batch, device)
        mask = inputs[1]
        hidden, embedding = split.device(*inputs)
        numbers = split.bottleneck.encode(hidden.float(), mask)
        said = []
        for channel in channels:
            arrived = split.bottleneck.send(numbers, mask, channel)
            restored = split.bottleneck.decode(arrived, hidden.shape[1])
            said.append(split.cloud(restored, mask).logits.float().cpu().numpy())
        sizes = split.bottleneck.size(numbers, mask)
        return embedding.float().cpu().numpy(), sizes, *said

    with torch.inference_mode():
        batches = batches_by_length(rows.tokens.lengths)
        embeddings, sizes, *said = read_batches(batches, read, progress=progress, what=what)
    return [
        _exit_table(
            rows, layers=split.exits, logits=logits, embeddings=embeddings, payload_bytes=sizes
        )
        for logits in said
    ]


def tabulate_compressed(
    run: Run, compressed: Compressed, dataset: TextDataset, *, progress: Progress = SILENT
) -> ExitTable:
    """Return what a run's exits behind a bottleneck say about a data set, in the order of its rows.

    Raises:
        RunError: If the run's model or the bottleneck cannot be read.
    """
    tokenizer = load_model(run.model_folder).tokenizer
    rows = Rows.as_in(run, dataset, tokenizer, progress=progress)
    return tabulate_through(
        load_split(run, compressed).to(default_device()),
        rows,
        seed=compressed.config.options.seed,
        progress=progress,
        what=f"Reading the exits behind {compressed.config.name}",
    )[0]


def load_split(run: Run, compressed: Compressed) -> SplitEncoder:
    """Return a run's encoder with a bottleneck in it, and the tail as it was trained with that.

    Raises:
        RunError: If the run's model or the bottleneck cannot be read, or do not fit.
    """
    options, path = compressed.config.options, compressed.folder / WEIGHTS
    model = load_model(run.model_folder).model
    split = SplitEncoder(model, build_bottleneck(options, model.adapter.width), after=options.layer)
    with trusting_nothing(path, RunError, remedy=compressed.remedy):
        open_regular(path).close()  # before a library opens it by its name
        missing, unknown = split.learnt.load_state_dict(load_file(path), strict=False)
        if unknown or any(name.startswith("bottleneck.") for name in missing):
            raise ValueError("it does not fit the run's model")
    return split.eval()


def changed_weights(split: SplitEncoder) -> dict[str, torch.Tensor]:
    """Return what is kept of a split's weights: all of the bottleneck's, and of the tail's those that were changed."""
    fresh = SplitEncoder(split.model, split.bottleneck, after=split.after).learnt.state_dict()
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in split.learnt.state_dict().items()
        if name.startswith("bottleneck.") or not torch.equal(tensor, fresh[name])
    }


def _exit_table(rows: Rows, **columns: Any) -> ExitTable:  # noqa: ANN401  any column
    """Return a table of some rows; ``columns`` are those of the exits, and what takes the place of the rows' own."""
    own: dict[str, Any] = {
        "labels": rows.dataset.labels,
        "n_tokens": rows.tokens.lengths,
        "payload_bytes": rows.tokens.payload_bytes,
        "row_ids": rows.dataset.row_ids,
        "label_names": rows.dataset.task.label_names,
    }
    return ExitTable(**{**own, **columns})
