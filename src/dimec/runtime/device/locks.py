"""Files and folders that one process at a time writes to."""

from __future__ import annotations

from pathlib import Path
from typing import IO

from dimec.core.errors import DimecError
from dimec.core.files import lock


def hold(path: Path, *, otherwise: DimecError) -> IO[bytes]:
    """Lock a file, made where it is missing, until what is returned is closed or the process ends, however it ends.

    Raises ``otherwise`` if another process holds it. Windows has no such locks: nothing is checked there.
    """
    file = path.open("ab")
    if lock(file.fileno()) is False:
        file.close()
        raise otherwise
    return file
