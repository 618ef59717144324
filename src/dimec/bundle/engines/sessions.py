"""The one interface over the engines, and the way to open a graph with either of them.

A `Session` is an opened ONNX file: named arrays go in, the graph's outputs come out in the graph's order. Sessions
may be called from several threads at once. An engine is imported when its first graph is opened.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Collection, Mapping
from functools import cache
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.engines.hardware import computes_bf16
from dimec.core.errors import BundleError, EngineError, MissingExtraError, OptionError
from dimec.core.options import EngineName
from dimec.core.untrusted import open_regular, trusting_nothing

if TYPE_CHECKING:
    from openvino import Core, InferRequest

ENGINES: tuple[EngineName, ...] = get_args(EngineName)

# Errors of onnxruntime are raised; printed they would say the same twice.
_FATAL_ONLY = 4
# On a CPU the fused operators take longer than those that they stand for: 3 to 8 % of a layer.
_SLOW_FUSIONS = ["SkipLayerNormFusion", "BiasGeluFusion"]


class Session(Protocol):
    """An opened graph."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph on named arrays and return its outputs in order.

        Raises:
            EngineError: If the graph cannot be run on these arrays.
        """


def open_session(
    path: Path,
    *,
    engine: EngineName = "onnxruntime",
    threads: int | None = None,
    beside: Collection[str] | None = None,
) -> Session:
    """Open an ONNX file; one run uses ``threads``, by default as many as the engine likes.

    ``beside`` names the files in its folder that it may have weights in; None allows any file there.

    Raises:
        OptionError: If there is no such engine, or the number of threads is below 1.
        MissingExtraError: If the engine is not installed.
        BundleError: If the file is missing or is no graph that the engine can read.
    """
    if threads is not None and threads < 1:
        raise OptionError(f"{threads} threads were asked for: give 1 or more, or none for all")
    if engine not in ENGINES:
        raise OptionError(f"unknown engine {engine}: choose from {', '.join(ENGINES)}")
    with trusting_nothing(path, BundleError, remedy="export the bundle again"):
        _check_graph(path, beside)
        if engine == "openvino":
            return OpenVinoSession(path, threads=threads)
        return OnnxRuntimeSession(path, threads=threads)


# The key of a tensor whose values stand in another file, as ONNX's protobuf has it; lengths may be padded.
_KEY = b"location"
_BEFORE_KEY = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)\Z")
# More than a padded tag and length take.
_FRAME_BYTES = 64
# The one way of writing it that is allowed: the whole entry, its length before it, and a plain name.
_BESIDE = re.compile(rb"\x6a(.)\x0a\x08location\x12(.)([A-Za-z0-9][A-Za-z0-9._-]*)", re.DOTALL)


def _check_graph(path: Path, beside: Collection[str] | None) -> None:
    """Refuse a graph that would have an engine read another file than those that it may share weights with."""
    with open_regular(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        place = -1
        # The plain word first: a pattern takes a hundred times as long to search for.
        while (place := content.find(_KEY, place + 1)) >= 0:
            start = max(place - _FRAME_BYTES, 0)
            found = _BEFORE_KEY.search(content[start:place])
            if not found:
                continue
            entry = _BESIDE.match(content, max(start + found.start() - 2, 0))
            name = entry[3][: entry[2][0]] if entry else b""
            if not entry or len(name) != entry[2][0] or entry[1][0] != len(name) + 12:
                raise ValueError("it has values in a file outside its folder")
            if beside is not None and name.decode() not in beside:
                raise ValueError(
                    f"it has values in {name.decode()}, which the manifest does not list"
                )
            if (path.parent / name.decode()).is_symlink():
                raise ValueError("it has values behind a link")


class OnnxRuntimeSession:
    """A graph opened by onnxruntime; its CPU provider alone."""

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Read and optimise the graph; `open_session` translates the errors of onnxruntime."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.intra_op_num_threads = threads or 0
        options.inter_op_num_threads = 1
        # A tier is several graphs: threads that spin after one would take the cores from the next.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = ort.InferenceSession(
            str(path),
            sess_options=options,
            providers=["CPUExecutionProvider"],
            disabled_optimizers=_SLOW_FUSIONS,
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


class OpenVinoSession:
    """A graph compiled by OpenVINO for the CPU: in bfloat16 where that has it.

    With AMX that is three to four times as fast at batch, with AVX512-BF16 about twice.
    """

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        """Read and compile the graph; `open_session` translates the errors of OpenVINO.

        Raises:
            MissingExtraError: If OpenVINO is not installed.
        """
        core = _openvino_core()
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


@cache
def _openvino_core() -> Core:
    """Return the process's one core, made on first use."""
    try:
        from openvino import Core
    except ModuleNotFoundError as exc:
        raise MissingExtraError("the engine openvino", "openvino") from exc
    return Core()
