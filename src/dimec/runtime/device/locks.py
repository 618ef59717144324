"""Files and folders that one process at a time writes to."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from dimec.core.errors import DimecError
from dimec.core.files import lock


def hold(path: Path, *, otherwise: DimecError) -> IO[bytes]:
    """Lock a file, made where it is missing, until what is returned is closed or the process ends, however it ends.

    Where a system has no such locks, processes have to be kept apart by hand.

    Raises:
        DimecError: ``otherwise``, if another process holds it.
    """
    file = path.open("ab")
    if lock(file.fileno()) is False:
        file.close()
        raise otherwise
    return file
