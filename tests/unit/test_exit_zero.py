"""Exit zero: what it counts, that scoring equals the fitted regression, and what a damaged file does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dimec.errors import RunError
from dimec.exit_zero import N_BUCKETS, ExitZero, features
from dimec.training.exit_zero import fit_exit_zero

FRAME = (101, 102)


def framed(*ids: int) -> NDArray[np.int32]:
    return np.array([101, *ids, 102], dtype=np.int32)


def pair(first: list[int], second: list[int]) -> NDArray[np.int32]:
    return np.array([101, *first, 102, *second, 102], dtype=np.int32)


def of_text(ids: NDArray[np.int32]) -> list[int]:
    return sorted(features(ids, frame=FRAME, pairs=False).tolist())


def of_pair(ids: NDArray[np.int32]) -> set[int]:
    return set(features(ids, frame=FRAME, pairs=True).tolist())


def test_a_text_is_its_tokens_and_neighbours() -> None:
    assert len(of_text(framed(5, 6, 7))) == 5 + 4
    assert max(of_text(framed(*range(1000)))) < N_BUCKETS
    assert of_text(framed(5, 6)) != of_text(framed(6, 5))  # neighbours have an order
    assert len(set(of_text(framed(*range(2_000, 2_400))))) > 780  # and few share a bucket


def test_a_pair_is_compared() -> None:
    same, other = of_pair(pair([5, 6], [5, 6])), of_pair(pair([5, 6], [8, 9]))
    assert same != other
    # What is only in the first text is something else than what is only in the second.
    assert of_pair(pair([5], [6])) != of_pair(pair([6], [5]))


@pytest.mark.parametrize(
    "ids", [pair([], []), pair([5], []), pair([], [5]), np.array([], dtype=np.int32), framed(5)]
)
def test_a_pair_may_lack_a_text(ids: NDArray[np.int32]) -> None:
    assert of_pair(ids)


def test_roberta_has_two_separators_between_texts() -> None:
    one = np.array([0, 5, 6, 2, 2, 7, 2], dtype=np.int32)
    np.testing.assert_array_equal(
        features(one, frame=(0, 2), pairs=True),
        features(pair([5, 6], [7]), frame=FRAME, pairs=True),
    )


def rows(
    n: int, *, classes: int = 2, seed: int = 0
) -> tuple[list[NDArray[np.int32]], NDArray[np.int64]]:
    """Texts in which a token of its own hints at each class, beside ten that say nothing."""
    draws = np.random.default_rng(seed)
    labels = draws.integers(0, classes, n)
    texts = [
        framed(*draws.integers(1000, 1100, 9), 5000 + (label if draws.random() < 0.9 else 99))
        for label in labels
    ]
    return texts, labels


@pytest.mark.parametrize("classes", [2, 3])
def test_it_learns_words(classes: int) -> None:
    texts, labels = rows(600, classes=classes)
    zero = fit_exit_zero(texts, labels, n_classes=classes, frame=FRAME, pairs=False, seed=0)
    fresh, truth = rows(400, classes=classes, seed=1)
    assert (zero.logits_of(fresh).argmax(axis=1) == truth).mean() > 0.8
    again = fit_exit_zero(texts, labels, n_classes=classes, frame=FRAME, pairs=False, seed=0)
    np.testing.assert_array_equal(again.weights, zero.weights)


def test_a_class_without_rows_is_never_said() -> None:
    texts, labels = rows(200)
    zero = fit_exit_zero(texts, labels, n_classes=3, frame=FRAME, pairs=False, seed=0)
    assert set(zero.logits_of(texts).argmax(axis=1).tolist()) <= {0, 1}
    one = fit_exit_zero(texts, labels * 0, n_classes=2, frame=FRAME, pairs=False, seed=0)
    assert np.isfinite(one.logits_of(texts)).all()


def test_scores_are_tf_idf_times_weights() -> None:
    texts, labels = rows(300)
    zero = fit_exit_zero(texts, labels, n_classes=2, frame=FRAME, pairs=False, seed=0)
    counts = np.bincount(features(texts[0], frame=FRAME, pairs=False), minlength=N_BUCKETS)
    idf = np.sqrt(zero.squares.astype(float))
    length = np.sqrt((counts * idf**2).sum())
    weights = zero.weights.astype(float) / idf[:, None]
    expected = (counts * idf / length) @ weights + zero.bias
    np.testing.assert_allclose(zero.logits(texts[0]), expected, rtol=1e-3, atol=1e-4)


def test_survives_a_save_and_load(tmp_path: Path) -> None:
    texts, labels = rows(200)
    zero = fit_exit_zero(texts, labels, n_classes=2, frame=FRAME, pairs=False, seed=0)
    zero.save(tmp_path / "zero.safetensors")
    again = ExitZero.load(tmp_path / "zero.safetensors", n_classes=2)
    assert (again.frame, again.pairs) == (FRAME, False)
    np.testing.assert_array_equal(again.logits_of(texts), zero.logits_of(texts))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "zero.safetensors"
    with pytest.raises(RunError, match="missing"):
        ExitZero.load(path, n_classes=2)
    path.write_bytes(b"nonsense")
    with pytest.raises(RunError, match="damaged"):
        ExitZero.load(path, n_classes=2)
    texts, labels = rows(100)
    zero = fit_exit_zero(texts, labels, n_classes=2, frame=FRAME, pairs=False, seed=0)
    zero.save(path)
    with pytest.raises(RunError, match="must be"):
        ExitZero.load(path, n_classes=3)
