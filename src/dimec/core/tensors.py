"""Arrays with a header of plain values in one safetensors file: exit tables, exit zero, what a device has learnt."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from dimec.core.files import write_atomically
from dimec.core.untrusted import Record, open_regular, parse_json

_MAX_HEADER_BYTES = 16 * 2**20
_KINDS = "fiub"


class Header(Record):
    """What stands in a file beside its arrays."""

    format: int


ArraySpecs: TypeAlias = Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]]
"""Type and shape of arrays by name; None stands for any length."""


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], *, header: Mapping[str, Any]
) -> None:
    """Write arrays, and a header of plain values with them, as one safetensors file."""
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {"dimec": json.dumps(header)}
    write_atomically(path, lambda partial: save_file(whole, partial, metadata=metadata))


def read_arrays(
    path: Path, kind: object = None, *, known: int | None = None, limit: int | None = None
) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Read a safetensors file, within `trusting_nothing`: what `write_tensors` has for the header, and the arrays.

    ``kind`` and ``known`` are of the header, as in `parse_json`; ``limit`` is the most bytes that the file may have.

    Raises:
        ValueError: If it is larger, its header is too large or too deep, or an array is not of finite plain numbers.
    """
    with open_regular(path) as file:
        size = file.seek(0, 2)
        if limit is not None and size > limit:
            raise ValueError(f"it has more than {limit:,} bytes")
        file.seek(0)
        n_header = int.from_bytes(file.read(8), "little")
        if n_header > min(size, _MAX_HEADER_BYTES):
            raise ValueError("it is cut off, or no safetensors file")
        parse_json(file.read(n_header))
    with safe_open(path, framework="numpy") as tensors:
        said = (tensors.metadata() or {}).get("dimec", "null")
        header = parse_json(said.encode(), kind, known=known)
        arrays = {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    for name, array in arrays.items():
        if array.dtype.kind not in _KINDS:
            raise ValueError(f"{name} holds {array.dtype}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} is not finite")
    return header, arrays


def fits(array: NDArray[Any], shape: tuple[int | None, ...]) -> bool:
    """Tell whether an array has a shape, in which None stands for any length."""
    return len(shape) == array.ndim and all(
        own in (None, found) for own, found in zip(shape, array.shape, strict=True)
    )


def widened(arrays: Mapping[str, NDArray[Any]], wanted: ArraySpecs) -> dict[str, NDArray[Any]]:
    """Return arrays with narrower numbers of the same kind, as small files hold them, in the type they must have."""
    found = dict(arrays)
    for name in arrays.keys() & wanted.keys():
        narrow, wide = arrays[name].dtype, np.dtype(wanted[name][0])
        same = narrow.kind == wide.kind or (narrow.kind == "u" and wide.kind == "i")
        if same and narrow.itemsize < wide.itemsize:
            found[name] = arrays[name].astype(wide)
    return found


def check_arrays(
    arrays: Mapping[str, NDArray[Any]], wanted: ArraySpecs, *, optional: Collection[str] = ()
) -> None:
    """Check, within `trusting_nothing`, that arrays have the type and shape that each must have.

    Raises:
        ValueError: If one is missing, is not what it must be, or is not known.
    """
    for name in sorted(arrays.keys() ^ wanted.keys()):
        if name not in wanted:
            raise ValueError(f"it holds {name}, which is not known")
        if name not in optional:
            raise ValueError(f"it holds no {name}")
    for name, array in arrays.items():
        dtype, shape = wanted[name]
        if array.dtype != dtype or not fits(array, shape):
            must = ["any" if each is None else each for each in shape]
            raise ValueError(
                f"it holds {name} {array.dtype} {list(array.shape)} where {np.dtype(dtype)} {must} must be"
            )
