"""The messages of the Open Inference Protocol v2 over HTTP: tensors as JSON or in the binary tensor extension.

Pure functions between records of arrays and (headers, body). Sizes are bounded before anything is allocated, and
every function raises `WireError` for what the protocol or the limits do not allow.

A binary body is the JSON document, its length in the header ``Inference-Header-Content-Length``, then the raw
little-endian values of every tensor that names a ``binary_data_size``, in the order of the document. NaN is ``null``
in JSON.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import WireError

HEADER_LENGTH = "Inference-Header-Content-Length"
REQUEST_ID = "x-request-id"

Parameter = str | bool | int | float
Parameters = Mapping[str, Parameter]

_DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
_DATATYPES = {dtype: name for name, dtype in _DTYPES.items()}
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
        dimensions: Dimensions of one tensor.
        text: Characters of a name, an id or a parameter.
        parameters: Entries of one set of parameters.
    """

    body_bytes: int = 16 * 2**20
    json_bytes: int = 16 * 2**20
    lists: int = 65_536
    tensors: int = 16
    elements: int = 4 * 2**20
    dimensions: int = 8
    text: int = 65_536
    parameters: int = 64


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that a request asks for; ``binary`` None leaves its encoding to the request."""

    name: str
    binary: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A request: tensors by name, parameters, the caller's id, and the outputs it wants (none named: all)."""

    inputs: Mapping[str, NDArray[Any]]
    parameters: Parameters = field(default_factory=dict)
    id: str = ""
    outputs: tuple[RequestedOutput, ...] = ()
    binary_output: bool = False

    def wants_binary(self, name: str) -> bool:
        """Return whether an output is to be sent in binary."""
        for output in self.outputs:
            if output.name == name and output.binary is not None:
                return output.binary
        return self.binary_output


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
            {"name": output.name}
            if output.binary is None
            else {"name": output.name, "parameters": {"binary_data": output.binary}}
            for output in request.outputs
        ]
    return _encode(document, "inputs", request.inputs, set(request.inputs) if binary else ())


def decode_request(
    headers: Mapping[str, str], body: bytes, *, limits: Limits = DEFAULT_LIMITS
) -> InferRequest:
    """Read a request; arrays over binary tensors are read-only views of ``body``."""
    document, inputs = _decode(headers, body, "inputs", limits)
    parameters = _parameters(document, "the request", limits)
    binary_output = parameters.pop("binary_data_output", False)
    if not isinstance(binary_output, bool):
        raise WireError(f"binary_data_output is {_show(binary_output)}: it must be true or false")
    outputs = tuple(_requested(document, limits))
    return InferRequest(inputs, parameters, _text(document, "id", limits), outputs, binary_output)


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
    document, outputs = _decode(headers, body, "outputs", limits)
    return InferResponse(
        outputs,
        _parameters(document, "the response", limits),
        _text(document, "id", limits),
        _text(document, "model_name", limits),
        _text(document, "model_version", limits),
    )


# --- writing


def _encode(
    document: dict[str, Any],
    kind: str,
    arrays: Mapping[str, NDArray[Any]],
    binary: Collection[str],
) -> tuple[dict[str, str], bytes]:
    tensors: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, array in arrays.items():
        dtype = array.dtype.newbyteorder("<")
        if dtype not in _DATATYPES:
            raise WireError(
                f"tensor {name} is of type {array.dtype}: the wire takes {', '.join(_DTYPES)}"
            )
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": _DATATYPES[dtype],
            "shape": list(array.shape),
        }
        if name in binary:
            data = array.astype(dtype, copy=False).tobytes()
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


def _plain(array: NDArray[Any]) -> list[Any]:
    """Return the values in row-major order, null for what is not a number."""
    flat: list[Any] = array.ravel().tolist()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        if np.isinf(array).any():
            raise WireError("an infinite value cannot be sent in JSON: ask for binary tensors")
        return [None if math.isnan(value) else value for value in flat]
    return flat


# --- reading


