"""MPNet from a fit to a served and a quantised bundle, with a tokenizer whose special ids are its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.bundles import check_same, fitted_to_pairs
from tests.servers import tier_server
from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

from dimec import api
from dimec.bundle import Bundle, load_bundle
from dimec.bundle.engines import TierEngine
from dimec.core.tiers import TIERS
from dimec.data import reviews
from dimec.runs.run import Run
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings
from dimec.training.model import load_backbone

TEXTS = list(reviews(40, seed=7).first)
PAIRS = list(zip(TEXTS, reversed(TEXTS), strict=True))
# Where MPNet's own vocabulary has them: its padding is neither first nor what masks are made of.
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with an untrained MPNet of four narrow layers, and a tokenizer of some words."""
    folder = tmp_path_factory.mktemp("mpnet")
    words = sorted({word for text in reviews(300).first for word in text.lower().split()})
    letters = [
        mark + letter for letter in "abcdefghijklmnopqrstuvwxyz'.,!?-" for mark in ("", "##")
    ]
    names = dict.fromkeys([*SPECIAL, *letters, *words, "<mask>"])
    tokenizer = MPNetTokenizer(vocab={name: place for place, name in enumerate(names)})
    tokenizer.save_pretrained(folder)
    config = MPNetConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=130,
    )
    torch.manual_seed(0)
    MPNetModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Bundle]:
    """Give a run on pairs, between which this family has two separators, and its bundle."""
    return fitted_to_pairs(backbone, tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def bundle(made: tuple[Run, Bundle]) -> Bundle:
    return made[1]


def test_its_tokenizer_keeps_its_own_ids(backbone: Path, bundle: Bundle) -> None:
    read = load_backbone(str(backbone))
    assert (read.adapter.max_tokens, read.adapter.accepts_token_types) == (128, False)
    theirs = MPNetTokenizer.from_pretrained(backbone)
    wanted = theirs([first for first, _ in PAIRS], [second for _, second in PAIRS])["input_ids"]
    ours = bundle.mobile.tokenizer().encode(*map(list, zip(*PAIRS, strict=True)))
    assert [ids.tolist() for ids in ours.input_ids] == wanted
    assert ours.pad_id == read.tokenizer.pad_token_id == 1
    assert all(ids[0] == 0 and ids[-1] == 2 and ids.count(2) == 3 for ids in wanted)


def test_every_engine_says_what_the_others_say(bundle: Bundle) -> None:
    assert bundle.cloud is not None
    tokens = bundle.cloud.tokenizer().encode(*map(list, zip(*PAIRS[:5], strict=True)))
    batch = tokens.batch()
    engine = TierEngine(bundle.cloud, threads=1)
    ours = engine.infer(batch)
    theirs = TierEngine(bundle.cloud, engine="openvino", threads=1).infer(batch)
    # OpenVINO's bfloat16, where the CPU has it, has three decimal digits.
    np.testing.assert_allclose(theirs, ours, atol=0.05)
    for row in range(5):  # padding changes nothing
        alone = engine.infer(tokens.batch([row]))
        np.testing.assert_allclose(alone[0], ours[row], atol=1e-4)


def test_served_it_answers_as_in_process(bundle: Bundle) -> None:
    settings = DeviceSettings(threads=1, deadline_ms=60_000)
    with Device(bundle, settings=settings) as device:
        alone = device.classify(PAIRS)
    with (
        tier_server("edge", bundle.folder) as edge,
        tier_server("cloud", bundle.folder) as cloud,
        Device(bundle, edge=edge.url, cloud=cloud.url, settings=settings) as device,
    ):
        served = device.classify(PAIRS)
    assert {answer.tier for answer in alone} == set(TIERS)
    check_same(served, alone)


def test_quantised_it_still_says_nearly_the_same(made: tuple[Run, Bundle], tmp_path: Path) -> None:
    run, bundle = made
    report = api.export(run, out=tmp_path / "int8", quantize="all")
    assert [tier.quantized for tier in report.tiers] == [True, True, True]
    small = load_bundle(tmp_path / "int8").cloud
    assert small is not None and bundle.cloud is not None
    batch = small.tokenizer().encode(*map(list, zip(*PAIRS, strict=True))).batch()
    whole = TierEngine(bundle.cloud, threads=1).infer(batch)
    np.testing.assert_allclose(TierEngine(small, threads=1).infer(batch), whole, atol=0.2)
    assert whole.std() > 0.05
