"""The client of a tier's server: sends a sample's token ids or hidden state, returns the exits' logits or a `Failure`.

`TierClient.ask` never raises and never takes longer than it is given. It retries where that is safe, leaves a tier
alone that keeps failing, bounds what it reads, and checks every answer: id, model, layers, type, shape, numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import random
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from dimec.core import tracing
from dimec.core.errors import OptionError, WireError, quoted, shown
from dimec.core.tiers import Tier, softmax
from dimec.runtime import wire
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.resilience import (
    RETRIED,
    Breaker,
    Failure,
    Fault,
    Pass,
    TierFault,
    backoff_s,
    fault_of,
    refusal,
)

if TYPE_CHECKING:
    # It takes as long to import as half of the device: only where there are servers.
    import httpx
    from opentelemetry.trace import Span

_ROUNDING = 1e-6
"""How far below a threshold a server may have left an exit: it may round otherwise than this device."""
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


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
        inputs: [1, length] integers, by the names of the graphs' inputs; or the text, for a tier that asks a model.
        request_id: The device's id of the text.
        layer: The layer of the exit that is needed.
        exit_thresholds: The confidence from which that exit, or one after it, is enough, by layer.
        budget_s: How long it may take, all attempts together.
        resumes: The hidden state that is sent in place of the tokens; None where these are.
        span: The text's span, below which the requests are; None where nobody traces.
    """

    tier: Tier
    inputs: Mapping[str, NDArray[Any]]
    request_id: str
    layer: int
    exit_thresholds: Mapping[int, float]
    budget_s: float
    resumes: Resumption | None = None
    span: Span | None = None

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
class Outcome:
    """What became of asking a tier.

    Attributes:
        probabilities: By the layers of the exits that were reached, [classes] float64 each; None without an answer.
        failures: What went wrong, in order.
        attempts: How many requests were sent.
        billed: What the model that the tier asks took for them, whatever it said; None where the tier does not say.
    """

    probabilities: Mapping[int, NDArray[np.float64]] | None
    failures: tuple[Failure, ...]
    attempts: int
    elapsed_s: float
    billed: float | None = None


@dataclass(slots=True)
class Traffic:
    """Requests sent to a tier's server, and the bytes of their bodies and of the responses' bodies."""

    requests: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0


def checked_url(url: str, *, option: str, token: str | None, settings: DeviceSettings) -> str:
    """Return a server's base URL without a slash at its end.

    Raises:
        OptionError: If it is no URL of a server, or the token would cross a network in the clear.
    """
    if "@" in url:  # a password, which no message repeats
        raise OptionError(
            f"{option} must be no more than http://HOST:PORT/PATH: a token is given apart, by file or DIMEC_TOKEN"
        )
    fault = _fault_of_url(url, sends_token=token is not None and settings.token_needs_tls)
    if fault is not None:
        raise OptionError(f"{option} {url if len(url) <= 100 else f'{url[:97]}...'!a} {fault}")
    return url.rstrip("/")


def _fault_of_url(url: str, *, sends_token: bool) -> str | None:
    import httpx

    if not url.isprintable() or set(url) & set(' \\"<>^`{|}'):
        return "holds blanks or characters that no URL may hold: give http://HOST:PORT"
    try:
        parts = urlsplit(url)
        port = parts.port
        httpx.URL(url)  # what it cannot read could not be asked either
    except (ValueError, httpx.InvalidURL) as exc:
        return f"is no URL ({exc}): give http://HOST:PORT"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return "is no URL of a server: give http://HOST:PORT or https"
    if "?" in url or "#" in url:
        return "must be no more than http://HOST:PORT/PATH: leave out what begins with ? or #"
    if "v2" in unquote(parts.path).lower().split("/"):
        return "holds a path of the protocol, which is added by itself: give what stands before it"
    if sends_token and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
        return (
            "would send the token unencrypted to another machine: use https, or allow it with token_needs_tls=False "
            "(--plain-token)"
        )
    return None


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
    import httpx

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


class Client(ABC):
    """What a device asks about a tier that is not in its process.

    Attributes:
        layers: Its exits' layers; None where they are not known yet.
        lasting: What runs to its end although the device is closed; `close` waits for it.
    """

    tier: Tier
    layers: tuple[int, ...] | None
    traffic: Traffic
    lasting: Set[asyncio.Task[Any]] = frozenset()

    @abstractmethod
    async def ask(self, ask: Ask) -> Outcome:
        """Ask for one sample."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connections."""


