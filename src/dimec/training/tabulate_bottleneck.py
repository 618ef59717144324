"""Tabulating through a bottleneck: what the exits behind the split say of hidden states as they arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from dimec.core.errors import RunError
from dimec.core.files import check_readable
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset, evaluation_batches, read_batches
from dimec.runs.compressed import Compressed
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training.batching import Rows
from dimec.training.hardware import default_device
from dimec.training.model import load_model
from dimec.training.model.bottleneck import build_bottleneck
from dimec.training.model.split import SplitEncoder

WEIGHTS = "weights.safetensors"


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
        rows: What it reads.
        seed: Of the channel; draw k draws from (seed, k).
        draws: How many draws.
        progress: Progress reporter.
        what: Name of the progress stage.

    Returns:
        A table of the exits behind the split per draw; ``payload_bytes`` are those of the compressed hidden states.
    """
    device = split.model.word_embeddings.weight.device
    split.eval()
    channels = [_generator(seed, draw) for draw in range(draws)]

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
        batches = evaluation_batches(rows.tokens.lengths)
        embeddings, sizes, *said = read_batches(batches, read, progress=progress, what=what)
    return [
        ExitTable(
            layers=split.exits,
            logits=logits,
            labels=rows.dataset.labels,
            embeddings=embeddings,
            n_tokens=rows.tokens.lengths,
            payload_bytes=sizes,
            row_ids=rows.dataset.row_ids,
            label_names=rows.dataset.task.label_names,
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
    rows = Rows.tokenized(
        dataset, tokenizer, max_length=run.config.options.max_length, progress=progress
    )
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
    options = compressed.config.options
    model = load_model(run.model_folder).model
    split = SplitEncoder(model, build_bottleneck(options, model.adapter.width), after=options.layer)
    load_weights(split, compressed.folder / WEIGHTS)
    return split.eval()


def load_weights(split: SplitEncoder, path: Path) -> None:
    """Give a split the weights that were kept: all of the bottleneck's, and of the tail's those that had changed."""
    remedy = f"delete {path.parent}, or give `dimec compress` its options with --restart"
    check_readable(path, fault=RunError)
    try:
        found = load_file(path)
        missing, unknown = split.learnt.load_state_dict(found, strict=False)
    except (OSError, SafetensorError, RuntimeError) as exc:
        raise RunError(
            f"{path} is missing or damaged ({str(exc).splitlines()[0]}): {remedy}"
        ) from exc
    lost = [name for name in missing if name.startswith("bottleneck.")]
    if lost or unknown:
        raise RunError(f"{path} does not fit the run's model: {remedy}")


def changed_weights(split: SplitEncoder) -> dict[str, torch.Tensor]:
    """Return the bottleneck's weights, and of the tail's those that differ from the run's."""
    fresh = SplitEncoder(split.model, split.bottleneck, after=split.after).learnt.state_dict()
    return {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in split.learnt.state_dict().items()
        if name.startswith("bottleneck.") or not torch.equal(tensor, fresh[name])
    }


def _generator(seed: int, draw: int) -> torch.Generator:
    """Return what a draw of a channel draws from, the same for a seed on every machine."""
    mixed = np.random.SeedSequence([seed, draw]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed >> np.uint64(1)))
