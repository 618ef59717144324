"""The tier server: rows of token ids, of hidden states or of texts go in, the logits of its exits come out."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from dimec.runtime.server.app import Exchange, Service, off_loop, unless_left
from dimec.runtime.server.batching import Batcher, Job
from dimec.runtime.server.loading import load_model
from dimec.runtime.server.metrics import ServerMetrics
from dimec.runtime.server.openapi import openapi
from dimec.runtime.server.requests import VERSION, ServedModel, read_rows, unpacked_bytes
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import (
    EXIT_THRESHOLD,
    LOGITS,
    MASK,
    InferResponse,
    Parameters,
    decode_thresholds,
    encode_response,
)


class TierService(Service):
    """A tier: the endpoints, the model once it is loaded, and the queue in front of it."""

    def __init__(self, settings: ServerSettings, *, token: str | None) -> None:
        """Start without a model; without a token everybody is let in."""
        self._metrics = ServerMetrics()
        self._model: ServedModel | None = None
        self._batcher: Batcher | None = None
        self._parameters: Parameters = {}
        super().__init__(settings, token=token, metrics=self._metrics)

    async def load(self) -> str:
        """Load the tier and take requests from now on; returns its model's fingerprint."""
        model, runs = await asyncio.to_thread(load_model, self.settings)
        self._batcher = Batcher(
            runs,
            settings=self.settings,
            padding={"input_ids": model.padding},
            report=self._metrics.batch,
        )
        self._model, self._parameters = model, model.parameters
        self.describe()
        resumed = () if model.tails is None else model.tails.layers
        self._metrics.watch(self._batcher, model.layers, resumed=resumed)
        self.state = "ready"
        return model.fingerprint

    def hurry(self) -> None:
        """Run what is queued as soon as the engine is free."""
        if self._batcher is not None:
            self._batcher.hurry()

    def refuse_waiting(self) -> None:
        """Answer what has not begun to run with 503."""
        if self._batcher is not None:
            self._batcher.refuse_waiting()

    def close(self, limit_s: float) -> None:
        """Stop the engine."""
        if self._batcher is not None:
            self._batcher.close(limit_s)

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document of the tier."""
        return openapi(self.settings, self._model)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the tier."""
        assert self._model is not None
        return self._model.metadata()

    async def infer(self, request: Request, exchange: Exchange) -> Response:
        """Answer a request of the protocol for inference."""
        model, batcher = self._model, self._batcher
        assert model is not None and batcher is not None
        asked = await self.asked(request, exchange.headers)
        inputs, from_layer = await off_loop(
            unpacked_bytes(asked, model), lambda: read_rows(asked, model)
        )
        n_rows, length = inputs[MASK].shape
        exchange.fields.update(rows=n_rows, length=length)
        if from_layer:
            exchange.fields["from_layer"] = from_layer
        thresholds = decode_thresholds(
            asked.parameters.get(EXIT_THRESHOLD), n_exits=len(model.layers)
        )
        job = batcher.submit(
            inputs,
            thresholds=thresholds,
            deadline=self.deadline(asked, exchange),
            from_layer=from_layer,
        )
        logits = await unless_left(request, asyncio.ensure_future(batcher.answer(job)))
        answer = InferResponse(
            {LOGITS: logits},
            self._parameters,
            asked.id or exchange.request_id,
            model.name,
            VERSION,
        )
        binary = {LOGITS} if asked.wants_binary(LOGITS) else set()
        headers, content = await off_loop(
            logits.nbytes, lambda: encode_response(answer, binary=binary)
        )
        self._count(exchange, job, model, logits)
        if from_layer:
            self._metrics.resumed(from_layer, n_rows)
        return Response(content, headers=headers)

    def _count(
        self, exchange: Exchange, job: Job, model: ServedModel, logits: NDArray[np.float32]
    ) -> None:
        started = job.started or job.arrived
        queue, compute = started - job.arrived, job.finished - started
        self._metrics.times(queue=queue, compute=compute, total=time.monotonic() - exchange.arrived)
        if job.thresholds is None:
            exits = {model.layers[-1]: len(logits)}
        else:
            exits = model.last_exits(logits)
        for layer, rows in exits.items():
            self._metrics.exits(layer, rows)
        exchange.fields.update(
            queue_ms=round(queue * 1000, 2),
            compute_ms=round(compute * 1000, 2),
            exits={str(layer): rows for layer, rows in exits.items()},
        )
