"""What rows share: nearly equal texts, and held-out rows that training knows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimec.data import split_dataset
from dimec.data.likeness import SEPARATOR, Likeness, find_nearly_equal, stand_in
from tests.unit.test_data_splits import dataset_of

TEN = "the old printer on floor two will not print today"


def pairs_of(*texts: str) -> set[tuple[int, int]]:
    """Find them among texts, of which a bar parts those of a pair."""
    pytest.importorskip("datasketch")
    words = [tuple(text.split()) for text in texts]
    found = find_nearly_equal(
        [tuple(SEPARATOR if word == "|" else word for word in each) for each in words]
    )
    return {(min(pair), max(pair)) for pair in found}


def test_one_word_of_ten_is_nearly_equal_and_three_are_not() -> None:
    one = TEN.replace("two", "three")
    three = one.replace("old", "new").replace("today", "again")
    assert pairs_of(TEN, one, three) == {(0, 1)}


def test_short_texts_are_nearly_equal_to_none() -> None:
    assert pairs_of("all is well here", "here all is well") == set()


def test_of_a_pair_both_texts_have_to_be_nearly_equal() -> None:
    # The first texts alone would make them so.
    first, second = f"{TEN} {TEN.upper()} | yes it does", f"{TEN} {TEN.upper()} | no never"
    assert pairs_of(first, second) == set()
    assert pairs_of(first, f". {first}") == {(0, 1)}


@settings(max_examples=40)
@given(
    texts=st.lists(
        st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=9).map(tuple),
        unique=True,
        max_size=15,
    )
)
def test_every_pair_that_is_found_is_nearly_equal(texts: list[tuple[str, ...]]) -> None:
    pytest.importorskip("datasketch")
    for one, other in find_nearly_equal(texts):
        ours, theirs = set(texts[one]), set(texts[other])
        assert len(ours & theirs) >= 0.8 * len(ours | theirs)


def test_many_alike_are_one_group_and_take_no_square_of_comparisons() -> None:
    pytest.importorskip("datasketch")
    texts = [f"{TEN} ticket {i}" for i in range(2_000)]
    likeness = Likeness.of(dataset_of(texts, [i % 2 for i in range(2_000)]))
    assert set(likeness.groups.tolist()) == {0}
    assert len(likeness.near) <= 21 * 2_000


def test_nearly_equal_rows_are_kept_together_and_counted() -> None:
    pytest.importorskip("datasketch")
    texts = [f"{TEN} in building{i // 2} of area{i // 2}" for i in range(0, 200)]
    texts = [text.replace("today", "now") if i % 2 else text for i, text in enumerate(texts)]
    dataset = dataset_of(texts, [i // 2 % 2 for i in range(200)])
    likeness = Likeness.of(dataset)
    split = split_dataset(dataset, kind="grouped", likeness=likeness)
    sides = {row // 2 for row in split.train} & {row // 2 for row in split.held_out}
    assert sides == set()


def test_what_leaks_is_counted_by_rows() -> None:
    texts = ["the plot is thin", "Plot  is", "plot is", "a thin plot", "thin", "the", "else"]
    dataset = dataset_of(texts, [0, 1] * 3 + [0])
    leakage = Likeness.of(dataset).leakage(np.array([0, 5]), np.array([1, 2, 3, 4, 6]))
    assert (leakage.n_leaking, leakage.n_held_out) == (3, 5)
    assert leakage.share == 0.6
    assert len(leakage.examples) == 1


def test_an_equal_row_in_training_leaks() -> None:
    leakage = Likeness.of(dataset_of(["one", "ONE", "two"], [0, 1, 0])).leakage(
        np.array([0]), np.array([1, 2])
    )
    assert leakage.n_leaking == 1


def test_rows_that_stand_elsewhere_are_found_after_folding() -> None:
    ours = dataset_of(["The  Film", "a film"], [0, 1], ["x", "y"])
    theirs = dataset_of(["the film", "a film"], [1, 0], ["X", "z"])
    assert stand_in(ours, theirs).tolist() == [True, False]
