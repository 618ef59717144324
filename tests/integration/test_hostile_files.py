"""A fuzz over everything that is loaded: altered files of a bundle, a run and a state load, or end in one sentence.

Where an altered bundle loads, its device answers or ends in one sentence too. The same examples come every time.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file
from tests.bundles import with_policy
from tests.inputs import put_back

from dimec.bundle import Bundle, file_info, load_bundle
from dimec.bundle.manifest import MANIFEST
from dimec.core.errors import ContractError, DimecError, StateError
from dimec.policies import POLICIES, load_policies
from dimec.policies.centroids import Centroids
from dimec.policies.dimec_dc import DimecDcAdaptive
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.state import FILE, LearntState
from dimec.training.texts import split_texts

NASTY: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**53, 2**64, 1.5, 1e308, float("inf"), float("nan")),
    *("", "1", "\x1b[31m", "a" * 5_000, [], {}, [[]], [None], [1], {"a": 1}),
)
TYPES = ("BF16", "F16", "F32", "F64", "I32", "I64", "U8", "BOOL", "F8_E4M3", "nonsense")
TIMES = settings(
    max_examples=20,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
seeds = st.integers(0, 2**32)


def swap(document: Any, draw: random.Random) -> None:
    """Take a value somewhere in a document away, double it, or put a nasty one in its place."""
    while isinstance(document, dict | list) and document:
        places = list(document) if isinstance(document, dict) else range(len(document))
        place = draw.choice(places)
        child = document[place]
        if isinstance(child, dict | list) and child and draw.random() < 0.75:
            document = child
            continue
        if draw.random() < 0.25:
            del document[place]
        elif isinstance(document, list) and draw.random() < 0.2:
            document.append(child)
        else:
            document[place] = draw.choice(NASTY)
        return


def alter(path: Path, draw: random.Random) -> None:
    """Alter a file: as what it is, or only its bytes."""
    content = path.read_bytes()
    kinds = {".json": _alter_json, ".safetensors": draw.choice((_alter_header, _alter_arrays))}
    if path.suffix in kinds and draw.random() < 0.75:
        kinds[path.suffix](path, draw)
    elif draw.random() < 0.5:
        path.write_bytes(content[: draw.randrange(len(content))])
    else:
        changed = bytearray(content)
        for _ in range(draw.choice((1, 4, 40))):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        path.write_bytes(changed)


def _alter_json(path: Path, draw: random.Random) -> None:
    document = json.loads(path.read_text())
    for _ in range(draw.choice((1, 1, 2, 5))):
        swap(document, draw)
    path.write_text(json.dumps(document))


def _alter_header(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    own = header.get("__metadata__", {})
    if "dimec" in own and draw.random() < 0.5:
        document = json.loads(own["dimec"])
        swap(document, draw)
        own["dimec"] = json.dumps(document)
    else:
        arrays = [name for name in header if name != "__metadata__"]
        header[draw.choice(arrays)]["dtype"] = draw.choice(TYPES)
        swap(header, draw)
    altered = json.dumps(header).encode()
    path.write_bytes(len(altered).to_bytes(8, "little") + altered + content[end:])


def _alter_arrays(path: Path, draw: random.Random) -> None:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    name = draw.choice(sorted(arrays))
    array = arrays[name]
    if array.size and draw.random() < 0.4:
        array.flat[draw.randrange(array.size)] = draw.choice((-1, 0, 1, 100))
        if array.dtype.kind == "f" and draw.random() < 0.5:
            array.flat[0] = draw.choice((np.nan, np.inf, 6e4))
    else:
        change = draw.choice((np.ravel, lambda a: a[:0], lambda a: a.astype(np.float64)))
        arrays[name] = np.ascontiguousarray(change(array))
    save_file(arrays, path, metadata=metadata)


def ends_in_a_sentence(work: Callable[[], object], *, kind: type[DimecError] = DimecError) -> None:
    """Let something work, or end with a message on one line that no terminal obeys."""
    try:
        work()
    except kind as exc:
        assert not isinstance(exc, ContractError), exc  # that would be a fault of ours
        assert str(exc).isprintable()
        assert 0 < len(str(exc)) < 2_000


@pytest.fixture(scope="module")
def adaptive(tiny_export: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Give a bundle whose policy learns, with a sample in every pool."""
    policy = tiny_export.mobile.policy()
    sums = np.random.default_rng(0).normal(size=(3, 32))
    learns = DimecDcAdaptive(
        policy.depths, Centroids(sums, np.ones(3, dtype=np.int64)), alpha=0.6, beta=0.1
    )
    folder = tmp_path_factory.mktemp("bundles") / "adaptive"
    return with_policy(tiny_export, folder, learns)


