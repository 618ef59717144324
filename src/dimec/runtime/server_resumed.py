"""Requests that go on from a hidden state: what they hold, and every check before they queue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dimec.errors import WireError
from dimec.runtime.hidden import FROM_LAYER, HIDDEN, is_hidden_type
from dimec.runtime.scheduling import MASK
from dimec.runtime.server_model import (
    Rows,
    ServedModel,
    check_mask,
    check_outputs,
    check_size,
    read_tokens,
)
from dimec.runtime.wire import InferRequest


def read_rows(request: InferRequest, model: ServedModel, *, max_rows: int, max_tokens: int) -> Rows:
    """Return the rows of a request, of tokens or, where the model resumes, of hidden states.

    Raises:
        WireError: If tensors are missing or unknown, or hold what the model cannot run.
        RefusedError: If there are more rows, or longer ones, than the server takes (413).
    """
    if model.tails is None or HIDDEN not in request.inputs:
        if model.tails is not None and FROM_LAYER in request.parameters:
            raise WireError(f"{FROM_LAYER} is given without the tensor {HIDDEN}: send both or none")
        return read_tokens(request, model, max_rows=max_rows, max_tokens=max_tokens)
    if set(request.inputs) != {HIDDEN, MASK}:
        raise WireError(
            f"the inputs are {', '.join(sorted(request.inputs))[:200]}: with {HIDDEN}, {model.name} takes {HIDDEN} and "
            f"{MASK} alone"
        )
    check_outputs(request)
    hidden, mask = request.inputs[HIDDEN], request.inputs[MASK]
    from_layer = _from_layer(request, model)
    _check_shape(hidden, mask, width=model.tails.width)
    rows, length = mask.shape
    check_size(rows, length, model, max_rows=max_rows, max_tokens=max_tokens)
    mask = check_mask(mask.astype(np.int64, copy=False))
    if not np.isfinite(hidden).all():
        raise WireError(f"{HIDDEN} holds values that are no finite numbers")
    return Rows({HIDDEN: hidden, MASK: mask}, rows, length, from_layer)


def _from_layer(request: InferRequest, model: ServedModel) -> int:
    assert model.tails is not None
    given = request.parameters.get(FROM_LAYER)
    if type(given) is not int or given not in model.tails.layers:
        raise WireError(
            f"{FROM_LAYER} is {str(given)[:40]!r}: {model.name} goes on from the hidden states after layers "
            f"{', '.join(map(str, model.tails.layers))}"
        )
    return given


def _check_shape(hidden: NDArray[np.floating], mask: NDArray[np.integer], *, width: int) -> None:
    if hidden.ndim != 3 or not is_hidden_type(hidden.dtype) or hidden.shape[2] != width:
        raise WireError(
            f"{HIDDEN} is {hidden.dtype} of shape {list(hidden.shape)}: it must be FP16 or FP32 [rows, length, {width}]"
        )
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.shape != hidden.shape[:2]:
        raise WireError(
            f"{MASK} is {mask.dtype} of shape {list(mask.shape)}: it must be integers {list(hidden.shape[:2])}, as "
            f"{HIDDEN} has rows and tokens"
        )
    if not mask.size:
        raise WireError(
            f"{HIDDEN} has shape {list(hidden.shape)}: give at least one row of one token"
        )