def _decode(
    headers: Mapping[str, str], body: bytes, kind: str, limits: Limits
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    if len(body) > limits.body_bytes:
        raise WireError(f"the body has {len(body)} bytes: at most {limits.body_bytes} are taken")
    head, raw = _split(headers, body)
    document = _document(head, limits)
    tensors = document.get(kind)
    if not isinstance(tensors, list) or not tensors:
        raise WireError(f"{kind} is {_show(tensors)}: it must be a list of at least one tensor")
    if len(tensors) > limits.tensors:
        raise WireError(f"{kind} has {len(tensors)} tensors: at most {limits.tensors} are taken")
    arrays: dict[str, NDArray[Any]] = {}
    offset = 0
    for tensor in tensors:
        if not isinstance(tensor, dict):
            raise WireError(f"{kind} holds {_show(tensor)}: every tensor must be an object")
        name = _text(tensor, "name", limits)
        if not name or name in arrays:
            raise WireError(
                f"a tensor of {kind} is named {_show(name)}: names must be given, and differ"
            )
        arrays[name], offset = _tensor(tensor, name, raw, offset, limits)
    if offset != len(raw):
        raise WireError(
            f"{len(raw)} bytes follow the JSON document, its tensors name {offset}: each binary tensor must give its "
            "size as binary_data_size"
        )
    return document, arrays


def _split(headers: Mapping[str, str], body: bytes) -> tuple[bytes, memoryview]:
    given = next(
        (value for key, value in headers.items() if key.lower() == HEADER_LENGTH.lower()), None
    )
    if given is None:
        return body, memoryview(b"")
    if not (given.isascii() and given.isdigit() and len(given) < 20 and int(given) <= len(body)):
        raise WireError(
            f"{HEADER_LENGTH} is {_show(given)}: it must be the length of the JSON document at the start of a body of "
            f"{len(body)} bytes"
        )
    length = int(given)
    if length > _SMALL:  # tensors are views: they are not to keep a large document alive
        return body[:length], memoryview(body[length:])
    return body[:length], memoryview(body)[length:]


def _document(head: bytes, limits: Limits) -> dict[str, Any]:
    if len(head) > limits.json_bytes:
        raise WireError(
            f"the JSON document has {len(head)} bytes: at most {limits.json_bytes} are taken, send binary tensors"
        )
    if head.count(b"[") + head.count(b"{") > limits.lists:
        raise WireError(
            f"the JSON document has more than {limits.lists} lists and objects: send flat data"
        )
    try:
        document = _DECODER.decode(head.decode("utf-8"))
        if _SURROGATE.search(head):  # half a character, which nothing that is told could quote
            _ENCODER_OF_TEXT.encode(document).encode("utf-8")
    except (ValueError, RecursionError) as exc:  # both decoders' errors are ValueErrors
        raise WireError(f"the message is no JSON document ({_cut(str(exc))})") from exc
    if not isinstance(document, dict):
        raise WireError(f"the message is {_show(document)}: it must be a JSON object")
    return document


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON: send null")


# Made once: `json.dumps` and `json.loads` make one at every call that asks for anything but the defaults.
_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))
_ENCODER_OF_TEXT = json.JSONEncoder(ensure_ascii=False)
_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_SMALL = 65_536


def _tensor(
    tensor: dict[str, Any], name: str, raw: memoryview, offset: int, limits: Limits
) -> tuple[NDArray[Any], int]:
    datatype = tensor.get("datatype")
    dtype = _DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None:
        raise WireError(
            f"tensor {name} has datatype {_show(datatype)}: it must be one of {', '.join(_DTYPES)}"
        )
    shape = _shape(tensor, name, limits)
    count = math.prod(shape)
    parameters = _parameters(tensor, f"tensor {name}", limits)
    size = parameters.get("binary_data_size")
    if size is None:
        if any(key.startswith("shared_memory") for key in parameters):
            raise WireError(f"tensor {name} is in shared memory, which is not taken: send its data")
        return _from_json(tensor, name, dtype, shape, count), offset
    if "data" in tensor:
        raise WireError(f"tensor {name} has both data and a binary_data_size: give one")
    expected = count * dtype.itemsize
    if type(size) is not int or size != expected:
        raise WireError(
            f"tensor {name} has a binary_data_size of {_show(size)}: {datatype} of shape {list(shape)} takes "
            f"{expected} bytes"
        )
    if offset + expected > len(raw):
        raise WireError(
            f"the data of tensor {name} is cut off: {expected} bytes are needed, {len(raw) - offset} are there"
        )
    part = raw[offset : offset + expected]
    if dtype.kind == "b" and np.frombuffer(part, np.uint8).max(initial=0) > 1:
        raise WireError(f"tensor {name} holds a BOOL other than 0 and 1")
    array = np.frombuffer(part, dtype).reshape(shape)
    return array, offset + expected


