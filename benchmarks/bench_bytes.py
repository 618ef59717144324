"""What a text takes on its way to a tier and back: bodies, and all that our device's client and our server send.

The client asks a real server through a relay that counts what it passes on, a text a request, on a connection that
stays open. What TCP and TLS add is not counted.

    DIMEC_BUNDLE=... DIMEC_DATA=... python benchmarks/bench_bytes.py
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from typing import cast

import numpy as np

from bench_server import dimec_server
from dimec.bundle import Bundle
from dimec.core.tiers import Tier
from dimec.runtime.device.client import TierClient
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.device.response_checks import Ask
from subject import some_bundle, some_texts

TEXTS = 500


def main() -> None:
    texts, source = some_texts(TEXTS)
    plain = [len(json.dumps({"text": text}, ensure_ascii=False).encode()) for text in texts]
    print(f"bytes a text, {len(texts):,} texts of {source}; as raw JSON {np.mean(plain):.0f}")
    print("          request: body  with headers   response: body  with headers")
    with some_bundle() as bundle:
        for tier in ("edge", "cloud"):
            with dimec_server(tier, bundle.folder) as (port, _):
                sent, sent_whole, received, received_whole = asyncio.run(
                    count(bundle, cast(Tier, tier), texts, port)
                )
            print(f"{tier:8}{sent:14.0f}{sent_whole:14.0f}{received:17.0f}{received_whole:14.0f}")


async def count(
    bundle: Bundle, tier: Tier, texts: Sequence[str], port: int
) -> tuple[float, float, float, float]:
    passed, ended = {"up": 0, "down": 0}, asyncio.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        with contextlib.suppress(ConnectionError):
            while chunk := await reader.read(65536):
                passed[way] += len(chunk)
                writer.write(chunk)
                await writer.drain()
        writer.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        below, above = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(relay(reader, above, "up"), relay(below, writer, "down"))
        ended.set()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    client = TierClient(
        tier,
        f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}",
        settings=DeviceSettings(),
        tls=None,
        token=None,
        fingerprint=bundle.mobile.manifest.model_fingerprint,
        layers=None,
        n_classes=len(bundle.mobile.manifest.label_names),
    )
    tokenizer = bundle.mobile.tokenizer()

    async def ask(number: int, text: str) -> None:
        inputs = tokenizer.encode_one(text).named()
        layer = (client.layers or bundle.mobile.layers)[-1]
        # An id is as long as a device's.
        outcome = await client.ask(Ask(inputs, f"0123456789ab-{number}", layer, {}, 10.0))
        if outcome.probabilities is None:
            raise SystemExit(f"{tier} did not answer: {outcome.failures}")

    client.layers = await client._ask_layers()
    await ask(0, texts[0])  # from here on it knows the server for ours, which takes narrow integers
    begun = dict(passed), client.traffic.sent_bytes, client.traffic.received_bytes
    for number, text in enumerate(texts):
        await ask(number, text)
    n, traffic = len(texts), client.traffic
    figures = (
        (traffic.sent_bytes - begun[1]) / n,
        (passed["up"] - begun[0]["up"]) / n,
        (traffic.received_bytes - begun[2]) / n,
        (passed["down"] - begun[0]["down"]) / n,
    )
    await client.close()
    await ended.wait()
    server.close()
    await server.wait_closed()
    return figures


if __name__ == "__main__":
    main()
