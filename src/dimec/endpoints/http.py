"""Models of others over HTTP: bounded answers, asked again after what passes; no cookies, no redirects, no proxies."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

from dimec.core.errors import OptionError, OverloadedError, RefusedError, UnreachableError, quoted
from dimec.core.retry import retry_after_s
from dimec.endpoints.said import Said, Text

_MOST_BYTES = 2**20  # an answer about one text is never so large


@dataclass(frozen=True, slots=True)
class Access:
    """How an endpoint is asked.

    Attributes:
        key: What it knows its customer by; it is in no name, message or file.
        attempts: How often it is asked where that may help; a server's clients ask again by themselves.
    """

    key: str | None = field(default=None, repr=False)
    timeout_s: float = 60.0
    attempts: int = 6
    connections: int = 256


class Endpoint(ABC):
    """A model that is asked about one text at a time.

    Attributes:
        name: As the user gave it.
        key: What its answers are kept under; another one whenever an answer may be another.
    """

    key: str

    def __init__(self, name: str, url: str, access: Access | None) -> None:
        """Take its name, the address that texts are posted to, and how it is asked.

        Raises:
            OptionError: If the key holds what no header may.
        """
        access = access or Access()
        key = access.key
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise OptionError(
                f"the key for {name} holds blanks or characters that no header may hold: check it"
            )
        self.name, self._url, self._access = name, url, access
        self._client = httpx.AsyncClient(
            headers={
                "accept-encoding": "identity",
                **({} if key is None else {"authorization": f"Bearer {key}"}),
            },
            limits=httpx.Limits(max_connections=access.connections),
            verify=ssl.create_default_context(),
            timeout=access.timeout_s,
            trust_env=False,
        )

    @abstractmethod
    async def ask(self, text: Text) -> Said:
        """Ask about a text.

        Raises:
            UnreachableError: If it gives no answer, however often it is asked.
            OptionError: If it refuses what it was given, or has other classes.
        """

    async def close(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def _post(self, body: Mapping[str, Any]) -> tuple[Any, float]:
        """Return the JSON that a body is answered with, and the milliseconds of the attempt that succeeded.

        Raises:
            RefusedError: If it refuses the body for good; its status says how.
            OverloadedError: If it has too much to do, however often it is asked.
            UnreachableError: If there is no answer, or none that is JSON, however often it is asked.
        """
        return await self._asked("POST", self._url, body)

    async def _get(self, url: str) -> Any:  # noqa: ANN401  any JSON value
        """Return the JSON at another address of it; raises what `_post` raises."""
        return (await self._asked("GET", url, None))[0]

    async def _asked(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[Any, float]:
        why, attempts = "", self._access.attempts
        for attempt in range(attempts):
            wait, asked_s, status = 0.5 * 2**attempt, None, 0
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self._access.timeout_s):
                    status, headers, content = await self._attempt(method, url, body)
            except (httpx.HTTPError, TimeoutError, _TooLargeError) as exc:
                why = f"could not be reached, or broke off ({str(exc) or type(exc).__name__})"
            else:
                ms = 1000 * (time.perf_counter() - began)
                if 200 <= status < 300:
                    return self._parsed(content), ms
                why = f"answered {status}: {quoted(content.decode(errors='replace'))}"
                if status not in (408, 425, 429) and status < 500:
                    raise RefusedError(status, "refused", f"{self.name} {why}")
                asked_s = retry_after_s(headers.get("retry-after"))
                wait = wait if asked_s is None else asked_s
            if attempt < attempts - 1:
                await asyncio.sleep(wait)
        told = f"{self.name} {quoted(why)}" + (f", {attempts} times" if attempts > 1 else "")
        if status == 429:
            raise OverloadedError(told, retry_after_s=asked_s)
        raise UnreachableError(told)

    async def _attempt(
        self, method: str, url: str, body: Mapping[str, Any] | None
    ) -> tuple[int, httpx.Headers, bytes]:
        self._client.cookies.clear()
        document = None if body is None else dict(body)
        async with self._client.stream(method, url, json=document) as response:
            content = b""
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise _TooLargeError(f"its answer is larger than {_MOST_BYTES:,} bytes")
            if self._access.key:  # an endpoint may repeat it in what it says, which messages quote
                content = content.replace(self._access.key.encode(), b"***")
            return response.status_code, response.headers, content

    def _parsed(self, content: bytes) -> Any:  # noqa: ANN401  any JSON value
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as exc:
            raise UnreachableError(
                f"{self.name} answered something else than JSON: "
                f"{quoted(content.decode(errors='replace'))}"
            ) from exc


class _TooLargeError(Exception):
    """An answer has no end in sight."""