def _shape(tensor: dict[str, Any], name: str, limits: Limits) -> tuple[int, ...]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise WireError(
            f"tensor {name} has shape {_show(shape)}: it must be a list of sizes from 0 up"
        )
    if len(shape) > limits.dimensions:
        raise WireError(
            f"tensor {name} has {len(shape)} dimensions: at most {limits.dimensions} are taken"
        )
    # Sizes beside a 0 are bounded too, or an array of that shape could not be made.
    if max(shape, default=0) > limits.elements or math.prod(shape) > limits.elements:
        raise WireError(
            f"tensor {name} has shape {_show(shape)}: at most {limits.elements} values are taken"
        )
    return tuple(shape)


def _from_json(
    tensor: dict[str, Any], name: str, dtype: np.dtype[Any], shape: tuple[int, ...], count: int
) -> NDArray[Any]:
    data = tensor.get("data")
    if not isinstance(data, list):
        raise WireError(
            f"tensor {name} has data {_show(data)}: it must be a list of its values, or binary with a binary_data_size"
        )
    flat = _flatten(data, shape)
    if flat is None or len(flat) != count:
        raise WireError(
            f"the data of tensor {name} does not fit its shape {list(shape)}: give {count} values, flat or nested alike"
        )
    odd = set(map(type, flat)) - _JSON_TYPES[dtype.kind]
    if odd:
        names = ", ".join(sorted(kind.__name__ for kind in odd))
        raise WireError(f"tensor {name} is {_DATATYPES[dtype]} but holds values of type {names}")
    try:
        with np.errstate(over="raise"):  # a float beyond FP32 or FP16
            array = np.array(flat, dtype=dtype)
    except (OverflowError, FloatingPointError, ValueError) as exc:
        raise WireError(
            f"tensor {name} holds a value beyond {_DATATYPES[dtype]} ({_cut(str(exc))})"
        ) from exc
    if dtype.kind == "f" and np.isinf(array).any():
        raise WireError(f"tensor {name} holds a value beyond {_DATATYPES[dtype]}")
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


def _requested(document: dict[str, Any], limits: Limits) -> Iterable[RequestedOutput]:
    outputs = document.get("outputs", [])
    if not isinstance(outputs, list) or len(outputs) > limits.tensors:
        raise WireError(
            f"outputs is {_show(outputs)}: it must be a list of at most {limits.tensors} outputs"
        )
    for output in outputs:
        if not isinstance(output, dict):
            raise WireError(f"outputs holds {_show(output)}: every output must be an object")
        name = _text(output, "name", limits)
        binary = _parameters(output, f"output {name}", limits).get("binary_data")
        if binary is not None and not isinstance(binary, bool):
            raise WireError(f"binary_data of output {name} must be true or false")
        yield RequestedOutput(name, binary)


def _parameters(holder: dict[str, Any], whose: str, limits: Limits) -> dict[str, Parameter]:
    parameters = holder.get("parameters", {})
    if not isinstance(parameters, dict) or len(parameters) > limits.parameters:
        raise WireError(
            f"the parameters of {whose} are {_show(parameters)}: they must be an object of at most "
            f"{limits.parameters} entries"
        )
    for key, value in parameters.items():
        if not isinstance(value, (str, bool, int, float)) or len(key) > limits.text:
            raise WireError(
                f"parameter {_show(key)} of {whose} is {_show(value)}: it must be a text, a number, true or false"
            )
        if isinstance(value, float) and not math.isfinite(value):  # 1e999
            raise WireError(f"parameter {_show(key)} of {whose} is no finite number")
        if isinstance(value, str) and len(value) > limits.text:
            raise WireError(
                f"parameter {_show(key)} of {whose} has {len(value)} characters: at most {limits.text} are taken"
            )
    return parameters


def _text(holder: dict[str, Any], key: str, limits: Limits) -> str:
    value = holder.get(key, "")
    if not isinstance(value, str) or len(value) > limits.text:
        raise WireError(
            f"{key} is {_show(value)}: it must be a text of at most {limits.text} characters"
        )
    return value


def _show(value: object) -> str:
    """Return a value as a message shows it: short and on one line, whatever it is."""
    if isinstance(value, (dict, list)) and not (
        isinstance(value, list) and len(value) <= 8 and all(type(part) is int for part in value)
    ):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    return _cut(json.dumps(value))


def _cut(text: str, length: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else line[:length] + "…"
