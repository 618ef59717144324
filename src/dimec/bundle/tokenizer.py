"""A tier's tokenizer: texts in, token ids and padded batches out, cut at the length that the model was fitted with."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tokenizers import Tokenizer

from dimec.bundle.engines import TokenBatch
from dimec.bundle.tokenizer_parts import check_tokenizer
from dimec.core.errors import BundleError, DataError
from dimec.core.untrusted import parse_json, read_bounded, trusting_nothing

# The most ids that two bytes can tell apart.
_TWO_BYTE_VOCABULARY = 65_536
_MAX_BYTES = 64 * 2**20
# Letters of several scripts, a digit, punctuation, a control, what no vocabulary has.
_PROBE = "A probe: 7 Straße 文字 \u0301 \x07 \U000f0000 \ud7ff."


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of some texts, not padded.

    Attributes:
        input_ids: An int32 array per text, special tokens included.
        token_type_ids: The same shapes; None for encoders that take none.
        lengths: [n] int32.
        cut: [n] bool, which texts were too long and lost tokens.
        payload_bytes: [n] int32, the ids in the narrowest integer that holds the vocabulary: what offloading sends.
        pad_id: What fills a batch.
    """

    input_ids: list[NDArray[np.int32]]
    token_type_ids: list[NDArray[np.int32]] | None
    lengths: NDArray[np.int32]
    cut: NDArray[np.bool_]
    payload_bytes: NDArray[np.int32]
    pad_id: int

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.input_ids)

    @classmethod
    def joined(cls, parts: Sequence[Tokens]) -> Tokens:
        """Put the tokens of one tokenizer one after another; there is at least one part."""
        types = [part.token_type_ids for part in parts]
        return cls(
            input_ids=[ids for part in parts for ids in part.input_ids],
            token_type_ids=None
            if types[0] is None
            else [ids for part in types if part is not None for ids in part],
            lengths=np.concatenate([part.lengths for part in parts]),
            cut=np.concatenate([part.cut for part in parts]),
            payload_bytes=np.concatenate([part.payload_bytes for part in parts]),
            pad_id=parts[0].pad_id,
        )

    def batch(self, rows: ArrayLike | None = None) -> TokenBatch:
        """Pad some rows, by default all, to the longest of them."""
        chosen = np.arange(len(self)) if rows is None else np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen]
        mask = np.arange(int(lengths.max(initial=0))) < lengths[:, None]

        def padded(values: list[NDArray[np.int32]], filler: int) -> NDArray[np.int64]:
            array = np.full(mask.shape, filler, dtype=np.int64)
            if len(chosen):
                array[mask] = np.concatenate([values[row] for row in chosen.tolist()])
            return array

        types = self.token_type_ids
        return TokenBatch(
            padded(self.input_ids, self.pad_id),
            mask.astype(np.int64),
            None if types is None else padded(types, 0),
        )


class TierTokenizer:
    """The tokenizer of a tier; thread-safe."""

    def __init__(
        self, path: Path, *, max_length: int, pad_id: int, pairs: bool, token_types: bool
    ) -> None:
        """Read a file of the `tokenizers` library; ``max_length`` counts special tokens too.

        Raises:
            BundleError: If it cannot be read, or ``max_length`` leaves no room for a text.
        """
        self._path = path
        with self._trusting_nothing():
            content = read_bounded(path, limit=_MAX_BYTES)
            check_tokenizer(parse_json(content))
            self._tokenizer = Tokenizer.from_buffer(content)
            special = self._tokenizer.num_special_tokens_to_add(pairs)
            if max_length < special + 1 + pairs:
                raise BundleError(
                    f"{path.parent} cuts texts at {max_length} tokens, {special} of them special: "
                    "export the bundle again"
                )
            self._tokenizer.no_padding()
            # Set once and never again: a switch between calls would cut the texts of other threads.
            self._tokenizer.enable_truncation(max_length, strategy="longest_first")
            self._ids_below = 1 + max(self._tokenizer.get_vocab().values())
            self._tokenizer.encode(_PROBE, _PROBE if pairs else None)
        # What most texts have in common, looked at up to their lengths.
        self._ones = np.ones((1, max_length), dtype=np.int64)
        self._zeros = np.zeros_like(self._ones)
        for each in (self._ones, self._zeros):
            each.flags.writeable = False
        self._bytes = 2 if self._tokenizer.get_vocab_size() <= _TWO_BYTE_VOCABULARY else 4
        self._pad_id = pad_id
        self._pairs = pairs
        self._token_types = token_types

    def encode(self, texts: Sequence[str], seconds: Sequence[str] | None = None) -> Tokens:
        """Tokenise texts, or pairs of texts; a pair that is too long loses tokens from its longer text first.

        Raises:
            DataError: If the model reads pairs and there are single texts, or the other way round.
        """
        self._check_pairs(seconds is not None)
        given = list(texts) if seconds is None else list(zip(texts, seconds, strict=True))
        with self._trusting_nothing():
            encoded = self._tokenizer.encode_batch_fast(given)  # fast: without offsets
        ids = [np.asarray(each.ids, dtype=np.int32) for each in encoded]
        lengths = np.asarray([len(each) for each in ids], dtype=np.int32)
        return Tokens(
            input_ids=ids,
            token_type_ids=[np.asarray(each.type_ids, dtype=np.int32) for each in encoded]
            if self._token_types
            else None,
            lengths=lengths,
            cut=np.asarray([bool(each.overflowing) for each in encoded], dtype=np.bool_),
            payload_bytes=(lengths * self._bytes).astype(np.int32),
            pad_id=self._pad_id,
        )

    def encode_one(self, text: str, second: str | None = None) -> TokenBatch:
        """Tokenise one text, or one pair, as a batch of one row: what `encode` and `batch` give, with less work.

        Raises:
            DataError: If the model reads pairs and there is a single text, or the other way round.
        """
        self._check_pairs(second is not None)
        # Offsets, which only this computes, take less than the pool of threads that a batch goes through.
        with self._trusting_nothing():
            encoded = self._tokenizer.encode(text, second)
        ids = np.array([encoded.ids], dtype=np.int64)
        types = None
        if self._token_types:
            single = second is None
            types = self._zeros[:, : ids.shape[1]] if single else np.array([encoded.type_ids])
        return TokenBatch(ids, self._ones[:, : ids.shape[1]], types, self._ids_below)

    def _trusting_nothing(self) -> AbstractContextManager[None]:
        return trusting_nothing(self._path, BundleError, remedy="export the bundle again")

    def _check_pairs(self, given: bool) -> None:
        if given != self._pairs:
            raise DataError(
                f"the model reads {'pairs of texts' if self._pairs else 'single texts'}: give "
                f"{'two texts' if self._pairs else 'one text'} each"
            )
