"""The tier server: rows of token ids, of hidden states or of texts go in, the logits of its exits come out."""

from __future__ import annotations

import asyncio
import json
import time
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response

from dimec.bundle import load_tier
from dimec.bundle.choosing import chosen_engine
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.errors import OptionError
from dimec.runtime.server.app import Exchange, Service, off_loop, unless_left
from dimec.runtime.server.batching import Batcher, Job, Run
from dimec.runtime.server.metrics import ServerMetrics
from dimec.runtime.server.openapi import openapi
from dimec.runtime.server.requests import (
    ServedModel,
    Tensor,
    logits_tensor,
    read_rows,
    said_of,
    text_tensor,
    unpacked_bytes,
)
from dimec.runtime.server.scheduling import Arrays
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import EXIT_THRESHOLD, HIDDEN, LOGITS, MASK, RESUMES_FROM, decode_thresholds


class TierService(Service):
    """A tier: the endpoints, the model once it is loaded, and the queue in front of it."""

    def __init__(self, settings: ServerSettings, *, token: str | None) -> None:
        """Start without a model; without a token everybody is let in."""
        self._metrics = ServerMetrics()
        document = openapi(settings, None)
        super().__init__(settings, token=token, metrics=self._metrics, document=document)

    async def load(self) -> str:
        """Load the tier and take requests from now on; returns its model's fingerprint."""
        self._model, runs = await asyncio.to_thread(_load, self.settings)
        manifest = self._model.manifest
        self._batcher = Batcher(
            runs,
            settings=self.settings,
            padding={"input_ids": manifest.pad_id},
            report=self._metrics.batch,
        )
        self._parameters = said_of(manifest)
        self.describe(openapi(self.settings, self._model))
        resumed = () if manifest.tails is None else manifest.tails.layers
        self._metrics.watch(self._batcher, manifest.layers, resumed=resumed)
        self.state = "ready"
        return manifest.model_fingerprint

    def hurry(self) -> None:
        """Run what is queued as soon as the engine is free."""
        self._batcher.hurry()

    def refuse_waiting(self) -> None:
        """Answer what has not begun to run with 503."""
        self._batcher.refuse_waiting()

    def close(self, limit_s: float) -> None:
        """Stop the engine."""
        self._batcher.close(limit_s)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the tier."""
        model, manifest = self._model, self._model.manifest
        inputs: list[Tensor] = [(name, "INT64", [-1, -1]) for name in manifest.inputs]
        inputs.append(text_tensor(pairs=manifest.task.pairs))
        parameters = said_of(manifest)
        if (tails := manifest.tails) is not None:
            shape = [-1, -1] if tails.bottleneck else [-1, -1, tails.width]
            inputs.append((model.state_name, tails.datatype, shape))
            parameters[RESUMES_FROM] = json.dumps(tails.layers)
        return self.described(
            manifest,
            platform=model.platform,
            inputs=inputs,
            outputs=[logits_tensor(manifest)],
            parameters=parameters,
        )

    async def infer(self, request: Request, exchange: Exchange) -> Response:
        """Answer a request of the protocol for inference."""
        model = self._model
        asked = await self.asked(request, exchange.headers)
        inputs, from_layer = await off_loop(
            unpacked_bytes(asked, model), lambda: read_rows(asked, model)
        )
        n_rows, length = inputs[MASK].shape
        exchange.fields.update(rows=n_rows, length=length)
        if from_layer:
            exchange.fields["from_layer"] = from_layer
        thresholds = decode_thresholds(
            asked.parameters.get(EXIT_THRESHOLD), n_exits=len(model.manifest.layers)
        )
        job = self._batcher.submit(
            inputs,
            thresholds=thresholds,
            deadline=self.deadline(asked, exchange),
            from_layer=from_layer,
        )
        logits = await unless_left(request, asyncio.ensure_future(self._batcher.answer(job)))
        response = await self.answer(asked, exchange, {LOGITS: logits}, self._parameters)
        self._count(exchange, job, model, logits)
        if from_layer:
            self._metrics.resumed(from_layer, n_rows)
        return response

    def _count(
        self, exchange: Exchange, job: Job, model: ServedModel, logits: NDArray[np.float32]
    ) -> None:
        started = job.started or job.arrived
        queue, compute = started - job.arrived, job.finished - started
        self._metrics.took(queue=queue, compute=compute, total=time.monotonic() - exchange.arrived)
        exits = model.last_exits(logits)
        for layer, rows in exits.items():
            self._metrics.exits(layer, rows)
        exchange.fields.update(
            queue_ms=round(queue * 1000, 2),
            compute_ms=round(compute * 1000, 2),
            exits={str(layer): rows for layer, rows in exits.items()},
        )


def _load(settings: ServerSettings) -> tuple[ServedModel, dict[int, Run]]:
    """Verify and open the tier; return it, and what runs rows by the layer that they stand at, each tried on a row.

    Raises:
        BundleError: If the bundle cannot be loaded.
        OptionError: If its folder holds another tier.
    """
    tier = load_tier(settings.bundle / settings.tier)
    manifest = tier.manifest
    if manifest.tier != settings.tier:
        raise OptionError(
            f"{settings.bundle / settings.tier} holds the {manifest.tier} tier, not {settings.tier}: "
            "give the folder that `dimec export` wrote"
        )
    name = chosen_engine(tier, settings.engine, threads=settings.threads)
    engine = TierEngine(tier, engine=name, threads=settings.threads, whole=True)
    model = ServedModel(manifest, settings, f"{name}_onnx", tier.tokenizer())
    tails = manifest.tails
    code = None if tails is None else tails.code

    def run(inputs: Arrays, thresholds: NDArray[np.float64] | None) -> NDArray[np.float32]:
        return engine.infer(TokenBatch.of(inputs), thresholds=thresholds)

    def resume(
        inputs: Arrays, thresholds: NDArray[np.float64] | None, *, layer: int
    ) -> NDArray[np.float32]:
        state, mask = inputs[HIDDEN], inputs[MASK]
        if code is not None:  # one token of each pool holds its numbers
            numbers = np.ascontiguousarray(state[:, :: code.pool])
            state = engine.restore(numbers, n_tokens=mask.shape[1])
        return engine.resume(
            state, mask, from_layer=layer, thresholds=thresholds, restored=code is not None
        )

    runs: dict[int, Run] = {0: run}
    first: Arrays = {
        name: np.full((1, 4), name != "token_type_ids", dtype=np.int64) for name in manifest.inputs
    }
    never = np.full((1, len(engine.layers)), np.inf)
    for thresholds in (None, never):  # with thresholds the engine runs the graph in pieces
        run(first, thresholds)
    if tails is not None:
        state: Arrays = {
            HIDDEN: np.zeros((1, 4, tails.width), dtype=np.float32),
            MASK: np.ones((1, 4), dtype=np.int64),
        }
        runs.update((layer, partial(resume, layer=layer)) for layer in tails.layers)
        for layer in tails.layers:
            runs[layer](state, None)
    return model, runs
