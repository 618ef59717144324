"""What dimec adds to the Open Inference Protocol: its parameters, thresholds of exits, and hidden states.

A parameter of the protocol is no list: several values travel as the JSON text of a list.

A request that resumes holds ``attention_mask``, the parameter ``from_layer``, and the state. The state is the tensor
``hidden``, or behind a learned bottleneck the tensor ``code``, each row filled up with zeros to the longest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import WireError
from dimec.core.options import HiddenType
from dimec.runtime.wire.messages import Parameter

EXIT_THRESHOLD = "exit_threshold"
"""Request parameter: the confidence from which a row leaves an exit, one number or one for every exit."""
DEADLINE_MS = "deadline_ms"
"""Request parameter: the caller's remaining time when it sends."""
FROM_LAYER = "from_layer"
"""Request parameter: the layer that a hidden state stands after."""
MODEL_FINGERPRINT = "model_fingerprint"
"""Response and metadata parameter: the encoder that answers."""
LAYERS = "layers"
"""Response and metadata parameter: the exits' layers, a JSON list."""
LABEL_NAMES = "label_names"
"""Metadata parameter: the classes' names, a JSON list."""
RESUMES_FROM = "resumes_from"
"""Metadata parameter: the allowed values of ``from_layer``, a JSON list."""

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
