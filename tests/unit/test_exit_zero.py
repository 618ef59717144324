"""Exit zero: what it counts, that scoring equals the fitted regression, and what a damaged file does."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from dimec.core.errors import RunError
from dimec.runs.exit_zero import N_BUCKETS, DensePart, ExitZero, features
from dimec.training.dense_part import SOFT, soft_targets
from dimec.training.exit_zero import (
    STRENGTHS,
    _is_better,
    fit_exit_zero,
    part_rows,
)
from tests.notes import Notes

FRAME = (101, 102)


def framed(*ids: int) -> NDArray[np.int32]:
    return np.array([101, *ids, 102], dtype=np.int32)


def pair(first: list[int], second: list[int]) -> NDArray[np.int32]:
    return np.array([101, *first, 102, *second, 102], dtype=np.int32)


def test_roberta_has_two_separators_between_texts() -> None:
    one = np.array([0, 5, 6, 2, 2, 7, 2], dtype=np.int32)
    np.testing.assert_array_equal(
        features(one, frame=(0, 2), pairs=True),
        features(pair([5, 6], [7]), frame=FRAME, pairs=True),
    )


def rows(
    n: int, *, classes: int = 2, seed: int = 0, hints: float = 0.9
) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Texts in most of which a token of its own hints at each class, beside ten that say nothing."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, n)
    texts = [
        framed(*draws.integers(1000, 1100, 9), 5000 + (label if draws.random() < hints else 99))
        for label in labels
    ]
    return texts, labels


def fit(
    texts: list[NDArray[np.int32]],
    labels: NDArray[np.int64],
    classes: int = 2,
    weights: tuple[float, ...] | None = None,
) -> ExitZero:
    return fit_exit_zero(
        texts,
        labels,
        n_classes=classes,
        frame=FRAME,
        pairs=False,
        seed=5,
        class_weights=weights,
    )


def test_a_class_without_rows_is_never_said() -> None:
    texts, labels = rows(200)
    assert set(fit(texts, labels, 3).read_all(texts)[0].argmax(axis=1).tolist()) <= {0, 1}
    assert np.isfinite(fit(texts, labels * 0).read_all(texts)[0]).all()


@pytest.mark.parametrize(
    ("classes", "weights", "chosen"),
    [(2, None, (False, 3.0)), (3, None, (True, 3.0)), (2, (0.25, 1.75), (False, 3.0))],
)
def test_it_is_the_regression_that_scikit_learn_chooses(
    classes: int, weights: tuple[float, ...] | None, chosen: tuple[bool, float]
) -> None:
    texts, labels = rows(300, classes=classes, hints=0.2)
    zero = fit(texts, labels, classes, weights)
    of_rows = np.ones(300) if weights is None else np.array(weights)[labels]
    buckets = [features(ids, frame=FRAME, pairs=False) for ids in texts]
    used = np.unique(np.concatenate(buckets))
    counts = np.array([np.bincount(each, minlength=N_BUCKETS)[used] for each in buckets])
    order = np.random.default_rng(5).permutation(300)
    choosing, fitting = order[:30], order[30:]

    def theirs(
        on: NDArray[np.int64], weighted: bool, strength: float
    ) -> tuple[LogisticRegression, NDArray[np.float64], NDArray[np.float64]]:
        idf = TfidfTransformer().fit(counts[on]).idf_ if weighted else np.ones(len(used))
        # By docs/reference/bundle.md a feature that occurs twice adds its square to the length twice.
        scaled = counts * idf / np.sqrt(counts @ idf**2)[:, None]
        model = LogisticRegression(C=strength, max_iter=300)
        return model.fit(scaled[on], labels[on], of_rows[on]), scaled, idf

    def loss(weighted: bool, strength: float) -> float:
        model, scaled, _ = theirs(fitting, weighted, strength)
        said = model.predict_proba(scaled[choosing])
        held = of_rows[choosing]
        return float(log_loss(labels[choosing], said, sample_weight=held, labels=range(classes)))

    best = min(((w, c) for w in (True, False) for c in STRENGTHS), key=lambda each: loss(*each))
    assert best == chosen  # else the cases would not be those that they are meant to be
    model, scaled, idf = theirs(np.arange(300), *best)
    np.testing.assert_allclose(zero.squares[used], idf**2, rtol=1e-3)
    expected = model.decision_function(scaled)
    ours = zero.read_all(texts)[0]
    said = ours[:, 1] - ours[:, 0] if classes == 2 else ours - ours.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(said, expected, atol=0.02)


@pytest.mark.parametrize("pairs", [False, True])
def test_the_unseen_share_is_that_of_buckets_that_weigh_nothing(pairs: bool) -> None:
    draws = np.random.default_rng(4)
    weights = draws.normal(size=(N_BUCKETS, 2)).astype(np.float16)
    weights[draws.random(N_BUCKETS) < 0.3] = 0
    zero = ExitZero(
        weights,
        np.ones(N_BUCKETS, dtype=np.float16),
        np.zeros(2, dtype=np.float32),
        frame=FRAME,
        pairs=pairs,
    )
    texts = [pair([5, 6, 7, 8], [5, 9]), pair([], []), np.array([], dtype=np.int32)]
    logits, unseen = zero.read_all(texts)
    assert (logits.shape, unseen.shape) == ((3, 2), (3,))
    for ids, share in zip(texts, unseen, strict=True):
        assert zero.read(ids)[1] == share.item()  # the very number that tables keep
        buckets = features(ids, frame=FRAME, pairs=pairs)
        expected = (weights[buckets] == 0).all(axis=1).mean() if len(buckets) else 0.0
        assert share == pytest.approx(expected)


def test_words_that_were_fitted_are_not_unseen() -> None:
    texts, labels = rows(300)
    zero = fit(texts, labels)
    assert zero.read(texts[0])[1] == 0
    assert zero.read(framed(*range(20_000, 20_050)))[1] > 0.9


def documented_buckets(ids: list[int], *, frame: set[int], pairs: bool) -> list[int]:
    """Hash a sample by the rules of docs/reference/bundle.md, in plain Python."""

    def times(a: int, b: int) -> int:
        return a * b % 2**32

    def hashes(tokens: list[int]) -> list[list[int]]:
        ones = [times(token + 1, 0x9E3779B1) for token in tokens]
        follow = zip(ones, tokens[1:], strict=False)
        return [ones, [times(one ^ times(token, 0x85EBCA6B), 0x9E3779B1) for one, token in follow]]

    if not pairs:
        return [each >> 14 for kind in hashes(ids) for each in kind]
    places = [place for place, token in enumerate(ids) if token not in frame]
    inner = ids[places[0] : places[-1] + 1] if places else []
    border = next((place for place, token in enumerate(inner) if token in frame), len(inner))
    first, second = inner[:border], inner[border:]
    while second and second[0] in frame:
        second = second[1:]
    marked = []
    for k, (a, b) in enumerate(zip(map(set, hashes(first)), map(set, hashes(second)), strict=True)):
        marked += [*(a & b), *(each ^ 0xC2B2AE35 for each in a - b)]
        marked += [each ^ 0x27D4EB2F for each in b - a]
        for w, whole in enumerate((len(a | b), len(a), len(b))):
            share = 10 * len(a & b) // whole if whole else 10
            marked.append((64 * (3 * k + w) + share) ^ 0x165667B1)
    longer = min(max(len(first) - len(second) + 32, 0), 63)
    marked.append((64 * 6 + longer) ^ 0x165667B1)
    return [times(each, 0x85EBCA6B) >> 14 for each in marked]


def documented_logits(zero: ExitZero, ids: list[int]) -> list[float]:
    """Score a sample by the rules of docs/reference/bundle.md, in plain Python."""
    buckets = documented_buckets(ids, frame=set(zero.frame), pairs=zero.pairs)
    length = max(sum(float(zero.squares[bucket]) for bucket in buckets) ** 0.5, 1e-3)
    logits = [
        sum(float(zero.weights[bucket, label]) for bucket in buckets) / length + float(bias)
        for label, bias in enumerate(zero.bias)
    ]
    part = zero.dense
    if part is None:
        return logits
    known = [min(token, len(part.shares) - 1) for token in ids]
    share = max(sum(float(part.shares[token]) for token in known), 1e-3)
    units = []
    for unit in range(part.hidden.shape[1]):
        total = float(part.hidden_bias[unit])
        for column in range(part.vectors.shape[1]):
            mean = sum(float(part.shares[t]) * float(part.vectors[t, column]) for t in known)
            total += mean / share * float(part.hidden[column, unit])
        units.append(math.tanh(total))
    for label in range(len(logits)):
        logits[label] += sum(
            unit * float(part.output[place, label]) for place, unit in enumerate(units)
        )
    return logits


def drawn(classes: int = 3, *, pairs: bool = False, dense: DensePart | None = None) -> ExitZero:
    draws = np.random.default_rng(4)
    return ExitZero(
        draws.normal(size=(N_BUCKETS, classes)).astype(np.float16),
        draws.uniform(1, 100, N_BUCKETS).astype(np.float16),
        np.array([0.1, 0.2, -0.3], dtype=np.float32)[:classes],
        frame=FRAME,
        pairs=pairs,
        dense=dense,
    )


def dense_part(classes: int = 3, *, vocabulary: int = 150) -> DensePart:
    draws = np.random.default_rng(6)
    return DensePart(
        draws.normal(size=(vocabulary, 5)).astype(np.float16),
        draws.uniform(0, 9, vocabulary).astype(np.float16),
        draws.normal(size=(5, 4)).astype(np.float32),
        draws.normal(size=4).astype(np.float32),
        draws.normal(size=(4, classes)).astype(np.float32),
    )


@pytest.mark.parametrize(("pairs", "dense"), [(False, None), (True, None), (False, dense_part())])
def test_the_documented_rules_say_the_same(pairs: bool, dense: DensePart | None) -> None:
    draws = np.random.default_rng(5)
    zero = drawn(pairs=pairs, dense=dense)
    within = 1e-6 if dense is None else 1e-4
    samples = [[], [101], [101, 102, 102], [101, 7, 102, 102], [101, 102, 7, 102], [5, 5, 6]]
    samples.append([101, 5, 102])
    for _ in range(50):
        first, second = (draws.integers(103, 160, draws.integers(1, 60)).tolist() for _ in "12")
        samples += [[101, *first, 102, *second, 102], [101, *first, 102, 102, *second, 102, 9, 102]]
    for ids in samples:
        got = np.array(ids, dtype=np.int64)
        assert sorted(features(got, frame=FRAME, pairs=pairs).tolist()) == sorted(
            documented_buckets(ids, frame=set(FRAME), pairs=pairs)
        )
        np.testing.assert_allclose(
            zero.read(got)[0], documented_logits(zero, ids), rtol=within, atol=within
        )


@pytest.mark.parametrize(("pairs", "dense"), [(False, None), (True, None), (False, dense_part())])
def test_many_texts_at_once_are_read_as_one_by_one(pairs: bool, dense: DensePart | None) -> None:
    draws, zero = np.random.default_rng(4), drawn(pairs=pairs, dense=dense)
    texts = [framed(*draws.integers(103, 160, 20_000)), np.array([], dtype=np.int32)]
    for _ in range(40):  # more tokens than are read at once
        first, second = (draws.integers(103, 160, draws.integers(0, 900)).tolist() for _ in "12")
        texts.append(pair(first, second) if pairs else framed(*first))
    logits, unseen = zero.read_all(texts)
    alone = [zero.read(ids) for ids in texts]
    assert unseen.tolist() == [share for _, share in alone]
    said = np.array([each for each, _ in alone])
    if dense is None:
        np.testing.assert_array_equal(logits, said)
    else:
        np.testing.assert_allclose(logits, said, rtol=1e-5, atol=1e-5)
    assert zero.read_all([])[0].shape == (0, 3)


def test_survives_a_save_and_load(tmp_path: Path) -> None:
    texts, labels = rows(200)
    zero = fit(texts, labels)
    np.testing.assert_array_equal(fit(texts, labels).weights, zero.weights)
    zero.save(tmp_path / "zero.safetensors")
    again = ExitZero.load(tmp_path / "zero.safetensors", n_classes=2)
    assert (again.frame, again.pairs) == (FRAME, False)
    np.testing.assert_array_equal(again.read_all(texts)[0], zero.read_all(texts)[0])


def test_a_dense_part_survives_a_save_and_load_and_is_checked(tmp_path: Path) -> None:
    texts, _ = rows(20)
    zero = drawn(2, dense=dense_part(2))
    path = tmp_path / "zero.safetensors"
    zero.save(path)
    again = ExitZero.load(path, n_classes=2)
    np.testing.assert_array_equal(again.read_all(texts)[0], zero.read_all(texts)[0])
    part = dense_part(2)
    for changes in (
        {"shares": part.shares[1:]},
        {"shares": -part.shares},
        {"vectors": part.vectors[:, 1:]},
        {"hidden": part.hidden[:, 1:]},
        {"hidden_bias": part.hidden_bias[1:]},
        {"output": dense_part(3).output},
        {"vectors": part.vectors[:0], "shares": part.shares[:0]},
    ):
        replace(zero, dense=replace(part, **changes)).save(path)
        with pytest.raises(RunError, match=path.name):
            ExitZero.load(path, n_classes=2)


def states_of_tokens(*, noise: bool = False) -> NDArray[np.float32]:
    """What an encoder might say of tokens: from 5,000 on even ones lie on one side, odd ones on the other."""
    draws = np.random.default_rng(8)
    states = draws.normal(size=(6_000, 20)).astype(np.float32)
    if not noise:
        states[5_000:, 0] += np.where(np.arange(1_000) % 2, 6, -6)
    return states


def hinted(n: int, *, first: int, seed: int) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Texts of ten tokens, one of which hints at the class by being odd."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, 2, n)
    hints = 2 * draws.integers(first // 2, first // 2 + 60, n) + labels
    texts = [framed(*draws.integers(1000, 1100, 9), hint) for hint in hints]
    return texts, labels


def with_dense(states: NDArray[np.float32]) -> ExitZero:
    texts, labels = hinted(900, first=5_000, seed=1)
    given, told = (states, np.eye(2)[labels]), Notes()
    shape: dict[str, Any] = {"n_classes": 2, "frame": FRAME, "pairs": False}
    zero = fit_exit_zero(texts, labels, dense=given, seed=5, progress=told, **shape)
    assert told.bars == {"Fitting exit zero": [9, 9], "Fitting its dense part": [5, 5]}
    return zero


def test_the_dense_part_knows_words_that_no_training_row_had() -> None:
    zero = with_dense(states_of_tokens())
    assert zero.dense is not None
    texts, labels = hinted(300, first=5_200, seed=2)

    def accuracy(of: ExitZero) -> float:
        return float((of.read_all(texts)[0].argmax(axis=1) == labels).mean())

    assert accuracy(zero) > 0.9
    assert accuracy(replace(zero, dense=None)) < 0.65
    means = zero.dense.means(np.array(FRAME), [len(FRAME)])
    assert zero.dense.read_means(means).shape == (1, 2)
    assert not means.any()
    # Beside it the n-grams count by one factor, bias and weights alike.
    plain = fit(*hinted(900, first=5_000, seed=1))
    scale = zero.bias[1] / plain.bias[1]
    assert scale != pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(zero.weights, plain.weights * scale, rtol=2e-3, atol=1e-6)


def test_a_dense_part_that_does_not_help_is_left_out() -> None:
    assert with_dense(states_of_tokens(noise=True)).dense is None


def test_a_dense_part_is_better_by_more_than_a_standard_error() -> None:
    def said(*gains: float) -> NDArray[np.float64]:
        """Return logits that lose so much less than log 2 on class 1."""
        return np.array([[0, -math.log(2 * math.exp(-gain) - 1)] for gain in gains])

    labels, even, alike = np.ones(2, np.int64), np.zeros((2, 2)), np.ones(2)
    # A mean gain of 0.2 and a standard error of 0.3 / sqrt(2); then of 0.225 and 0.275 / sqrt(2).
    assert not _is_better(said(0.5, -0.1), even, labels, alike)
    assert _is_better(said(0.5, -0.05), even, labels, alike)
    # Weighted, the gains are 1 and -0.1, then 0.5 and -0.1.
    assert _is_better(said(0.5, -0.1), even, labels, np.array([2.0, 1.0]))
    assert not _is_better(said(0.5, -0.05), even, labels, np.array([1.0, 2.0]))
    # The n-grams alone may be made four times as sure.
    plain = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert not _is_better(3.9 * plain, plain, labels, alike)
    assert _is_better(4.1 * plain, plain, labels, alike)


def test_rows_of_a_group_are_on_one_side() -> None:
    shuffled = np.random.default_rng(3).permutation(500)
    groups = np.arange(500) // 7
    choosing, fitting = part_rows(shuffled, groups)
    assert 40 <= len(choosing) <= 50
    assert sorted([*choosing, *fitting]) == list(range(500))
    assert not set(groups[choosing]) & set(groups[fitting])
    alone = part_rows(shuffled, np.arange(500))[0]
    np.testing.assert_array_equal(alone, shuffled[:50])
    # Of groups of ten rows and of thirty, only the small ones may choose, if they are half of a tenth.
    mixed = [np.concatenate([np.arange(n) // 10, 9 + np.arange(500 - n) // 30]) for n in (20, 30)]
    assert sorted(part_rows(shuffled, mixed[1])[0]) == list(range(30))
    for large in (np.zeros(500, dtype=np.int64), np.arange(500) // 100, mixed[0]):
        np.testing.assert_array_equal(part_rows(shuffled, large)[0], shuffled[:50])


def test_targets_lean_on_what_the_exit_said_in_training() -> None:
    said = np.array([[0.6, 0.8], [np.nan, 1.0], [0.1, 0.1]], dtype=np.float32)
    found = soft_targets(said, np.array([0, 2, 1]), n_classes=3)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    half = SOFT / 2
    np.testing.assert_allclose(found[0], [1 - 2 * 0.3 * half, 0.3 * half, 0.3 * half], atol=1e-6)
    np.testing.assert_allclose(found[1], [0, 0, 1], atol=1e-6)
    np.testing.assert_allclose(found[2, 1], 1 - 0.9 * SOFT, atol=1e-6)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "zero.safetensors"

    def refused(n_classes: int) -> None:
        with pytest.raises(RunError, match=path.name):
            ExitZero.load(path, n_classes=n_classes)

    refused(2)
    path.write_bytes(b"nonsense")
    refused(2)
    drawn(2).save(path)
    assert ExitZero.load(path, n_classes=2).dense is None
    refused(3)
