"""Texts as token ids, and the rows that share a batch.

`tokenize` turns a `TextDataset` into `Tokens`, unpadded; `bucketed_batches` says which rows a training step takes, of
like length so that little is padded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.core.errors import OptionError
from dimec.core.progress import Progress
from dimec.core.tokens import CutKind, Tokens
from dimec.data.dataset import TextDataset

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_COVERED, _MUCH = 0.95, 0.1
_SHORTEST, _LONGEST = 16, 512
_MEASURED_ROWS = 10_000


def tokenize(
    dataset: TextDataset,
    tokenizer: PreTrainedTokenizerFast,
    *,
    max_length: int,
    cut: CutKind = "head",
    progress: Callable[[int], None] = lambda done: None,
) -> Tokens:
    """Tokenise all rows; a pair that is too long loses tokens from its longer text first.

    Padding and truncation of the tokenizer's file are switched off for good. ``progress`` is told how many more rows
    are done.

    Raises:
        OptionError: ``max_length`` leaves no room for a token of each text.
    """
    backend = tokenizer.backend_tokenizer
    is_pair = dataset.second is not None
    least = backend.num_special_tokens_to_add(is_pair) + 1 + is_pair
    if max_length < least:
        raise OptionError(
            f"--max-length {max_length} leaves no room for the text; it must be at least {least}"
        )
    backend.no_padding()
    backend.no_truncation()
    return Tokens.of(
        backend,
        dataset.first,
        dataset.second,
        types="token_type_ids" in tokenizer.model_input_names,
        pad_id=tokenizer.pad_token_id or 0,  # any id serves: padding stands last and is masked
        max_length=max_length,
        cut=cut,
        progress=progress,
    )


def covering_length(dataset: TextDataset, tokenizer: PreTrainedTokenizerFast, *, limit: int) -> int:
    """Return the length that ``--max-length auto`` stands for, in tokens.

    It covers 95 % of the rows, or of 10,000 of them evenly spread where there are more: a multiple of 8, at least 16,
    at most 512 and ``limit``, which is what the encoder takes.
    """
    most = min(limit, _LONGEST)
    rows = np.unique(np.linspace(0, len(dataset) - 1, _MEASURED_ROWS).astype(np.int64))
    lengths = tokenize(dataset.take(rows), tokenizer, max_length=most).lengths
    covering = int(np.quantile(lengths, _COVERED, method="higher"))
    return min(max(-(-covering // 8) * 8, _SHORTEST), most)


def tell_cut(tokens: Tokens, max_length: int, *, progress: Progress) -> None:
    """Say how many texts the encoder does not read to their end; warn where they are more than one in ten."""
    if not tokens.cut.any():
        return
    tell = progress.warn if tokens.share_cut > _MUCH else progress.say
    tell(
        f"{tokens.share_cut:.1%} of the texts were cut at {max_length} tokens: `dimec fit --max-length` reads more of "
        "them, `--cut head-tail` keeps the ends of single texts"
    )


def bucketed_batches(
    lengths: ArrayLike, *, batch_size: int, seed: int, epoch: int, pool: int = 50
) -> list[NDArray[np.int64]]:
    """Shuffle all rows into batches of like length, anew each epoch and the same for a seed.

    Rows are shuffled, sorted by length within pools of ``pool`` batches, and the batches are shuffled again.
    """
    row_lengths = np.asarray(lengths)
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(row_lengths))
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), pool * batch_size):
        rows = order[start : start + pool * batch_size]
        rows = rows[np.argsort(row_lengths[rows], kind="stable")]
        batches.extend(rows[i : i + batch_size] for i in range(0, len(rows), batch_size))
    return [batches[place] for place in rng.permutation(len(batches))]


def read_batches(
    batches: Sequence[NDArray[np.int64]],
    read: Callable[[NDArray[np.int64]], Sequence[NDArray[Any]]],
    *,
    progress: Progress,
    what: str,
    n: int | None = None,
) -> tuple[NDArray[Any], ...]:
    """Read every batch of rows and return what was read, in the order of the rows: arrays [n, ...].

    Args:
        batches: At least one; the rows 0 to n - 1, each in one of them.
        read: Given the rows of a batch, returns arrays [b, ...].
        n: How many rows there are, where the batches do not hold them all; the others stay zero.
    """
    n_read = sum(map(len, batches))
    n = n_read if n is None else n
    whole: tuple[NDArray[Any], ...] = ()
    with progress.stage(what, n_read) as advance:
        for rows in batches:
            parts = read(rows)
            whole = whole or tuple(np.zeros((n, *part.shape[1:]), part.dtype) for part in parts)
            for array, part in zip(whole, parts, strict=True):
                array[rows] = part
            advance(len(rows))
    return whole
