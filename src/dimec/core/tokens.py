"""Token ids: of some texts, and of a batch as encoders take it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dimec.core.errors import EngineError

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

CutKind = Literal["head", "head-tail"]
"""Which tokens of a text that is too long are kept: the first ones, or the first three quarters and the last quarter of
those that fit."""

Ids = TypeVar("Ids", bound=np.integer)

MOST_TOKENS = 16_384
"""How many tokens of a text are read before the first layer, so that memory stays bounded."""

_CHUNK_ROWS = 1_000
# What a run of an engine takes beside its tokens, in tokens of an encoder's layers: measured with MiniLM.
_RUN_TOKENS = 16
# The most ids that two bytes can tell apart.
_TWO_BYTE_VOCABULARY = 65_536


def all_below(array: NDArray[np.int64], end: int) -> bool:
    """Tell whether all values of an array that is not empty lie in 0 .. end - 1."""
    # Read without a sign, a negative value is larger than any that is allowed: one pass over the array.
    return int(np.maximum.reduce(array.view(np.uint64), axis=None)) < end


@dataclass(frozen=True, eq=False, slots=True)
class TokenBatch:
    """Rows padded on the right to the longest of them; every array is int64 [b, t].

    Attributes:
        attention_mask: 1 on tokens and 0 on padding.
        token_type_ids: 1 on the second text of a pair; None for encoders that take none.
        ids_below: The tokenizer's bound: every id is smaller, and the arrays need no check; None where it is unknown.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None = None
    ids_below: int | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[Any]]) -> TokenBatch:
        """Take named arrays of any integer type.

        Raises:
            EngineError: If one is missing, is no integer array [b, t], or their shapes differ.
        """
        arrays: dict[str, NDArray[np.int64]] = {}
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            array = tensors.get(name)
            if array is None:
                if name != "token_type_ids":
                    raise EngineError(f"{name} is missing: give it as integers [batch, length]")
                continue
            if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer) or not array.size:
                raise EngineError(
                    f"{name} is {array.dtype} of shape {list(array.shape)}: it must be integers "
                    "[batch, length], neither of them 0"
                )
            arrays[name] = array.astype(np.int64, copy=False)
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        if len({tuple(shape) for shape in shapes.values()}) != 1:
            raise EngineError(f"the shapes differ: {shapes}; they must be the same")
        return cls(arrays["input_ids"], arrays["attention_mask"], arrays.get("token_type_ids"))

    def __len__(self) -> int:
        return len(self.input_ids)

    def check(self, *, n_vocabulary: int, max_tokens: int) -> None:
        """Refuse what an encoder cannot read; an engine may answer it with garbage.

        Raises:
            EngineError: If a row is too long, or an array has a value that means nothing there.
        """
        if self.input_ids.shape[1] > max_tokens:
            raise EngineError(
                f"the rows are {self.input_ids.shape[1]} tokens long: this encoder reads up to {max_tokens}"
            )
        if self.ids_below is not None and self.ids_below <= n_vocabulary:
            return
        for name, array in self.named().items():
            end = n_vocabulary if name == "input_ids" else 2
            if not all_below(array, end):
                raise EngineError(
                    f"{name} has values from {array.min()} to {array.max()}: allowed are 0 to {end - 1}"
                )

    def named(self) -> dict[str, NDArray[np.int64]]:
        """Return the arrays by the names of the graphs' inputs."""
        arrays = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            arrays["token_type_ids"] = self.token_type_ids
        return arrays


def cut_to(encoding: Encoding, max_length: int, kind: CutKind = "head") -> NDArray[np.bool_]:
    """Say which tokens of a text, or of a pair of texts, an encoder of ``max_length`` reads: [t] bool.

    Special tokens stay. A pair loses from the end of its longer text first, then of both alike, as the tokenizers
    library has it under ``longest_first``; it is always cut by ``head``.
    """
    side = np.array([-1 if each is None else each for each in encoding.sequence_ids])
    n_first, n_second = int((side == 0).sum()), int((side == 1).sum())
    room = max_length - (len(side) - n_first - n_second)
    if n_first + n_second <= room:
        return np.ones(len(side), dtype=np.bool_)
    kept: NDArray[np.bool_] = side < 0
    shorter = min(n_first, n_second)
    longer = room - shorter if 2 * shorter <= room else room - room // 2
    fits = (longer, room - longer) if n_first > n_second else (room - longer, longer)
    for which, fit in enumerate(fits):
        places = np.flatnonzero(side == which)
        tail = fit // 4 if kind == "head-tail" and not n_second else 0
        kept[places[: fit - tail]] = True
        kept[places[len(places) - tail :]] = True
    return kept


def whole_of(encoding: Encoding, input_ids: NDArray[Ids], max_length: int) -> NDArray[Ids]:
    """Return the token ids that are read before the first layer, given all of a text's."""
    most = max(MOST_TOKENS, max_length)
    return input_ids if len(input_ids) <= most else input_ids[cut_to(encoding, most)]


