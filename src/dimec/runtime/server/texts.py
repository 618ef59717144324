"""The whole cascade for callers that have texts: text-embeddings-inference's API, the protocol's BYTES, and streams.

Bodies are checked by hand rather than by a model, since each API has its own words and statuses for what is wrong.
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dimec.core.errors import shown
from dimec.core.tiers import Answer
from dimec.core.version import __version__
from dimec.runtime.device.device import Device
from dimec.runtime.device.sample import Text
from dimec.runtime.server.app import Exchange, Service, unless_left
from dimec.runtime.server.batching import expired
from dimec.runtime.server.metrics import TextMetrics
from dimec.runtime.server.openapi import openapi_of_texts
from dimec.runtime.server.pool import TextPool, size_of
from dimec.runtime.server.requests import (
    check_most,
    check_outputs,
    invalid,
    read_texts,
    text_tensor,
    texts_of,
)
from dimec.runtime.server.settings import ServeOptions, read_token
from dimec.runtime.server.streaming import LineStream
from dimec.runtime.wire import MODEL_FINGERPRINT, decode_json

_ERROR_TYPES = {413: "validation", 422: "validation", 429: "overloaded", 503: "unhealthy"}
"""What text-embeddings-inference calls an error, by status; anything else is of the backend."""
_OUTPUTS = {
    "label": "BYTES",
    "probabilities": "FP32",
    "tier": "BYTES",
    "layer": "INT64",
    "cost": "FP64",
    "degraded": "BYTES",
}


class TextService(Service):
    """The cascade: the endpoints, the device once its bundle is loaded, and the queue in front of it."""

    settings: ServeOptions

    def __init__(self, settings: ServeOptions, *, token: str | None) -> None:
        """Start without a device; without a token everybody is let in."""
        self._metrics = TextMetrics()
        document = openapi_of_texts(settings)
        super().__init__(settings, token=token, metrics=self._metrics, document=document)
        self.stopping = asyncio.Event()
        """Set once the server stops: streams end."""
        self.posts = {"/": self._root, "/predict": self._predict, "/stream": self._stream}

    async def load(self) -> str:
        """Load the bundle and take requests from now on; returns its model's fingerprint."""
        settings = self.settings
        self.device = await asyncio.to_thread(
            lambda: Device(
                settings.bundle,
                edge=settings.edge,
                cloud=settings.cloud,
                token=read_token(settings.tiers_token_file, os.environ),
                state=settings.state,
                settings=settings,
            )
        )
        self.pool = TextPool(self.device, settings=settings)
        self._metrics.watch(self.device.metrics, self.pool)
        self.state = "ready"
        return self.device.manifest.model_fingerprint

    def hurry(self) -> None:
        """End the streams behind the lines that were read."""
        self.stopping.set()

    def refuse_waiting(self) -> None:
        """Answer what is not answered with 503."""
        self.pool.refuse_waiting()

    def close(self, limit_s: float) -> None:
        """Stop the workers and close the device."""
        self.pool.close(limit_s)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the cascade."""
        device, n_classes = self.device, len(self.device.label_names)
        return self.described(
            device.manifest,
            inputs=[text_tensor(pairs=device.pairs)],
            outputs=[
                (name, datatype, [-1, n_classes] if name == "probabilities" else [-1])
                for name, datatype in _OUTPUTS.items()
            ],
            parameters={MODEL_FINGERPRINT: device.manifest.model_fingerprint},
        )

    def page(self, path: str, exchange: Exchange) -> Response | None:
        """Return what stands at a path, text-embeddings-inference's too."""
        if path == "/health":
            ready = self.state == "ready"
            told = "" if ready else f"the server is {self.state}"
            return Response() if ready else JSONResponse(self.error_document(503, told), 503)
        if path == "/info" and self.state != "starting":
            return JSONResponse(self._info())
        return super().page(path, exchange)

    def error_document(self, status: int, message: str) -> dict[str, Any]:
        """Return an error that both protocols read."""
        return {"error": message, "error_type": _ERROR_TYPES.get(status, "backend")}

    def _info(self) -> dict[str, Any]:
        manifest, names = self.device.manifest, self.device.label_names
        classes = {
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }
        return {
            "model_id": manifest.task.name,
            "model_sha": manifest.model_fingerprint,
            "model_dtype": "float32",
            "model_type": {"classifier": classes},
            "max_concurrent_requests": self.settings.queue_requests,
            "max_input_length": manifest.max_length,
            "max_batch_tokens": self.settings.queue_tokens,
            "max_client_batch_size": self.settings.max_rows,
            "auto_truncate": True,
            "tokenization_workers": self.settings.workers,
            "version": __version__,
        }

    async def infer(self, request: Request, exchange: Exchange) -> Response:
        """Answer a request of the protocol for inference."""
        device = self.device
        asked = await self.asked(request, exchange.headers)
        check_outputs(asked, list(_OUTPUTS))
        sides = read_texts(asked, pairs=device.pairs, max_rows=self.settings.max_rows)
        texts = list(zip(*sides, strict=True)) if device.pairs else sides[0]
        answers = await self._answers(request, exchange, texts, self.deadline(asked, exchange))
        outputs = {
            name: array
            for name, array in _tensors(answers).items()
            if name in asked.outputs or not asked.outputs
        }
        said = {MODEL_FINGERPRINT: device.manifest.model_fingerprint}
        return await self.answer(asked, exchange, outputs, said)

    async def _predict(self, request: Request, exchange: Exchange) -> Response:
        """Answer as text-embeddings-inference does."""
        document = await self._object(request, exchange)
        found, single = await self._predictions(request, exchange, document)
        return JSONResponse(found[0] if single else found)

    async def _root(self, request: Request, exchange: Exchange) -> Response:
        """Answer as the hub's inference API does: a list for every text, of one text too."""
        document = await self._object(request, exchange)
        options = document.get("parameters") or {}
        if not isinstance(options, dict):
            raise invalid(f"parameters is {shown(options)}: it must be an object")
        top_k, function = options.get("top_k"), options.get("function_to_apply")
        if top_k is not None and (type(top_k) is not int or top_k < 1):
            raise invalid(f"top_k is {shown(top_k)}: it must be a number from 1 up")
        if function not in (None, "softmax", "none"):
            raise invalid(f"function_to_apply is {shown(function)}: it must be softmax or none")
        document["raw_scores"] = function == "none"
        found, _ = await self._predictions(request, exchange, document)
        return JSONResponse([each[:top_k] for each in found])

    async def _stream(self, request: Request, exchange: Exchange) -> Response:
        """Answer texts line by line."""
        return LineStream(self, exchange)

    async def _object(self, request: Request, exchange: Exchange) -> dict[str, Any]:
        found = await self.decoded(
            request, exchange.headers, lambda body: decode_json(body, limits=self.limits)
        )
        if not isinstance(found, dict):
            raise invalid(f"the body is {shown(found)}: it must be an object with inputs")
        return found

    async def _predictions(
        self, request: Request, exchange: Exchange, document: Mapping[str, Any]
    ) -> tuple[list[list[dict[str, Any]]], bool]:
        """Return the scores of all classes for every text, the largest first, and whether there is one text alone."""
        device = self.device
        for name in ("raw_scores", "truncate"):
            if document.get(name) not in (None, False, True):
                raise invalid(f"{name} is {shown(document[name])}: it must be true or false")
        texts, single = texts_of(document.get("inputs"), pairs=device.pairs)
        check_most("texts", len(texts), self.settings.max_rows, "send fewer at a time")
        if document.get("truncate") is False:
            await asyncio.to_thread(_check_lengths, device, texts)
        answers = await self._answers(request, exchange, texts, self.deadline(None, exchange))
        names, raw = device.label_names, document.get("raw_scores") is True
        return [_scores(answer, names, raw=raw) for answer in answers], single

    async def _answers(
        self, request: Request, exchange: Exchange, texts: Sequence[Text], deadline: float
    ) -> list[Answer]:
        """Return the answers to texts.

        Raises:
            RefusedError: If the queue is full (429), or the deadline has passed (504).
            ClientDisconnect: If the client leaves before.
        """
        pool = self.pool
        exchange.fields["rows"] = len(texts)
        with pool.place(sum(map(size_of, texts))):
            futures = pool.submit(texts, request_id=exchange.request_id, span=exchange.span)
            try:
                async with asyncio.timeout(deadline - time.monotonic()):
                    answers = await unless_left(request, asyncio.gather(*futures))
            except TimeoutError as exc:
                raise expired() from exc
            finally:
                for future in futures:
                    future.cancel()
        self._metrics.took(total=time.monotonic() - exchange.arrived)
        degraded = sum(answer.degraded is not None for answer in answers)
        if degraded:
            exchange.fields["degraded"] = degraded
        return answers


