"""Optional installs: what is missing is said in one sentence, with the line that installs it."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager

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


def needs_training() -> AbstractContextManager[None]:
    """Translate a missing package of the training extra.

    Raises:
        MissingExtraError: If an import in the block needs it.
    """
    return _needs(_TRAINING, "training, planning, exporting, or tabulating new data,", "train")


def needs_report() -> AbstractContextManager[None]:
    """Translate a missing package of the report extra.

    Raises:
        MissingExtraError: If an import in the block needs it.
    """
    return _needs(_REPORT, "reading or drawing a study's results", "report")


@contextmanager
def _needs(packages: Collection[str], what: str, extra: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as exc:
        if (exc.name or "").split(".")[0] not in packages:
            raise
        raise MissingExtraError(what, extra) from exc
