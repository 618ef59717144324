"""The built-in corpus: the same everywhere, distinct, balanced, and of graded difficulty."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dimec.core.errors import OptionError
from dimec.data import (
    DIFFICULTIES,
    TASKS,
    GradedReviews,
    reviews,
    reviews_with_difficulty,
    split_dataset,
)


@pytest.fixture(scope="module")
def graded() -> GradedReviews:
    return reviews_with_difficulty()


def test_it_is_a_data_set_like_another(graded: GradedReviews) -> None:
    dataset = graded.dataset
    assert dataset.task is TASKS["reviews"]
    assert len(dataset) == 6000
    assert dataset.second is None
    assert dataset.row_ids.tolist() == list(range(6000))
    assert all(text.strip() == text and "{" not in text for text in dataset.first)
    assert max(len(text.split()) for text in dataset.first) < 50


def test_all_rows_are_distinct_after_folding(graded: GradedReviews) -> None:
    assert len({" ".join(text.split()).casefold() for text in graded.dataset.first}) == 6000
    assert split_dataset(graded.dataset).n_duplicates == 0


def test_classes_are_balanced_and_noise_is_four_percent(graded: GradedReviews) -> None:
    assert np.bincount(graded.dataset.labels).tolist() == [3000, 3000]
    assert graded.is_noise.sum() == 240
    assert abs(int(reviews(101).labels.sum()) - 50) <= 1


def test_every_difficulty_has_its_share(graded: GradedReviews) -> None:
    shares = np.bincount(graded.difficulty, minlength=len(DIFFICULTIES)) / 6000
    assert DIFFICULTIES == ("easy", "medium", "hard")
    assert shares.min() > 0.15
    assert shares[0] > shares[1] > shares[2]


def test_a_seed_is_one_corpus() -> None:
    assert reviews(300).fingerprint == reviews(300).fingerprint
    assert reviews(300, seed=1).fingerprint != reviews(300).fingerprint


def test_the_corpus_does_not_hang_on_the_hash_seed() -> None:
    code = "from dimec.data import reviews; print(reviews(300).fingerprint)"
    prints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert prints == {reviews(300).fingerprint}


@pytest.mark.parametrize("n_rows", [0, 39, 100_001])
def test_sizes_out_of_range(n_rows: int) -> None:
    with pytest.raises(OptionError, match="40 to 100,000 rows"):
        reviews(n_rows)


def right_per_row(graded: GradedReviews, rows: NDArray[np.int64], split_train: Any) -> Any:
    text: Any = pytest.importorskip("sklearn.feature_extraction.text")
    linear: Any = pytest.importorskip("sklearn.linear_model")
    first, labels = graded.dataset.first, graded.dataset.labels
    vectors = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = linear.LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform([first[row] for row in split_train]), labels[split_train])
    return model.predict(vectors.transform([first[row] for row in rows])) == labels[rows]


def test_words_alone_solve_most_but_not_all(graded: GradedReviews) -> None:
    split = split_dataset(graded.dataset)
    rows = np.concatenate([split.validation, split.test])
    is_right = right_per_row(graded, rows, split.train)
    assert 0.75 < is_right.mean() < 0.92
    by_level = [is_right[graded.difficulty[rows] == level].mean() for level in range(3)]
    assert by_level[0] > 0.88
    assert max(by_level[1:]) < by_level[0] - 0.08
