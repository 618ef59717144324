"""What this machine computes on, how precisely, and by which libraries."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

import torch

from dimec.core.version import __version__


def library_versions() -> dict[str, str]:
    """Return the versions of what trains."""
    return {
        "python": platform.python_version(),
        "dimec": __version__,
        **{name: version(name) for name in ("torch", "transformers", "numpy")},
    }


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
        return (
            torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()
        )

    def __str__(self) -> str:
        """Name the device for people."""
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"cpu, {torch.get_num_threads()} threads"
