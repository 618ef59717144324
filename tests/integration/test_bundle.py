"""The exported files say what torch says: pieces, chained, whole, in batches of every shape."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dimec.bundle import Bundle, TierBundle
from dimec.bundle.engines import ENGINES, EngineName, TierEngine, TokenBatch, open_session
from dimec.bundle.engines.tier import EMBEDDING, LAYERS_GRAPH, TIER_GRAPH, segment_name
from dimec.core.errors import BundleError, ContractError, DataError, EngineError, OptionError
from dimec.core.tiers import TIERS, Tier, softmax
from dimec.runs.run import Run
from dimec.training.model import LoadedModel, MultiExitEncoder, load_model

TEXTS = (
    "fine",
    "a dull, dull, dull story that I would not see again for all the tea in the world",
    "not bad at all",
    "",
    "the best of them, by far",
)


@pytest.fixture(scope="module")
def model(tiny_run: Run) -> LoadedModel[MultiExitEncoder]:
    return load_model(tiny_run.model_folder)


def whole(bundle: Bundle, tier: Tier) -> TierBundle:
    found = bundle.of(tier)
    assert found is not None
    return found


def by_torch(
    model: LoadedModel[MultiExitEncoder], batch: TokenBatch
) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        output = model.model(**{name: torch.tensor(each) for name, each in batch.named().items()})
    return output.logits.numpy(), output.embedding.numpy()


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2, 3, 4], [3, 4]])
def test_a_tier_says_what_torch_says(
    tiny_bundle: Bundle, model: LoadedModel[MultiExitEncoder], tier: Tier, rows: list[int]
) -> None:
    bundle = whole(tiny_bundle, tier)
    batch = bundle.tokenizer().encode(TEXTS).batch(rows)
    wanted, embedding = by_torch(model, batch)
    engine = TierEngine(bundle, threads=1)
    hidden, embedded = engine.embed(batch)
    np.testing.assert_allclose(embedded, embedding, atol=1e-5)
    for position, layer in enumerate(bundle.layers):
        hidden, logits = engine.segment(layer, hidden, batch.attention_mask)
        np.testing.assert_allclose(logits, wanted[:, position], atol=1e-4)
    np.testing.assert_allclose(engine.infer(batch), wanted[:, : len(bundle.layers)], atol=1e-4)


def test_one_text_is_tokenised_as_a_batch_of_one_would_be(tiny_bundle: Bundle) -> None:
    tokenizer = tiny_bundle.mobile.tokenizer()
    for text in ["", *TEXTS, "word " * 500]:
        one, whole_text = tokenizer.encode_one(text)
        tokens = tokenizer.encode([text])
        batch = tokens.batch()
        np.testing.assert_array_equal(whole_text, tokens.whole[0])
        assert one.named().keys() == batch.named().keys()
        for name, array in batch.named().items():
            assert one.named()[name].dtype == array.dtype
            np.testing.assert_array_equal(one.named()[name], array)
    with pytest.raises(DataError, match="give one text each"):
        tokenizer.encode_one("one", "two")


# OpenVINO, which takes long to open a graph, runs the largest tier alone.
@pytest.mark.parametrize(
    ("engine", "tier"), [("onnxruntime", Tier.EDGE), *product(ENGINES, [Tier.CLOUD])]
)
def test_the_whole_graph_says_what_the_pieces_say(
    tiny_bundle: Bundle, tier: Tier, engine: EngineName
) -> None:
    bundle = whole(tiny_bundle, tier)
    session = open_session(bundle.path(TIER_GRAPH), engine=engine, threads=1)
    pieces = TierEngine(bundle, engine=engine, threads=1)
    either = TierEngine(bundle, engine=engine, threads=1, whole=True)
    atol = 1e-5 if engine == "onnxruntime" else 0.05  # OpenVINO's bfloat16
    tokens = bundle.tokenizer().encode(TEXTS)
    for rows in ([1], [0, 2], [0, 1, 2, 3, 4]):
        batch = tokens.batch(rows)
        (logits,) = session.run(batch.named())
        np.testing.assert_allclose(logits, pieces.infer(batch), atol=atol)
        np.testing.assert_array_equal(logits, either.infer(batch))
        for early in (0.0, 0.6):
            np.testing.assert_array_equal(
                either.infer(batch, thresholds=early), pieces.infer(batch, thresholds=early)
            )
    unknown = TokenBatch.of({name: array - 1 for name, array in batch.named().items()})
    with pytest.raises(EngineError, match="allowed are"):
        either.infer(unknown)


@pytest.mark.parametrize(
    ("engine", "tier"), [*product(["onnxruntime"], TIERS), ("openvino", Tier.CLOUD)]
)
def test_all_layers_at_once_say_what_the_pieces_say(
    tiny_bundle: Bundle, tier: Tier, engine: EngineName
) -> None:
    bundle = whole(tiny_bundle, tier)
    pieces, straight = (
        TierEngine(bundle, engine=engine, threads=1, straight=each) for each in (False, True)
    )
    tokens = bundle.tokenizer().encode(TEXTS)
    last = bundle.layers[-1]
    for rows in ([1], [0, 2], [0, 1, 2, 3, 4]):
        batch = tokens.batch(rows)
        start, mask = pieces.embed(batch)[0], batch.attention_mask
        hidden, said = pieces.run(start, mask, after=0, layer=last)
        at_once, logits = straight.run(start, mask, after=0, layer=last)
        assert tuple(logits) == tuple(said) == bundle.layers
        # OpenVINO's bfloat16, where the CPU has it, has three decimal digits.
        atol = 1e-5 if engine == "onnxruntime" else 0.05
        np.testing.assert_allclose(at_once, hidden, atol=atol)
        np.testing.assert_allclose([*logits.values()], [*said.values()], atol=atol)
        for either in (pieces, straight):  # from exit to exit, both take the pieces
            hidden, after = start, 0
            for layer in bundle.layers if len(bundle.layers) > 1 else ():
                hidden, logits = either.run(hidden, mask, after=after, layer=layer)
                assert tuple(logits) == (layer,)
                np.testing.assert_array_equal(logits[layer], said[layer])
                after = layer


@pytest.mark.parametrize("name", [LAYERS_GRAPH, TIER_GRAPH])
def test_graphs_of_many_pieces_take_their_weights_from_them(
    tiny_bundle: Bundle, tmp_path: Path, name: str
) -> None:
    tier = whole(tiny_bundle, Tier.CLOUD)
    graph = tier.path(name)
    segments = [segment_name(layer) for layer in tier.layers]
    read = [*segments, EMBEDDING] if name == TIER_GRAPH else segments
    open_session(graph, beside=read)
    for one in read:
        with pytest.raises(BundleError, match=name):
            open_session(graph, beside=set(read) - {one})
    copied = Path(shutil.copy(graph, tmp_path))
    with pytest.raises(BundleError, match=name):
        open_session(copied)


def test_only_a_tokenizer_of_no_more_ids_spares_the_look_at_them(tiny_bundle: Bundle) -> None:
    batch, _ = tiny_bundle.mobile.tokenizer().encode_one("fine")
    assert batch.ids_below is not None
    wrong = replace(batch, input_ids=batch.input_ids - 1_000_000)
    wrong.check(n_vocabulary=batch.ids_below, max_tokens=99)
    with pytest.raises(EngineError, match="allowed are 0 to"):
        wrong.check(n_vocabulary=batch.ids_below - 1, max_tokens=99)
    with pytest.raises(EngineError, match="reads up to 2"):
        batch.check(n_vocabulary=batch.ids_below, max_tokens=2)


def test_openvino_says_the_same(tiny_bundle: Bundle) -> None:
    bundle = whole(tiny_bundle, Tier.EDGE)
    tokens = bundle.tokenizer().encode(TEXTS)
    theirs = TierEngine(bundle, engine="openvino", threads=1)
    ours = TierEngine(bundle, threads=1)
    for rows in ([1], [0, 1, 2]):
        batch = tokens.batch(rows)
        # Its bfloat16, where the CPU has it, has three decimal digits.
        np.testing.assert_allclose(theirs.infer(batch), ours.infer(batch), atol=0.05)
    for engine in (ours, theirs):
        with pytest.raises(EngineError, match="cannot run"):
            engine.segment(1, np.zeros((1, 2, 7), np.float32), np.ones((1, 2), np.int64))


@pytest.mark.parametrize("threshold", [0.0, 0.52, 0.6, 1.1])
def test_leaving_early_is_the_full_table_filtered(tiny_bundle: Bundle, threshold: float) -> None:
    bundle = whole(tiny_bundle, Tier.CLOUD)
    engine = TierEngine(bundle, threads=1)
    tokens = bundle.tokenizer().encode([*TEXTS, *(f"{text} {text}" for text in TEXTS)])
    batch = tokens.batch()
    full = engine.infer(batch)
    sure = softmax(full).max(axis=2) >= threshold
    sure[:, -1] = True
    reached = np.arange(len(bundle.layers)) <= sure.argmax(axis=1)[:, None]
    early = engine.infer(batch, thresholds=threshold)
    np.testing.assert_array_equal(np.isnan(early).any(axis=2), ~reached)
    np.testing.assert_allclose(early[reached], full[reached], atol=1e-5)


def test_every_row_has_a_threshold_of_its_own_and_runs_end_at_exits(tiny_bundle: Bundle) -> None:
    bundle = whole(tiny_bundle, Tier.CLOUD)
    engine = TierEngine(bundle, threads=1)
    batch = bundle.tokenizer().encode(TEXTS[:2]).batch()
    limits = np.full((2, len(bundle.layers)), 1.1)
    limits[0, 1] = 0.0
    said = engine.infer(batch, thresholds=limits)
    assert np.isnan(said[0, 2:]).all()
    assert not np.isnan(said[0, :2]).any()
    assert not np.isnan(said[1]).any()
    hidden, _ = engine.embed(batch)
    with pytest.raises(ContractError, match="no exit after layer 9"):
        engine.run(hidden, batch.attention_mask, after=0, layer=9)


def test_inputs_that_do_not_fit_are_refused(tiny_bundle: Bundle) -> None:
    engine = TierEngine(tiny_bundle.mobile, threads=1)
    batch = tiny_bundle.mobile.tokenizer().encode(TEXTS[:1]).batch()
    with pytest.raises(EngineError, match="token_type_ids"):
        engine.embed(replace(batch, token_type_ids=None))
    with pytest.raises(EngineError, match="allowed are 0 to"):
        engine.embed(replace(batch, input_ids=batch.input_ids + 10**6))
    with pytest.raises(EngineError, match="reads up to 128"):
        engine.embed(TokenBatch.of({name: np.ones((1, 129), int) for name in batch.named()}))
    with pytest.raises(EngineError, match="allowed are 0 to 1"):
        engine.embed(replace(batch, attention_mask=batch.attention_mask * 2))
    with pytest.raises(EngineError, match="must be integers"):
        TokenBatch.of({"input_ids": np.ones((1, 2)), "attention_mask": batch.attention_mask})
    with pytest.raises(EngineError, match="shapes differ"):
        TokenBatch.of({"input_ids": np.ones((1, 99), int), "attention_mask": batch.attention_mask})
    with pytest.raises(EngineError, match="input_ids is missing"):
        TokenBatch.of({"attention_mask": batch.attention_mask})


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_refuses_arrays_that_are_not_the_graphs(
    tiny_bundle: Bundle, engine: EngineName
) -> None:
    session = open_session(tiny_bundle.mobile.path("segment-1.onnx"), engine=engine, threads=1)
    hidden, mask = np.zeros((1, 2, 32), np.float32), np.ones((1, 2), np.int64)
    assert session.run({"hidden": hidden, "attention_mask": mask})[0].shape == hidden.shape
    faulty: list[dict[str, NDArray[Any]]] = [
        {"hidden": hidden},
        {"hidden": hidden.astype(np.float64), "attention_mask": mask},
        {"hidden": hidden, "attention_mask": mask, "more": mask},
        {"hidden": hidden[..., :7], "attention_mask": mask},
    ]
    for inputs in faulty:
        with pytest.raises(EngineError, match=r"segment-1\.onnx"):
            session.run(inputs)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_opened_is_one_sentence(
    tiny_bundle: Bundle, tmp_path: Path, engine: EngineName
) -> None:
    damaged = tmp_path / "graph.onnx"
    damaged.write_bytes(tiny_bundle.mobile.path("segment-1.onnx").read_bytes()[:1000])
    with pytest.raises(BundleError, match="export the bundle again"):
        open_session(damaged, engine=engine)
    with pytest.raises(BundleError, match="missing"):
        open_session(tmp_path / "nowhere.onnx", engine=engine)
    with pytest.raises(OptionError, match="1 or more"):
        open_session(damaged, engine=engine, threads=0)
    with pytest.raises(OptionError, match="choose from"):
        open_session(damaged, engine="abacus")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_an_engine(tiny_bundle: Bundle, engine: EngineName) -> None:
    bundle = whole(tiny_bundle, Tier.CLOUD)
    tokens = bundle.tokenizer().encode(TEXTS)
    shared = TierEngine(bundle, engine=engine, threads=1)  # not opened: the threads race for that

    def infer(number: int) -> NDArray[np.float32]:
        return shared.infer(tokens.batch([number % len(TEXTS)]))

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(infer, range(40)))
    for number, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, infer(number))


def test_a_device_reports_to_nobody(tiny_bundle: Bundle, tmp_path: Path) -> None:
    # onnxruntime's telemetry begins with an id of the device under the user's home
    program = (
        "import sys; from pathlib import Path; from dimec.bundle.engines import open_session; "
        "open_session(Path(sys.argv[1]), threads=1)"
    )
    graph = tiny_bundle.mobile.path(EMBEDDING)
    environment = {**os.environ, "HOME": str(tmp_path)}
    for name in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
        environment.pop(name, None)
    subprocess.run([sys.executable, "-c", program, graph], env=environment, check=True)
    assert not list(tmp_path.iterdir())