@pytest.fixture(scope="module")
def altered(adaptive: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of what a phone holds of the bundle; a test puts its files back after it."""
    folder = tmp_path_factory.mktemp("altered") / "bundle"
    shutil.copytree(adaptive.mobile.folder, folder / "mobile")
    return folder


def sign(tier: Path, name: str) -> None:
    """Write a file into the manifest as it is now."""
    document = json.loads((tier / MANIFEST).read_text())
    document["files"][name] = file_info(tier / name).model_dump()
    (tier / MANIFEST).write_text(json.dumps(document))


@pytest.mark.parametrize(
    "name",
    [MANIFEST, "tokenizer.json", "policy.json", "policy.safetensors", "exit-zero.safetensors"],
)
@TIMES
@given(seeds)
def test_an_altered_bundle(altered: Path, name: str, seed: int) -> None:
    tier = altered / "mobile"
    with put_back(tier / MANIFEST, tier / name):
        alter(tier / name, random.Random(seed))
        if name != MANIFEST:
            sign(tier, name)

        def classify() -> None:
            with Device(load_bundle(altered)) as device:
                device.classify(["a fine film", "dull, and long", "\u6587 \U0001f642", " "])

        ends_in_a_sentence(classify)


@pytest.fixture(scope="module")
def state(adaptive: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the state of a device that has learnt from a few texts."""
    folder = tmp_path_factory.mktemp("state")
    with Device(adaptive, state=folder) as device:
        device.classify(["a fine film", "dull, and long", "well"])
    assert LearntState.load(folder).updates == 3
    return folder


@TIMES
@given(seeds)
def test_an_altered_state(adaptive: Bundle, state: Path, seed: int) -> None:
    with put_back(state / FILE):
        alter(state / FILE, random.Random(seed))

        def classify() -> None:
            with Device(adaptive, state=state, at_need=True) as device:
                device.classify(["a fine film"])

        ends_in_a_sentence(classify, kind=StateError)


@pytest.fixture(scope="module")
def run(tiny_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the run, whose files a test puts back after it."""
    folder = tmp_path_factory.mktemp("altered") / "run"
    shutil.copytree(tiny_run.folder, folder)
    return folder


RUN_FILES = (
    *("config.json", "split.json", "router.json", "router.safetensors", "texts.parquet"),
    *("exits/test.safetensors", "exits/validation.safetensors", "exit-zero.safetensors"),
)


@TIMES
@given(seeds)
def test_an_altered_run(run: Path, seed: int) -> None:
    draw = random.Random(seed)
    path = run / draw.choice(RUN_FILES)
    with put_back(path):
        alter(path, draw)

        def read() -> object:
            found = Run.open(run)
            _ = found.splits
            load_policies(run, POLICIES)
            split_texts(found, "train")
            return found.validation, found.test, found.exit_zero

        ends_in_a_sentence(read)


@pytest.mark.parametrize("location", ["../secret", "secret"])
def test_a_graph_reads_no_file_that_the_manifest_does_not_list(
    altered: Path, location: str
) -> None:
    import onnx
    from onnx.external_data_helper import set_external_data

    tier = altered / "mobile"
    model = onnx.load(tier / "embedding.onnx")
    weights = max(model.graph.initializer, key=lambda each: len(each.raw_data))
    secret = tier / location
    secret.write_bytes(weights.raw_data)
    set_external_data(weights, location=location)
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    with put_back(tier / MANIFEST, tier / "embedding.onnx"):
        (tier / "embedding.onnx").write_bytes(model.SerializeToString())
        sign(tier, "embedding.onnx")
        with pytest.raises(DimecError, match=r"embedding\.onnx is damaged"):
            Device(load_bundle(altered))
    secret.unlink()
