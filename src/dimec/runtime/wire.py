"""What devices and servers say to each other: the Open Inference Protocol v2 over HTTP, and what dimec adds to it.

Pure functions between records of arrays and (headers, body). Sizes are bounded before anything is allocated, and
every function raises `WireError` for what the protocol or the limits do not allow.

A binary body is the JSON document, its length in the header ``Inference-Header-Content-Length``, then the raw
little-endian values of every tensor that names a ``binary_data_size``, in the order of the document. NaN is ``null``
in JSON.

Added are parameters, thresholds of exits, and hidden states. A parameter of the protocol is no list: several values
travel as the JSON text of a list. Texts are arrays of Python's strings here, BYTES on the wire. A request that resumes
holds ``attention_mask``, the parameter ``from_layer``, and the state: the tensor ``hidden``, or behind a learned
bottleneck ``code``, each row filled up with zeros to the longest.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import WireError, quoted, shown
from dimec.core.options import HiddenType

HEADER_LENGTH = "Inference-Header-Content-Length"
REQUEST_ID = "x-request-id"

Parameter = str | bool | int | float
Parameters = Mapping[str, Parameter]

_NUMPY_NAMES = {
    "BOOL": "?", "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8",
    "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4", "UINT64": "<u8",
    "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(own) for name, own in _NUMPY_NAMES.items()}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
_TEXTS = "BYTES"
_LENGTH = struct.Struct("<I")
_JSON_TYPES: dict[str, set[type]] = {
    "b": {bool},
    "i": {int},
    "u": {int},
    "f": {int, float, type(None)},
}
"""The Python types of a tensor's JSON values, by numpy's kind."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a message may hold.

    Attributes:
        json_bytes: The JSON part of the body, which takes many times its size once it is parsed.
        lists: Lists and objects in the JSON; a bracket within a text counts too.
        tensors: Tensors in a message, and names of requested outputs.
        elements: Values of one tensor.
        texts: Values of one tensor of texts.
        dimensions: Dimensions of one tensor.
        text: Characters of a name, an id or a parameter.
        parameters: Entries of one set of parameters.
    """

    body_bytes: int = 16 * 2**20
    json_bytes: int = 16 * 2**20
    lists: int = 65_536
    tensors: int = 16
    elements: int = 4 * 2**20
    texts: int = 65_536
    dimensions: int = 8
    text: int = 65_536
    parameters: int = 64


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request: tensors by name, parameters, the caller's id, and the outputs it wants (none named: all).

    ``outputs`` says of each whether it is to come in binary; None leaves that to ``binary_output``.
    """

    inputs: Mapping[str, NDArray[Any]]
    parameters: Parameters = field(default_factory=dict)
    id: str = ""
    outputs: Mapping[str, bool | None] = field(default_factory=dict)
    binary_output: bool = False

    def wants_binary(self, name: str) -> bool:
        """Return whether an output is to be sent in binary."""
        wanted = self.outputs.get(name)
        return self.binary_output if wanted is None else wanted


@dataclass(frozen=True, slots=True, eq=False)
class InferResponse:
    """A response: tensors by name, parameters, the request's id, and who answers."""

    outputs: Mapping[str, NDArray[Any]]
    parameters: Parameters = field(default_factory=dict)
    id: str = ""
    model_name: str = ""
    model_version: str = "1"


