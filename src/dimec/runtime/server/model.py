"""What a tier server serves: a description of the model, and the checks that a request must pass before it queues."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dimec.bundle.engines.tokens import all_below
from dimec.bundle.hidden import Tails
from dimec.core.errors import RefusedError, WireError
from dimec.runtime.server.scheduling import Arrays
from dimec.runtime.wire.extensions import (
    CODE,
    DEADLINE_MS,
    HIDDEN,
    LABEL_NAMES,
    LAYERS,
    LOGITS,
    MASK,
    MODEL_FINGERPRINT,
    RESUMES_FROM,
)
from dimec.runtime.wire.messages import (
    InferRequest,
    Parameter,
)

VERSION = "1"


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A tier, as the wire sees it.

    Attributes:
        name: The tier's name.
        platform: Engine and format, as the protocol's metadata has it.
        inputs: Names of the tensors that it takes.
        layers: The exits' layers.
        label_names: The classes' names.
        fingerprint: Which encoder this is.
        vocabulary: Token ids from 0 up to, but not with, this.
        max_length: Tokens of a row.
        tails: The hidden states that it resumes from; None where it starts from tokens alone.
    """

    name: Literal["edge", "cloud"]
    platform: str
    inputs: tuple[str, ...]
    layers: tuple[int, ...]
    label_names: tuple[str, ...]
    fingerprint: str
    vocabulary: int
    max_length: int
    tails: Tails | None = None

    @property
    def parameters(self) -> dict[str, Parameter]:
        """What every response says of the model."""
        return {MODEL_FINGERPRINT: self.fingerprint, LAYERS: json.dumps(self.layers)}

    @property
    def state_name(self) -> str:
        """The tensor in which it takes hidden states, where it takes them."""
        return CODE if self.tails is not None and self.tails.bottleneck is not None else HIDDEN

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the model."""
        logits = [-1, len(self.layers), len(self.label_names)]
        inputs = [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in self.inputs]
        parameters = {**self.parameters, LABEL_NAMES: json.dumps(self.label_names)}
        if self.tails is not None:
            shape = [-1, -1] if self.tails.bottleneck else [-1, -1, self.tails.width]
            inputs.append(
                {"name": self.state_name, "datatype": self.tails.datatype, "shape": shape}
            )
            parameters[RESUMES_FROM] = json.dumps(self.tails.layers)
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": self.platform,
            "inputs": inputs,
            "outputs": [{"name": LOGITS, "datatype": "FP32", "shape": logits}],
            "parameters": parameters,
        }

    def last_exits(self, logits: NDArray[np.float32]) -> dict[int, int]:
        """Return how many rows of logits [rows, exits, classes] ended at which layer."""
        reached = ~np.isnan(logits[:, :, 0])
        last = len(self.layers) - 1 - reached[:, ::-1].argmax(axis=1)
        counts = np.bincount(last, minlength=len(self.layers))
        return {layer: int(n) for layer, n in zip(self.layers, counts, strict=True) if n}


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What a request wants to be run.

    Attributes:
        inputs: Its tensors, checked: integers [rows, length], a hidden state [rows, length, width], or the numbers that
            a bottleneck left of one likewise, a token of a pool holding the pool's.
        rows: How many rows there are.
        length: Their tokens, padding included.
        from_layer: The layer that they stand at; 0 for rows of tokens.
    """

    inputs: Arrays
    rows: int
    length: int
    from_layer: int = 0


def read_tokens(
    request: InferRequest, model: ServedModel, *, max_rows: int, max_tokens: int
) -> Rows:
    """Return a request's tensors as int64 [rows, length], after every check that needs no engine.

    Raises:
        WireError: If tensors are missing or unknown, or hold what is no row of tokens.
        RefusedError: If there are more rows, or longer ones, than the server takes (413).
    """
    given, needed = set(request.inputs), set(model.inputs)
    if given != needed:
        raise WireError(
            f"the inputs are {', '.join(sorted(given))[:200]}: {model.name} takes {', '.join(model.inputs)}"
        )
    check_outputs(request)
    shape = request.inputs["input_ids"].shape
    for name, array in request.inputs.items():
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise WireError(
                f"{name} is {array.dtype} of shape {list(array.shape)}: it must be integers [rows, length]"
            )
        if array.shape != shape:
            raise WireError(
                f"{name} has shape {list(array.shape)}, input_ids {list(shape)}: they must be the same"
            )
    rows, length = shape
    if not rows or not length:
        raise WireError(f"input_ids has shape {list(shape)}: give at least one row of one token")
    check_size(rows, length, model, max_rows=max_rows, max_tokens=max_tokens)
    tokens = {name: request.inputs[name].astype(np.int64, copy=False) for name in model.inputs}
    for name, array in tokens.items():
        below = model.vocabulary if name == "input_ids" else 2
        if not all_below(array, below):
            raise WireError(f"{name} holds values outside 0..{below - 1}")
    _check_rows(tokens[MASK])
    return Rows(tokens, rows, length)


def check_outputs(request: InferRequest) -> None:
    """Check that a request asks for no output that there is not.

    Raises:
        WireError: If it does.
    """
    asked = {output.name for output in request.outputs} - {LOGITS}
    if asked:
        raise WireError(
            f"outputs {', '.join(sorted(asked))[:200]} are asked for: the one output is {LOGITS}"
        )


def check_size(
    rows: int, length: int, model: ServedModel, *, max_rows: int, max_tokens: int
) -> None:
    """Check that a request is not too large.

    Raises:
        RefusedError: If it is (413).
    """
    if rows > max_rows:
        raise _too_large(
            f"{rows} rows were sent, at most {max_rows} are taken: send fewer at a time"
        )
    if length > model.max_length:
        raise _too_large(
            f"rows of {length} tokens were sent, at most {model.max_length} are taken: cut the texts"
        )
    if rows * length > max_tokens:
        raise _too_large(
            f"{rows * length} tokens were sent, at most {max_tokens} are taken: send fewer rows at a time"
        )


def check_mask(mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an attention mask [rows, length] that means something.

    Raises:
        WireError: If it holds other values than 0 and 1, or a row without a token.
    """
    if not all_below(mask, 2):
        raise WireError(f"{MASK} holds values outside 0..1")
    _check_rows(mask)
    return mask


def _check_rows(mask: NDArray[np.int64]) -> None:
    has_token = np.logical_or.reduce(mask, axis=1)
    if not has_token.all():
        raise WireError(
            f"row {int(has_token.argmin())} of {MASK} has no token: every row needs one"
        )


def read_deadline_ms(request: InferRequest) -> float | None:
    """Return how long the caller waits; None where the request does not say.

    Raises:
        WireError: If it is no number.
    """
    value = request.parameters.get(DEADLINE_MS)
    if value is None:
        return None
    if isinstance(value, (bool, str)) or abs(value) > 1e18:
        raise WireError(f"{DEADLINE_MS} is {str(value)[:40]!r}: it must be a number")
    return float(value)


def _too_large(message: str) -> RefusedError:
    return RefusedError(413, "too large", message)
