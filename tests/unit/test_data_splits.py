"""Splits: sizes, strata, groups that are never torn, and what they count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dimec.core.errors import DataError
from dimec.core.split_choice import SplitChoice, SplitMade
from dimec.data import TextDataset, choose_split, split_dataset
from dimec.data.likeness import tie_to_holders
from dimec.data.splits import NOT_GIVEN, TEST, VALIDATION, Split
from dimec.data.tasks import Task
from tests.notes import Notes

GROUPED: tuple[SplitMade, ...] = ("random", "grouped")


def dataset_of(
    first: Sequence[str],
    labels: Sequence[int],
    second: Sequence[str] | None = None,
    times: Sequence[float] | None = None,
) -> TextDataset:
    names = tuple(f"class{code}" for code in range(max(labels) + 1))
    return TextDataset(
        task=Task("mine", names, "accuracy", ("text",)),
        first=tuple(first),
        second=None if second is None else tuple(second),
        labels=np.asarray(labels, dtype=np.int64),
        row_ids=np.arange(len(labels)),
        source="a test",
        times=None if times is None else np.asarray(times, dtype=np.float64),
    )


def part_of_each_row(split: Split) -> list[int]:
    parts = {}
    for part, rows in enumerate((split.train, split.validation, split.test)):
        assert rows.tolist() == sorted(rows.tolist())
        assert rows.dtype == np.int64
        for row in rows.tolist():
            assert row not in parts
            parts[row] = part
    return [parts[row] for row in sorted(parts)]


def folded(text: str) -> str:
    return " ".join(text.split()).casefold()


@pytest.mark.parametrize("kind", GROUPED)
def test_distinct_rows_are_split_80_10_10_within_each_class(kind: SplitMade) -> None:
    labels = [0] * 700 + [1] * 200 + [2] * 103
    split = split_dataset(dataset_of([f"row{i}" for i in range(1003)], labels), kind=kind, seed=3)
    parts = part_of_each_row(split)
    counts = np.zeros((3, 3), dtype=int)
    np.add.at(counts, (parts, labels), 1)
    assert counts.tolist() == [[560, 160, 83], [70, 20, 10], [70, 20, 10]]
    assert (split.n_duplicates, split.n_conflicts, split.n_groups) == (0, 0, 1003)
    assert (split.kind, split.seed) == (kind, 3)


@pytest.mark.parametrize("kind", GROUPED)
def test_a_seed_gives_one_split(kind: SplitMade) -> None:
    dataset = dataset_of([f"row{i // 2} x" for i in range(200)], [i // 2 % 2 for i in range(200)])
    parts = [part_of_each_row(split_dataset(dataset, kind=kind, seed=seed)) for seed in (1, 1, 2)]
    assert parts[0] == parts[1]
    assert parts[0] != parts[2]


def test_duplicates_are_counted_after_folding() -> None:
    texts = ["The Film", "the  film", " THE\tFILM ", "Straße", "STRASSE", *map(str, range(40))]
    labels = [0, 0, 1, 1, 1, *([0, 1] * 20)]
    split = split_dataset(dataset_of(texts, labels))
    assert (split.n_duplicates, split.n_conflicts, split.n_groups) == (3, 1, 42)
    parts = part_of_each_row(split)
    assert len(set(parts[:3])) == len(set(parts[3:5])) == 1


def test_a_pair_is_a_duplicate_only_in_both_texts() -> None:
    first = ["a b", "a", "A B", *map(str, range(30))]
    second = ["c", "b c", "C ", *map(str, range(30))]
    split = split_dataset(dataset_of(first, [0, 1, 0, *([0, 1] * 15)], second))
    assert split.n_duplicates == 1


def holders_of(*texts: str) -> list[int]:
    return [int(holder) for holder in tie_to_holders([tuple(text.split()) for text in texts])]


def test_only_whole_contiguous_words_count_as_a_part() -> None:
    assert holders_of("art", "a c", "a b c", "part b") == [0, 1, 2, 3]


def test_a_long_part_is_found_anywhere() -> None:
    words = [f"w{i}" for i in range(40)]
    whole = " ".join(words)
    parts = [" ".join(words[start : start + 7]) for start in (0, 5, 33)]
    assert holders_of(whole, *parts) == [0, 0, 0, 0]


def test_grouped_keeps_a_row_with_its_holder() -> None:
    texts, labels = [], []
    for i in range(60):
        texts += [f"n{i} plot is thin", f"n{i} plot", f"N{i}  Plot is", f"n{i}"]
        labels += [i % 2, i % 2, 0, 1]
    split = split_dataset(dataset_of(texts, labels), kind="grouped")
    assert split.n_groups == 60
    parts = np.reshape(part_of_each_row(split), (60, 4))
    assert (parts == parts[:, :1]).all()
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [192, 24, 24]


def test_grouped_pairs_are_parts_in_both_texts() -> None:
    # A part of a pair ends the first text and begins the second.
    first = ["it is so", "is so", "so", *(f"f{i}" for i in range(30))]
    second = ["we think", "we", "think", *(f"s{i}" for i in range(30))]
    split = split_dataset(dataset_of(first, [0, 1, 0, *([0, 1] * 15)], second), kind="grouped")
    assert split.n_groups == 32
    parts = part_of_each_row(split)
    assert parts[0] == parts[1]


def test_big_groups_do_not_upset_the_sizes() -> None:
    rng = np.random.default_rng(0)
    texts, labels = [], []
    for i in range(400):
        for j in range(int(rng.integers(1, 30))):
            texts.append(" ".join([f"g{i}", *(f"g{i}w{k}" for k in range(j))]))
            labels.append(int(rng.random() < 0.3))
    dataset = dataset_of(texts, labels)
    split = split_dataset(dataset, kind="grouped")
    assert split.n_groups == 400
    for rows, share in ((split.train, 0.8), (split.validation, 0.1), (split.test, 0.1)):
        assert abs(len(rows) / len(dataset) - share) < 0.01
        assert abs(dataset.labels[rows].mean() - dataset.labels.mean()) < 0.02


WORDS = st.lists(st.sampled_from("abcd"), min_size=1, max_size=5).map(" ".join)


@settings(max_examples=60)
@given(
    rows=st.lists(st.tuples(WORDS, st.integers(0, 1)), max_size=40),
    seed=st.integers(0, 5),
    kind=st.sampled_from(GROUPED),
)
def test_no_group_is_ever_torn(rows: list[tuple[str, int]], seed: int, kind: SplitMade) -> None:
    rows = rows + [(f"{i}{'X' if i % 3 else 'x'}", i % 2) for i in range(12)]
    texts = [text for text, _ in rows]
    parts = part_of_each_row(
        split_dataset(dataset_of(texts, [label for _, label in rows]), kind=kind, seed=seed)
    )
    assert len(parts) == len(rows)
    assert {(part, label) for part, (_, label) in zip(parts, rows, strict=True)} == {
        (part, label) for part in range(3) for label in range(2)
    }
    sides: defaultdict[str, set[int]] = defaultdict(set)
    for text, part in zip(texts, parts, strict=True):
        sides[folded(text)].add(part)
    assert all(len(side) == 1 for side in sides.values())
    if kind == "grouped":
        for text, side in sides.items():
            longer = [other for other in sides if other != text and f" {text} " in f" {other} "]
            if longer:
                longest = max(len(other.split()) for other in longer)
                homes = [sides[other] for other in longer if len(other.split()) == longest]
                assert side in homes


@settings(max_examples=60)
@given(texts=st.lists(WORDS, unique=True, max_size=25))
def test_ties_agree_with_plain_search(texts: list[str]) -> None:
    holders = holders_of(*texts)
    for number, text in enumerate(texts):
        holding = [i for i, other in enumerate(texts) if f" {text} " in f" {other} "]
        longest = max(len(texts[i].split()) for i in holding)
        assert holders[number] == min(i for i in holding if len(texts[i].split()) == longest)


@pytest.mark.parametrize(
    ("texts", "labels", "said"),
    [
        (list("abcdefg"), [0, 0, 0, 0, 0, 1, 1], "class0 5, class1 2"),
        (["same", "same", "Same", *"abcdefghi"], [1, 1, 1, *([0] * 9)], "class1 3 .1 that"),
        (list("abcdefghij"), [0] * 5 + [2] * 5, "class1 0"),
    ],
)
def test_too_few_rows_of_a_class(texts: list[str], labels: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        split_dataset(dataset_of(texts, labels))


def test_the_least_that_is_enough() -> None:
    split = split_dataset(dataset_of(list("abcdef"), [0, 0, 0, 1, 1, 1]))
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [2, 2, 2]


@pytest.mark.parametrize("kind", GROUPED)
def test_sizes_are_those_that_are_asked_for(kind: SplitMade) -> None:
    dataset = dataset_of([f"row{i}" for i in range(200)], [i % 2 for i in range(200)])
    split = split_dataset(dataset, kind=kind, sizes=(70, 20, 10))
    assert [len(rows) for rows in (split.train, split.validation, split.test)] == [140, 40, 20]


def test_a_split_by_time_trains_on_the_oldest_and_tests_on_the_newest() -> None:
    rng = np.random.default_rng(0)
    times = rng.permutation(100).astype(float)
    dataset = dataset_of(
        [f"row{i}" for i in range(100)], [i % 2 for i in range(100)], times=times.tolist()
    )
    split = split_dataset(dataset, kind="time")
    assert split.kind == "time"
    assert sorted(times[split.train]) == list(range(80))
    assert sorted(times[split.validation]) == list(range(80, 90))
    assert sorted(times[split.test]) == list(range(90, 100))


def test_a_class_that_is_new_cannot_be_learnt() -> None:
    labels = [i % 2 for i in range(90)] + [2] * 10
    dataset = dataset_of([f"row{i}" for i in range(100)], labels, times=range(100))
    with pytest.raises(DataError, match="class2"):
        split_dataset(dataset, kind="time")


@pytest.mark.parametrize(
    ("parts", "sizes"), [((TEST,), (90, 10, 20)), ((VALIDATION,), (90, 20, 10))]
)
def test_a_part_with_a_file_of_its_own_gets_no_other_rows(
    parts: tuple[int, ...], sizes: tuple[int, int, int]
) -> None:
    dataset = dataset_of([f"row{i}" for i in range(120)], [i % 2 for i in range(120)])
    given = np.full(120, NOT_GIVEN)
    given[100:] = parts[0]
    split = split_dataset(dataset, given=given)
    assert (len(split.train), len(split.validation), len(split.test)) == sizes
    assert (split.test if parts == (TEST,) else split.validation).tolist() == list(range(100, 120))


def test_files_for_both_parts_leave_nothing_to_split() -> None:
    given = np.array([NOT_GIVEN] * 6 + [VALIDATION] * 2 + [TEST] * 2)
    split, _ = choose_split(
        dataset_of(list("abcdefghij"), [0, 1] * 5), SplitChoice("grouped"), given=given
    )
    assert split.kind == "files"
    assert [each.tolist() for each in (split.train, split.validation, split.test)] == [
        [0, 1, 2, 3, 4, 5],
        [6, 7],
        [8, 9],
    ]


def phrases(n: int) -> TextDataset:
    """Give sentences, and of each the words that open it."""
    texts = [f"n{i} plot is thin" for i in range(n)] + [f"n{i} plot" for i in range(n)]
    return dataset_of(texts, [i % 2 for i in range(n)] * 2)


def test_auto_groups_what_would_leak() -> None:
    split, leakage = choose_split(phrases(100), SplitChoice())
    assert (split.kind, leakage.n_leaking, leakage.n_held_out) == ("grouped", 0, 40)
    random, leaking = choose_split(phrases(100), SplitChoice("random"))
    assert random.kind == "random"
    # Four fifths of the phrases that are held out have their sentence in training.
    assert 8 <= leaking.n_leaking <= 25


def test_auto_stays_at_random_where_nothing_leaks() -> None:
    dataset = dataset_of([f"row{i}" for i in range(100)], [i % 2 for i in range(100)])
    split, leakage = choose_split(dataset, SplitChoice())
    assert (split.kind, leakage.share) == ("random", 0)
    assert split.train.tolist() == split_dataset(dataset).train.tolist()


def test_auto_stays_at_random_where_groups_cannot_be_shared_out() -> None:
    texts = [f"part{i}" for i in range(30)]
    dataset = dataset_of([*texts, " ".join(texts)], [*([0, 1] * 15), 0])
    notes = Notes()
    split, leakage = choose_split(dataset, SplitChoice(), progress=notes)
    assert split.kind == "random"
    assert leakage.share > 0.5
    assert len(notes.warned) == 1
