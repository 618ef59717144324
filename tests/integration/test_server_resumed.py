"""Tier servers that go on from hidden states: their answers, what they refuse, batching, deadlines, other clients."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests import servers
from tests.bundles import over_all_tiers, with_tails
from tests.servers import (
    TierServer,
    client_of,
    logits_of,
    metric,
    tier_server,
    tokens,
)

from dimec.bundle import Bundle
from dimec.bundle.engines import TierEngine, TokenBatch
from dimec.core.tiers import softmax
from dimec.runs.run import Run
from dimec.runtime.wire import (
    InferRequest,
    encode_request,
)

Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def bundle(tiny_run: Run, tiny_export: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "tails"
    return with_tails(tiny_export, folder, over_all_tiers(tiny_run))


@pytest.fixture(scope="module")
def cloud(bundle: Bundle) -> Iterator[TierServer]:
    with tier_server("cloud", bundle.folder, "--max-body-bytes", "200000") as server:
        yield server


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> TierEngine:
    assert bundle.cloud is not None
    return TierEngine(bundle.cloud, threads=1)


ask = partial(servers.ask, tier="cloud")


def state(engine: TierEngine, inputs: Arrays, layer: int) -> Arrays:
    """Run a prefix, as a device does."""
    hidden, _ = engine.embed(TokenBatch.of(inputs))
    for each in range(1, layer + 1):
        hidden, _ = engine.segment(each, hidden, inputs["attention_mask"])
    return {"hidden": hidden, "attention_mask": inputs["attention_mask"]}


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_it_says_what_it_would_have_said_of_the_tokens(
    layer: int, cloud: TierServer, engine: TierEngine
) -> None:
    inputs = tokens(4, 9, 30)
    full = engine.infer(TokenBatch.of(inputs))[:, layer:]
    sent = state(engine, inputs, layer)
    with client_of(cloud) as client:
        for binary in (True, False):
            said = logits_of(ask(client, sent, binary=binary, from_layer=layer))
            assert np.isnan(said[:, :layer]).all()
            np.testing.assert_allclose(said[:, layer:], full, atol=1e-5)
        half = {**sent, "hidden": sent["hidden"].astype(np.float16)}
        said = logits_of(ask(client, half, from_layer=layer))
        np.testing.assert_allclose(said[:, layer:], full, atol=5e-3)


def test_an_early_exit_is_honoured(cloud: TierServer, engine: TierEngine) -> None:
    inputs = tokens(*range(3, 23))
    sent = state(engine, inputs, 2)
    confidence = softmax(engine.infer(TokenBatch.of(inputs))).max(axis=2)
    threshold = float(np.median(confidence[:, 2]))
    with client_of(cloud) as client:
        left = np.isnan(logits_of(ask(client, sent, from_layer=2, exit_threshold=threshold)))
    np.testing.assert_array_equal(left[:, 3, 0], confidence[:, 2] >= threshold)
    assert not left[:, 2].any()
    assert 0 < left[:, 3, 0].sum() < len(left)


def test_requests_at_once_from_everywhere_each_get_their_own_answer(
    bundle: Bundle, engine: TierEngine
) -> None:
    rng = np.random.default_rng(3)
    asked = [tokens(*rng.integers(8, 12, size=rng.integers(1, 3)), seed=i) for i in range(96)]
    layers = [i % 4 for i in range(len(asked))]
    thresholds = [None if i % 5 else 0.55 for i in range(len(asked))]
    sent = [
        state(engine, inputs, layer) if layer else inputs
        for inputs, layer in zip(asked, layers, strict=True)
    ]
    expected = []
    for inputs, layer, threshold in zip(sent, layers, thresholds, strict=True):
        if layer:
            said = engine.resume(
                inputs["hidden"], inputs["attention_mask"], from_layer=layer, thresholds=threshold
            )
        else:
            said = engine.infer(TokenBatch.of(inputs), thresholds=threshold)
        expected.append(said)
    with (
        tier_server("cloud", bundle.folder, "--max-wait-ms", "40") as server,
        client_of(server) as client,
        ThreadPoolExecutor(24) as pool,
    ):

        def get(index: int) -> NDArray[np.float32]:
            parameters: dict[str, Any] = {}
            if layers[index]:
                parameters["from_layer"] = layers[index]
            if thresholds[index] is not None:
                parameters["exit_threshold"] = thresholds[index]
            return logits_of(ask(client, sent[index], **parameters))

        for got, wanted in zip(pool.map(get, range(len(asked))), expected, strict=True):
            np.testing.assert_allclose(got, wanted, atol=1e-5)
        rows = [0, 0, 0, 0]
        for inputs, layer in zip(sent, layers, strict=True):
            rows[layer] += len(inputs["attention_mask"])
        for layer in (1, 2, 3):
            counted = metric(client, f'dimec_resumed_rows_total{{from_layer="{layer}"}}')
            assert counted == rows[layer]
        assert metric(client, "dimec_batch_rows_sum") == sum(rows)
        assert metric(client, "dimec_batch_requests_sum") == len(asked)
        # batches of several requests, although no two layers share one
        assert metric(client, "dimec_batch_requests_count") < len(asked) / 2


def test_bad_states_are_told_what_is_wrong(cloud: TierServer, engine: TierEngine) -> None:
    inputs = tokens(4, 6)
    good = state(engine, inputs, 2)
    hidden, mask = good["hidden"], good["attention_mask"]
    spoilt = {value: hidden.copy() for value in (np.nan, np.inf, -np.inf)}
    for value, array in spoilt.items():
        array[1, 3, 7] = value
    long = {"hidden": np.ones((1, 129, 32), "f2"), "attention_mask": np.ones((1, 129), "i8")}
    many = {"hidden": np.ones((257, 2, 32), "f2"), "attention_mask": np.ones((257, 2), "i8")}
    wrong: list[tuple[Arrays, Any, int, str]] = [
        (good, None, 400, "1, 2, 3"),
        *((good, layer, 400, "1, 2, 3") for layer in (0, 4, -1, 99, 2.0, True, "2")),
        ({"hidden": hidden}, 2, 400, "attention_mask"),
        ({**good, "input_ids": mask}, 2, 400, "input_ids"),
        ({**good, "hidden": hidden[:, :, :31]}, 2, 400, "[rows, length, 32]"),
        ({**good, "hidden": hidden.astype(np.float64)}, 2, 400, "FP16 or FP32"),
        ({**good, "hidden": hidden.astype(np.int8)}, 2, 400, "FP16 or FP32"),
        ({**good, "hidden": hidden[:, :, 0]}, 2, 400, "FP16 or FP32"),
        ({**good, "hidden": hidden[:, :3]}, 2, 400, "attention_mask"),
        ({**good, "attention_mask": mask.astype("f4")}, 2, 400, "attention_mask"),
        ({**good, "attention_mask": mask * 2}, 2, 400, "0..1"),
        ({**good, "attention_mask": mask * 0}, 2, 400, "row 0 of attention_mask"),
        ({name: array[:0] for name, array in good.items()}, 2, 400, "hidden"),
        *(({**good, "hidden": array}, 2, 400, "finite") for array in spoilt.values()),
        (long, 2, 413, "128"),
        (many, 2, 413, "256"),
        (inputs, 2, 400, "hidden"),
    ]
    with client_of(cloud) as client:
        for sent, layer, status, told in wrong:
            response = ask(client, sent, **({} if layer is None else {"from_layer": layer}))
            assert response.status_code == status, (response.text, told)
            assert told in response.json()["error"]
        nothing = ask(client, {**good, "hidden": spoilt[np.nan]}, binary=False, from_layer=2)
        assert nothing.status_code == 400  # null in JSON
        full = {"hidden": np.ones((60, 60, 32), "f2"), "attention_mask": np.ones((60, 60), "i8")}
        assert ask(client, full, from_layer=1).status_code == 413  # its bytes
        named = InferRequest(good, {"from_layer": 2}, outputs={"hidden": None})
        headers, body = encode_request(named)
        unknown = client.post("/v2/models/cloud/infer", content=body, headers=headers)
        assert "the one output is logits" in unknown.json()["error"]
        assert ask(client, good, from_layer=2).status_code == 200


def test_the_model_says_what_it_takes(cloud: TierServer) -> None:
    with client_of(cloud) as client:
        described = client.get("/v2/models/cloud").json()
        assert described["inputs"][-1] == {
            "name": "hidden",
            "datatype": "FP16",
            "shape": [-1, -1, 32],
        }
        assert json.loads(described["parameters"]["resumes_from"]) == [1, 2, 3]
        document = client.get("/openapi.json").json()
        request = document["components"]["schemas"]["InferRequest"]
        assert request["properties"]["parameters"]["properties"]["from_layer"]["enum"] == [1, 2, 3]
        assert "can be inverted" in client.get("/docs").text


def test_tritonclient_asks_with_tokens_and_with_states(
    cloud: TierServer, engine: TierEngine
) -> None:
    import tritonclient.http as triton

    inputs = tokens(7, 12, 3)
    expected = engine.infer(TokenBatch.of(inputs))
    half = state(engine, inputs, 2)
    half["hidden"] = half["hidden"].astype(np.float16)
    types = {"hidden": "FP16"}
    with triton.InferenceServerClient(cloud.address) as client:
        for arrays, first, within in ((inputs, 0, 1e-5), (half, 2, 5e-3)):
            sent = []
            for name, array in arrays.items():
                tensor = triton.InferInput(name, list(array.shape), types.get(name, "INT64"))
                tensor.set_data_from_numpy(array)
                sent.append(tensor)
            parameters = {"from_layer": first} if first else None
            got = client.infer("cloud", sent, parameters=parameters).as_numpy("logits")
            np.testing.assert_allclose(got[:, first:], expected[:, first:], atol=within)
