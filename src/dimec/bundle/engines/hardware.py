"""What this machine's processor can do, as far as the engines care."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine, described for a profile or a person.

    Attributes:
        system: Operating system and its release.
        architecture: Such as x86_64.
        cores: How many of them this process may use.
        memory_bytes: All of it; None where the system does not tell.
        amx: Whether the processor multiplies bfloat16 matrices by AMX tiles.
    """

    system: str
    architecture: str
    processor: str
    cores: int
    memory_bytes: int | None
    amx: bool
    avx512_bf16: bool
    avx512_vnni: bool


@cache
def machine() -> Machine:
    """Describe this machine."""
    flags = (_field(_CPUINFO, "flags") or "").split()
    return Machine(
        system=f"{platform.system()} {platform.release()}",
        architecture=platform.machine(),
        processor=_field(_CPUINFO, "model name") or platform.processor() or "unknown",
        cores=usable_cores(),
        memory_bytes=_kilobytes(_MEMINFO, "MemTotal"),
        amx="amx_bf16" in flags,
        avx512_bf16="avx512_bf16" in flags,
        avx512_vnni="avx512_vnni" in flags,
    )


def computes_bf16() -> bool:
    """Tell whether the processor multiplies in bfloat16, by AMX or AVX512; False where the system does not tell."""
    return machine().amx or machine().avx512_bf16


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _field(path: Path, name: str) -> str | None:
    """Read a field of a file of ``name: value`` lines; None where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def resident_memory_bytes() -> int | None:
    """Return what this process holds in memory now; None where the system does not tell."""
    return _kilobytes(_STATUS, "VmRSS")


def peak_memory_bytes() -> int | None:
    """Return the most that this process ever held; None where the system does not tell.

    Not from getrusage: its figure outlives exec, so a child starts with its parent's.
    """
    return _kilobytes(_STATUS, "VmHWM")


def _kilobytes(path: Path, name: str) -> int | None:
    value = _field(path, name)
    return int(value.split()[0]) * 1024 if value else None
