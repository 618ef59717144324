"""A tier that is a server: one sample's token ids go there, the logits of its exits come back, or a `Failure` does.

`TierClient.ask` never raises and never takes longer than it is given. It asks again where that is safe and fits,
leaves a tier alone that keeps failing, and believes nothing: size, request id, model, layers, type, shape and every
number that is needed are checked before an answer counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
from numpy.typing import NDArray

from dimec.errors import OptionError, WireError
from dimec.runtime.options import DeviceSettings
from dimec.runtime.resilience import RETRIED, Breaker, Failure, Fault, Gate, Pass, backoff_s
from dimec.runtime.wire import (
    DEADLINE_MS,
    EXIT_THRESHOLD,
    LAYERS,
    LOGITS,
    MODEL_FINGERPRINT,
    REQUEST_ID,
    InferRequest,
    InferResponse,
    Limits,
    decode_response,
    encode_request,
    narrow,
)
from dimec.tiers import Tier, softmax

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_RETRY_AFTER_S = 60.0
_ROUNDING = 1e-6
"""How far below a threshold a server may have left an exit: it may round otherwise than this device."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """What a device wants of a tier.

    Attributes:
        inputs: [1, length] integers, by the names of the graphs' inputs.
        request_id: The device's id of the text.
        layer: The layer of the exit that is needed.
        exit_threshold: The confidence from which an exit before that one is enough; None where none is.
        budget_s: How long it may take, all attempts together.
    """

    inputs: Mapping[str, NDArray[np.integer]]
    request_id: str
    layer: int
    exit_threshold: float | None
    budget_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of it.

    Attributes:
        probabilities: By the layers of the exits that were reached, [classes] float64 each; None without an answer.
        failures: What went wrong, in order; the last one is why there is no answer, where there is none.
        attempts: How many requests were sent.
        elapsed_s: How long it took.
    """

    probabilities: Mapping[int, NDArray[np.float64]] | None
    failures: tuple[Failure, ...]
    attempts: int
    elapsed_s: float


@dataclass(slots=True)
class Traffic:
    """What went to and came from a tier's server.

    Attributes:
        requests: Requests sent.
        sent_bytes: Their bodies.
        received_bytes: The bodies of the responses.
    """

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


class TierFault(Exception):
    """A failure on its way up to `TierClient.ask`; it never leaves this module."""

    def __init__(
        self, fault: Fault, detail: str = "", *, retry_after_s: float | None = None
    ) -> None:
        """Take what the failure says."""
        super().__init__(detail)
        self.failure = Failure(fault, detail, retry_after_s)


