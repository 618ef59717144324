"""Texts as token ids, and the rows that share a batch.

`tokenize` turns a `TextDataset` into `TokenizedTexts`, unpadded; `bucketed_batches` (training) and
`evaluation_batches` say which rows go together, of like length so that little is padded; `TokenizedTexts.pad` makes
the arrays of one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.core.errors import OptionError
from dimec.core.progress import Progress
from dimec.data.dataset import TextDataset

_CHUNK_ROWS = 1_000
# The most ids that two bytes can tell apart.
_TWO_BYTE_VOCABULARY = 65_536


class Tokenizer(Protocol):
    """What is used of a Hugging Face fast tokenizer."""

    model_input_names: list[str]

    @property
    def backend_tokenizer(self) -> Any:  # noqa: ANN401  tokenizers.Tokenizer, which has no types
        """Give the tokenizer proper."""

    def __len__(self) -> int:
        """Count the vocabulary, added tokens included."""

    def num_special_tokens_to_add(self, pair: bool = ...) -> int:
        """Count the tokens that frame a text or a pair."""

    def __call__(
        self,
        text: list[str],
        text_pair: list[str] | None = ...,
        **options: Any,  # noqa: ANN401  as transformers has them
    ) -> Mapping[str, list[list[int]]]:
        """Tokenise texts, or pairs."""


@dataclass(frozen=True, eq=False)
class PaddedBatch:
    """Rows padded to the longest of them; every array is int64 [batch, length], ``indices`` [batch]."""

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None
    indices: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class TokenizedTexts:
    """Token ids per row, special tokens included, cut to ``max_length`` and not padded.

    ``n_cut`` counts the rows that lost tokens. ``token_type_ids`` is None for encoders that take none.
    """

    input_ids: list[NDArray[np.int32]]
    token_type_ids: list[NDArray[np.int32]] | None
    lengths: NDArray[np.int32]
    n_cut: int
    max_length: int
    n_vocabulary: int

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.input_ids)

    @property
    def share_cut(self) -> float:
        """Give the share of rows that ``max_length`` cut, 0 to 1."""
        return self.n_cut / len(self) if len(self) else 0.0

    @property
    def payload_bytes(self) -> NDArray[np.int32]:
        """Give the bytes of each row's ids on the wire, in the narrowest integer that holds the vocabulary."""
        width = 2 if self.n_vocabulary <= _TWO_BYTE_VOCABULARY else 4
        return (self.lengths * width).astype(np.int32)

    def take(self, rows: NDArray[np.integer]) -> TokenizedTexts:
        """Return the tokens of some rows, in their order; how many of these were cut is not known."""
        chosen = rows.tolist()
        types = self.token_type_ids
        return replace(
            self,
            input_ids=[self.input_ids[row] for row in chosen],
            token_type_ids=None if types is None else [types[row] for row in chosen],
            lengths=self.lengths[rows],
            n_cut=0,
        )

    def pad(self, indices: ArrayLike, pad_id: int) -> PaddedBatch:
        """Make the arrays of one batch from the rows at these positions."""
        rows = np.asarray(indices, dtype=np.int64)
        lengths = self.lengths[rows]
        mask = np.arange(int(lengths.max(initial=0))) < lengths[:, None]
        chosen = rows.tolist()

        def padded(values: list[NDArray[np.int32]], filler: int) -> NDArray[np.int64]:
            array = np.full(mask.shape, filler, dtype=np.int64)
            if chosen:
                array[mask] = np.concatenate([values[row] for row in chosen])
            return array

        types = self.token_type_ids
        return PaddedBatch(
            input_ids=padded(self.input_ids, pad_id),
            attention_mask=mask.astype(np.int64),
            token_type_ids=None if types is None else padded(types, 0),
            indices=rows,
        )


