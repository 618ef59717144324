"""Tabulating through a bottleneck: what the exits behind the split say of hidden states as they arrive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dimec.core.errors import RunError
from dimec.core.files import check_readable
from dimec.core.progress import SILENT, Progress
from dimec.data import TextDataset, TokenizedTexts, evaluation_batches, tokenize
from dimec.runs.compressed import Compressed
from dimec.runs.exit_table import ExitTable
from dimec.runs.run import Run
from dimec.training.batching import tensors
from dimec.training.model import load_model
from dimec.training.model.bottleneck import build_bottleneck
from dimec.training.model.split import SplitEncoder

WEIGHTS = "weights.safetensors"


def tabulate_through(
    split: SplitEncoder,
    dataset: TextDataset,
    tokens: TokenizedTexts,
    *,
    pad_id: int,
    seed: int,
    draws: int = 1,
    progress: Progress = SILENT,
    what: str = "Reading the exits",
) -> list[ExitTable]:
    """Send a data set's hidden states through a bottleneck, in float32, once for each draw of its channel.

    Args:
        split: On the device it is to run on; it is switched to evaluation.
        dataset: The rows.
        tokens: Their tokens.
        pad_id: The tokenizer's padding id.
        seed: Of the channel; draw k draws from (seed, k).
        draws: How many.
        progress: Is told of every sample.
        what: What to call the stage there.

    Returns:
        A table of the exits behind the split per draw; ``payload_bytes`` are those of the compressed hidden states.
    """
    device = next(split.parameters()).device
    split.eval()
    n, label_names = len(dataset), dataset.task.label_names
    logits = np.empty((draws, n, len(split.exits), len(label_names)), dtype=np.float32)
    embeddings = np.empty((n, split.model.adapter.embedding_width), dtype=np.float32)
    sizes = np.empty(n, dtype=np.int32)
    channels = [_generator(seed, draw) for draw in range(draws)]
    with torch.inference_mode(), progress.stage(what, n) as advance:
        for batch in evaluation_batches(tokens.lengths):
            inputs = tensors(tokens.pad(batch, pad_id), device)
            mask = inputs[1]
            hidden, embedding = split.device(*inputs)
            embeddings[batch] = embedding.float().cpu().numpy()
            numbers = split.bottleneck.encode(hidden.float(), mask)
            sizes[batch] = split.bottleneck.size(numbers, mask)
            for draw, channel in enumerate(channels):
                arrived = split.bottleneck.send(numbers, mask, channel)
                restored = split.bottleneck.decode(arrived, hidden.shape[1])
                logits[draw, batch] = split.cloud(restored, mask).logits.float().cpu().numpy()
            advance(len(batch))
    return [
        ExitTable(
            layers=split.exits,
            logits=each,
            labels=dataset.labels.astype(np.int64),
            embeddings=embeddings,
            n_tokens=tokens.lengths.astype(np.int32),
            payload_bytes=sizes,
            row_ids=dataset.row_ids.astype(np.int64),
            label_names=label_names,
        )
        for each in logits
    ]


def tabulate_compressed(
    run: Run, compressed: Compressed, dataset: TextDataset, *, progress: Progress = SILENT
) -> ExitTable:
    """Return what a run's exits behind a bottleneck say about a data set that it has not seen, in its order.

    Raises:
        RunError: If the run's model or the bottleneck cannot be read.
    """
    loaded = load_model(run.model_folder)
    split = load_split(run, compressed)
    with progress.stage("Tokenising", len(dataset)) as advance:
        tokens = tokenize(
            dataset, loaded.tokenizer, max_length=run.config.options.max_length, progress=advance
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return tabulate_through(
        split.to(device),
        dataset,
        tokens,
        pad_id=loaded.tokenizer.pad_token_id or 0,
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
    """Give a split the weights that were kept: all of the bottleneck's, and of the tail's those that had changed.

    Raises:
        RunError: If they cannot be read, or do not fit.
    """
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
