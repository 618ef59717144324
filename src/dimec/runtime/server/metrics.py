"""What servers count, for Prometheus; every name starts with ``dimec_``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from dimec.endpoints.said import Said
from dimec.runtime.device.metrics import DeviceMetrics
from dimec.runtime.server.batching import Batcher, Job
from dimec.runtime.server.pool import TextPool
from dimec.runtime.server.scheduling import Piece, padded_tokens

_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)


class RequestMetrics:
    """What any server counts of its requests, in a registry of its own."""

    def __init__(self, *, seconds: str, stages: Sequence[str] = ("total",)) -> None:
        """Start at zero; ``seconds`` says what times are taken of an answered request, one for each stage."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.ready = self.gauge("ready", "1 while the server takes requests.")
        self.in_flight = self.gauge(
            "requests_in_flight", "Inference requests being read, queued or run."
        )
        responses = self.counter(
            "responses", "Inference requests by HTTP status; 499: the client left.", "status"
        )
        self.rejections = self.counter(
            "rejections", "Inference requests not answered, by reason.", "reason"
        )
        times = Histogram(
            "dimec_request_seconds", seconds, ["stage"], buckets=_SECONDS, registry=self.registry
        )
        # Looked up once: a look-up by label takes longer than what it is for.
        self._status = lru_cache(lambda status: responses.labels(str(status)))
        self._times = {stage: times.labels(stage) for stage in stages}

    def counter(self, name: str, about: str, label: str) -> Counter:
        """Add a counter."""
        return Counter(f"dimec_{name}", about, [label], registry=self.registry)

    def gauge(self, name: str, about: str) -> Gauge:
        """Add a gauge."""
        return Gauge(f"dimec_{name}", about, registry=self.registry)

    def answered(self, status: int) -> None:
        """Count an inference request that was answered, or left."""
        self._status(status).inc()

    def took(self, **seconds: float) -> None:
        """Count the times of a request that has its answer, by stage."""
        for stage, each in seconds.items():
            self._times[stage].observe(each)

    def page(self, accept: str) -> tuple[bytes, str]:
        """Return the page in a format that the reader accepts, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


class ServerMetrics(RequestMetrics):
    """What a tier's server counts besides."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__(
            seconds="Time of an answered request: in the queue, on the engine, from arrival to answer.",
            stages=("queue", "compute", "total"),
        )
        own = self.registry

        def histogram(name: str, about: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"dimec_{name}", about, buckets=buckets, registry=own)

        self._queue_requests = self.gauge("queue_requests", "Requests that wait.")
        self._queue_tokens = self.gauge("queue_tokens", "Padded tokens that wait.")
        self._batch_rows = histogram("batch_rows", "Rows of a batch.", _ROWS)
        self._batch_requests = histogram("batch_requests", "Requests of a batch.", _ROWS)
        self._batch_tokens = histogram("batch_tokens", "Padded tokens of a batch.", _TOKENS)
        tokens = self.counter(
            "tokens", "Tokens that the engine was given: real ones, and padding.", "kind"
        )
        self._exits = self.counter(
            "exits", "Rows by the layer of the last exit that they reached.", "layer"
        )
        self._resumed = self.counter(
            "resumed_rows",
            "Rows that went on from a hidden state, by the layer that it was of.",
            "from_layer",
        )
        self._real, self._padding = (tokens.labels(kind) for kind in ("real", "padding"))
        self._layer = lru_cache(lambda layer: self._exits.labels(str(layer)))

    def watch(
        self, batcher: Batcher, layers: Sequence[int], *, resumed: Sequence[int] = ()
    ) -> None:
        """Read the queue from a batcher whenever it is asked for; start every layer's counts at zero."""
        self._queue_requests.set_function(lambda: batcher.waiting_requests)
        self._queue_tokens.set_function(lambda: batcher.waiting_tokens)
        for layer in layers:
            self._exits.labels(str(layer))
        for layer in resumed:
            self._resumed.labels(str(layer))

    def batch(self, pieces: Sequence[Piece[Job]]) -> None:
        """Count a run of the engine."""
        padded, real = padded_tokens(pieces), sum(piece.real for piece in pieces)
        self._batch_rows.observe(sum(len(piece.rows) for piece in pieces))
        self._batch_requests.observe(len({id(piece.owner) for piece in pieces}))
        self._batch_tokens.observe(padded)
        self._real.inc(real)
        self._padding.inc(padded - real)

    def exits(self, layer: int, rows: int) -> None:
        """Count rows that left at a layer."""
        self._layer(layer).inc(rows)

    def resumed(self, layer: int, rows: int) -> None:
        """Count rows that went on from the hidden state after a layer."""
        self._resumed.labels(str(layer)).inc(rows)


class TextMetrics(RequestMetrics):
    """What a server of texts counts besides; its device counts texts, tiers and costs."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__(
            seconds="Time of an answered request, from arrival to answer; streams are not counted."
        )
        self._queue_requests = self.gauge("queue_requests", "Requests that are not answered.")
        self._queue_texts = self.gauge("queue_texts", "Their texts that are not answered.")

    def watch(self, device: DeviceMetrics, pool: TextPool) -> None:
        """Read a device and its queue whenever they are asked for."""
        self.registry.register(device)
        self._queue_requests.set_function(lambda: pool.waiting_requests)
        self._queue_texts.set_function(lambda: pool.waiting_texts)


class AskingMetrics(RequestMetrics):
    """What a tier that asks another model counts besides."""

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__(seconds="Time of an answered request, from arrival to answer.")
        self.queue_texts = self.gauge("queue_texts", "Texts that the model has not answered.")
        self._answers = self.counter(
            "model_answers", "Answers of the model: with a class, or with none.", "kind"
        )
        self._tokens = self.counter("model_tokens", "Tokens by the model's count.", "kind")
        self._billed = Counter(
            "dimec_billed",
            "What its answers cost, in the bundle's currency.",
            registry=self.registry,
        )
        for kind in ("class", "none"):
            self._answers.labels(kind)

    def asked(self, said: Said, billed: float) -> None:
        """Count an answer of the model."""
        self._answers.labels("none" if said.probabilities is None else "class").inc()
        self._tokens.labels("in").inc(said.tokens_in)
        self._tokens.labels("out").inc(said.tokens_out)
        self._billed.inc(billed)