def _check_lengths(device: Device, texts: Sequence[Text]) -> None:
    sides = [[text] if isinstance(text, str) else text for text in texts]
    firsts, seconds = [side[0] for side in sides], [side[-1] for side in sides]
    tokens = device.tokenizer.encode(firsts, seconds if device.pairs else None)
    if tokens.cut.any():
        raise invalid(
            f"text {int(tokens.cut.argmax())} has more than {device.manifest.max_length} tokens: cut it, or leave "
            "out truncate, so that it is cut here"
        )


def _scores(answer: Answer, names: Sequence[str], *, raw: bool) -> list[dict[str, Any]]:
    """Return the score of every class, the largest first; raw ones are logarithms."""
    scores = [
        {"score": math.log(max(each, sys.float_info.min)) if raw else each, "label": name}
        for each, name in zip(answer.probabilities, names, strict=True)
    ]
    return sorted(scores, key=lambda each: each["score"], reverse=True)


def _tensors(answers: Sequence[Answer]) -> dict[str, NDArray[Any]]:
    return {
        "label": np.array([answer.label for answer in answers], dtype=object),
        "probabilities": np.array([answer.probabilities for answer in answers], dtype=np.float32),
        "tier": np.array([str(answer.tier) for answer in answers], dtype=object),
        "layer": np.array([answer.layer for answer in answers], dtype=np.int64),
        "cost": np.array([answer.cost for answer in answers], dtype=np.float64),
        "degraded": np.array([answer.degraded or "" for answer in answers], dtype=object),
    }
