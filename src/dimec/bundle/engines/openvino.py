"""OpenVINO, the engine of the extra ``openvino``: in bfloat16 where the CPU has that.

With AMX that is three to four times as fast at batch, with AVX512-BF16 about twice.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.engines.hardware import computes_bf16
from dimec.core.errors import EngineError, MissingExtraError

if TYPE_CHECKING:
    from openvino import Core, InferRequest

_core: Core | None = None
_core_lock = threading.Lock()


class OpenVinoSession:
    """A graph compiled by OpenVINO for the CPU."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Read and compile the graph; `open_session` translates the errors of OpenVINO.

        Raises:
            MissingExtraError: If OpenVINO is not installed.
        """
        core = _get_core()
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            # Said either way: left alone, OpenVINO decides by itself, and emulates where it must.
            "INFERENCE_PRECISION_HINT": "bf16" if computes_bf16() else "f32",
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        self._compiled = core.compile_model(core.read_model(path), "CPU", settings)
        from openvino import PartialShape

        self._shape = PartialShape
        self._path = path
        self._local = threading.local()  # an infer request serves one thread at a time

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph; see `Session`."""
        self._check(inputs)
        request: InferRequest | None = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        try:
            results = request.infer(dict(inputs))
        except Exception as exc:  # RuntimeError, and others from its bindings
            raise EngineError(f"{self._path.name} cannot run on these inputs ({exc})") from exc
        # Copied: the request writes its next results into the same memory.
        return [np.array(results[output]) for output in self._compiled.outputs]

    def _check(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Refuse what OpenVINO would answer with nonsense: a missing input keeps the last run's values there."""
        for port in self._compiled.inputs:
            array = inputs.get(port.any_name)
            if array is None:
                raise EngineError(f"{self._path.name} cannot run without {port.any_name}")
            fits = port.partial_shape.compatible(self._shape(list(array.shape)))
            if not fits or array.dtype != port.element_type.to_dtype():
                raise EngineError(
                    f"{self._path.name} cannot run on {port.any_name} of shape {list(array.shape)} and type "
                    f"{array.dtype}: it takes {port.partial_shape} of {port.element_type.to_dtype()}"
                )
        unknown = inputs.keys() - {port.any_name for port in self._compiled.inputs}
        if unknown:
            raise EngineError(f"{self._path.name} takes no {', '.join(sorted(unknown))}")


def _get_core() -> Core:
    """Return the process's one core, made on first use."""
    global _core
    with _core_lock:
        if _core is None:
            try:
                from openvino import Core
            except ModuleNotFoundError as exc:
                raise MissingExtraError("the engine openvino", "openvino") from exc
            _core = Core()
        return _core
