"""Many texts at once: chunks give the answers of texts one by one, in their order, whatever happens on the way."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests.bundles import Counted, always, check_replay, check_same, table_of
from tests.misbehaving import BadServer, Honest, Request

from dimec.bundle import Bundle
from dimec.bundle.engines.tier import EMBEDDING
from dimec.core.tiers import TIERS, Answer, Step, Tier
from dimec.data import reviews
from dimec.policies import Policy
from dimec.policies.cascade import DimecCascade
from dimec.policies.cascade_fit import Point
from dimec.policies.dimec_dc import DimecDcAdaptive
from dimec.runtime.device.device import Device
from dimec.runtime.device.options import DeviceSettings

LONG = [f"{text} {'the ' * 60}" for text in reviews(60, seed=4).first]
TEXTS = [*reviews(240, seed=7).first, *LONG]
SETTINGS = DeviceSettings(threads=1, deadline_ms=60_000)
ZERO = Step(Tier.MOBILE, 0)


@pytest.fixture(scope="module")
def cascade(tiny_bundle: Bundle) -> DimecCascade:
    """Give a cascade through words and all tiers, of whose exits about half of the texts leave each."""
    assert tiny_bundle.edge is not None
    mobile, edge = tiny_bundle.mobile.layers, tiny_bundle.edge.layers
    way = (
        *(ZERO, *(Step(Tier.MOBILE, layer) for layer in mobile)),
        *(Step(Tier.EDGE, layer) for layer in edge),
        Step(Tier.CLOUD, tiny_bundle.mobile.manifest.n_layers),
    )
    table = table_of(tiny_bundle, TEXTS).with_exit_zero
    points = []
    for end in range(1, len(way) + 1):
        border = float(np.median(table.confidence[:, table.exit(way[end - 1].layer)]))
        onward = (way[end], None) if end < len(way) else (None,)
        weights = (*[0.0] * (end - 1), 1.0)
        points.append(Point(way[:end], weights, onward, (border,) if end < len(way) else ()))
    return DimecCascade(tiny_bundle.mobile.manifest.depths, points)


def one_by_one(device: Device, texts: list[Any] = TEXTS) -> list[Answer]:
    return list(device.stream(iter(texts)))


def test_chunks_give_the_answers_of_one_by_one(tiny_bundle: Bundle, cascade: DimecCascade) -> None:
    for policy in (None, cascade):  # the bundle's own uses every tier and reads embeddings
        with Device(tiny_bundle, policy=policy, settings=SETTINGS) as device:
            expected = one_by_one(device)
            assert {answer.tier for answer in expected} == set(TIERS)
            check_same(device.classify(TEXTS), expected)
            check_same(list(device.stream(iter(TEXTS), ahead=90)), expected)
            check_same(asyncio.run(device.aclassify(TEXTS)), expected)
            check_same(device.classify(TEXTS[:1]), expected[:1])
    check_replay(expected, cascade, table_of(tiny_bundle, TEXTS), tiny_bundle)
    assert len({(answer.tier, answer.layer) for answer in expected}) == 4


def test_batches_side_by_side_answer_as_one_by_one(
    tiny_bundle: Bundle, cascade: DimecCascade, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dimec.runtime.device.device.usable_cores", lambda: 3)
    settings = DeviceSettings(deadline_ms=60_000)
    with Device(tiny_bundle, policy=cascade, settings=settings) as device:
        many, workers = device.engines_for(len(TEXTS))
        assert workers == 3 and not set(many.values()) & set(device.engines.values())
        assert device.engines_for(len(TEXTS)) == (many, 3)
        assert device.engines_for(20) == (device.engines, 1)
        check_same(device.classify(TEXTS), one_by_one(device))
    with Device(tiny_bundle, policy=cascade, settings=SETTINGS) as device:
        assert device.engines_for(len(TEXTS)) == (device.engines, 1)


def test_pairs_too(pair_bundle: Bundle) -> None:
    pairs = list(zip(TEXTS, reversed(TEXTS), strict=True))
    with Device(pair_bundle, settings=SETTINGS) as device:
        check_same(device.classify(pairs), one_by_one(device, pairs))


def test_a_tier_that_dies_in_the_middle_loses_no_answer(
    tiny_bundle: Bundle, cascade: DimecCascade
) -> None:
    assert tiny_bundle.cloud is not None
    honest = Honest(tiny_bundle.cloud)

    async def behave(request: Request, writer: asyncio.StreamWriter) -> None:
        if request.number > 20:
            raise ConnectionResetError
        await honest(request, writer)

    settings = SETTINGS.model_copy(update={"attempts": 1, "open_s": 60.0})
    with Device(tiny_bundle, policy=cascade, settings=SETTINGS) as device:
        expected = device.classify(TEXTS)
    with (
        BadServer(behave) as cloud,
        Device(tiny_bundle, policy=cascade, cloud=cloud.url, settings=settings) as device,
    ):
        answers = device.classify(TEXTS)
        assert device.traffic[Tier.CLOUD].requests < 60
    assert [answer.index for answer in answers] == list(range(len(TEXTS)))
    well = [answer.degraded is None for answer in answers]
    check_same(
        [a for a, whole in zip(answers, well, strict=True) if whole],
        [e for e, whole in zip(expected, well, strict=True) if whole],
    )
    lost = [(a, e) for a, e in zip(answers, expected, strict=True) if a.degraded]
    assert len(lost) + 20 == sum(answer.tier is Tier.CLOUD for answer in expected)
    for answer, other in lost:
        assert (answer.tier, other.tier) == (Tier.EDGE, Tier.CLOUD)
        assert str(answer.degraded).endswith("so the edge tier answered")


class Spoilt:
    """A tokenizer that fails on every chunk, and on one text by itself."""

    def __init__(self, device: Device, guilty: str) -> None:
        self._one, self._guilty = device.tokenizer.encode_one, guilty

    def encode(self, *_: object) -> None:
        raise MemoryError

    def encode_one(self, text: str, second: str | None = None) -> object:
        if text == self._guilty:
            raise LookupError
        return self._one(text, second)


def test_what_one_text_provokes_takes_no_other_with_it(
    tiny_bundle: Bundle, cascade: DimecCascade
) -> None:
    with Device(tiny_bundle, policy=cascade, settings=SETTINGS) as device:
        expected = device.classify(TEXTS[:50])
        texts: list[Any] = [*TEXTS[:50], "guilty", *TEXTS[50:]]
        device.tokenizer = Spoilt(device, "guilty")  # type: ignore[assignment]
        answers = []
        with pytest.raises(LookupError):
            for answer in device.stream(texts):
                answers.append(answer)
    check_same(answers, expected)


def test_a_policy_that_learns_meets_texts_one_after_the_other(tiny_bundle: Bundle) -> None:
    def policy() -> Policy:
        return always(Tier.EDGE, tiny_bundle, DimecDcAdaptive)

    texts = Counted(TEXTS)
    with Device(tiny_bundle, policy=policy(), settings=SETTINGS) as device:
        expected = one_by_one(device)
        learnt = device.policy.state().arrays
    with Device(tiny_bundle, policy=policy(), settings=SETTINGS) as device:
        answers = []
        for answer in device.stream(texts, ahead=100):
            answers.append(answer)
            assert texts.taken == len(answers)
        assert [a.confidence for a in answers] == [e.confidence for e in expected]
        for name, array in device.policy.state().arrays.items():
            np.testing.assert_array_equal(array, learnt[name])


def test_memory_does_not_grow_with_the_texts(tiny_bundle: Bundle) -> None:
    words = DimecCascade(tiny_bundle.mobile.manifest.depths, [Point((ZERO,), (1.0,), (None,), ())])
    taken = 0

    def texts(n: int) -> Iterator[str]:
        nonlocal taken
        for number in range(n):
            taken = number + 1
            yield f"{TEXTS[number % len(TEXTS)]} {number}"

    def peak(n: int) -> int:
        tracemalloc.start()
        for answer in device.stream(texts(n), ahead=256):
            assert taken <= answer.index + 1 + 256
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    with Device(tiny_bundle, policy=words, settings=SETTINGS) as device:
        device.classify(TEXTS)
        assert peak(4_000) < 1.1 * peak(1_000)


def test_tiers_of_one_encoder_open_its_graphs_once(tiny_bundle: Bundle) -> None:
    with Device(tiny_bundle, settings=SETTINGS) as device:
        assert device.lines == dict.fromkeys(TIERS, Tier.CLOUD)
        opened = [engine._sessions[EMBEDDING] for engine in device.engines.values()]
    assert opened == [opened[0]] * 3
