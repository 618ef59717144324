"""Arrays with a header of plain values in one safetensors file: exit tables, exit zero, what a device has learnt.

No pickle, and nothing of a file is run. A file is whole or not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from dimec.errors import RunError
from dimec.files import check_format, write_atomically


def write_tensors(
    path: Path, tensors: Mapping[str, NDArray[Any]], *, header: Mapping[str, Any]
) -> None:
    """Write arrays, and a header of plain values with them, as one safetensors file."""
    whole = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    metadata = {"dimec": json.dumps(header)}
    write_atomically(path, lambda partial: save_file(whole, partial, metadata=metadata))


def read_tensors(
    path: Path, *, check: Callable[[Any], None]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read what `write_tensors` wrote: header and arrays.

    ``check`` sees the header, or None where the file has none, before any array is read; it raises for one that is
    not to be read. What safetensors and the system raise comes as it is, for a caller who knows the remedy.
    """
    with safe_open(path, framework="numpy") as file:
        header = json.loads((file.metadata() or {}).get("dimec", "null"))
        check(header)
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_run_tensors(
    path: Path, *, what: str, known: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a file of a run, of a format up to ``known``; ``what`` is the noun for it.

    Raises:
        RunError: If it is missing, something else, damaged, or of a newer format.
    """

    def check(header: Any) -> None:  # noqa: ANN401  any JSON value
        if not isinstance(header, dict) or "format" not in header:
            raise RunError(f"{path} is no {what}: fit the run again")
        check_format(path, header["format"], known=known)

    try:
        return read_tensors(path, check=check)
    except FileNotFoundError as exc:
        raise RunError(f"{path} is missing: fit the run again, or give another folder") from exc
    except (SafetensorError, OSError, ValueError) as exc:
        raise RunError(f"{path} cannot be read ({exc}): it is damaged, fit the run again") from exc
