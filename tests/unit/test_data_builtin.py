"""The built-in corpus: the same everywhere, distinct, balanced, and not solved by words alone."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from dimec.data import TextDataset, reviews, split_dataset
from dimec.data.tasks import TASKS


@pytest.fixture(scope="module")
def corpus() -> TextDataset:
    return reviews()


def test_it_is_a_data_set_like_another(corpus: TextDataset) -> None:
    assert corpus.task is TASKS["reviews"]
    assert corpus.second is None
    assert corpus.row_ids.tolist() == list(range(6000))
    assert all(text.strip() == text and "{" not in text for text in corpus.first)
    assert max(len(text.split()) for text in corpus.first) < 50
    assert len({" ".join(text.split()).casefold() for text in corpus.first}) == 6000
    assert split_dataset(corpus).n_duplicates == 0


def test_classes_are_balanced(corpus: TextDataset) -> None:
    assert np.bincount(corpus.labels).tolist() == [3000, 3000]
    assert abs(int(reviews(101).labels.sum()) - 50) <= 1


def test_a_seed_is_one_corpus_whatever_the_hash_seed() -> None:
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
    assert reviews(300, seed=1).fingerprint not in prints


def test_words_alone_solve_most_but_not_all(corpus: TextDataset) -> None:
    split = split_dataset(corpus)
    rows = np.concatenate([split.validation, split.test])
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=1000)
    model.fit(vectors.fit_transform(corpus.take(split.train).first), corpus.labels[split.train])
    found = model.predict(vectors.transform(corpus.take(rows).first))
    assert 0.75 < (found == corpus.labels[rows]).mean() < 0.92
