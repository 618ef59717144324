"""A tier that asks another model: texts come in, its endpoint is asked about each, and logits go out.

The key stays here. What the endpoint does wrong becomes a status that a device understands: too much to do is 429 with
the pause that it asks for, no answer is 502, no answer in time 504. An answer that names no class is marked as such, so
that it is paid for and not believed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import Response

from dimec.bundle import load_tier
from dimec.bundle.manifest import TOKENIZER
from dimec.core.errors import (
    DimecError,
    OptionError,
    OverloadedError,
    RefusedError,
    UnreachableError,
)
from dimec.endpoints.http import Access
from dimec.endpoints.opening import KEY_VARIABLE, Address, open_endpoint, read_key
from dimec.endpoints.prices import Price
from dimec.endpoints.said import Said, Text
from dimec.runs.exit_table import logits_of
from dimec.runtime.server.app import Exchange, Service, unless_left
from dimec.runtime.server.batching import expired, queue_full
from dimec.runtime.server.logs import say
from dimec.runtime.server.metrics import AskingMetrics
from dimec.runtime.server.openapi import openapi
from dimec.runtime.server.requests import (
    check_outputs,
    logits_tensor,
    read_texts,
    said_of,
    text_tensor,
)
from dimec.runtime.server.settings import ServerSettings
from dimec.runtime.wire import ABSTAINED, BILLED, LOGITS


class AskingService(Service):
    """The endpoints of a tier that asks another model, and the questions that are open."""

    def __init__(self, settings: ServerSettings, *, token: str | None) -> None:
        """Start without a model; without a token everybody is let in."""
        self._metrics = AskingMetrics()
        self._turns = asyncio.Semaphore(settings.at_once)
        self._waiting = 0
        self._took_s = 1.0
        self._open: set[asyncio.Future[list[Said]]] = set()
        self._stopped = False
        document = openapi(settings, None)
        super().__init__(settings, token=token, metrics=self._metrics, document=document)

    async def load(self) -> str:
        """Read the tier, and take requests from now on; the model is first asked about a text."""
        settings = self.settings
        tier = await asyncio.to_thread(load_tier, settings.bundle / settings.tier)
        manifest = self._manifest = tier.manifest
        if manifest.tier != settings.tier or not tier.asks:
            raise OptionError(
                f"--model {settings.model}: the {settings.tier} tier of {settings.bundle} holds the encoder: export "
                f"the run with --{settings.tier}-model, or leave --model out"
            )
        model = tier.asked_model()
        given = settings.model or model.address
        address = None if given is None else Address.of(given, option="--model")
        if address is None:
            raise OptionError(
                f"--model {settings.model or model.name}: a server asks chat:URL#MODEL, tei:URL or oip:URL#MODEL: "
                "serve the model by one of these, and give its address"
            )
        self._price = (
            model.price if settings.model_price is None else Price.of(settings.model_price)
        )
        self._fee = model.fee
        named = settings.model is not None
        if not named and KEY_VARIABLE in os.environ:
            told = f"{KEY_VARIABLE} is not sent to an address that only the bundle names: give it as --model"
            say(told, level=logging.WARNING, model=str(address))
        access = Access(
            key=read_key(address, settings.model_key_file, named=named),
            timeout_s=settings.max_deadline_ms / 1000,
            attempts=1,
            connections=settings.at_once,
        )
        names, pairs = manifest.label_names, manifest.task.pairs
        has_ids = address.kind == "oip" and TOKENIZER in manifest.files
        self._endpoint = open_endpoint(
            address,
            model.question,
            names,
            pairs=pairs,
            access=access,
            encode=tier.tokenizer().ids if has_ids else None,
        )
        self._loop = asyncio.get_running_loop()
        self._metrics.queue_texts.set_function(lambda: self._waiting)
        say("asks", model=str(address), fitted_to=model.name)
        self.state = "ready"
        return manifest.model_fingerprint

    def hurry(self) -> None:
        """Nothing waits for company here."""

    def refuse_waiting(self) -> None:
        """Answer what is not answered with 503."""
        self._stopped = True
        for each in list(self._open):
            each.cancel()

    def close(self, limit_s: float) -> None:
        """Close the connections to the model."""
        asyncio.run_coroutine_threadsafe(self._endpoint.close(), self._loop).result(limit_s)

    def metadata(self) -> dict[str, Any]:
        """Return the protocol's description of the tier."""
        manifest = self._manifest
        return self.described(
            manifest,
            inputs=[text_tensor(pairs=manifest.task.pairs)],
            outputs=[logits_tensor(manifest)],
            parameters=said_of(manifest),
        )

    async def infer(self, request: Request, exchange: Exchange) -> Response:
        """Ask the model about the texts of a request."""
        manifest = self._manifest
        asked = await self.asked(request, exchange.headers)
        check_outputs(asked, [LOGITS])
        sides = read_texts(asked, pairs=manifest.task.pairs, max_rows=self.settings.max_rows)
        texts = list(zip(*sides, strict=True))
        exchange.fields["rows"] = len(texts)
        said = await self._answered(request, exchange, texts, self.deadline(asked, exchange))
        n_classes = len(manifest.label_names)
        logits = np.full((len(said), 1, n_classes), np.nan, dtype=np.float32)
        for row, each in zip(logits, said, strict=True):
            if each.probabilities is not None:
                row[0] = logits_of(np.array(each.probabilities))
        billed = sum(map(self._bill, said))
        parameters = {**said_of(manifest), BILLED: billed}
        exchange.fields["billed"] = billed
        if any(each.probabilities is None for each in said):
            parameters[ABSTAINED] = exchange.fields[ABSTAINED] = True
        response = await self.answer(asked, exchange, {LOGITS: logits}, parameters)
        self._metrics.took(total=time.monotonic() - exchange.arrived)
        return response

    async def _answered(
        self, request: Request, exchange: Exchange, texts: Sequence[Text], deadline: float
    ) -> list[Said]:
        """Return what the model says of texts, within the time that their caller has.

        Raises:
            RefusedError: If too much waits, here (429) or there (429), the model gives no answer (502), or time is over
                (504).
        """
        most = self.settings.queue_requests
        if self._waiting + len(texts) > most and self._waiting:
            clears_s = self._took_s * self._waiting / self.settings.at_once
            raise queue_full(f"{self._waiting} texts", f"{most}", clears_s)
        self._waiting += len(texts)
        answers = asyncio.ensure_future(self._ask_all(texts))
        self._open.add(answers)
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await unless_left(request, answers)
        except TimeoutError as exc:
            raise expired() from exc
        except asyncio.CancelledError:
            if self._stopped:
                told = "the server stopped before the model answered"
                raise RefusedError(503, "draining", told) from None
            raise
        except DimecError as exc:
            raise self._refusal(exc, exchange) from exc
        finally:
            self._waiting -= len(texts)
            self._open.discard(answers)
            answers.cancel()

    async def _ask_all(self, texts: Sequence[Text]) -> list[Said]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._ask(text)) for text in texts]
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        return [each.result() for each in tasks]

    async def _ask(self, text: Text) -> Said:
        async with self._turns:
            began = time.monotonic()
            said = await self._endpoint.ask(text)
        self._took_s += (time.monotonic() - began - self._took_s) * 0.1
        self._metrics.asked(said, self._bill(said))
        return said

    def _bill(self, said: Said) -> float:
        return self._fee if self._price is None else self._price.of_answer(said)

    def _refusal(self, exc: DimecError, exchange: Exchange) -> DimecError:
        """Return what a fault of the model is to the caller; the log has its words, which may name what is private."""
        if not isinstance(exc, OptionError | UnreachableError):
            return exc
        say(
            "no answer of the model",
            level=logging.WARNING,
            request_id=exchange.request_id,
            reason=str(exc),
        )
        if isinstance(exc, OverloadedError):
            wait_s = max(1, math.ceil(exc.retry_after_s or 0.0))
            return RefusedError(
                429, "model busy", "the model has too much to do", retry_after_s=wait_s
            )
        if isinstance(exc, OptionError):
            return RefusedError(502, "model refused", "the model refuses what it is asked")
        return RefusedError(502, "no model", "the model gave no answer that can be used")
