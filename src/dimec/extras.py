"""Optional installs: what is missing is said in one sentence, with the line that installs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dimec.errors import MissingExtraError

_TRAINING = {
    "datasets",
    "huggingface_hub",
    "onnx",
    "onnx_ir",
    "onnxscript",
    "pyarrow",
    "scipy",
    "sklearn",
    "tokenizers",
    "torch",
    "transformers",
}
_REPORT = {"altair", "jinja2", "pyarrow", "vl_convert"}


@contextmanager
def needs_training() -> Iterator[None]:
    """Translate a missing package of the training extra.

    Raises:
        MissingExtraError: If an import in the block needs it.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in _TRAINING:
            raise
        raise MissingExtraError(
            "training, planning, exporting, or tabulating new data,", "train"
        ) from exc


@contextmanager
def needs_report() -> Iterator[None]:
    """Translate a missing package of the report extra.

    Raises:
        MissingExtraError: If an import in the block needs it.
    """
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in _REPORT:
            raise
        raise MissingExtraError("reading or drawing a study's results", "report") from exc
