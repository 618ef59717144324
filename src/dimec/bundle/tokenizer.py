"""A tier's tokenizer: texts in, token ids and padded batches out, cut at the length that the model was fitted with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from dimec.bundle.tokenizer_parts import check_tokenizer
from dimec.core.errors import BundleError, DataError
from dimec.core.tokens import CutKind, TokenBatch, Tokens, cut_to, whole_of
from dimec.core.untrusted import parse_json, read_bounded, trusting_nothing

_MAX_BYTES = 64 * 2**20
# Letters of several scripts, a digit, punctuation, a control, what no vocabulary has.
_PROBE = "A probe: 7 Straße 文字 \u0301 \x07 \U000f0000 \ud7ff."


class TierTokenizer:
    """The tokenizer of a tier; thread-safe."""

    def __init__(
        self,
        path: Path,
        *,
        max_length: int,
        cut: CutKind = "head",
        pad_id: int,
        pairs: bool,
        token_types: bool,
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
            self._tokenizer.no_truncation()
            self._ids_below = 1 + max(self._tokenizer.get_vocab().values())
            self._tokenizer.encode(_PROBE, _PROBE if pairs else None)
        # What most texts have in common, looked at up to their lengths.
        self._ones = np.ones((1, max_length), dtype=np.int64)
        self._zeros = np.zeros_like(self._ones)
        for each in (self._ones, self._zeros):
            each.flags.writeable = False
        self._max_length, self._cut = max_length, cut
        self._pad_id = pad_id
        self._pairs = pairs
        self._token_types = token_types

    def encode(
        self,
        texts: Sequence[str],
        seconds: Sequence[str] | None = None,
        *,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tokens:
        """Tokenise texts, or pairs of texts; a pair that is too long loses tokens from its longer text first.

        Raises:
            DataError: If the model reads pairs and there are single texts, or the other way round.
        """
        self._check_pairs(seconds is not None)
        with self._trusting_nothing():
            return Tokens.of(
                self._tokenizer,
                texts,
                seconds,
                types=self._token_types,
                pad_id=self._pad_id,
                max_length=self._max_length,
                cut=self._cut,
                progress=progress,
            )

    def encode_one(
        self, text: str, second: str | None = None
    ) -> tuple[TokenBatch, NDArray[np.int64]]:
        """Tokenise one text, or one pair: what `encode` and `batch` give of one row, with less work.

        Returns the batch, and the ids of the whole text as `Tokens.whole` has them.

        Raises:
            DataError: If the model reads pairs and there is a single text, or the other way round.
        """
        self._check_pairs(second is not None)
        # Offsets, which only this computes, take less than the pool of threads that a batch goes through.
        with self._trusting_nothing():
            encoded = self._tokenizer.encode(text, second)
        read = np.array(encoded.ids, dtype=np.int64)
        kept = None
        if len(read) > self._max_length:
            kept = cut_to(encoded, self._max_length, self._cut)
        ids = read[None] if kept is None else read[None, kept]
        types = None
        if self._token_types and second is None:
            types = self._zeros[:, : ids.shape[1]]
        elif self._token_types:
            types = np.array([encoded.type_ids])
            types = types if kept is None else types[:, kept]
        batch = TokenBatch(ids, self._ones[:, : ids.shape[1]], types, self._ids_below)
        return batch, whole_of(encoded, read, self._max_length)

    def ids(self, text: tuple[str, ...]) -> dict[str, list[int]]:
        """Return the token ids of a text or a pair, by the names of an encoder's inputs."""
        batch, _ = self.encode_one(*text)
        return {name: array[0].tolist() for name, array in batch.named().items()}

    def _trusting_nothing(self) -> AbstractContextManager[None]:
        return trusting_nothing(self._path, BundleError, remedy="export the bundle again")

    def _check_pairs(self, given: bool) -> None:
        if given != self._pairs:
            raise DataError(
                f"the model reads {'pairs of texts' if self._pairs else 'single texts'}: give "
                f"{'two texts' if self._pairs else 'one text'} each"
            )
