"""Optional installs: a missing package ends in one sentence with the line that installs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from dimec.core.errors import MissingExtraError

_TRAINING = (
    *("accelerate", "datasets", "datasketch", "huggingface_hub", "onnx", "onnx_ir", "onnxscript"),
    *("pyarrow", "scipy", "sklearn", "tokenizers", "torch", "transformers"),
)
_SPINS = "3000"
"""Some microseconds; what GNU's OpenMP takes by itself is a hundred times as much."""
_WAITING = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT")
"""Environment variables that say how threads of OpenMP wait."""


def needs_training() -> AbstractContextManager[None]:
    """Translate a missing package of the training extra; what loads torch lets OpenMP spin only shortly.

    Raises:
        MissingExtraError: If an import in the block needs it.
    """
    _spin_shortly()
    return _needs(_TRAINING, "training, planning, exporting, or tabulating new data,", "train")


def _spin_shortly() -> None:
    """Ask OpenMP to spin only shortly while a thread waits, unless the user has set how it waits.

    Threads that spin for long take cores from other processes; threads that never spin cost a quiet machine a fifth
    of its speed. OpenMP reads this when torch loads it, so it must come before.
    """
    if "torch" not in sys.modules and not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


@contextmanager
def _needs(packages: Collection[str], what: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in packages:
            raise
        raise MissingExtraError(what, extra) from exc


needs_report = partial(
    _needs,
    ("altair", "jinja2", "pyarrow", "vl_convert"),
    "reading or drawing a study's results",
    "report",
)
needs_bulk = partial(_needs, ("pyarrow", "ray", "scipy"), "labelling a corpus", "bulk")
needs_hub = partial(_needs, ("huggingface_hub",), "reading or writing a model of the hub", "hub")
"""As `needs_training`, of the other extras."""
