"""The codec of the Open Inference Protocol: round trips, exact messages, and nothing but a WireError for the rest."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from dimec.core.errors import WireError
from dimec.runtime.wire import (
    HEADER_LENGTH,
    InferRequest,
    InferResponse,
    Limits,
    decode_request,
    decode_response,
    decode_thresholds,
    encode_request,
    encode_response,
    encode_thresholds,
    narrow,
)

DTYPES = ["?", "i1", "<i2", "<i4", "<i8", "u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">i4"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4),
        elements={"allow_infinity": False} if "f" in dtype else None,
    )
)
texts = st.text(max_size=12)
numbers = st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
parameters = st.dictionaries(
    texts.filter(lambda key: key != "binary_data_output"),
    texts | st.booleans() | numbers,
    max_size=4,
)
tensors = st.dictionaries(st.text(min_size=1, max_size=8), arrays, min_size=1, max_size=4)


def same(left: NDArray[Any], right: NDArray[Any]) -> bool:
    return left.shape == right.shape and np.array_equal(
        left, right, equal_nan=left.dtype.kind == "f"
    )


@given(tensors, parameters, texts, st.booleans(), st.booleans())
def test_a_request_comes_back_as_it_was(
    inputs: dict[str, NDArray[Any]],
    parameters: dict[str, Any],
    id: str,
    binary: bool,
    binary_output: bool,
) -> None:
    outputs = {"logits": True, "other": None}
    sent = InferRequest(inputs, parameters, id, outputs, binary_output)
    got = decode_request(*encode_request(sent, binary=binary))
    assert list(got.inputs) == list(inputs)
    assert all(same(got.inputs[name], array) for name, array in inputs.items())
    assert all(
        got.inputs[name].dtype == array.dtype.newbyteorder("<") for name, array in inputs.items()
    )
    assert (got.parameters, got.id, got.outputs) == (parameters, id, outputs)
    assert got.wants_binary("logits")
    assert got.wants_binary("other") is binary_output


@given(tensors, parameters, texts, st.data())
def test_a_response_comes_back_as_it_was(
    outputs: dict[str, NDArray[Any]], parameters: dict[str, Any], id: str, data: st.DataObject
) -> None:
    binary = data.draw(st.sets(st.sampled_from(sorted(outputs))))
    sent = InferResponse(outputs, parameters, id, "edge")
    got = decode_response(*encode_response(sent, binary=binary))
    assert all(same(got.outputs[name], array) for name, array in outputs.items())
    assert (got.parameters, got.id, got.model_name, got.model_version) == (
        parameters,
        id,
        "edge",
        "1",
    )


json_values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)
WORDS = [
    "name", "datatype", "shape", "data", "parameters", "binary_data_size", "id", "inputs", "outputs", "INT64", "FP32",
    "BOOL", "binary_data", "binary_data_output", "shared_memory_region",
]  # fmt: skip
near_json = st.recursive(
    json_values | st.sampled_from(WORDS),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=6)
    ),
    max_leaves=20,
)


def refuse_or_read(headers: dict[str, str], body: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(headers, body)
        except WireError as exc:
            assert "\n" not in str(exc)
            assert len(str(exc)) < 700


@given(st.binary(max_size=200), st.none() | st.text(max_size=6) | st.integers(-2, 300).map(str))
@example(b"[" * 200_000, None)
@example(b'{"inputs":' * 50_000, None)
@example(
    b'{"inputs":[{"name":"a","datatype":"INT64","shape":[1],"data":[' + b"9" * 5000 + b"]}]}", None
)
@example(b'{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[1e39]}]}', None)
@example(b'{"inputs":[{"name":"a","datatype":"FP64","shape":[1],"data":[1e999]}]}', None)
@example(b'{"inputs":[{"name":"a","datatype":"FP16","shape":[1],"data":[70000]}]}', None)
@example(
    b'{"inputs":[{"name":"a","datatype":"FP32","shape":[1],"data":[1' + b"0" * 400 + b"]}]}", None
)
@example(b'{"inputs":[{"name":"\\ud800","datatype":"\\udfff","shape":[1],"data":[1]}]}', None)
@example(b"{}", "٣")
def test_random_bytes_never_raise_anything_else(body: bytes, length: str | None) -> None:
    refuse_or_read({} if length is None else {HEADER_LENGTH: length}, body)


@given(near_json, st.binary(max_size=64), st.booleans())
def test_wrong_documents_never_raise_anything_else(
    document: Any, tail: bytes, binary: bool
) -> None:
    head = json.dumps(document).encode()
    refuse_or_read(
        {HEADER_LENGTH: str(len(head))} if binary else {}, head + tail if binary else head
    )


@given(tensors, st.data())
def test_a_message_cut_or_changed_anywhere_never_raises_anything_else(
    inputs: dict[str, NDArray[Any]], data: st.DataObject
) -> None:
    headers, body = encode_request(InferRequest(inputs, {"deadline_ms": 5}))
    at = data.draw(st.integers(0, len(body) - 1))
    refuse_or_read(headers, body[:at])
    changed = bytearray(body)
    changed[at] = data.draw(st.integers(0, 255))
    refuse_or_read(headers, bytes(changed))
    with pytest.raises(WireError):
        decode_request(headers, body + b"\0")


def message(**changes: Any) -> bytes:
    tensor = {"name": "ids", "datatype": "INT64", "shape": [2, 2], "data": [1, 2, 3, 4], **changes}
    return json.dumps(
        {"inputs": [{key: value for key, value in tensor.items() if value is not ...}]}
    ).encode()


def test_flat_and_nested_data_are_the_same() -> None:
    for data in ([1, 2, 3, 4], [[1, 2], [3, 4]]):
        got = decode_request({}, message(data=data)).inputs["ids"]
        assert got.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    "changes",
    [
        {"data": [1, 2, 3]},
        {"data": [[1, 2], [3]]},
        {"data": [[1, 2, 3, 4]]},
        {"data": [[1, 2], 3]},
        {"data": [1, 2, 3, True]},
        {"data": [1, 2, 3, 4.0]},
        {"data": [1, 2, 3, "4"]},
        {"data": [1, 2, 3, 2**63]},
        {"datatype": "INT8", "data": [1, 2, 3, 128]},
        {"datatype": "UINT8", "data": [1, 2, 3, -1]},
        {"datatype": "FP32", "data": [1, 2, 3, 1e39]},
        {"datatype": "BYTES"},
        {"datatype": ["INT64"]},
        {"shape": [2, -2]},
        {"shape": [4.0]},
        {"shape": [True, 4]},
        {"shape": [2**40, 2**40]},
        {"shape": [0, 2**40]},
        {"shape": [1] * 9},
        {"data": ...},
        {"name": ""},
        {"parameters": {"binary_data_size": 32}},
        {"data": ..., "parameters": {"binary_data_size": 31}},
        {"data": ..., "parameters": {"binary_data_size": 32}},
        {"data": ..., "parameters": {"shared_memory_region": "r"}},
        {"parameters": {"a": [1]}},
        {"parameters": {"a": "b" * 65_537}},
    ],
)
def test_what_is_wrong_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(WireError, match="tensor"):
        decode_request({}, message(**changes))


def test_limits_hold() -> None:
    body = message()
    with pytest.raises(WireError, match="at most 10"):
        decode_request({}, body, limits=Limits(body_bytes=10))
    with pytest.raises(WireError, match="at most 3"):
        decode_request({}, body, limits=Limits(elements=3))
    many = json.dumps({"inputs": [json.loads(body)["inputs"][0]] * 3}).encode()
    with pytest.raises(WireError, match="at most 2"):
        decode_request({}, many, limits=Limits(tensors=2))
    with pytest.raises(WireError, match="ids"):
        decode_request({}, many)


@pytest.mark.parametrize("binary", [True, False])
def test_texts_come_back_as_they_were(binary: bool) -> None:
    texts = np.array([["", "a"], ["Straße\n", "文字 \U0001f600"]], dtype=object)
    headers, body = encode_request(InferRequest({"text": texts}), binary=binary)
    found = decode_request(headers, body).inputs["text"]
    assert found.dtype == object and found.tolist() == texts.tolist()


@pytest.mark.parametrize(
    ("raw", "shape", "size"),
    [
        (b"\x01\0\0\0a", [1], 6),  # cut off
        (b"\x01\0\0\0a", [2], 5),
        (b"\x01\0\0\0ab", [1], 6),  # something behind
        (b"\x02\0\0\0a", [1], 5),
        (b"\xff\xff\xff\xffa", [1], 5),
        (b"\x01\0\0\0\xff", [1], 5),  # no UTF-8
        (b"\x01\0", [1], 2),
        (b"", [1], 0),
        (b"", [2**40], 0),
        (b"\0" * 400_000, [100_000], 400_000),
        (b"", [0, 2**40], 0),
        (b"\x01\0\0\0a", [1], True),
        (b"\x01\0\0\0a", [1], -5),
    ],
)
def test_texts_that_do_not_fit_are_refused(raw: bytes, shape: list[int], size: object) -> None:
    tensor: dict[str, object] = {"name": "text", "datatype": "BYTES", "shape": shape}
    tensor["parameters"] = {"binary_data_size": size}
    head = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(WireError):
        decode_request({"Inference-Header-Content-Length": str(len(head))}, head + raw)


def test_nan_is_null_in_json_and_nan_in_binary() -> None:
    logits = np.array([[[1.5, -2.0], [np.nan, np.nan]]], dtype=np.float32)
    response = InferResponse({"logits": logits}, {"layers": "[1,2]"}, "7", "edge")
    _, body = encode_response(response)
    assert json.loads(body)["outputs"][0]["data"] == [1.5, -2.0, None, None]
    for binary in ([], ["logits"]):
        got = decode_response(*encode_response(response, binary=binary)).outputs["logits"]
        assert same(got, logits)
    with pytest.raises(WireError, match="infinite"):
        encode_response(InferResponse({"logits": np.array([np.inf])}))


def test_types_that_the_protocol_lacks_are_refused() -> None:
    with pytest.raises(WireError, match="complex"):
        encode_request(InferRequest({"a": np.zeros(1, dtype=np.complex64)}))
    with pytest.raises(WireError, match="parameter"):
        encode_request(InferRequest({"a": np.zeros(1)}, {"exit_threshold": float("nan")}))


@given(st.lists(st.floats(0, 2) | st.just(np.inf), min_size=1, max_size=8))
def test_thresholds_come_back_as_they_were_sent(thresholds: list[float]) -> None:
    read = decode_thresholds(encode_thresholds(thresholds), n_exits=len(thresholds))
    assert read is not None
    assert read.tolist() == thresholds


def test_one_threshold_for_all_travels_as_a_number() -> None:
    assert encode_thresholds([0.9, 0.9]) == 0.9
    assert decode_thresholds(None, n_exits=3) is None


@pytest.mark.parametrize("value", [True, -0.5, "0.5x", "[0.5]", "[0.5, true]", "{}", "null"])
def test_other_thresholds_are_refused(value: object) -> None:
    with pytest.raises(WireError, match="exit_threshold"):
        decode_thresholds(value, n_exits=2)  # type: ignore[arg-type]


@given(hnp.arrays(np.int64, hnp.array_shapes(min_side=0)))
def test_narrowing_keeps_every_value(array: NDArray[np.int64]) -> None:
    assert np.array_equal(narrow(array), array)


def test_narrowing_takes_the_narrowest() -> None:
    assert narrow(np.array([0, 255])).dtype == np.uint8
    assert narrow(np.array([30_521])).dtype == np.uint16
    assert narrow(np.array([-1, 5])).dtype == np.int8
