"""What a device asks of a tier's server, and the checks of the answer: id, model, layers, type, shape, numbers.

What does not fit is a `TierFault`.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
import numpy as np
from numpy.typing import NDArray

from dimec.core.errors import quoted, shown
from dimec.core.tiers import softmax
from dimec.runtime.device.resilience import Failure, Fault
from dimec.runtime.wire.extensions import LAYERS, LOGITS, MODEL_FINGERPRINT
from dimec.runtime.wire.messages import InferResponse

_MAX_RETRY_AFTER_S = 60.0
_BY_STATUS = {
    401: Fault.UNAUTHORISED,
    403: Fault.UNAUTHORISED,
    429: Fault.OVERLOADED,
    504: Fault.SLOW,
}
_ROUNDING = 1e-6
"""How far below a threshold a server may have left an exit: it may round otherwise than this device."""


@dataclass(frozen=True, slots=True, eq=False)
class Resumption:
    """A hidden state to go on from: its tensor, of one row as it travels, and the layer that it stands at."""

    name: str
    state: NDArray[np.generic]
    from_layer: int


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """What a device wants of a tier.

    Attributes:
        inputs: [1, length] integers, by the names of the graphs' inputs.
        request_id: The device's id of the text.
        layer: The layer of the exit that is needed.
        exit_thresholds: The confidence from which that exit, or one after it, is enough, by layer.
        budget_s: How long it may take, all attempts together.
        resumes: The hidden state that is sent in place of the tokens; None where these are.
    """

    inputs: Mapping[str, NDArray[np.integer]]
    request_id: str
    layer: int
    exit_thresholds: Mapping[int, float]
    budget_s: float
    resumes: Resumption | None = None

    @property
    def from_layer(self) -> int:
        """The layer that the tier starts from; 0 for the tokens."""
        return 0 if self.resumes is None else self.resumes.from_layer

    def thresholds(self, layers: Sequence[int]) -> tuple[float, ...] | None:
        """Return the confidence from which a tier may leave each of its exits, after ``layers``, inf for never.

        It leaves none before the one that is needed; None says that it need not look, since it leaves none early.
        """
        found = tuple(
            self.exit_thresholds.get(layer, math.inf) if layer >= self.layer else math.inf
            for layer in layers
        )
        return found if min(found[:-1], default=math.inf) < math.inf else None


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What a tier's answers have to be like; ``needs_fingerprint``: they have to say which model they are of."""

    layers: tuple[int, ...]
    n_classes: int
    fingerprint: str
    needs_fingerprint: bool


class TierFault(Exception):
    """A failure on its way up to `TierClient.ask`, which turns it into an outcome."""

    def __init__(
        self, fault: Fault, detail: str = "", *, retry_after_s: float | None = None
    ) -> None:
        """Take what the failure says."""
        super().__init__(detail)
        self.failure = Failure(fault, detail, retry_after_s)


def believed(
    response: InferResponse, ask: Ask, request_id: str, expected: Expected
) -> dict[int, NDArray[np.float64]]:
    """Return the probabilities by layer of an answer that is as it has to be.

    Raises:
        TierFault: If it is not.
    """
    _check_sender(response, request_id, expected)
    logits = _logits(response, expected)
    # Exits up to the layer that was resumed from were not read: whatever stands there says nothing.
    read = [
        (layer, values)
        for layer, values in zip(expected.layers, logits, strict=True)
        if layer > ask.from_layer
    ]
    given = ask.thresholds(expected.layers)
    enough = None if given is None else dict(zip(expected.layers, given, strict=True))
    found: dict[int, NDArray[np.float64]] = {}
    for layer, values in read:
        if not np.isfinite(values).all():
            raise TierFault(Fault.WRONG, f"no finite {LOGITS} at layer {layer}")
        found[layer] = softmax(values)
        if (
            layer == ask.layer
            if enough is None
            else found[layer].max() >= enough[layer] - _ROUNDING
        ):
            break
    if ask.layer not in found:
        raise TierFault(Fault.WRONG, f"has no exit after layer {ask.layer}")
    # Deeper exits that were run without being asked for spare another request, as far as they are sound.
    for layer, values in read[len(found) :]:
        if not np.isfinite(values).all():
            break
        found[layer] = softmax(values)
    return found


