"""A batch of token ids, as the graphs take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import EngineError


def all_below(array: NDArray[np.int64], end: int) -> bool:
    """Tell whether all values of an array that is not empty lie in 0 .. end - 1."""
    # Read without a sign, a negative value is larger than any that is allowed: one pass over the array.
    return int(np.maximum.reduce(array.view(np.uint64), axis=None)) < end


@dataclass(frozen=True, eq=False, slots=True)
class TokenBatch:
    """Rows padded on the right to the longest of them; every array is int64 [b, t].

    Attributes:
        input_ids: Token ids, special tokens included.
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
        """Return the number of rows."""
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
