"""The one interface over the engines, and the way to open a graph with either of them.

A `Session` is an opened ONNX file: named arrays go in, the graph's outputs come out in the graph's order. Sessions
may be called from several threads at once.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from numpy.typing import NDArray

from dimec.core.errors import BundleError, OptionError
from dimec.core.untrusted import open_regular, trusting_nothing

EngineName = Literal["onnxruntime", "openvino"]

ENGINES: tuple[EngineName, ...] = get_args(EngineName)


class Session(Protocol):
    """An opened graph."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Run the graph on named arrays and return its outputs in order.

        Raises:
            EngineError: If the graph cannot be run on these arrays.
        """


def open_session(
    path: Path, *, engine: EngineName = "onnxruntime", threads: int | None = None
) -> Session:
    """Open an ONNX file; one run uses ``threads``, by default as many as the engine likes.

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
        _check_graph(path)
        if engine == "openvino":
            from dimec.bundle.engines.openvino import OpenVinoSession

            return OpenVinoSession(path, threads=threads)
        from dimec.bundle.engines.onnxruntime import OnnxRuntimeSession

        return OnnxRuntimeSession(path, threads=threads)


# The key of a tensor whose values stand in another file, as ONNX's protobuf has it; lengths may be padded.
_ELSEWHERE = re.compile(rb"(?:\x0a|\x8a\x80*\x00)(?:\x08|\x88\x80*\x00)location")
# The one way of writing it that is allowed: the whole entry, its length before it, and a plain name.
_BESIDE = re.compile(rb"\x6a(.)\x0a\x08location\x12(.)([A-Za-z0-9][A-Za-z0-9._-]*)", re.DOTALL)


def _check_graph(path: Path) -> None:
    """Refuse a graph that would have an engine read a file outside its folder; graphs share weights within it."""
    with open_regular(path) as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        for found in _ELSEWHERE.finditer(content):
            entry = _BESIDE.match(content, max(found.start() - 2, 0))
            name = entry[3][: entry[2][0]] if entry else b""
            if not entry or len(name) != entry[2][0] or entry[1][0] != len(name) + 12:
                raise ValueError("it has values in a file outside its folder")
            if (path.parent / name.decode()).is_symlink():
                raise ValueError("it has values behind a link")