def _check_sender(response: InferResponse, request_id: str, expected: Expected) -> None:
    """Check that it is the answer to this request, by the model that was asked."""
    if response.id != request_id:
        raise TierFault(Fault.WRONG, f"answers another request, {shown(response.id)}")
    fingerprint = response.parameters.get(MODEL_FINGERPRINT)
    if fingerprint is None and expected.needs_fingerprint:
        raise TierFault(Fault.WRONG, "does not say which model it runs")
    if fingerprint is not None and fingerprint != expected.fingerprint:
        other = quoted(str(fingerprint))[:12]
        raise TierFault(Fault.WRONG, f"runs another model, {other}, than the bundle's")
    if LAYERS in response.parameters and said_layers(response.parameters) != expected.layers:
        raise TierFault(Fault.WRONG, f"has exits after other layers than {list(expected.layers)}")


def _logits(response: InferResponse, expected: Expected) -> NDArray[np.float32]:
    """Return the logits [exits, classes] of an answer to one row."""
    logits = response.outputs.get(LOGITS)
    shape = (1, len(expected.layers), expected.n_classes)
    if logits is None:
        raise TierFault(Fault.WRONG, f"holds no tensor {LOGITS}")
    if logits.dtype != np.float32 or logits.shape != shape:
        found = f"{logits.dtype} {list(logits.shape)}"
        raise TierFault(Fault.WRONG, f"{LOGITS} are {found}, not float32 {list(shape)}")
    only: NDArray[np.float32] = logits[0]
    return only


def refusal(status: int, headers: httpx.Headers, content: bytes) -> TierFault:
    """Return the failure that a status other than 200 means."""
    detail = f"HTTP {status}"
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        said = json.loads(content).get("error")
        detail += f": {quoted(said)}" if isinstance(said, str) and said else ""
    if status >= 500:
        default = Fault.BROKEN
    else:
        default = Fault.REFUSED if status >= 400 else Fault.WRONG
    pause = _retry_after_s(headers.get("retry-after")) if status in (429, 503) else None
    return TierFault(_BY_STATUS.get(status, default), detail, retry_after_s=pause)


def fault_of(exc: httpx.HTTPError) -> TierFault:
    """Return the failure that an error of the HTTP client means."""
    said = quoted(str(exc))
    if isinstance(exc, httpx.RemoteProtocolError):
        if "disconnected" in said or "closed connection" in said:
            return TierFault(Fault.UNREACHABLE, "the connection was closed")
        return TierFault(Fault.WRONG, f"no HTTP: {said}")
    if isinstance(exc, httpx.ConnectError):
        if "CERTIFICATE" in said:
            return TierFault(Fault.WRONG, "its certificate is not trusted")
        return TierFault(Fault.UNREACHABLE, said or "no connection")
    if isinstance(exc, httpx.NetworkError):
        return TierFault(Fault.UNREACHABLE, "the connection was lost")
    return TierFault(Fault.BROKEN, quoted(f"{type(exc).__name__}: {exc}"))


def _retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header, which says a number of them or a date; None for anything else."""
    said = (value or "").strip()
    if said.isascii() and said.isdecimal():
        return min(float(said[:9]), _MAX_RETRY_AFTER_S)
    try:
        then = parsedate_to_datetime(said)
        seconds = then.replace(tzinfo=then.tzinfo or UTC).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(seconds, 0.0), _MAX_RETRY_AFTER_S)


def said_layers(parameters: Mapping[str, object]) -> tuple[int, ...] | None:
    """Return the ascending layers that parameters name, None where they name none."""
    said = parameters.get(LAYERS)
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(said) if isinstance(said, str) else said
    if not isinstance(said, list) or not said or not all(type(each) is int for each in said):
        return None
    return tuple(said) if sorted(set(said)) == said else None
