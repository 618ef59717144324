"""From padded arrays to tensors on a device."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dimec.data import PaddedBatch


def tensors(
    batch: PaddedBatch, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return input ids, attention mask and token types of a batch, each [b, t], as the encoder takes them."""

    def move(array: NDArray[np.int64]) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    types = batch.token_type_ids
    return move(batch.input_ids), move(batch.attention_mask), None if types is None else move(types)