@dataclass(frozen=True, eq=False)
class Tokens:
    """Token ids of some texts, not padded.

    Attributes:
        input_ids: An int32 array per text, special tokens included.
        whole: The same of the texts before they were cut, up to `MOST_TOKENS` or the length of the cut.
        token_type_ids: The same shapes; None for encoders that take none.
        lengths: [n] int32.
        cut: [n] bool, which texts were too long and lost tokens.
        payload_bytes: [n] int32, the ids in the narrowest integer that holds the vocabulary: what offloading sends.
    """

    input_ids: list[NDArray[np.int32]]
    whole: list[NDArray[np.int32]]
    token_type_ids: list[NDArray[np.int32]] | None
    lengths: NDArray[np.int32]
    cut: NDArray[np.bool_]
    payload_bytes: NDArray[np.int32]
    pad_id: int

    @classmethod
    def of(
        cls,
        tokenizer: Tokenizer,
        first: Sequence[str],
        second: Sequence[str] | None = None,
        *,
        types: bool,
        pad_id: int,
        max_length: int,
        cut: CutKind = "head",
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tokens:
        """Tokenise texts, or pairs of texts, by a tokenizer that cuts nothing, and cut them.

        ``types`` is whether the encoder takes token types; ``progress`` is told how many more texts are done.
        """
        texts = list(first) if second is None else list(zip(first, second, strict=True))
        ids: list[NDArray[np.int32]] = []
        whole: list[NDArray[np.int32]] = []
        kinds: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), _CHUNK_ROWS):
            encoded = tokenizer.encode_batch_fast(texts[start : start + _CHUNK_ROWS])  # no offsets
            for each in encoded:
                read = np.asarray(each.ids, dtype=np.int32)
                type_ids = np.asarray(each.type_ids, dtype=np.int32)
                whole.append(whole_of(each, read, max_length))
                if len(read) > max_length:
                    kept = cut_to(each, max_length, cut)
                    read, type_ids = read[kept], type_ids[kept]
                ids.append(read)
                kinds.append(type_ids)
            progress(len(encoded))
        lengths = np.asarray([len(each) for each in ids], dtype=np.int32)
        width = 2 if tokenizer.get_vocab_size() <= _TWO_BYTE_VOCABULARY else 4
        return cls(
            input_ids=ids,
            whole=whole,
            token_type_ids=kinds if types else None,
            lengths=lengths,
            cut=np.asarray([len(each) for each in whole], dtype=np.int32) > lengths,
            payload_bytes=(lengths * width).astype(np.int32),
            pad_id=pad_id,
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def share_cut(self) -> float:
        """The share of texts that lost tokens, 0 to 1."""
        return float(self.cut.mean()) if len(self) else 0.0

    def take(self, rows: NDArray[np.integer]) -> Tokens:
        """Return the tokens of some texts, in their order."""
        chosen = rows.tolist()
        types = self.token_type_ids
        return replace(
            self,
            input_ids=[self.input_ids[row] for row in chosen],
            whole=[self.whole[row] for row in chosen],
            token_type_ids=None if types is None else [types[row] for row in chosen],
            lengths=self.lengths[rows],
            cut=self.cut[rows],
            payload_bytes=self.payload_bytes[rows],
        )

    def batch(self, rows: ArrayLike | None = None) -> TokenBatch:
        """Pad some texts, by default all, to the longest of them."""
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


def batches_by_length(lengths: ArrayLike, *, max_tokens: int = 4096) -> list[NDArray[np.int64]]:
    """Batch all rows from short to long, at most ``max_tokens`` each, padding included.

    Among such batches these take the fewest tokens, where a run of the engine counts as some more.
    A row longer than ``max_tokens`` has a batch to itself.
    """
    row_lengths = np.asarray(lengths)
    order = np.argsort(row_lengths, kind="stable").astype(np.int64)
    distinct, ends = np.unique(row_lengths[order], return_index=True)
    ends = np.append(ends, len(order))
    # The best way to batch all rows shorter than distinct[k], and where its last group of lengths begins.
    best, begins = np.zeros(len(distinct) + 1), np.zeros(len(distinct), dtype=np.intp)
    for place, length in enumerate(distinct.tolist()):
        rows = ends[place + 1] - ends[: place + 1]
        runs = -(-rows // max(1, max_tokens // max(length, 1)))
        tokens = best[: place + 1] + rows * length + runs * _RUN_TOKENS
        begins[place] = tokens.argmin()
        best[place + 1] = tokens[begins[place]]
    batches: list[NDArray[np.int64]] = []
    place = len(distinct)
    while place:
        most = max(1, max_tokens // max(int(distinct[place - 1]), 1))
        place, end = begins[place - 1], ends[place]
        group = order[ends[place] : end]
        batches += [group[start : start + most] for start in range(0, len(group), most)][::-1]
    return batches[::-1]