class TierClient(Client):
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
        """Take whom to ask, by a checked base URL, and what an answer has to be like.

        ``layers`` are those of its exits; None where the bundle lacks the tier, so that the server has to say them.
        """
        import httpx

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
        self._limits = wire.Limits(body_bytes=settings.max_response_bytes)
        self._ours = False
        self._not_before = 0.0
        headers = {"Accept-Encoding": "identity", "User-Agent": "dimec"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._http = httpx.AsyncClient(
            headers=headers,
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none is kept or sent
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
            if given is None:
                last = self.breaker.last
                detail = "" if last is None else quoted(f"{last.fault}, {last.detail}")
                failures = failures or [Failure(Fault.RESTING, detail)]
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
        return Outcome(probabilities, tuple(failures), talk.attempts, elapsed_s, talk.billed)

    def _count(self, given: Pass, failure: Failure) -> None:
        if failure.fault in (Fault.REFUSED, Fault.WRONG):
            # Another server may stand there now, which takes no narrow integers and has other layers.
            self._ours, self.layers = False, self._bundle_layers
        if failure.retry_after_s is not None:
            self._not_before = max(self._not_before, time.monotonic() + failure.retry_after_s)
        if failure.fault is Fault.OVERLOADED:
            self.breaker.left(given)  # it is well, and says itself when to come back
        elif failure.fault is Fault.SILENT:
            self.breaker.succeeded(given)  # it is well, and this text was beyond its model
        else:
            self.breaker.failed(given, failure)

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
        if given.probes:
            await self._get(f"{self._model}/ready")
        if self.layers is None:
            self.layers = await self._ask_layers()
        talk.attempts += 1
        request_id = f"{talk.ask.request_id}.{self.tier}.{talk.attempts}"
        headers, body = self._encode(talk, request_id)
        self.traffic.requests += 1
        self.traffic.sent_bytes += len(body)
        span = (
            tracing.begin("ask a tier", "CLIENT", parent=talk.ask.span) if talk.ask.span else None
        )
        told: dict[str, Any] = {"tier": str(self.tier), "request_id": request_id}
        try:
            status, answered, content = await self._send(
                "POST", f"{self._model}/infer", {**headers, **tracing.headers_of(span)}, body
            )
            told |= {"status": status, "received_bytes": len(content)}
            if status != 200:
                raise refusal(status, answered, content)
        except BaseException as exc:
            told["error"] = type(exc).__name__
            raise
        finally:
            tracing.end(span, sent_bytes=len(body), **told)
        self.traffic.received_bytes += len(content)
        try:
            response = wire.decode_response(answered, content, limits=self._limits)
        except WireError as exc:
            raise TierFault(Fault.WRONG, quoted(str(exc))) from exc
        billed = response.parameters.get(wire.BILLED)
        if isinstance(billed, int | float) and not isinstance(billed, bool) and billed >= 0:
            talk.billed = (talk.billed or 0.0) + billed
        found = self._believed(response, talk.ask, request_id, self.layers)
        self._ours = wire.MODEL_FINGERPRINT in response.parameters
        return found

    def _believed(
        self, response: wire.InferResponse, ask: Ask, request_id: str, layers: tuple[int, ...]
    ) -> dict[int, NDArray[np.float64]]:
        """Return the probabilities by layer of an answer that is as it has to be.

        Raises:
            TierFault: If it is not.
        """
        self._check_sender(response, request_id, layers)
        if response.parameters.get(wire.ABSTAINED) is True:
            raise TierFault(Fault.SILENT)
        logits = response.outputs.get(wire.LOGITS)
        shape = (1, len(layers), self._n_classes)
        if logits is None:
            raise TierFault(Fault.WRONG, f"holds no tensor {wire.LOGITS}")
        if logits.dtype != np.float32 or logits.shape != shape:
            found = f"{logits.dtype} {list(logits.shape)}"
            raise TierFault(Fault.WRONG, f"{wire.LOGITS} are {found}, not float32 {list(shape)}")
        # Exits up to the layer that was resumed from were not read: whatever stands there says nothing.
        begin = 0 if ask.resumes is None else ask.resumes.from_layer
        read = [each for each in zip(layers, logits[0], strict=True) if each[0] > begin]
        given = ask.thresholds(layers)
        enough = None if given is None else dict(zip(layers, given, strict=True))
        believed: dict[int, NDArray[np.float64]] = {}
        for layer, values in read:
            if not np.isfinite(values).all():
                raise TierFault(Fault.WRONG, f"no finite {wire.LOGITS} at layer {layer}")
            believed[layer] = softmax(values)
            if enough is None:
                last = layer == ask.layer
            else:
                last = believed[layer].max() >= enough[layer] - _ROUNDING
            if last:
                break
        if ask.layer not in believed:
            raise TierFault(Fault.WRONG, f"has no exit after layer {ask.layer}")
        # Deeper exits that were run without being asked for spare another request, as far as they are sound.
        for layer, values in read[len(believed) :]:
            if not np.isfinite(values).all():
                break
            believed[layer] = softmax(values)
        return believed

    def _check_sender(
        self, response: wire.InferResponse, request_id: str, layers: tuple[int, ...]
    ) -> None:
        """Check that it is the answer to this request, by the model that was asked."""
        said = response.parameters
        if response.id != request_id:
            raise TierFault(Fault.WRONG, f"answers another request, {shown(response.id)}")
        fingerprint = said.get(wire.MODEL_FINGERPRINT)
        if fingerprint is None and self._settings.needs_fingerprint:
            raise TierFault(Fault.WRONG, "does not say which model it runs")
        if fingerprint is not None and fingerprint != self._fingerprint:
            other = quoted(str(fingerprint))[:12]
            raise TierFault(Fault.WRONG, f"runs another model, {other}, than the bundle's")
        if wire.LAYERS in said and _said_layers(said) != layers:
            raise TierFault(Fault.WRONG, f"has exits after other layers than {list(layers)}")

    def _encode(self, talk: _Talk, request_id: str) -> tuple[dict[str, str], bytes]:
        ask, resumes = talk.ask, talk.ask.resumes
        assert self.layers is not None
        inputs: dict[str, NDArray[Any]] = {
            name: array
            if array.dtype == object
            else wire.narrow(array)
            if self._ours
            else np.asarray(array, dtype=np.int64)
            for name, array in ask.inputs.items()
            if resumes is None or name == wire.MASK
        }
        parameters: dict[str, float | str] = {wire.DEADLINE_MS: max(1.0, 1_000 * talk.left_s)}
        thresholds = ask.thresholds(self.layers)
        if thresholds is not None:
            parameters[wire.EXIT_THRESHOLD] = wire.encode_thresholds(thresholds)
        if resumes is not None:
            inputs[resumes.name] = resumes.state
            parameters[wire.FROM_LAYER] = resumes.from_layer
        request = wire.InferRequest(inputs, parameters, request_id, binary_output=True)
        headers, body = wire.encode_request(request)
        return {**headers, wire.REQUEST_ID: request_id}, body

    async def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None
    ) -> tuple[int, httpx.Headers, bytes]:
        """Return status, headers and body of an answer, of which no more is read than is allowed."""
        import httpx

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
        except httpx.HTTPError as exc:
            raise fault_of(exc) from exc

    async def _get(self, url: str) -> bytes:
        """Return the body of what a server answers at once, or not at all."""
        try:
            async with asyncio.timeout(self._settings.probe_ms / 1_000):
                status, headers, content = await self._send("GET", url, {}, None)
        except TimeoutError as exc:
            raise TierFault(Fault.SLOW, f"no sign after {self._settings.probe_ms:g} ms") from exc
        if status != 200:
            raise refusal(status, headers, content)
        return content

    async def _ask_layers(self) -> tuple[int, ...]:
        """Ask the server for the layers of its exits."""
        content = await self._get(self._model)
        parameters: object = None
        with contextlib.suppress(ValueError, RecursionError):
            document = json.loads(content)
            parameters = document.get("parameters") if isinstance(document, dict) else None
        layers = _said_layers(parameters) if isinstance(parameters, dict) else None
        if layers is None:
            told = "does not say after which layers its exits are, and the bundle lacks the tier"
            raise TierFault(Fault.WRONG, told)
        return layers


@dataclass(slots=True, eq=False)
class _Talk:
    """How far asking a tier for one sample has come."""

    ask: Ask
    began: float
    attempts: int = 0
    billed: float | None = None

    @property
    def left_s(self) -> float:
        return self.ask.budget_s - (time.monotonic() - self.began)


def _said_layers(parameters: Mapping[str, object]) -> tuple[int, ...] | None:
    """Return the ascending layers that parameters name, None where they name none."""
    said = parameters.get(wire.LAYERS)
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(said) if isinstance(said, str) else said
    if not isinstance(said, list) or not said or not all(type(each) is int for each in said):
        return None
    return tuple(said) if sorted(set(said)) == said else None
