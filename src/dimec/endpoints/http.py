"""HTTP to models of others: bounded answers, asked again after what passes; no cookies, no redirects, no proxies."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from typing import Any

import httpx

from dimec.core.errors import RefusedError, UnreachableError, quoted
from dimec.core.retry import retry_after_s

_MOST_BYTES = 2**20  # an answer about one text is never so large
_ATTEMPTS = 6


class Poster:
    """Posts JSON to one address."""

    def __init__(
        self, name: str, url: str, *, headers: Mapping[str, str], timeout_s: float
    ) -> None:
        """Take what messages call the endpoint, and its address."""
        self._name, self._url, self._timeout_s = name, url, timeout_s
        self._client = httpx.AsyncClient(
            headers={"accept-encoding": "identity", **headers},
            verify=ssl.create_default_context(),
            timeout=timeout_s,
            trust_env=False,
        )

    async def post(self, body: Mapping[str, Any]) -> tuple[Any, float]:
        """Return the JSON that a body is answered with, and the milliseconds of the attempt that succeeded.

        Raises:
            RefusedError: If the endpoint refuses the body for good; its status says how.
            UnreachableError: If there is no answer, or none that is JSON, however often it is asked.
        """
        why = ""
        for attempt in range(_ATTEMPTS):
            wait = 0.5 * 2**attempt
            began = time.perf_counter()
            try:
                async with asyncio.timeout(self._timeout_s):
                    status, headers, content = await self._attempt(body)
            except (httpx.HTTPError, TimeoutError, _TooLargeError) as exc:
                why = f"could not be reached, or broke off ({str(exc) or type(exc).__name__})"
            else:
                ms = 1000 * (time.perf_counter() - began)
                if 200 <= status < 300:
                    return self._parsed(content), ms
                why = f"answered {status}: {quoted(content.decode(errors='replace'))}"
                if status not in (408, 425, 429) and status < 500:
                    raise RefusedError(status, "refused", f"{self._name} {why}")
                asked_s = retry_after_s(headers.get("retry-after"))
                wait = wait if asked_s is None else asked_s
            if attempt < _ATTEMPTS - 1:
                await asyncio.sleep(wait)
        raise UnreachableError(f"{self._name} {quoted(why)}, {_ATTEMPTS} times")

    async def _attempt(self, body: Mapping[str, Any]) -> tuple[int, httpx.Headers, bytes]:
        self._client.cookies.clear()
        async with self._client.stream("POST", self._url, json=dict(body)) as response:
            content = b""
            async for piece in response.aiter_raw():
                content += piece
                if len(content) > _MOST_BYTES:
                    raise _TooLargeError(f"its answer is larger than {_MOST_BYTES:,} bytes")
            return response.status_code, response.headers, content

    def _parsed(self, content: bytes) -> Any:  # noqa: ANN401  any JSON value
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as exc:
            raise UnreachableError(
                f"{self._name} answered something else than JSON: "
                f"{quoted(content.decode(errors='replace'))}"
            ) from exc

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class _TooLargeError(Exception):
    """An answer has no end in sight."""