def tokenize(
    dataset: TextDataset,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    progress: Callable[[int], None] | None = None,
) -> TokenizedTexts:
    """Tokenise all rows; a pair that is too long loses tokens from its longer text first.

    Padding and truncation of the tokenizer's file are switched off for good. ``progress`` is told the rows done.

    Raises:
        OptionError: ``max_length`` leaves no room for a token of each text.
    """
    is_pair = dataset.second is not None
    least = tokenizer.num_special_tokens_to_add(is_pair) + (2 if is_pair else 1)
    if max_length < least:
        raise OptionError(
            f"--max-length {max_length} leaves no room for the text; it must be at least {least}"
        )
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    has_types = "token_type_ids" in tokenizer.model_input_names

    def encode(rows: Sequence[int], limit: int | None = None) -> list[list[list[int]]]:
        """Return the ids of rows, and the types where the encoder takes them."""
        encoded = tokenizer(
            [dataset.first[row] for row in rows],
            None if dataset.second is None else [dataset.second[row] for row in rows],
            truncation=limit is not None,
            max_length=limit,
            return_token_type_ids=has_types,
            return_attention_mask=False,
            verbose=False,  # or it warns of texts beyond the checkpoint's limit, which are cut here
        )
        names = ["input_ids", "token_type_ids"] if has_types else ["input_ids"]
        return [list(encoded[name]) for name in names]

    tokens: list[list[NDArray[np.int32]]] = [[], []] if has_types else [[]]
    n_cut = 0
    for start in range(0, len(dataset), _CHUNK_ROWS):
        rows = range(start, min(start + _CHUNK_ROWS, len(dataset)))
        chunk = encode(rows)
        # Only uncut ids tell which rows are too long, so those are tokenised twice.
        cut = [place for place, ids in enumerate(chunk[0]) if len(ids) > max_length]
        if cut:
            for uncut, shorter in zip(
                chunk, encode([rows[each] for each in cut], max_length), strict=True
            ):
                for place, ids in zip(cut, shorter, strict=True):
                    uncut[place] = ids
        n_cut += len(cut)
        for found, values in zip(tokens, chunk, strict=True):
            found.extend(np.asarray(each, dtype=np.int32) for each in values)
        if progress is not None:
            progress(rows.stop)
    tokenizer.backend_tokenizer.no_truncation()
    return TokenizedTexts(
        input_ids=tokens[0],
        token_type_ids=tokens[1] if has_types else None,
        lengths=np.asarray([len(ids) for ids in tokens[0]], dtype=np.int32),
        n_cut=n_cut,
        max_length=max_length,
        n_vocabulary=len(tokenizer),
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


def evaluation_batches(lengths: ArrayLike, *, max_tokens: int = 4096) -> list[NDArray[np.int64]]:
    """Batch all rows from short to long, at most ``max_tokens`` each, padding included.

    A row longer than that has a batch to itself.
    """
    row_lengths = np.asarray(lengths)
    order = np.argsort(row_lengths, kind="stable").astype(np.int64)
    batches: list[NDArray[np.int64]] = []
    start = 0
    for end in range(1, len(order) + 1):
        # Sorted, so the next row would be the longest and set the padding of all.
        is_last = end == len(order)
        if is_last or row_lengths[order[end]] * (end + 1 - start) > max_tokens:
            batches.append(order[start:end])
            start = end
    return batches


def read_batches(
    batches: Sequence[NDArray[np.int64]],
    read: Callable[[NDArray[np.int64]], Sequence[NDArray[Any]]],
    *,
    progress: Progress,
    what: str,
) -> tuple[NDArray[Any], ...]:
    """Read every batch of rows and return what was read, in the order of the rows.

    Args:
        batches: At least one; the rows 0 to n - 1, each in one of them.
        read: Given the rows of a batch, returns arrays [b, ...].
        progress: Progress reporter.
        what: Name of the progress stage.

    Returns:
        Arrays [n, ...], one for each that ``read`` returns.
    """
    n = sum(map(len, batches))
    whole: tuple[NDArray[Any], ...] = ()
    with progress.stage(what, n) as advance:
        for rows in batches:
            parts = read(rows)
            whole = whole or tuple(np.empty((n, *part.shape[1:]), part.dtype) for part in parts)
            for array, part in zip(whole, parts, strict=True):
                array[rows] = part
            advance(len(rows))
    return whole
