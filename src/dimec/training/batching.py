"""Tokenised rows, and their batches as tensors on a device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dimec.core.progress import Progress
from dimec.data import TextDataset, TokenizedTexts, tokenize

Inputs = tuple[Tensor, Tensor, Tensor | None]
"""Input ids, attention mask and token types of a batch, each [b, t], as the encoder takes them."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a data set and their tokens; ``pad_id`` fills a batch."""

    dataset: TextDataset
    tokens: TokenizedTexts
    pad_id: int

    @classmethod
    def tokenized(
        cls,
        dataset: TextDataset,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        progress: Progress,
    ) -> Rows:
        """Tokenise a data set; longer texts are cut at ``max_length`` tokens."""
        with progress.stage("Tokenising", len(dataset)) as advance:
            tokens = tokenize(dataset, tokenizer, max_length=max_length, progress=advance)
        if tokens.n_cut:
            progress.say(f"{tokens.share_cut:.1%} of the texts were cut at {max_length} tokens")
        # Any id serves where the tokenizer has none: padding stands last and is masked.
        return cls(dataset, tokens, tokenizer.pad_token_id or 0)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.dataset)

    def take(self, positions: NDArray[np.int64]) -> Rows:
        """Return some of the rows, in their order."""
        return Rows(self.dataset.take(positions), self.tokens.take(positions), self.pad_id)

    def inputs(self, batch: NDArray[np.int64], device: torch.device) -> Inputs:
        """Pad a batch of rows and move it to a device."""
        padded = self.tokens.pad(batch, self.pad_id)

        def move(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        types = padded.token_type_ids
        return (
            move(padded.input_ids),
            move(padded.attention_mask),
            None if types is None else move(types),
        )
