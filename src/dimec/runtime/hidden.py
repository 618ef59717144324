"""Hidden states on the wire: what a device makes of one, and how a tier takes it back.

A request that resumes holds ``attention_mask``, the parameter ``from_layer``, and the state: as it is, in the tensor
``hidden`` FP16 or FP32 [batch, length, width]; behind a learned bottleneck as its bytes, in the tensor ``code`` UINT8
[batch, bytes], a row filled up with zeros to the longest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.hidden import HiddenType

HIDDEN = "hidden"
"""Input: FP16 or FP32 [batch, length, width], the state after layer ``from_layer``."""
CODE = "code"
"""Input in its place: UINT8 [batch, bytes], what a learned bottleneck left of it (`dimec.runs.codes`)."""
FROM_LAYER = "from_layer"
"""Request parameter: after which layer the tier is to go on."""
RESUMES_FROM = "resumes_from"
"""Metadata parameter: what ``from_layer`` may be, as the JSON text of a list."""

_TYPES: dict[HiddenType, np.dtype[Any]] = {"FP16": np.dtype("<f2"), "FP32": np.dtype("<f4")}


def packed(hidden: NDArray[np.float32], datatype: HiddenType) -> NDArray[np.floating]:
    """Return a hidden state [b, t, width] as it travels; as FP32 where a value lies beyond FP16."""
    with np.errstate(over="ignore"):
        sent = hidden.astype(_TYPES[datatype])
    return sent if np.isfinite(sent).all() else hidden.astype(_TYPES["FP32"])


def is_hidden_type(dtype: np.dtype[Any]) -> bool:
    """Tell whether a tensor of this type can be a hidden state."""
    return dtype in _TYPES.values()
