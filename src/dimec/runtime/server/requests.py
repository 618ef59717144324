"""What a tier serves, and what an inference request wants to be run on it, checked before it queues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.hidden import Tails
from dimec.bundle.manifest import TierManifest
from dimec.bundle.tokenizer import TierTokenizer
from dimec.core.errors import RefusedError, WireError, shown
from dimec.core.tokens import all_below
from dimec.runs.codes import Code, CodeError
from dimec.runtime.device.sample import Text
from dimec.runtime.server.scheduling import Arrays
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import (
    CODE,
    FROM_LAYER,
    HIDDEN,
    LAYERS,
    LOGITS,
    MASK,
    MODEL_FINGERPRINT,
    TEXT,
    InferRequest,
    Parameter,
    is_hidden_type,
)

VERSION = "1"

Tensor = tuple[str, str, list[int]]
"""A tensor of the protocol's metadata: name, datatype and shape."""


def text_tensor(*, pairs: bool) -> Tensor:
    """Return the tensor of texts."""
    return TEXT, "BYTES", [-1, 2] if pairs else [-1]


def logits_tensor(manifest: TierManifest) -> Tensor:
    """Return the tensor that a tier answers with."""
    return LOGITS, "FP32", [-1, len(manifest.layers), len(manifest.label_names)]


def said_of(manifest: TierManifest) -> dict[str, Parameter]:
    """Return what every response of a tier says of its model."""
    return {MODEL_FINGERPRINT: manifest.model_fingerprint, LAYERS: json.dumps(manifest.layers)}


