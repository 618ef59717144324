"""Python's device does what is expected of a device in any language, by the file that the others are held to."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conformance import write
from tests.misbehaving import BadServer, Request, dead_url, http, never

from dimec.bundle import Bundle, load_bundle, load_tier
from dimec.bundle.engines import TierEngine
from dimec.core.tiers import Tier, softmax
from dimec.core.tokens import TokenBatch
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.runtime.wire import (
    EXIT_THRESHOLD,
    LAYERS,
    LOGITS,
    MODEL_FINGERPRINT,
    InferResponse,
    decode_request,
    decode_thresholds,
    encode_response,
)

NEAR = 1e-4


@pytest.fixture(scope="module")
def folder(
    tiny_run: Run,
    tiny_export: Bundle,
    pair_bundle: Bundle,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    work = tmp_path_factory.mktemp("conformance")
    return write(work / "written", tiny_run, tiny_export, pair_bundle).parent


@pytest.fixture(scope="module")
def suites(folder: Path) -> dict[str, Any]:
    document = json.loads((folder / "conformance.json").read_text())
    assert document["format"] == 1
    return {suite["name"]: suite for suite in document["suites"]}


@dataclass
class Scripted:
    """A tier's server that does what a run says, and answers from the readings of the file alone."""

    suite: dict[str, Any]
    tier: str
    does: list[Any]
    thresholds: list[Any] = field(default_factory=list)

    async def __call__(self, request: Request, writer: asyncio.StreamWriter) -> None:
        do = self.does[min(len(self.thresholds), len(self.does) - 1)]
        asked = decode_request(request.headers, request.body)
        self.thresholds.append(asked.parameters.get(EXIT_THRESHOLD))
        if do == "hangs":
            await never(request, writer)
        if do == "closes":
            raise ConnectionResetError
        if isinstance(do, dict):
            writer.write(http(do["status"], **do.get("headers", {})))
            return
        layers = self.suite["layers"][self.tier]
        readings = self.suite["readings"]
        ids = asked.inputs["input_ids"][0].tolist()
        row = next(
            place for place, each in enumerate(readings["tokens"]) if each["input_ids"] == ids
        )
        said = [readings["logits"][self.tier][str(layer)][row] for layer in layers]
        logits = np.array([said], dtype=np.float32)
        limits = decode_thresholds(asked.parameters.get(EXIT_THRESHOLD), n_exits=len(layers))
        if limits is not None:
            sure = np.flatnonzero(softmax(logits[0]).max(axis=1) >= limits)
            logits[:, (sure[0] if len(sure) else len(layers)) + 1 :] = np.nan
        if do == "not finite":
            logits[:] = np.nan
        if do == "too few exits":
            logits = logits[:, :-1]
        told = {
            MODEL_FINGERPRINT: self.suite["model_fingerprint"],
            LAYERS: json.dumps([1, 99] if do == "other layers" else layers),
        }
        if do == "another model":
            told[MODEL_FINGERPRINT] = "sha256:" + "0" * 64
        answer_id = "another" if do == "another request" else asked.id
        response = InferResponse({LOGITS: logits}, told, answer_id, self.tier)
        headers, body = encode_response(response, binary=[LOGITS])
        writer.write(http(200, body, **headers))


def text_of(suite: dict[str, Any], place: int) -> Any:
    text = suite["readings"]["texts"][place]
    return text if isinstance(text, str) else tuple(text)


def play(
    folder: Path, suite: dict[str, Any], run: dict[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Send a run's texts through a device; gives what is compared: a name, what came, what was expected."""
    settings = DeviceSettings(threads=1, in_flight=1, **run["settings"])
    with ExitStack() as stack:
        urls: dict[str, Any] = {}
        scripts: dict[str, Scripted] = {}
        for tier, does in run["servers"].items():
            if does == "down":
                urls[tier] = dead_url()
                continue
            scripts[tier] = Scripted(suite, tier, does)
            metadata = json.dumps({"parameters": {LAYERS: str(suite["layers"][tier])}}).encode()
            server = stack.enter_context(BadServer(scripts[tier], metadata=metadata))
            urls[tier] = server.url
        bundle = load_bundle(folder / run["bundle"])
        assert bundle.edge is None and bundle.cloud is None
        device = stack.enter_context(Device(bundle, settings=settings, **urls))
        for expected in run["answers"]:
            [answer] = device.classify([text_of(suite, expected["text"])])
            told = re.sub(r" \([^()]*(\([^()]*\)[^()]*)*\)", "", answer.degraded or "") or None
            yield "degraded", told, expected["degraded"]
            for name in ("label", "tier", "layer"):
                yield name, getattr(answer, name), expected[name]
            for name in ("cost", "confidence", "probabilities"):
                given = expected[name]
                near = pytest.approx(tuple(given) if name == "probabilities" else given, abs=NEAR)
                yield name, getattr(answer, name), near
        for tier, sent in run["exit_thresholds"].items():
            came = scripts[tier].thresholds if tier in scripts else []
            yield f"requests to {tier}", came, sent
        if run["learnt"] is not None:
            arrays = device.policy.state().arrays
            yield "counts", arrays["counts"].tolist(), run["learnt"]["counts"]
            yield "sums", arrays["sums"], pytest.approx(np.array(run["learnt"]["sums"]), abs=1e-3)


@pytest.mark.parametrize("name", ["texts", "whole", "pairs"])
def test_the_device_does_what_the_file_says(
    name: str, folder: Path, suites: dict[str, Any]
) -> None:
    suite = suites[name]
    for run in suite["runs"]:
        for what, came, expected in play(folder, suite, run):
            assert came == expected, f"{run['name']}: {what}"


def test_the_file_holds_every_way_and_every_fault(suites: dict[str, Any]) -> None:
    runs = [run for suite in suites.values() for run in suite["runs"]]
    answers = [answer for run in runs for answer in run["answers"]]
    ways = {(answer["tier"], answer["layer"]) for answer in answers}
    assert ways >= {("mobile", layer) for layer in range(5)} | {("edge", 1), ("edge", 2)}
    assert ways >= {("cloud", layer) for layer in range(1, 5)}
    told = {answer["degraded"] for answer in answers}
    for words in ("could not be reached", "in time", "overloaded", "token", "request", "failed"):
        assert any(words in each for each in told if each)
    assert any("left alone" in each for each in told if each)
    assert any("attempt 3" in each for each in told if each)
    kinds = {run["policy"] for run in runs}
    assert {"dimec-dc-adaptive", "dimee-adaptive", "early-exit"} <= kinds
    for suite in suites.values():
        for run in suite["runs"]:
            if "every server is well" not in run["name"]:
                continue
            for answer in run["answers"]:
                assert answer["steps"][-1] == [answer["tier"], answer["layer"]]
                assert answer["degraded"] is None


def test_graphs_of_8_bits_say_what_the_file_says(folder: Path, suites: dict[str, Any]) -> None:
    readings = suites["int8"]["readings"]
    tier = load_tier(folder / "int8" / "dimec-dc-fixed" / Tier.MOBILE)
    assert tier.manifest.quantized
    engine = TierEngine(tier, threads=1)
    for row, tokens in enumerate(readings["tokens"]):
        arrays = {name: np.array([ids]) for name, ids in tokens.items() if name != "whole"}
        said = engine.infer(TokenBatch.of(arrays))[0]
        expected = [readings["logits"]["mobile"][str(layer)][row] for layer in tier.layers]
        np.testing.assert_allclose(said, expected, atol=NEAR)
