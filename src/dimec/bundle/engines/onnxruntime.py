"""onnxruntime, the default engine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime as ort
from numpy.typing import NDArray

from dimec.core.errors import EngineError

# Its errors are raised; printed they would say the same twice.
_FATAL_ONLY = 4


class OnnxRuntimeSession:
    """A graph opened by onnxruntime; its CPU provider alone."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Read and optimise the graph; `open_session` translates the errors of onnxruntime."""
        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # A tier is several graphs: threads that spin after one would take the cores from the next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            str(path), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self._path = path
        self._outputs = [each.name for each in self._session.get_outputs()]

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph; see `Session`."""
        try:
            outputs: list[NDArray[Any]] = self._session.run(self._outputs, dict(inputs))
        except Exception as exc:  # its errors have no base class but this
            raise EngineError(f"{self._path.name} cannot run on these inputs ({exc})") from exc
        return outputs