def check_outputs(request: InferRequest, known: Sequence[str]) -> None:
    """Refuse a request for outputs that there are not, by a `WireError`."""
    unknown = set(request.outputs) - set(known)
    if unknown:
        told = "the one output is" if len(known) == 1 else "there are"
        raise WireError(
            f"outputs {', '.join(sorted(unknown))[:200]} are asked for: {told} {', '.join(known)}"
        )


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A tier, and the limits within which it is served.

    Attributes:
        platform: Engine and format, as the protocol's metadata has it.
        tokenizer: Makes rows of texts.
    """

    manifest: TierManifest
    settings: ServerSettings
    platform: str
    tokenizer: TierTokenizer

    @property
    def max_length(self) -> int:
        """Tokens of a row at most."""
        own = self.manifest.max_length
        return min(self.settings.max_length or own, own)

    @property
    def state_name(self) -> str:
        """The tensor in which it takes hidden states, where it takes them."""
        tails = self.manifest.tails
        return CODE if tails is not None and tails.bottleneck is not None else HIDDEN

    def last_exits(self, logits: NDArray[np.float32]) -> dict[int, int]:
        """Return how many rows of logits [rows, exits, classes] ended at which layer."""
        reached = ~np.isnan(logits[:, :, 0])
        layers = self.manifest.layers
        last = len(layers) - 1 - reached[:, ::-1].argmax(axis=1)
        counts = np.bincount(last, minlength=len(layers))
        return {layer: int(n) for layer, n in zip(layers, counts, strict=True) if n}


def read_texts(request: InferRequest, *, pairs: bool, max_rows: int) -> list[list[str]]:
    """Return the texts of a request, or the first ones and the second ones of its pairs.

    Raises:
        WireError: If there is another tensor, or it is no BYTES [rows], or [rows, 2] of pairs.
        RefusedError: If there are more rows than the server takes (413).
    """
    if set(request.inputs) != {TEXT}:
        raise WireError(
            f"the inputs are {', '.join(sorted(request.inputs))[:200]}: {TEXT} is given alone"
        )
    array = request.inputs[TEXT]
    columns = 1 + pairs
    fits = (array.ndim == 2 and array.shape[1] == columns) or (array.ndim == 1 and not pairs)
    if array.dtype != object or not fits:
        raise WireError(
            f"{TEXT} is {_told(array)}: it must be BYTES {'[rows, 2]' if pairs else '[rows]'}"
        )
    check_most("rows", len(array), max_rows, "send fewer at a time")
    if not len(array):
        raise WireError(f"{TEXT} has 0 rows: give at least one")
    return [array.reshape(-1, columns)[:, side].tolist() for side in range(columns)]


def texts_of(inputs: object, *, pairs: bool) -> tuple[list[Text], bool]:
    """Return the texts of an input, and whether it is one text, or one pair, alone.

    Raises:
        RefusedError: If it is neither a text nor a list of texts, or of pairs where the task is about pairs (422).
    """
    single = isinstance(inputs, str) if not pairs else _is_pair(inputs)
    several = [inputs] if single else inputs
    if not isinstance(several, list) or not several:
        raise _no_texts(inputs, pairs=pairs)
    texts: list[Text] = []
    for each in several:
        if pairs and _is_pair(each):
            texts.append((each[0], each[1]))
        elif not pairs and isinstance(each, list) and len(each) == 1 and isinstance(each[0], str):
            texts.append(each[0])
        elif not pairs and isinstance(each, str):
            texts.append(each)
        else:
            raise _no_texts(each, pairs=pairs)
    return texts, single


def _is_pair(value: object) -> TypeGuard[list[str]]:
    return (
        isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)
    )


def _no_texts(given: object, *, pairs: bool) -> RefusedError:
    wanted = 'a pair ["…", "…"], or a list of pairs' if pairs else 'a text "…", or a list of texts'
    return invalid(f"inputs holds {shown(given)}: give {wanted}")


def invalid(message: str) -> RefusedError:
    """Return the error of what is well-formed and of the wrong kind."""
    return RefusedError(422, "invalid", message)


def read_rows(request: InferRequest, model: ServedModel) -> tuple[Arrays, int]:
    """Return the tensors of a request, checked, and the layer that its rows stand at; 0 for rows of tokens or texts.

    Tensors are integers [rows, length], and where the model resumes a hidden state [rows, length, width], or the
    numbers that a bottleneck left of one likewise, a token of a pool holding the pool's.

    Raises:
        WireError: If tensors are missing or unknown, or hold what the model cannot run.
        RefusedError: If there are more rows, or longer ones, than the server takes (413).
    """
    check_outputs(request, [LOGITS])
    manifest, tails = model.manifest, model.manifest.tails
    if tails is not None and model.state_name in request.inputs:
        return _of_states(request, model, tails)
    if tails is not None and FROM_LAYER in request.parameters:
        raise WireError(
            f"{FROM_LAYER} is given without the tensor {model.state_name}: send both or none"
        )
    if TEXT in request.inputs:
        texts = read_texts(request, pairs=manifest.task.pairs, max_rows=model.settings.max_rows)
        batch = model.tokenizer.encode(*texts).batch()
        _check_size(batch.input_ids.shape, TEXT, model)
        return {name: array for name, array in batch.named().items() if name in manifest.inputs}, 0
    return _of_tokens(request, model), 0


def unpacked_bytes(request: InferRequest, model: ServedModel) -> int:
    """Return what reading a request may take: texts become tokens, a code inflates to a byte a number at most."""
    if TEXT in request.inputs and request.inputs[TEXT].dtype == object:
        return 16 * sum(map(len, request.inputs[TEXT].ravel().tolist()))
    tails = model.manifest.tails
    if tails is None or CODE not in request.inputs or MASK not in request.inputs:
        return 0
    return request.inputs[MASK].size * tails.width


def _of_tokens(request: InferRequest, model: ServedModel) -> Arrays:
    manifest = model.manifest
    _check_names(request, model, manifest.inputs)
    shape = request.inputs["input_ids"].shape
    for name, array in request.inputs.items():
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise WireError(f"{name} is {_told(array)}: it must be integers [rows, length]")
        if array.shape != shape:
            raise WireError(
                f"{name} has shape {list(array.shape)}, input_ids {list(shape)}: they must be the same"
            )
    _check_size(shape, "input_ids", model)
    return {
        name: _integers(
            name, request.inputs[name], manifest.n_vocabulary if name == "input_ids" else 2
        )
        for name in manifest.inputs
    }


def _of_states(request: InferRequest, model: ServedModel, tails: Tails) -> tuple[Arrays, int]:
    name = model.state_name
    _check_names(request, model, (name, MASK))
    from_layer = request.parameters.get(FROM_LAYER)
    if type(from_layer) is not int or from_layer not in tails.layers:
        raise WireError(
            f"{FROM_LAYER} is {str(from_layer)[:40]!r}: {model.settings.tier} goes on from the hidden states after "
            f"layers {', '.join(map(str, tails.layers))}"
        )
    state, mask = request.inputs[name], request.inputs[MASK]
    if tails.code is None:
        fits = state.ndim == 3 and is_hidden_type(state.dtype) and state.shape[2] == tails.width
        wanted, shared = f"FP16 or FP32 [rows, length, {tails.width}]", 2
    else:
        fits = state.ndim == 2 and state.dtype == np.uint8
        wanted, shared = "UINT8 [rows, bytes]", 1
    if not fits:
        raise WireError(f"{name} is {_told(state)}: it must be {wanted}")
    if mask.ndim != 2 or mask.dtype.kind not in "iu" or mask.shape[:shared] != state.shape[:shared]:
        raise WireError(
            f"{MASK} is {_told(mask)}: it must be integers [rows, length], for the {list(state.shape)} of {name}"
        )
    _check_size(mask.shape, name, model)
    mask = _integers(MASK, mask, 2)
    if tails.code is not None:
        state = _unpacked(state, mask, tails.code)
    elif not np.isfinite(state).all():
        raise WireError(f"{HIDDEN} holds values that are no finite numbers")
    return {HIDDEN: state, MASK: mask}, from_layer


def _unpacked(rows: NDArray[Any], mask: NDArray[np.int64], code: Code) -> NDArray[np.float32]:
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


def _check_names(request: InferRequest, model: ServedModel, taken: Sequence[str]) -> None:
    if set(request.inputs) != set(taken):
        raise WireError(
            f"the inputs are {', '.join(sorted(request.inputs))[:200]}: {model.settings.tier} takes {', '.join(taken)}"
        )


def _check_size(shape: tuple[int, ...], name: str, model: ServedModel) -> None:
    """Refuse a shape [rows, length] of none or too many."""
    rows, length = shape
    if not rows or not length:
        raise WireError(f"{name} has {rows} rows of {length} tokens: give at least one of each")
    check_most("rows", rows, model.settings.max_rows, "send fewer at a time")
    check_most("tokens a row", length, model.max_length, "cut the texts")
    check_most("tokens", rows * length, model.settings.queue_tokens, "send fewer rows at a time")


def check_most(what: str, found: int, most: int, remedy: str) -> None:
    """Refuse what is more than a server takes (413)."""
    if found > most:
        message = f"{found} {what} were sent, at most {most} are taken: {remedy}"
        raise RefusedError(413, "too large", message)


def _integers(name: str, array: NDArray[Any], limit: int) -> NDArray[np.int64]:
    """Return integers from 0 up to, but not with, a limit; of a mask every row has a token."""
    values: NDArray[np.int64] = array.astype(np.int64, copy=False)
    if not all_below(values, limit):
        raise WireError(f"{name} holds values outside 0..{limit - 1}")
    if name == MASK:
        has_token = np.logical_or.reduce(values, axis=1)
        if not has_token.all():
            raise WireError(
                f"row {int(has_token.argmin())} of {MASK} has no token: every row needs one"
            )
    return values


def _told(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {list(array.shape)}"
