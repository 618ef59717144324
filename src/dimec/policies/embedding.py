"""The embedding layer of an encoder in plain numpy: what a router sees of a sample before any layer has run.

An adapter of ``dimec.training.model`` fills an :class:`EmbeddingTable` from an encoder's weights; a bundle carries its
``state()`` as tensors, and a device, which has no torch, calls ``mean`` on the token ids of one sample. The result
is the mean over tokens of the encoder's embedding layer after its LayerNorm, so distances to centroids that were
computed in training hold on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import DataError, RunError

Floats = NDArray[np.float32]
"""float32 array; the docstrings say which shape."""

# The arrays of a state, and whether every encoder has them.
_ARRAYS = {
    "words": True,
    "positions": False,
    "types": False,
    "norm_weight": True,
    "norm_bias": True,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddingTable:
    """The weights of one embedding layer: v words, p positions and s token types, each d wide.

    Attributes:
        words: [v, d].
        positions: [p, d], or None where positions enter inside the layers (rotary embeddings).
        types: [s, d], or None where the encoder knows no token types.
        norm_weight: [d], scale of the LayerNorm.
        norm_bias: [d], shift of the LayerNorm; zeros where it has none.
        norm_epsilon: What the LayerNorm adds to the variance.
        position_offset: Row of ``positions`` that the first token reads (RoBERTa: padding index + 1).
    """

    words: Floats
    positions: Floats | None = None
    types: Floats | None = None
    norm_weight: Floats
    norm_bias: Floats
    norm_epsilon: float
    position_offset: int = 0

    @property
    def width(self) -> int:
        """Width d of an embedding."""
        return int(self.words.shape[1])

    @property
    def max_tokens(self) -> int | None:
        """The longest sample that still has a position for every token; None where there is no limit."""
        return None if self.positions is None else len(self.positions) - self.position_offset

    def mean(
        self,
        token_ids: NDArray[np.integer],
        token_type_ids: NDArray[np.integer] | None = None,
    ) -> Floats:
        """Compute the mean embedding of one sample.

        Per token, x = word + position + type, and LayerNorm(x) = (x − μ)/√(σ² + ε)·weight + bias. Weight and bias are
        the same for every token, so they are applied once, after the mean; the division is a weight per token, so
        that mean is one vector-matrix product.

        Args:
            token_ids: [t] ids without padding, special tokens included.
            token_type_ids: [t]; None is type 0 throughout.

        Returns:
            [d] float32.

        Raises:
            DataError: For a sample without tokens, with more of them than positions, or with one that is no word.
        """
        n_tokens, limit = len(token_ids), self.max_tokens
        if n_tokens == 0:
            raise DataError(
                "a sample without tokens has no embedding; give at least its special ones"
            )
        if limit is not None and n_tokens > limit:
            raise DataError(
                f"a sample has {n_tokens} tokens, only {limit} have a position; cut it shorter"
            )
        try:
            x = self.words.take(token_ids, axis=0)
        except IndexError as exc:
            raise DataError(
                f"a sample has a token id outside of 0 to {len(self.words) - 1}; its tokenizer is another model's"
            ) from exc
        if self._base is not None:
            x += self._base[:n_tokens]
        if token_type_ids is not None and self._type_steps is not None:
            x += self._type_steps.take(token_type_ids, axis=0)
        # A product with a vector of 1/d is several times faster than mean(axis=1) on a matrix this small.
        x -= (x @ self._averaging)[:, None]
        weights = np.vecdot(x, x)
        weights /= self.width
        weights += self.norm_epsilon
        np.sqrt(weights, out=weights)
        weights *= n_tokens
        np.reciprocal(weights, out=weights)
        mean: Floats = weights @ x
        mean *= self.norm_weight
        mean += self.norm_bias
        return mean

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Give everything as arrays that safetensors can hold; ``from_state`` is the way back."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        return {
            **{name: array for name, array in arrays.items() if array is not None},
            "norm_epsilon": np.asarray([self.norm_epsilon], dtype=np.float64),
            "position_offset": np.asarray([self.position_offset], dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, NDArray[np.generic]]) -> EmbeddingTable:
        """Rebuild a table from what ``state`` gave.

        Raises:
            RunError: When an array is missing, unknown, or does not fit the others.
        """
        required = {name for name, always in _ARRAYS.items() if always}
        required |= {"norm_epsilon", "position_offset"}
        missing, unknown = required - state.keys(), state.keys() - required - _ARRAYS.keys()
        if missing or unknown:
            raise RunError(
                f"an embedding table needs {', '.join(sorted(required))}"
                f" (missing: {', '.join(sorted(missing)) or 'none'};"
                f" unknown: {', '.join(sorted(unknown)) or 'none'})"
            )
        if state["words"].ndim != 2:
            raise RunError(
                f"the words of an embedding table are [v, d], not {state['words'].shape}"
            )
        width = state["words"].shape[1]
        for name in _ARRAYS:
            n_dimensions = 1 if name.startswith("norm") else 2
            if name in state and (
                state[name].ndim != n_dimensions or state[name].shape[-1] != width
            ):
                raise RunError(
                    f"{name} of an embedding table has shape {state[name].shape}, its words are {width} wide"
                )
        for name in ("norm_epsilon", "position_offset"):
            if state[name].size != 1:
                raise RunError(
                    f"{name} of an embedding table is one number, not {state[name].shape}"
                )
        table = cls(
            **{
                name: np.ascontiguousarray(state[name], dtype=np.float32)
                for name in _ARRAYS
                if name in state
            },
            norm_epsilon=float(state["norm_epsilon"].item()),
            position_offset=int(state["position_offset"].item()),
        )
        if table.position_offset < 0 or (table.max_tokens is not None and table.max_tokens < 1):
            raise RunError(
                f"position_offset {table.position_offset} of an embedding table leaves no position"
            )
        return table

    @cached_property
    def _base(self) -> Floats | None:
        """What every sample adds to its words: positions from its first token's on, and type 0; [p, d] or [1, d]."""
        if self.positions is None:
            return None if self.types is None else self.types[:1]
        base = self.positions[self.position_offset :]
        return base if self.types is None else base + self.types[0]

    @cached_property
    def _type_steps(self) -> Floats | None:
        """What a type adds to type 0, which ``_base`` already holds; [s, d]."""
        return None if self.types is None else self.types - self.types[0]

    @cached_property
    def _averaging(self) -> Floats:
        """1/d, d times: the product with it is the mean over the width."""
        return np.full(self.width, 1 / self.width, dtype=np.float32)