def narrow(array: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return integers in the narrowest type that holds them, unsigned where none is negative: fewer bytes sent."""
    low, high = (int(array.min()), int(array.max())) if array.size else (0, 0)
    unsigned = (np.uint8, np.uint16, np.uint32, np.uint64)
    signed = (np.int8, np.int16, np.int32, np.int64)
    kinds = unsigned if low >= 0 else signed
    fits = (kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return array.astype(next(fits))


def encode_request(request: InferRequest, *, binary: bool = True) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a request, its tensors in binary or in JSON."""
    document: dict[str, Any] = {"id": request.id} if request.id else {}
    parameters: dict[str, Parameter] = dict(request.parameters)
    if request.binary_output:
        parameters["binary_data_output"] = True
    if parameters:
        document["parameters"] = parameters
    if request.outputs:
        document["outputs"] = [
            {"name": name, "parameters": {} if wanted is None else {"binary_data": wanted}}
            for name, wanted in request.outputs.items()
        ]
    return _encode(document, "inputs", request.inputs, set(request.inputs) if binary else ())


def decode_request(
    headers: Mapping[str, str], body: bytes, *, limits: Limits = DEFAULT_LIMITS
) -> InferRequest:
    """Read a request; arrays over binary tensors are read-only views of ``body``."""
    reader = _Reader(limits)
    document, inputs = reader.message(headers, body, "inputs")
    parameters = reader.parameters(document, "the request")
    binary_output = parameters.pop("binary_data_output", False)
    if not isinstance(binary_output, bool):
        raise WireError(f"binary_data_output is {shown(binary_output)}: it must be true or false")
    outputs = reader.outputs(document)
    return InferRequest(inputs, parameters, reader.text(document, "id"), outputs, binary_output)


def encode_response(
    response: InferResponse, *, binary: Collection[str] = ()
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a response, the outputs named in ``binary`` in binary."""
    document: dict[str, Any] = {
        "model_name": response.model_name,
        "model_version": response.model_version,
    }
    if response.id:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = dict(response.parameters)
    return _encode(document, "outputs", response.outputs, binary)


def decode_response(
    headers: Mapping[str, str], body: bytes, *, limits: Limits = DEFAULT_LIMITS
) -> InferResponse:
    """Read a response; arrays over binary tensors are read-only views of ``body``."""
    reader = _Reader(limits)
    document, outputs = reader.message(headers, body, "outputs")
    parameters = reader.parameters(document, "the response")
    said = (reader.text(document, key) for key in ("id", "model_name", "model_version"))
    return InferResponse(outputs, parameters, *said)


def decode_json(body: bytes, *, limits: Limits = DEFAULT_LIMITS) -> object:
    """Read JSON that is no message of the protocol, within the same limits."""
    return _Reader(limits).json(body)


# --- writing


def _encode(
    document: dict[str, Any], kind: str, arrays: Mapping[str, NDArray[Any]], binary: Collection[str]
) -> tuple[dict[str, str], bytes]:
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<")
        texts = array.dtype == object
        if not texts and dtype not in _DATATYPES:
            raise WireError(
                f"tensor {name} is of type {array.dtype}: the wire takes {', '.join(_DTYPES)}, {_TEXTS}"
            )
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": _TEXTS if texts else _DATATYPES[dtype],
            "shape": list(array.shape),
        }
        if name in binary:
            data = _packed(array) if texts else array.astype(dtype, copy=False).tobytes()
            tensor["parameters"] = {"binary_data_size": len(data)}
            raw.append(data)
        else:
            tensor["data"] = _plain(array)
        tensors.append(tensor)
    try:
        head = _ENCODER.encode({**document, kind: tensors})
    except (TypeError, ValueError) as exc:
        raise WireError(f"a parameter cannot be sent: {exc}") from exc
    encoded = head.encode()
    if not binary:
        return {"Content-Type": "application/json"}, encoded
    headers = {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(encoded))}
    return headers, b"".join((encoded, *raw))


def _packed(texts: NDArray[Any]) -> bytes:
    """Return texts as binary data: each in UTF-8, behind its length."""
    encoded = [text.encode() for text in texts.ravel().tolist()]
    return b"".join(part for each in encoded for part in (_LENGTH.pack(len(each)), each))


def _plain(array: NDArray[Any]) -> list[Any]:
    """Return the values in row-major order, null for what is not a number."""
    flat: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        if np.isinf(array).any():
            raise WireError("an infinite value cannot be sent in JSON: ask for binary tensors")
        return [None if math.isnan(value) else value for value in flat]
    return flat


# --- reading


class _Reader:
    """Read messages within limits."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits

    def message(
        self, headers: Mapping[str, str], body: bytes, kind: str
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return the JSON document of a message, and its tensors by name."""
        most = self._limits
        if len(body) > most.body_bytes:
            raise WireError(f"the body has {len(body)} bytes: at most {most.body_bytes} are taken")
        head, raw = _split(headers, body)
        document = self.json(head)
        if not isinstance(document, dict):
            raise WireError(f"the message is {shown(document)}: it must be a JSON object")
        tensors = document.get(kind)
        if not isinstance(tensors, list) or not 1 <= len(tensors) <= most.tensors:
            raise WireError(
                f"{kind} is {shown(tensors)}: it must be a list of 1 to at most {most.tensors} tensors"
            )
        arrays: dict[str, NDArray[Any]] = {}
        offset = 0
        for tensor in tensors:
            if not isinstance(tensor, dict):
                raise WireError(f"{kind} holds {shown(tensor)}: every tensor must be an object")
            name = self.text(tensor, "name")
            if not name or name in arrays:
                raise WireError(
                    f"a tensor of {kind} has the name {shown(name)}: names must be given, and differ"
                )
            arrays[name], offset = self._tensor(tensor, quoted(name), raw, offset)
        if offset != len(raw):
            raise WireError(
                f"{len(raw)} bytes follow the JSON document, its tensors name {offset}: each binary tensor must give "
                "its size as binary_data_size"
            )
        return document, arrays

    def json(self, head: bytes) -> object:
        """Return what JSON says."""
        most = self._limits
        if len(head) > most.json_bytes:
            raise WireError(
                f"the JSON document has {len(head)} bytes: at most {most.json_bytes} are taken, send binary tensors"
            )
        if head.count(b"[") + head.count(b"{") > most.lists:
            raise WireError(
                f"the JSON document has more than {most.lists} lists and objects: send flat data"
            )
        try:
            document: object = _DECODER.decode(head.decode("utf-8"))
            if _SURROGATE.search(head):  # half a character, which no message could quote
                _ENCODER_OF_TEXT.encode(document).encode("utf-8")
        except (ValueError, RecursionError) as exc:  # both decoders' errors are ValueErrors
            raise WireError(f"the message is no JSON document ({quoted(str(exc))})") from exc
        return document

    def _tensor(
        self, tensor: dict[str, Any], name: str, raw: memoryview, offset: int
    ) -> tuple[NDArray[Any], int]:
        """Return a tensor, and where the binary data of the next one begins."""
        datatype = tensor.get("datatype")
        dtype = _DTYPES.get(datatype) if isinstance(datatype, str) else None
        if dtype is None and datatype != _TEXTS:
            raise WireError(
                f"tensor {name} has datatype {shown(datatype)}: it must be one of {', '.join(_DTYPES)}, {_TEXTS}"
            )
        shape = self._shape(tensor, name)
        parameters = self.parameters(tensor, f"tensor {name}")
        size = parameters.get("binary_data_size")
        if size is None:
            if any(key.startswith("shared_memory") for key in parameters):
                raise WireError(
                    f"tensor {name} is in shared memory, which is not taken: send its data"
                )
            return _from_json(tensor.get("data"), name, dtype, shape), offset
        if "data" in tensor:
            raise WireError(f"tensor {name} has both data and a binary_data_size: give one")
        if dtype is None:
            if type(size) is not int or not 0 <= size <= len(raw) - offset:
                raise WireError(
                    f"tensor {name} has a binary_data_size of {shown(size)}: {len(raw) - offset} bytes are there"
                )
            return _unpacked(raw[offset : offset + size], name, shape), offset + size
        expected = math.prod(shape) * dtype.itemsize
        if type(size) is not int or size != expected:
            raise WireError(
                f"tensor {name} has a binary_data_size of {shown(size)}: {datatype} of shape {list(shape)} takes "
                f"{expected} bytes"
            )
        part = raw[offset : offset + expected]
        if len(part) < expected:
            raise WireError(
                f"the data of tensor {name} is cut off: {expected} bytes are needed, {len(part)} are there"
            )
        if dtype.kind == "b" and np.frombuffer(part, np.uint8).max(initial=0) > 1:
            raise WireError(f"tensor {name} holds a BOOL other than 0 and 1")
        return np.frombuffer(part, dtype).reshape(shape), offset + expected

    def _shape(self, tensor: dict[str, Any], name: str) -> tuple[int, ...]:
        shape, most = tensor.get("shape"), self._limits
        if not isinstance(shape, list) or not all(
            type(size) is int and size >= 0 for size in shape
        ):
            raise WireError(
                f"tensor {name} has shape {shown(shape)}: it must be a list of sizes from 0 up"
            )
        if len(shape) > most.dimensions:
            raise WireError(
                f"tensor {name} has {len(shape)} dimensions: at most {most.dimensions} are taken"
            )
        elements = most.texts if tensor.get("datatype") == _TEXTS else most.elements
        # Sizes beside a 0 are bounded too, or an array of that shape could not be made.
        if max(shape, default=0) > elements or math.prod(shape) > elements:
            raise WireError(
                f"tensor {name} has shape {shown(shape)}: at most {elements} values are taken"
            )
        return tuple(shape)

    def outputs(self, document: dict[str, Any]) -> dict[str, bool | None]:
        """Return which outputs are asked for, and whether in binary where that is said."""
        outputs, most = document.get("outputs", []), self._limits.tensors
        if not isinstance(outputs, list) or len(outputs) > most:
            raise WireError(
                f"outputs is {shown(outputs)}: it must be a list of at most {most} outputs"
            )
        found: dict[str, bool | None] = {}
        for output in outputs:
            if not isinstance(output, dict):
                raise WireError(f"outputs holds {shown(output)}: every output must be an object")
            name = self.text(output, "name")
            binary = self.parameters(output, f"output {quoted(name)}").get("binary_data")
            if binary is not None and not isinstance(binary, bool):
                raise WireError(f"binary_data of output {quoted(name)} must be true or false")
            found[name] = binary
        return found

    def parameters(self, holder: dict[str, Any], whose: str) -> dict[str, Parameter]:
        """Return the parameters of a message, a tensor or an output."""
        parameters, most = holder.get("parameters", {}), self._limits
        if not isinstance(parameters, dict) or len(parameters) > most.parameters:
            raise WireError(
                f"the parameters of {whose} are {shown(parameters)}: they must be an object of at most "
                f"{most.parameters} entries"
            )
        for key, value in parameters.items():
            fits = isinstance(value, (str, bool, int, float)) and len(key) <= most.text
            if isinstance(value, float):
                fits = fits and math.isfinite(value)  # 1e999 is not
            if isinstance(value, str):
                fits = fits and len(value) <= most.text
            if not fits:
                raise WireError(
                    f"parameter {shown(key)} of {whose} is {shown(value)}: it must be a text of at most {most.text} "
                    "characters, a finite number, true or false"
                )
        return parameters

    def text(self, holder: dict[str, Any], key: str) -> str:
        """Return a text of a document, empty where there is none."""
        value, most = holder.get(key, ""), self._limits.text
        if not isinstance(value, str) or len(value) > most:
            raise WireError(
                f"{key} is {shown(value)}: it must be a text of at most {most} characters"
            )
        return value


def _split(headers: Mapping[str, str], body: bytes) -> tuple[bytes, memoryview]:
    """Return the JSON document of a body, and the binary data behind it."""
    wanted = HEADER_LENGTH.lower()
    given = next((value for key, value in headers.items() if key.lower() == wanted), None)
    if given is None:
        return body, memoryview(b"")
    if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= len(body)):
        raise WireError(
            f"{HEADER_LENGTH} is {shown(given)}: it must be the length of the JSON document at the start of a body of "
            f"{len(body)} bytes"
        )
    length = int(given)
    if length > _SMALL:  # tensors are views: they are not to keep a large document alive
        return body[:length], memoryview(body[length:])
    return body[:length], memoryview(body)[length:]


def _unpacked(part: memoryview, name: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the texts of binary data: as many as the shape says, and nothing behind them."""
    texts: list[str] = []
    count, offset = math.prod(shape), 0
    try:
        while len(texts) < count and offset < len(part):
            begin = offset + _LENGTH.size
            offset = begin + _LENGTH.unpack_from(part, offset)[0]
            texts.append(str(part[begin:offset], "utf-8"))
    except (struct.error, UnicodeDecodeError) as exc:
        raise WireError(
            f"tensor {name} holds no texts in UTF-8, each behind its length ({quoted(str(exc))})"
        ) from exc
    if len(texts) != count or offset != len(part):
        raise WireError(
            f"the data of tensor {name} does not fit its shape {list(shape)}: give {count} texts, each behind its "
            "length in four bytes"
        )
    return _array_of(texts, shape)


def _array_of(texts: list[str], shape: tuple[int, ...]) -> NDArray[Any]:
    array: NDArray[Any] = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


def _from_json(
    data: object, name: str, dtype: np.dtype[Any] | None, shape: tuple[int, ...]
) -> NDArray[Any]:
    if not isinstance(data, list):
        raise WireError(
            f"tensor {name} has data {shown(data)}: it must be a list of its values, or binary with a binary_data_size"
        )
    flat, count = _flatten(data, shape), math.prod(shape)
    if flat is None or len(flat) != count:
        raise WireError(
            f"the data of tensor {name} does not fit its shape {list(shape)}: give {count} values, flat or nested alike"
        )
    odd = set(map(type, flat)) - ({str} if dtype is None else _JSON_TYPES[dtype.kind])
    if odd:
        names = ", ".join(sorted(kind.__name__ for kind in odd))
        datatype = _TEXTS if dtype is None else _DATATYPES[dtype]
        raise WireError(f"tensor {name} is {datatype} but holds values of type {names}")
    if dtype is None:
        return _array_of(flat, shape)
    try:
        with np.errstate(over="raise"):  # a float beyond FP32 or FP16
            array = np.array(flat, dtype=dtype)
        if dtype.kind == "f" and np.isinf(array).any():
            raise OverflowError("infinite")
    except (OverflowError, FloatingPointError, ValueError) as exc:
        raise WireError(
            f"tensor {name} holds a value beyond {_DATATYPES[dtype]} ({quoted(str(exc))})"
        ) from exc
    return array.reshape(shape)


def _flatten(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """Return the values of a list that is flat or nested as ``shape``, None where it is neither."""
    if not data or not isinstance(data[0], list):
        return data
    for size in shape[1:]:
        if any(type(part) is not list or len(part) != size for part in data):
            return None
        data = list(itertools.chain.from_iterable(data))
    return data


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON: send null")


# Made once: `json.dumps` and `json.loads` make one at every call that asks for anything but the defaults.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_ENCODER_OF_TEXT = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SMALL = 65_536

# --- what dimec adds

EXIT_THRESHOLD = "exit_threshold"
"""Request parameter: the confidence from which a row leaves an exit, one number or one for every exit."""
DEADLINE_MS = "deadline_ms"
"""Request parameter: the caller's remaining time when it sends."""
FROM_LAYER = "from_layer"
"""Request parameter: the layer that a hidden state stands after."""
MODEL_FINGERPRINT = "model_fingerprint"
"""Response and metadata parameter: the encoder that answers."""
BILLED = "billed"
"""Response parameter of a tier that asks another model: what its answers cost, in the bundle's currency."""
ABSTAINED = "abstained"
"""Response parameter likewise: true where the model named no class for one of the rows; its logits say nothing."""
LAYERS = "layers"
"""Response and metadata parameter: the exits' layers, a JSON list."""
LABEL_NAMES = "label_names"
"""Metadata parameter: the classes' names, a JSON list."""
RESUMES_FROM = "resumes_from"
"""Metadata parameter: the allowed values of ``from_layer``, a JSON list."""

TEXT = "text"
"""Input in place of token ids: BYTES [batch], of pairs [batch, 2]."""
MASK = "attention_mask"
"""Input: INT64 [batch, length]."""
HIDDEN = "hidden"
"""Input: FP16 or FP32 [batch, length, width], the state after layer ``from_layer``."""
CODE = "code"
"""Input in its place: UINT8 [batch, bytes], the output of a learned bottleneck (`dimec.runs.codes`)."""
LOGITS = "logits"
"""The one output: FP32 [batch, exits, classes]."""

_HIDDEN_TYPES: dict[HiddenType, np.dtype[Any]] = {"FP16": np.dtype("<f2"), "FP32": np.dtype("<f4")}
_MAX_THRESHOLD = 1e18


def encode_thresholds(thresholds: Sequence[float]) -> Parameter:
    """Return the parameter that says at which confidence a row leaves each exit, inf for never."""
    if len(set(thresholds)) == 1 and math.isfinite(thresholds[0]):
        return thresholds[0]
    return json.dumps([each if math.isfinite(each) else None for each in thresholds])


def decode_thresholds(value: Parameter | None, *, n_exits: int) -> NDArray[np.float64] | None:
    """Return the confidence from which a row leaves each exit, inf for never: [exits]; None where none is given.

    Raises:
        WireError: If it is neither a number from 0 up nor the JSON text of a list of ``n_exits`` such numbers or nulls.
    """
    if value is None:
        return None
    given: object = value
    if isinstance(value, str):
        try:
            given = json.loads(value)
        except (ValueError, RecursionError):
            given = None
    several = isinstance(given, list)
    listed = given if isinstance(given, list) else [given] * n_exits
    fits = all((each is None and several) or _is_threshold(each) for each in listed)
    if len(listed) != n_exits or not fits:
        raise WireError(
            f"{EXIT_THRESHOLD} is {str(value)[:40]!r}: it must be a number from 0 up, or the JSON text of a list of "
            f"{n_exits} such numbers, one for every exit, null for never"
        )
    return np.array([math.inf if each is None else each for each in listed], dtype=np.float64)


def _is_threshold(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= _MAX_THRESHOLD  # type: ignore[operator]  # a number, by its type


def encode_hidden(hidden: NDArray[np.float32], datatype: HiddenType) -> NDArray[np.floating]:
    """Return a hidden state [b, t, width] as it travels; as FP32 where a value lies beyond FP16."""
    with np.errstate(over="ignore"):
        sent = hidden.astype(_HIDDEN_TYPES[datatype])
    return sent if np.isfinite(sent).all() else hidden.astype(_HIDDEN_TYPES["FP32"])


def is_hidden_type(dtype: np.dtype[Any]) -> bool:
    """Tell whether a tensor of this type can be a hidden state."""
    return dtype in _HIDDEN_TYPES.values()
