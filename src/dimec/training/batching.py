"""Tokenised rows, their batches as tensors on a device, and that device."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from dimec.core.progress import Progress
from dimec.core.tokens import CutKind, Tokens
from dimec.core.version import __version__
from dimec.data import TextDataset, tell_cut, tokenize
from dimec.runs.run import Run

Inputs = tuple[Tensor, Tensor, Tensor | None]
"""Input ids, attention mask and token types of a batch, each [b, t], as the encoder takes them."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a data set and their tokens."""

    dataset: TextDataset
    tokens: Tokens

    @classmethod
    def tokenized(
        cls,
        dataset: TextDataset,
        tokenizer: PreTrainedTokenizerFast,
        *,
        max_length: int,
        cut: CutKind = "head",
        progress: Progress,
    ) -> Rows:
        """Tokenise a data set; longer texts are cut at ``max_length`` tokens."""
        with progress.stage("Tokenising", len(dataset)) as advance:
            tokens = tokenize(dataset, tokenizer, max_length=max_length, cut=cut, progress=advance)
        tell_cut(tokens, max_length, progress=progress)
        return cls(dataset, tokens)

    @classmethod
    def as_in(
        cls,
        run: Run,
        dataset: TextDataset,
        tokenizer: PreTrainedTokenizerFast,
        *,
        progress: Progress,
    ) -> Rows:
        """Tokenise a data set and cut its texts as those of a run were."""
        length, cut = run.config.max_length, run.config.options.cut
        return cls.tokenized(dataset, tokenizer, max_length=length, cut=cut, progress=progress)

    def __len__(self) -> int:
        return len(self.dataset)

    def take(self, positions: NDArray[np.int64]) -> Rows:
        """Return some of the rows, in their order."""
        return Rows(self.dataset.take(positions), self.tokens.take(positions))

    def inputs(self, batch: NDArray[np.int64], device: torch.device) -> Inputs:
        """Pad a batch of rows and move it to a device."""
        padded = self.tokens.batch(batch)

        def move(array: NDArray[np.int64]) -> Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        types = None if padded.token_type_ids is None else move(padded.token_type_ids)
        return move(padded.input_ids), move(padded.attention_mask), types


def library_versions() -> dict[str, str]:
    """Return the versions of what trains."""
    return {
        "python": platform.python_version(),
        "dimec": __version__,
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
    }


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What GNU's `mallopt` calls how much free memory goes back, and from which size on a block is mapped by itself."""
_MOST_MAPPED = 2**25


@contextmanager
def reusing_memory() -> Iterator[None]:
    """Let GNU's C library keep what a training step frees for the next step; it goes back to the system at the end.

    Clearing fresh pages takes a tenth of a step of a 12-layer encoder (docs/explanation/speed.md). Nothing happens
    where another C library is used.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        set_option, give_back = libc.mallopt, libc.malloc_trim
    except (OSError, AttributeError):
        yield
        return
    set_option(_MMAP_THRESHOLD, _MOST_MAPPED)
    set_option(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        set_option(_TRIM_THRESHOLD, 2 * _MOST_MAPPED)  # as it comes to be by itself
        give_back(0)


def default_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Hardware:
    """A device and whether training runs in bfloat16 there."""

    device: torch.device
    bf16: bool

    @classmethod
    def find(cls, precision: Literal["auto", "bf16", "fp32"]) -> Hardware:
        """Take the default device; ``auto`` is bfloat16 where the hardware computes in it."""
        device = default_device()
        if precision != "auto":
            return cls(device, precision == "bf16")
        if device.type == "cuda":
            return cls(device, torch.cuda.is_bf16_supported(including_emulation=False))
        return cls(
            device, torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        )

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context that training's forward pass runs in."""
        kind = self.device.type
        return torch.autocast(kind, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def __str__(self) -> str:
        """Name the device for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu, {torch.get_num_threads()} threads"