def checked_url(url: str, *, option: str, token: str | None, settings: DeviceSettings) -> str:
    """Return a server's base URL without a slash at its end.

    Raises:
        OptionError: If it is no URL of a server, or the token would cross a network in the clear.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as exc:
        raise OptionError(f"{option} {url!r} is no URL ({exc}): give http://HOST:PORT") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise OptionError(f"{option} {url!r} is no URL of a server: give http://HOST:PORT or https")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise OptionError(
            f"{option} must be no more than http://HOST:PORT/PATH: a token is given apart, by file or DIMEC_TOKEN"
        )
    plain = parts.scheme == "http" and parts.hostname not in _LOOPBACK
    if token is not None and plain and settings.token_needs_tls:
        raise OptionError(
            f"{option} {url} would send the token unencrypted to another machine: use https, or allow it with "
            "token_needs_tls=False (--plain-token)"
        )
    return url.rstrip("/")


def checked_token(token: str | None) -> str | None:
    """Return a bearer token that can be sent, None for an empty one.

    Raises:
        OptionError: If it holds what no HTTP header may; the message does not repeat it.
    """
    token = (token or "").strip()
    if not token.isascii() or not token.isprintable() or " " in token:
        raise OptionError("the token holds blanks or characters that no header may hold: check it")
    return token or None


def tls_context(settings: DeviceSettings) -> ssl.SSLContext:
    """Return how servers are verified, and the device's own certificate where it has one.

    Raises:
        OptionError: If a file cannot be used.
    """
    try:
        if settings.ca_file is None:
            context = httpx.create_ssl_context(trust_env=False)
        else:
            context = ssl.create_default_context(cafile=str(settings.ca_file))
        if settings.certificate_file is not None:
            context.load_cert_chain(settings.certificate_file, settings.key_file)
    except (OSError, ssl.SSLError) as exc:
        raise OptionError(
            f"the TLS files cannot be used ({exc.strerror or exc}): check ca_file, certificate_file and key_file"
        ) from exc
    return context


class TierClient:
    """Ask one tier's server; everything but the constructor runs on one event loop."""

    def __init__(
        self,
        tier: Tier,
        url: str,
        *,
        settings: DeviceSettings,
        tls: ssl.SSLContext | None,
        token: str | None,
        fingerprint: str,
        layers: Sequence[int] | None,
        n_classes: int,
    ) -> None:
        """Take whom to ask and what an answer has to be like.

        Args:
            tier: Which tier it is; the model's name too.
            url: The server's base URL, checked.
            settings: Limits.
            tls: How servers are verified.
            token: The bearer token.
            fingerprint: The model's.
            layers: Its exits' layers; None where the device's bundle does not hold the tier, so that the server has
                to say them.
            n_classes: How many classes there are.
        """
        self.tier = tier
        self.layers = self._bundle_layers = None if layers is None else tuple(layers)
        self.breaker = Breaker(
            opens_after=settings.opens_after, open_s=settings.open_s, max_open_s=settings.max_open_s
        )
        self.traffic = Traffic()
        self._model = f"{url}/v2/models/{tier}"
        self._settings = settings
        self._fingerprint = fingerprint
        self._n_classes = n_classes
        self._limits = Limits(body_bytes=settings.max_response_bytes)
        self._ours = False
        self._not_before = 0.0
        headers = {"Accept-Encoding": "identity", "User-Agent": "dimec"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            headers=headers,
            verify=True if tls is None else tls,
            proxy=settings.proxy,
            timeout=None,  # every wait is bounded as a whole, below
            limits=httpx.Limits(
                max_connections=settings.connections, max_keepalive_connections=settings.connections
            ),
            trust_env=False,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def ask(self, ask: Ask) -> Outcome:
        """Ask for one sample; whatever happens, the outcome is there within the budget."""
        talk = _Talk(ask, began=time.monotonic())
        probabilities: Mapping[int, NDArray[np.float64]] | None = None
        failures: list[Failure] = []
        for attempt in range(1, self._settings.attempts + 1):
            if failures and not await self._wait(failures[-1], attempt, talk):
                break
            given = self.breaker.admit()
            if given.gate is Gate.CLOSED_ROAD:
                failures = failures or [self._resting()]
                break
            failure = None
            try:
                async with asyncio.timeout(talk.left_s):
                    probabilities = await self._attempt(talk, given)
            except TierFault as exc:
                failure = exc.failure
            except TimeoutError:
                failure = Failure(Fault.SLOW, f"after {ask.budget_s:.2g} s")
            except asyncio.CancelledError:
                self.breaker.left(given)
                raise
            except Exception as exc:  # whatever a server provokes, the text needs its answer
                failure = Failure(Fault.BROKEN, type(exc).__name__)
            if failure is None:
                self.breaker.succeeded(given)
                break
            self._count(given, failure)
            failures.append(failure)
            if failure.fault not in RETRIED:
                break
        elapsed_s = time.monotonic() - talk.began
        return Outcome(probabilities, tuple(failures), talk.attempts, elapsed_s)

    def _count(self, given: Pass, failure: Failure) -> None:
        if failure.fault in (Fault.REFUSED, Fault.WRONG):
            # Another server may stand there now, which takes no narrow integers and has other layers.
            self._ours, self.layers = False, self._bundle_layers
        if failure.retry_after_s is not None:
            self._not_before = max(self._not_before, time.monotonic() + failure.retry_after_s)
        if failure.fault is Fault.OVERLOADED:
            self.breaker.left(given)  # it is well, and says itself when to come back
        else:
            self.breaker.failed(given, failure)

    def _resting(self) -> Failure:
        last = self.breaker.last
        return Failure(
            Fault.RESTING, "" if last is None else _one_line(f"{last.fault}, {last.detail}")
        )

    async def _wait(self, failure: Failure, attempt: int, talk: _Talk) -> bool:
        """Wait before another attempt; False where that would take longer than there is."""
        wait_s = backoff_s(attempt - 1, first_ms=self._settings.backoff_ms)
        if failure.retry_after_s is not None:
            wait_s += failure.retry_after_s
        if wait_s >= talk.left_s:
            return False
        await asyncio.sleep(wait_s)
        return True

    async def _attempt(self, talk: _Talk, given: Pass) -> Mapping[int, NDArray[np.float64]]:
        held_s = self._not_before - time.monotonic()
        if held_s > 0:  # the server has asked for a pause
            if held_s >= talk.left_s:
                raise TierFault(
                    Fault.OVERLOADED, f"asks to wait for {held_s:.3g} s", retry_after_s=held_s
                )
            await asyncio.sleep(held_s * (1 + 0.25 * random.random()))
        if given.gate is Gate.PROBE_FIRST:
            await self._probe()
        if self.layers is None:
            self.layers = await self._ask_layers()
        talk.attempts += 1
        request_id = f"{talk.ask.request_id}.{self.tier}.{talk.attempts}"
        headers, body = self._encode(talk, request_id)
        self.traffic.requests += 1
        self.traffic.sent_bytes += len(body)
        status, answered, content = await self._send("POST", f"{self._model}/infer", headers, body)
        self.traffic.received_bytes += len(content)
        if status != 200:
            raise _refusal(status, answered, content)
        try:
            response = decode_response(answered, content, limits=self._limits)
        except WireError as exc:
            raise TierFault(Fault.WRONG, _one_line(str(exc))) from exc
        return self._believe(response, talk.ask, request_id)

    def _encode(self, talk: _Talk, request_id: str) -> tuple[dict[str, str], bytes]:
        parameters: dict[str, float] = {DEADLINE_MS: max(1.0, 1_000 * talk.left_s)}
        assert self.layers is not None
        if self._may_leave_early(talk.ask):
            assert talk.ask.exit_threshold is not None
            parameters[EXIT_THRESHOLD] = talk.ask.exit_threshold
        inputs: dict[str, NDArray[Any]] = {
            name: narrow(array) if self._ours else np.asarray(array, dtype=np.int64)
            for name, array in talk.ask.inputs.items()
        }
        request = InferRequest(inputs, parameters, request_id, binary_output=True)
        headers, body = encode_request(request, binary=True)
        return {**headers, REQUEST_ID: request_id}, body

    def _may_leave_early(self, ask: Ask) -> bool:
        """Tell whether the tier is given the threshold: it leaves at its first sure exit, so only from there on."""
        return (
            ask.exit_threshold is not None
            and self.layers is not None
            and ask.layer == self.layers[0]
        )

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Return status, headers and body of an answer, of which no more is read than is allowed."""
        content = bytearray()
        try:
            async with self._http.stream(method, url, headers=headers, content=body) as response:
                if response.headers.get("content-encoding", "identity") != "identity":
                    raise TierFault(Fault.WRONG, "compressed although that was not asked for")
                async for chunk in response.aiter_raw():
                    content += chunk
                    if len(content) > self._limits.body_bytes:
                        raise TierFault(Fault.WRONG, f"more than {self._limits.body_bytes:,} bytes")
                return response.status_code, response.headers, bytes(content)
        except httpx.RemoteProtocolError as exc:
            said = _one_line(str(exc))
            if any(word in said for word in ("disconnected", "closed connection")):
                raise TierFault(Fault.UNREACHABLE, "the connection was closed") from exc
            raise TierFault(Fault.WRONG, f"no HTTP: {said}") from exc
        except httpx.ConnectError as exc:
            said = _one_line(str(exc))
            if "CERTIFICATE" in said:
                raise TierFault(Fault.WRONG, "its certificate is not trusted") from exc
            raise TierFault(Fault.UNREACHABLE, said or "no connection") from exc
        except httpx.NetworkError as exc:
            raise TierFault(Fault.UNREACHABLE, "the connection was lost") from exc
        except httpx.HTTPError as exc:
            raise TierFault(Fault.BROKEN, _one_line(f"{type(exc).__name__}: {exc}")) from exc

    async def _probe(self) -> None:
        """Ask whether the tier is ready again."""
        async with self._brief():
            status, headers, content = await self._send("GET", f"{self._model}/ready", {}, None)
        if status != 200:
            raise _refusal(status, headers, content)

    async def _ask_layers(self) -> tuple[int, ...]:
        """Ask the server for the layers of its exits."""
        async with self._brief():
            status, headers, content = await self._send("GET", self._model, {}, None)
        if status != 200:
            raise _refusal(status, headers, content)
        parameters: object = None
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(content)
            parameters = document.get("parameters") if isinstance(document, dict) else None
        layers = _layers(parameters) if isinstance(parameters, dict) else None
        if layers is None:
            raise TierFault(
                Fault.WRONG,
                "does not say after which layers its exits are, and the bundle lacks the tier",
            )
        return layers

    @contextlib.asynccontextmanager
    async def _brief(self) -> Any:  # noqa: ANN401
        try:
            async with asyncio.timeout(self._settings.probe_ms / 1_000):
                yield
        except TimeoutError as exc:
            raise TierFault(Fault.SLOW, f"no sign after {self._settings.probe_ms:g} ms") from exc

    def _believe(
        self, response: InferResponse, ask: Ask, request_id: str
    ) -> Mapping[int, NDArray[np.float64]]:
        """Return the probabilities by layer of an answer that is as it has to be."""
        if response.id != request_id:
            raise TierFault(Fault.WRONG, f"answers another request, {_one_line(response.id)!r}")
        fingerprint = response.parameters.get(MODEL_FINGERPRINT)
        if fingerprint is None and self._settings.needs_fingerprint:
            raise TierFault(Fault.WRONG, "does not say which model it runs")
        if fingerprint is not None and fingerprint != self._fingerprint:
            raise TierFault(
                Fault.WRONG,
                f"runs another model, {_one_line(str(fingerprint))[:12]}, than the bundle's",
            )
        assert self.layers is not None
        said = _layers(response.parameters)
        if LAYERS in response.parameters and said != self.layers:
            raise TierFault(Fault.WRONG, f"has exits after other layers than {list(self.layers)}")
        logits = response.outputs.get(LOGITS)
        shape = (1, len(self.layers), self._n_classes)
        if logits is None:
            raise TierFault(Fault.WRONG, f"holds no tensor {LOGITS}")
        if logits.dtype != np.float32 or logits.shape != shape:
            raise TierFault(
                Fault.WRONG,
                f"{LOGITS} are {logits.dtype} {list(logits.shape)}, not float32 {list(shape)}",
            )
        found: dict[int, NDArray[np.float64]] = {}
        enough = ask.exit_threshold if self._may_leave_early(ask) else None
        for layer, values in zip(self.layers, logits[0], strict=True):
            if not np.isfinite(values).all():
                raise TierFault(Fault.WRONG, f"no finite {LOGITS} at layer {layer}")
            found[layer] = softmax(values)
            if layer == ask.layer if enough is None else found[layer].max() >= enough - _ROUNDING:
                break
        if ask.layer not in found:
            raise TierFault(Fault.WRONG, f"has no exit after layer {ask.layer}")
        # Deeper exits that were run without being asked for spare another request, as far as they are sound.
        for layer, values in zip(self.layers[len(found) :], logits[0][len(found) :], strict=True):
            if not np.isfinite(values).all():
                break
            found[layer] = softmax(values)
        self._ours = fingerprint is not None
        return found


@dataclass(slots=True, eq=False)
class _Talk:
    """How far asking a tier for one sample has come."""

    ask: Ask
    began: float
    attempts: int = 0

    @property
    def left_s(self) -> float:
        return self.ask.budget_s - (time.monotonic() - self.began)


def _refusal(status: int, headers: httpx.Headers, content: bytes) -> TierFault:
    """Return the failure that a status other than 200 means."""
    detail = f"HTTP {status}"
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        said = json.loads(content).get("error")
        detail += f": {_one_line(said)}" if isinstance(said, str) and said else ""
    if status in (401, 403):
        return TierFault(Fault.UNAUTHORISED, detail)
    if status in (429, 503):
        return TierFault(
            Fault.OVERLOADED if status == 429 else Fault.BROKEN,
            detail,
            retry_after_s=_retry_after_s(headers.get("retry-after")),
        )
    if status == 504:
        return TierFault(Fault.SLOW, detail)
    if status >= 500:
        return TierFault(Fault.BROKEN, detail)
    if status >= 400:
        return TierFault(Fault.REFUSED, detail)
    return TierFault(Fault.WRONG, detail)


def _retry_after_s(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header; a date in it counts as none."""
    if value is None or not value.strip().isdecimal() or not value.isascii():
        return None
    return min(float(value), _MAX_RETRY_AFTER_S)


def _layers(parameters: Mapping[str, object]) -> tuple[int, ...] | None:
    """Return the ascending layers that parameters name, None where they name none."""
    said = parameters.get(LAYERS)
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(said) if isinstance(said, str) else said
    if not isinstance(said, list) or not said or not all(type(each) is int for each in said):
        return None
    return tuple(said) if sorted(set(said)) == said else None


def _one_line(text: str, length: int = 160) -> str:
    """Return a server's words as a message may show them: short, on one line, without control characters."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text[:1_000]).split())
    return line if len(line) <= length else line[: length - 1] + "…"
