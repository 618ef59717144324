"""Requests that go on from a hidden state: what they hold, and every check before they queue."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import WireError
from dimec.runs.codes import Code, CodeError
from dimec.runtime.server.model import (
    Rows,
    ServedModel,
    check_mask,
    check_outputs,
    check_size,
    read_tokens,
)
from dimec.runtime.wire.extensions import (
    CODE,
    FROM_LAYER,
    HIDDEN,
    MASK,
    is_hidden_type,
)
from dimec.runtime.wire.messages import InferRequest


def read_rows(request: InferRequest, model: ServedModel, *, max_rows: int, max_tokens: int) -> Rows:
    """Return the rows of a request, of tokens or, where the model resumes, of hidden states.

    Raises:
        WireError: If tensors are missing or unknown, or hold what the model cannot run.
        RefusedError: If there are more rows, or longer ones, than the server takes (413).
    """
    name = model.state_name
    if model.tails is None or name not in request.inputs:
        if model.tails is not None and FROM_LAYER in request.parameters:
            raise WireError(f"{FROM_LAYER} is given without the tensor {name}: send both or none")
        return read_tokens(request, model, max_rows=max_rows, max_tokens=max_tokens)
    if set(request.inputs) != {name, MASK}:
        raise WireError(
            f"the inputs are {', '.join(sorted(request.inputs))[:200]}: with {name}, {model.name} takes {name} and "
            f"{MASK} alone"
        )
    check_outputs(request)
    state, mask = request.inputs[name], request.inputs[MASK]
    from_layer = _from_layer(request, model)
    code = model.tails.code
    if code is None:
        _check_state(state, width=model.tails.width)
    elif state.ndim != 2 or state.dtype != np.uint8:
        raise WireError(
            f"{CODE} is {state.dtype} of shape {list(state.shape)}: it must be UINT8 [rows, bytes]"
        )
    _check_mask_shape(mask, state, name, tokens_too=code is None)
    rows, length = mask.shape
    check_size(rows, length, model, max_rows=max_rows, max_tokens=max_tokens)
    mask = check_mask(mask.astype(np.int64, copy=False))
    if code is not None:
        state = _unpacked(state, mask, code)
    elif not np.isfinite(state).all():
        raise WireError(f"{HIDDEN} holds values that are no finite numbers")
    return Rows({HIDDEN: state, MASK: mask}, rows, length, from_layer)


def unpacked_bytes(request: InferRequest, model: ServedModel) -> int:
    """Return what reading a request's hidden states may take: a code inflates to a byte a number at most."""
    if model.tails is None or CODE not in request.inputs or MASK not in request.inputs:
        return 0
    return request.inputs[MASK].size * model.tails.width


def _unpacked(rows: NDArray[np.uint8], mask: NDArray[np.int64], code: Code) -> NDArray[np.float32]:
    """Return the numbers [rows, length, width] of codes [rows, bytes], each pool's at all of its tokens."""
    counts = mask.sum(axis=1)
    if not np.array_equal(mask, np.arange(mask.shape[1]) < counts[:, None]):
        raise WireError(f"{MASK} has holes: with {CODE}, rows are padded on the right alone")
    numbers = np.zeros((*mask.shape, code.width), dtype=np.float32)
    for row, (data, n) in enumerate(zip(rows, counts.tolist(), strict=True)):
        try:
            found = code.unpack(data.tobytes(), n_tokens=n)
        except CodeError as exc:
            raise WireError(f"row {row} of {CODE} {exc}") from exc
        numbers[row, :n] = np.repeat(found, code.pool, axis=0)[:n]
    return numbers


def _from_layer(request: InferRequest, model: ServedModel) -> int:
    assert model.tails is not None
    given = request.parameters.get(FROM_LAYER)
    if type(given) is not int or given not in model.tails.layers:
        raise WireError(
            f"{FROM_LAYER} is {str(given)[:40]!r}: {model.name} goes on from the hidden states after layers "
            f"{', '.join(map(str, model.tails.layers))}"
        )
    return given


def _check_state(hidden: NDArray[np.generic], *, width: int) -> None:
    if hidden.ndim != 3 or not is_hidden_type(hidden.dtype) or hidden.shape[2] != width:
        raise WireError(
            f"{HIDDEN} is {hidden.dtype} of shape {list(hidden.shape)}: it must be FP16 or FP32 [rows, length, {width}]"
        )


def _check_mask_shape(
    mask: NDArray[np.generic], state: NDArray[np.generic], name: str, *, tokens_too: bool
) -> None:
    """Check that a mask has the rows of a state, and its tokens too where the state says how many there are."""
    same = 2 if tokens_too else 1
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.shape[:same] != state.shape[:same]:
        wanted = list(state.shape[:2]) if tokens_too else f"[{len(state)}, length]"
        raise WireError(
            f"{MASK} is {mask.dtype} of shape {list(mask.shape)}: it must be integers {wanted}, as {name} has rows"
            f"{' and tokens' if tokens_too else ''}"
        )
    if not mask.size:
        raise WireError(f"{name} has shape {list(state.shape)}: give at least one row of one token")
